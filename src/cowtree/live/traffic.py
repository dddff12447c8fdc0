"""Requests in flight: who waits for them, and what must not be used again before they have ended.

A request costs two stores into a slot of its own thread and no lock. Turns count upwards: what is let go at a turn may
be used again when every request that began before has ended.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

IDLE: Final = 0
POLL_S: Final = 0.001

Slot = list[int]


class _Own(threading.local):
    """The slot of each thread, made when it first asks."""

    def __init__(self, traffic: "Traffic") -> None:
        self.slot = traffic.register()


class Traffic:
    """The requests of one disk that have begun and not ended. They do not nest."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slots: list[tuple[threading.Thread, Slot]] = []
        self._turn = 1
        self._gate = threading.Event()
        self._is_open = True
        self._draining = threading.Lock()
        self._own = _Own(self)

    def register(self) -> Slot:
        """A slot for this thread; those of threads that have ended go."""
        slot = [IDLE]
        with self._lock:
            self._slots = [each for each in self._slots if each[0].is_alive()]
            self._slots.append((threading.current_thread(), slot))
        return slot

    def enter(self) -> Slot:
        """A request begins; it waits while the disk is drained. Returns: what `leave` sets back."""
        slot = self._own.slot
        slot[0] = self._turn
        # The drain closes the gate before it looks at the slots, so one of the two sees the other.
        while not self._is_open:
            slot[0] = IDLE
            self._gate.wait()
            slot[0] = self._turn
        return slot

    def let_go(self) -> int:
        """Something is out of use from now on. Returns: the turn to ask `has_passed` for."""
        with self._lock:
            self._turn += 1
            return self._turn

    def has_passed(self, turn: int) -> bool:
        """Whether every request has ended that began before a turn; the one that asks does not count."""
        own = self._own.slot
        with self._lock:
            return all(slot[0] == IDLE or slot[0] >= turn or slot is own for _, slot in self._slots)

    def wait_past(self) -> None:
        """Wait until every request has ended that has begun by now; new ones go on. Not from within a request."""
        turn = self.let_go()
        while not self.has_passed(turn):
            time.sleep(POLL_S)

    @contextmanager
    def drain(self) -> Iterator[None]:
        """Wait for all requests, and hold new ones until the block ends. Not from within a request."""
        with self._draining:
            self._gate.clear()
            self._is_open = False
            try:
                turn = self.let_go()
                while not self.has_passed(turn):
                    self._gate.wait(POLL_S)
                yield
            finally:
                self._is_open = True
                self._gate.set()
