"""A server: a thread for each connection, blocking sockets, and the protocol's tables in between.

While more whole requests are in what a client sent already, answers wait, and go out together.
"""

import socket
import ssl
import time
from contextlib import suppress
from typing import Final, NamedTuple

from cowtree.errors import BrokenPeer, CowtreeError
from cowtree.nbd import wire
from cowtree.nbd.negotiation import Ended, Exports, Negotiation, Opened, Send, StartTls
from cowtree.nbd.stream import Gone, Inbox, send
from cowtree.nbd.transmission import HEAD_BYTES, Transmission, parse
from cowtree.sockets import Reception, Tell

ANSWER_BYTES_MAX: Final = 256 << 10
PIECE_COUNT_MAX: Final = 512


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
        count_max = limits.connection_count_max
        self._reception = Reception(_Connection, self._converse, count_max=count_max, kind="connections", tell=tell)

    def listen(self, listener: socket.socket) -> None:
        """Serve whoever connects to a socket that listens, from now on."""
        self._reception.listen(listener)

    def stop(self, wait_s: float = 5.0) -> None:
        """Take no more connections, end those that there are, and wait for their threads."""
        for connection in self._reception.close_doors():
            connection.end()
        self._reception.wait_until_empty(time.monotonic() + wait_s)
        self._reception.leave()

    @property
    def connection_count(self) -> int:
        """How many clients there are."""
        return len(self._reception.clients)

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
