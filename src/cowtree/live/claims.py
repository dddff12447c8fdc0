"""Which layers of a disk a job works on, so that no two of them work on the same one."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from cowtree.errors import Refused

HINT: Final = "wait until it has ended, or cancel it"


class Claims:
    """The jobs of one disk, by their events that say: stop."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held: dict[threading.Event, frozenset[int]] = {}
        self._is_over = False

    @contextmanager
    def hold(self, numbers: frozenset[int], stop: threading.Event) -> Iterator[None]:
        """Layers are a job's own while the block runs. Raises: Refused when some are another's."""
        with self._changed:
            if self._is_over:
                raise Refused(reason="the disk is closed")
            if any(numbers & others for others in self._held.values()):
                raise Refused(reason="another job works on some of these layers", hint=HINT)
            self._held[stop] = numbers
        try:
            yield
        finally:
            with self._changed:
                del self._held[stop]
                self._changed.notify_all()

    def end(self) -> None:
        """Stop all jobs, wait for them, and let none begin any more."""
        with self._changed:
            self._is_over = True
            for stop in self._held:
                stop.set()
            self._changed.wait_for(lambda: not self._held)
