"""What servers share, whatever they speak: places to listen in, and a thread for each client that comes there.

A server that is short of descriptors or threads goes on taking clients when there are some again. When it stops nobody
is left over: no thread, no descriptor.
"""

import errno
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Generic, Protocol, TypeVar

from cowtree.errors import StorageFailed, WrongUse

BACKLOG: Final = 64
SOCKET_MODE: Final = 0o600
# What an accept may say though the next one may succeed; and how long to wait for that.
PASSING_ERRORS: Final = (errno.ECONNABORTED, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPROTO)
RETRY_S: Final = 0.1
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")

Tell = Callable[[str], None]


class Client(Protocol):
    """One client of a server."""

    def close(self) -> None:
        """Let whoever waits for it wait no longer, and give the descriptor back."""


C = TypeVar("C", bound=Client)


class Reception(Generic[C]):
    """Takes clients in: `welcome` makes one of a connection, `converse` is all that is done with it. Whoever comes when
    there are `count_max` of them, which are called `kind`, is sent away; `tell` hears of that.
    """

    def __init__(
        self,
        welcome: Callable[[socket.socket], C],
        converse: Callable[[C], None],
        *,
        count_max: int,
        kind: str,
        tell: Tell,
    ) -> None:
        self._welcome = welcome
        self._converse = converse
        self._count_max = count_max
        self._kind = kind
        self._tell = tell
        self._lock = threading.Lock()
        self._listeners: list[socket.socket] = []
        self._clients: set[C] = set()
        self._threads: set[threading.Thread] = set()
        self._is_closed = False

    def listen(self, listener: socket.socket) -> None:
        """Take in whoever connects to a socket that listens, from now on."""
        with self._lock:
            self._listeners.append(listener)
        self._start(lambda: self._accept(listener))

    @property
    def clients(self) -> list[C]:
        """Who is there."""
        with self._lock:
            return list(self._clients)

    def close_doors(self) -> list[C]:
        """Take no more clients in. Returns: those that are there."""
        with self._lock:
            self._is_closed = True
            listeners, clients = list(self._listeners), list(self._clients)
        for listener in listeners:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
        return clients

    def wait_until_empty(self, end_s: float) -> None:
        """Wait for all threads, but not past a moment of the monotonic clock."""
        for thread in list(self._threads):
            thread.join(max(end_s - time.monotonic(), 0))

    def leave(self) -> None:
        """Give back where it listened."""
        for listener in self._listeners:
            listener.close()

    def _start(self, act: Callable[[], None]) -> None:
        """Do something in a thread of its own. Raises: RuntimeError when there can be no more threads."""

        def run() -> None:
            try:
                act()
            finally:
                with self._lock:
                    self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=run, daemon=True)
        # Whoever waits for the threads never meets one that has not begun.
        with self._lock:
            thread.start()
            self._threads.add(thread)

    def _accept(self, listener: socket.socket) -> None:
        while not self._is_closed:
            try:
                peer, _ = listener.accept()
            except OSError as error:
                if self._is_closed or error.errno not in PASSING_ERRORS:
                    return
                # Descriptors come free when somebody goes.
                time.sleep(RETRY_S)
                continue
            self._take_in(self._welcome(peer))

    def _take_in(self, client: C) -> None:
        with self._lock:
            is_taken = len(self._clients) < self._count_max and not self._is_closed
            if is_taken:
                self._clients.add(client)
        if not is_taken:
            self._tell(f"there are {self._count_max} {self._kind} already: one more is refused")
            client.close()
            return
        try:
            self._start(lambda: self._entertain(client))
        except RuntimeError as error:
            self._tell(str(error))
            self._forget(client)

    def _entertain(self, client: C) -> None:
        try:
            self._converse(client)
        finally:
            self._forget(client)

    def _forget(self, client: C) -> None:
        client.close()
        with self._lock:
            self._clients.discard(client)


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
        raise _no_place(path, error) from error
    finally:
        os.umask(before)
    return listener


def listen_on_port(address: str, port: int, *, is_secure: bool = False) -> socket.socket:
    """A TCP socket; away from this machine only with TLS. Raises: WrongUse, StorageFailed."""
    if address not in LOOPBACK and not is_secure:
        raise WrongUse(reason=f"{address} can be reached from elsewhere, which needs TLS", hint="127.0.0.1, or TLS")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(BACKLOG)
    except (OSError, OverflowError, ValueError) as error:
        listener.close()
        raise _no_place(f"{address}:{port}", error) from error
    return listener


def _no_place(place: str, error: Exception) -> StorageFailed:
    """What the system says of a place to listen in, some of it without a number."""
    code, reason = getattr(error, "errno", None), getattr(error, "strerror", None) or str(error)
    hint = "another place, or end whoever listens there" if code == errno.EADDRINUSE else "another place to listen"
    return StorageFailed(path=place, action="listening", reason=reason, errno=code, hint=hint)
