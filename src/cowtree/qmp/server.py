"""Monitors on a socket: one thread reads from a client and carries out what it asks, one writes to it.

Commands of all clients are carried out one at a time. A client that does not read its answers is not read from either;
one that does not read its events is let go, and nobody else waits for it.
"""

import errno
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Final, NamedTuple

from cowtree.errors import StorageFailed
from cowtree.qmp import wire
from cowtree.qmp.session import Handler, Session
from cowtree.qmp.wire import Json

BACKLOG: Final = 16
SOCKET_MODE: Final = 0o600
_RECEIVE_BYTES: Final = 1 << 16
# What an accept may say though the next one may succeed; and how long to wait for that.
PASSING_ERRORS: Final = (errno.ECONNABORTED, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPROTO)
RETRY_S: Final = 0.1

Tell = Callable[[str], None]


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
        self._lock = threading.Lock()
        # Events have one order, which is the same for all.
        self._order = threading.Lock()
        self._listeners: list[socket.socket] = []
        self._connections: set[_Connection] = set()
        self._threads: set[threading.Thread] = set()
        self._is_stopping = False

    def listen(self, listener: socket.socket) -> None:
        """Serve whoever connects to a socket that listens, from now on."""
        with self._lock:
            self._listeners.append(listener)
        self._start(self._accept, listener)

    def send_event(self, name: str, data: Mapping[str, Json] | None = None) -> None:
        """Tell every client that hears events; waits for none."""
        with self._order:
            message = wire.event(name, data, self._clock_ns() // 1000)
            with self._lock:
                connections = [each for each in self._connections if each.session.hears_events]
            for connection in connections:
                if not connection.tell(message):
                    self._tell("a monitor does not read its events: it is let go")
                    connection.end()

    @property
    def connection_count(self) -> int:
        """How many clients there are."""
        return len(self._connections)

    def stop(self, wait_s: float = 5.0) -> None:
        """Take no more clients, send those that there are what waits for them, and let them go. Not for a handler to
        call, whose own answer is among what waits.
        """
        with self._lock:
            self._is_stopping = True
            listeners, connections = list(self._listeners), list(self._connections)
        for listener in listeners:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
        for connection in connections:
            connection.stop_reading()
        end_s = time.monotonic() + wait_s
        self._join(time.monotonic() + wait_s / 2)
        for connection in connections:
            connection.end()
        self._join(end_s)
        for listener in listeners:
            listener.close()

    def _join(self, end_s: float) -> None:
        for thread in list(self._threads):
            thread.join(max(end_s - time.monotonic(), 0))

    def _start(self, act: Callable[..., None], *values: object) -> None:
        """Do something in a thread of its own. Raises: RuntimeError when there can be no more threads."""

        def run() -> None:
            try:
                act(*values)
            finally:
                with self._lock:
                    self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=run, daemon=True)
        # Whoever waits for the threads never meets one that has not begun.
        with self._lock:
            thread.start()
            self._threads.add(thread)

    def _accept(self, listener: socket.socket) -> None:
        while not self._is_stopping:
            try:
                peer, _ = listener.accept()
            except OSError as error:
                if self._is_stopping or error.errno not in PASSING_ERRORS:
                    return
                # Descriptors come free when somebody goes.
                time.sleep(RETRY_S)
                continue
            connection = _Connection(peer, Session(self._handler), self._limits)
            with self._lock:
                is_taken = len(self._connections) < self._limits.connection_count_max and not self._is_stopping
                if is_taken:
                    self._connections.add(connection)
            if not is_taken:
                self._tell(f"there are {self._limits.connection_count_max} monitors already: one more is refused")
                peer.close()
                continue
            try:
                self._start(self._converse, connection)
            except RuntimeError as error:
                self._tell(str(error))
                self._forget(connection)

    def _forget(self, connection: _Connection) -> None:
        connection.end()
        connection.peer.close()
        with self._lock:
            self._connections.discard(connection)

    def _converse(self, connection: _Connection) -> None:
        """All of one connection."""
        writer = threading.Thread(target=connection.write, daemon=True)
        try:
            writer.start()
        except RuntimeError as error:
            self._tell(str(error))
            self._forget(connection)
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
            self._forget(connection)


def listen_on_path(path: str) -> socket.socket:
    """A unix socket for nobody else. Raises: StorageFailed."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # From the very beginning nobody else may connect.
    before = os.umask(0o777 & ~SOCKET_MODE)
    try:
        listener.bind(path)
        listener.listen(BACKLOG)
    except (OSError, ValueError) as error:
        listener.close()
        code, reason = getattr(error, "errno", None), getattr(error, "strerror", None) or str(error)
        hint = "another place, or end whoever listens there" if code == errno.EADDRINUSE else "another place to listen"
        raise StorageFailed(path=path, action="listening", reason=reason, errno=code, hint=hint) from error
    finally:
        os.umask(before)
    return listener
