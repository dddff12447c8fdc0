"""Monitors on a socket: one thread reads from a client and carries out what it asks, one writes to it.

Commands of all clients are carried out one at a time. A client that does not read its answers is not read from either;
one that does not read its events is let go, and nobody else waits for it.
"""

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Final, NamedTuple

from cowtree.qmp import wire
from cowtree.qmp.session import Handler, Session
from cowtree.qmp.wire import Json
from cowtree.sockets import Reception, Tell

_RECEIVE_BYTES: Final = 1 << 16


class Limits(NamedTuple):
    """How many clients there may be at once, and how much may wait for each."""

    connection_count_max: int = 32
    waiting_bytes_max: int = 4 << 20


LIMITS: Final = Limits()


class _Connection:
    """One client, and what waits to be sent to it."""

    def __init__(self, peer: socket.socket, session: Session, limits: Limits) -> None:
        self.peer = peer
        self.session = session
        self._limits = limits
        self._waiting = deque[bytes]()
        self._waiting_bytes = 0
        self._changed = threading.Condition()
        self._is_last = False
        self._is_over = False

    def say(self, data: bytes) -> None:
        """Send an answer, as soon as the client has taken enough of what was sent before."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or self._waiting_bytes < self._limits.waiting_bytes_max // 2)
            self._add(data)

    def tell(self, data: bytes) -> bool:
        """Send an event without waiting. Returns: whether there was room for it."""
        with self._changed:
            if self._waiting_bytes + len(data) > self._limits.waiting_bytes_max and not self._is_over:
                return False
            self._add(data)
        return True

    def _add(self, data: bytes) -> None:
        if self._is_over:
            return
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        self._changed.notify_all()

    def write(self) -> None:
        """Send what there is to send, until it is over."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_last or self._is_over)
                data = b"".join(self._waiting)
                self._waiting.clear()
                if self._is_over or not data:
                    break
            try:
                self.peer.sendall(data)
            except OSError:
                # A client may go whenever it likes.
                break
            with self._changed:
                self._waiting_bytes -= len(data)
                self._changed.notify_all()
        self.end()

    def stop_reading(self) -> None:
        """Take no more commands than were sent by now."""
        with suppress(OSError):
            self.peer.shutdown(socket.SHUT_RD)

    def finish(self) -> None:
        """Send what waits, and nothing more."""
        with self._changed:
            self._is_last = True
            self._changed.notify_all()

    def end(self) -> None:
        """Let whoever waits for the client wait no longer."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        with suppress(OSError):
            self.peer.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End it, and give the descriptor back."""
        self.end()
        self.peer.close()


class _OneAtATime:
    """A handler that several threads may ask."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._lock = threading.Lock()

    def commands(self) -> Collection[str]:
        return self._handler.commands()

    def answer(self, command: str, arguments: dict[str, Json]) -> Json:
        with self._lock:
            return self._handler.answer(command, arguments)


class Server:
    """Serves monitors on sockets that listen. `tell` hears what is wrong with clients, `clock_ns` tells the time."""

    def __init__(
        self,
        handler: Handler,
        *,
        limits: Limits = LIMITS,
        tell: Tell = lambda text: None,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._handler = _OneAtATime(handler)
        self._limits = limits
        self._tell = tell
        self._clock_ns = clock_ns
        # Events have one order, which is the same for all.
        self._order = threading.Lock()
        count_max = limits.connection_count_max
        self._reception = Reception(self._welcome, self._converse, count_max=count_max, kind="monitors", tell=tell)

    def _welcome(self, peer: socket.socket) -> _Connection:
        return _Connection(peer, Session(self._handler), self._limits)

    def listen(self, listener: socket.socket) -> None:
        """Serve whoever connects to a socket that listens, from now on."""
        self._reception.listen(listener)

    def send_event(self, name: str, data: Mapping[str, Json] | None = None) -> None:
        """Tell every client that hears events; waits for none."""
        with self._order:
            message = wire.event(name, data, self._clock_ns() // 1000)
            for connection in self._reception.clients:
                if not connection.session.hears_events:
                    continue
                if not connection.tell(message):
                    self._tell("a monitor does not read its events: it is let go")
                    connection.end()

    @property
    def connection_count(self) -> int:
        """How many clients there are."""
        return len(self._reception.clients)

    def stop(self, wait_s: float = 5.0) -> None:
        """Take no more clients, send those that there are what waits for them, and let them go. Not for a handler to
        call, whose own answer is among what waits.
        """
        connections = self._reception.close_doors()
        for connection in connections:
            connection.stop_reading()
        end_s = time.monotonic() + wait_s
        self._reception.wait_until_empty(end_s - wait_s / 2)
        for connection in connections:
            connection.end()
        self._reception.wait_until_empty(end_s)
        self._reception.leave()

    def _converse(self, connection: _Connection) -> None:
        """All of one connection."""
        writer = threading.Thread(target=connection.write, daemon=True)
        try:
            writer.start()
        except RuntimeError as error:
            self._tell(str(error))
            return
        is_whole = False
        try:
            # A client may go whenever it likes.
            with suppress(OSError):
                connection.say(wire.greeting())
                while data := connection.peer.recv(_RECEIVE_BYTES):
                    for answer in connection.session.receive(data):
                        connection.say(answer)
                # It says no more, but may still read.
                connection.finish()
                is_whole = True
        finally:
            if not is_whole:
                connection.end()
            writer.join()
