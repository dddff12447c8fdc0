"""A server: a thread for each connection, blocking sockets, and the protocol's tables in between.

While more whole requests are in what a client sent already, answers wait, and go out together.
"""

import errno
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple

from cowtree.errors import BrokenPeer, CowtreeError, StorageFailed, WrongUse
from cowtree.nbd import wire
from cowtree.nbd.negotiation import Ended, Exports, Negotiation, Opened, Send, StartTls
from cowtree.nbd.stream import Gone, Inbox, send
from cowtree.nbd.transmission import HEAD_BYTES, Transmission, parse

ANSWER_BYTES_MAX: Final = 256 << 10
PIECE_COUNT_MAX: Final = 512
BACKLOG: Final = 64
SOCKET_MODE: Final = 0o600
# What an accept may say though the next one may succeed; and how long to wait for that.
PASSING_ERRORS: Final = (errno.ECONNABORTED, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPROTO)
RETRY_S: Final = 0.1
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")

Tell = Callable[[str], None]


class Limits(NamedTuple):
    """How many clients there may be at once, and how long each may take until it has opened an export."""

    connection_count_max: int = 100
    handshake_s: float = 10.0


LIMITS: Final = Limits()


class _Connection:
    """One client, first in plain and then perhaps secure."""

    def __init__(self, peer: socket.socket) -> None:
        self.peer = peer
        if peer.family != socket.AF_UNIX:
            with suppress(OSError):
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def secure(self, context: ssl.SSLContext) -> None:
        """Shake hands for TLS. Raises: ssl.SSLError, OSError."""
        # Not at once: what is waited for must be within reach of whoever ends the connection.
        self.peer = context.wrap_socket(self.peer, server_side=True, do_handshake_on_connect=False)
        self.peer.do_handshake()

    def end_at(self, end_s: float) -> None:
        """Wait no longer than this for the client. Raises: BrokenPeer when it is too late already."""
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            raise BrokenPeer(reason="its handshake took too long")
        self.peer.settimeout(left_s)

    def end(self) -> None:
        """Let whoever waits for the client, or for room to send, wait no longer."""
        with suppress(OSError):
            # Not the method of a secure socket, behind which it would be a plain one.
            socket.socket.shutdown(self.peer, socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the descriptor back."""
        self.peer.close()


class Server:
    """Serves exports on sockets that listen. `tell` hears what is wrong with clients."""

    def __init__(
        self,
        exports: Exports,
        *,
        tls: ssl.SSLContext | None = None,
        needs_tls: bool = False,
        limits: Limits = LIMITS,
        tell: Tell = lambda text: None,
    ) -> None:
        self._exports = exports
        self._tls = tls
        self._needs_tls = needs_tls
        self._limits = limits
        self._tell = tell
        self._lock = threading.Lock()
        self._listeners: list[socket.socket] = []
        self._connections: set[_Connection] = set()
        self._threads: set[threading.Thread] = set()
        self._is_stopping = False

    def listen(self, listener: socket.socket) -> None:
        """Serve whoever connects to a socket that listens, from now on."""
        with self._lock:
            self._listeners.append(listener)
        self._start(self._accept, listener)

    def stop(self, wait_s: float = 5.0) -> None:
        """Take no more connections, end those that there are, and wait for their threads."""
        with self._lock:
            self._is_stopping = True
            listeners, connections = list(self._listeners), list(self._connections)
        for listener in listeners:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
        for connection in connections:
            connection.end()
        end_s = time.monotonic() + wait_s
        for thread in list(self._threads):
            thread.join(max(end_s - time.monotonic(), 0))
        for listener in listeners:
            listener.close()

    @property
    def connection_count(self) -> int:
        """How many clients there are."""
        return len(self._connections)

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
            connection = _Connection(peer)
            with self._lock:
                is_taken = len(self._connections) < self._limits.connection_count_max and not self._is_stopping
                if is_taken:
                    self._connections.add(connection)
            if not is_taken:
                self._tell(f"there are {self._limits.connection_count_max} connections already: one more is refused")
                connection.close()
                continue
            try:
                self._start(self._converse, connection)
            except RuntimeError as error:
                self._tell(str(error))
                self._forget(connection)

    def _forget(self, connection: _Connection) -> None:
        connection.close()
        with self._lock:
            self._connections.discard(connection)

    def _converse(self, connection: _Connection) -> None:
        """All of one connection."""
        try:
            opened, rest = self._negotiate(connection)
            if opened is not None:
                connection.peer.settimeout(None)
                transmission = Transmission(opened.export, is_structured=opened.is_structured, contexts=opened.contexts)
                serve(connection.peer, transmission, rest)
        except CowtreeError as error:
            self._tell(str(error))
        except ssl.SSLError as error:
            self._tell(str(BrokenPeer(reason=f"TLS failed: {error.reason or error}")))
        except (Gone, OSError):
            # A client may go whenever it likes.
            pass
        finally:
            self._forget(connection)

    def _negotiate(self, connection: _Connection) -> tuple[Opened | None, bytes]:
        """Shake hands. Returns: what was opened, and what the client sent since. Raises: BrokenPeer, Gone, OSError."""
        end_s = time.monotonic() + self._limits.handshake_s
        negotiation = Negotiation(self._exports, offers_tls=self._tls is not None, needs_tls=self._needs_tls)
        connection.peer.sendall(negotiation.greeting())
        while True:
            connection.end_at(end_s)
            data = connection.peer.recv(wire.OPTION_BYTES_MAX)
            if not data:
                raise Gone
            for event in negotiation.receive(data):
                connection.end_at(end_s)
                match event:
                    case Send(data=answer):
                        connection.peer.sendall(answer)
                    case StartTls() if self._tls is not None:
                        connection.secure(self._tls)
                        negotiation.secure()
                    case Opened():
                        return event, negotiation.leftover
                    case Ended():
                        return None, b""


def serve(peer: socket.socket, transmission: Transmission, begin: bytes = b"") -> None:
    """Answer requests until the client ends it. Raises: BrokenPeer, Gone, OSError."""
    inbox = Inbox(peer, begin)
    answers: list[bytes | bytearray | memoryview] = []
    waiting_bytes = 0
    while True:
        if answers and (
            not inbox.has(HEAD_BYTES) or waiting_bytes > ANSWER_BYTES_MAX or len(answers) > PIECE_COUNT_MAX
        ):
            send(peer, answers)
            answers, waiting_bytes = [], 0
        request = parse(inbox.take(HEAD_BYTES))
        if request.type == wire.CMD_DISC:
            send(peer, answers)
            return
        payload_bytes = request.payload_bytes
        if payload_bytes and answers and not inbox.has(payload_bytes):
            send(peer, answers)
            answers, waiting_bytes = [], 0
        answer = transmission.answer(request, inbox.take(payload_bytes) if payload_bytes else None)
        answers += answer
        waiting_bytes += sum(map(len, answer))


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
