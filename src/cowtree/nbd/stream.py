"""Bytes in and out of a socket: what comes is taken in pieces of known length, what goes goes whole."""

import socket
import ssl
from collections.abc import Sequence
from typing import Final

INBOX_BYTES: Final = 256 << 10
LARGE_KEPT_BYTES_MAX: Final = 2 << 20


class Gone(Exception):
    """The other end has ended the connection."""


class Inbox:
    """What the other end sends, taken in pieces of known length."""

    def __init__(self, peer: socket.socket, begin: bytes = b"") -> None:
        self._peer = peer
        self._buffer = memoryview(bytearray(max(INBOX_BYTES, len(begin))))
        self._buffer[: len(begin)] = begin
        self._begin, self._end = 0, len(begin)
        self._large = bytearray()

    def has(self, length: int) -> bool:
        """Whether so much has come already."""
        return self._end - self._begin >= length

    def take(self, length: int) -> memoryview:
        """Wait for so many bytes; they are valid until the next call. Raises: Gone, OSError."""
        if length > len(self._buffer):
            return self._take_large(length)
        if self._begin + length > len(self._buffer):
            rest = bytes(self._buffer[self._begin : self._end])
            self._buffer[: len(rest)] = rest
            self._begin, self._end = 0, len(rest)
        while self._end - self._begin < length:
            self._end += self._receive(self._buffer[self._end :])
        piece = self._buffer[self._begin : self._begin + length]
        self._begin += length
        if self._begin == self._end:
            self._begin = self._end = 0
        return piece

    def take_into(self, piece: memoryview) -> None:
        """Wait until this is full. Raises: Gone, OSError."""
        done = min(self._end - self._begin, len(piece))
        piece[:done] = self._buffer[self._begin : self._begin + done]
        self._begin += done
        if self._begin == self._end:
            self._begin = self._end = 0
        while done < len(piece):
            done += self._receive(piece[done:])

    def _take_large(self, length: int) -> memoryview:
        large = self._large if length <= len(self._large) else bytearray(length)
        # What hardly anybody sends is not kept for all of the connection.
        if length <= LARGE_KEPT_BYTES_MAX:
            self._large = large
        piece = memoryview(large)[:length]
        self.take_into(piece)
        return piece

    def _receive(self, into: memoryview) -> int:
        count = self._peer.recv_into(into)
        if not count:
            raise Gone
        return count


def send(peer: socket.socket, pieces: Sequence[bytes | bytearray | memoryview]) -> None:
    """Send all of these. Raises: OSError."""
    if isinstance(peer, ssl.SSLSocket):
        peer.sendall(b"".join(pieces))
        return
    total_bytes, sent_bytes = sum(map(len, pieces)), 0
    if pieces:
        sent_bytes = peer.sendmsg(pieces)
    if sent_bytes < total_bytes:
        rest = memoryview(b"".join(pieces))[sent_bytes:]
        peer.sendall(rest)
