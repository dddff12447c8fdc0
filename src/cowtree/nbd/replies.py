"""What a server answers to requests, checked before it is believed; no socket.

A reply is told apart by its cookie. A read may come in chunks, in any order; none may lie outside what was asked for,
and all of it has to come.
"""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from cowtree.errors import BrokenPeer
from cowtree.nbd import wire

SIMPLE_BYTES: Final = wire.SIMPLE_REPLY.size_bytes
CHUNK_REST_BYTES: Final = wire.CHUNK.size_bytes - SIMPLE_BYTES
# Descriptors and messages; data is counted apart.
PAYLOAD_BYTES_MAX: Final = 8 << 20
SIMPLE: Final = -1
_SIMPLE: Final = wire.SIMPLE_REPLY.layout
_CHUNK: Final = wire.CHUNK.layout


@dataclass
class Question:
    """A request that waits for its answer; `into` is where a read goes, `data` what a write brings."""

    kind: int
    offset: int
    length: int
    flags: int = 0
    data: bytes | bytearray | memoryview = b""
    into: memoryview = field(default_factory=lambda: memoryview(b""))
    error: int = 0
    reason: str = ""
    done_bytes: int = 0
    extents: list[tuple[int, int]] = field(default_factory=list)


class Head(NamedTuple):
    """The beginning of an answer, and how much follows it."""

    cookie: int
    kind: int
    length: int
    is_last: bool
    error: int = 0


def is_chunk(head: bytes | memoryview) -> bool:
    """Whether an answer that begins so is a chunk, whose head is longer. Raises: BrokenPeer when it is no answer."""
    (magic,) = wire.COUNT.unpack_from(head)
    if magic not in (wire.SIMPLE_REPLY_MAGIC, wire.CHUNK_MAGIC):
        raise BrokenPeer(reason="the server sent something else where an answer begins")
    return bool(magic == wire.CHUNK_MAGIC)


def parse_simple(head: bytes | memoryview) -> Head:
    """The head of an answer of the old kind."""
    _, error, cookie = _SIMPLE.unpack(head)
    return Head(cookie, SIMPLE, 0, True, error)


def parse_chunk(head: bytes | memoryview) -> Head:
    """The head of a chunk."""
    _, flags, kind, cookie, length = _CHUNK.unpack(head)
    return Head(cookie, kind, length, bool(flags & wire.CHUNK_DONE))


def data_range(question: Question, head: Head, offset: int | None = None) -> tuple[int, int] | None:
    """The range of `into` that the bytes behind a head, or behind the offset of a chunk, fill; None when none follow.
    Raises: BrokenPeer when that lies outside.
    """
    if question.kind != wire.CMD_READ:
        return None
    if head.kind == SIMPLE:
        return None if head.error else (0, question.length)
    if head.kind != wire.CHUNK_OFFSET_DATA or offset is None:
        return None
    begin, length = offset - question.offset, head.length - wire.OFFSET.size
    if length <= 0 or begin < 0 or begin + length > question.length:
        raise BrokenPeer(reason="the server sent data that nobody asked for")
    return begin, begin + length


def hear(question: Question, head: Head, payload: bytes) -> None:
    """Take what came with a head that brings no data. Raises: BrokenPeer."""
    if head.kind == SIMPLE:
        question.error = head.error
    elif head.kind & 1 << 15:
        _hear_error(question, payload)
    elif head.kind == wire.CHUNK_NONE:
        if payload or not head.is_last:
            raise BrokenPeer(reason="the server sent an end that is none")
    elif head.kind == wire.CHUNK_OFFSET_HOLE and question.kind == wire.CMD_READ:
        _hear_hole(question, payload)
    elif head.kind == wire.CHUNK_BLOCK_STATUS and question.kind == wire.CMD_BLOCK_STATUS:
        _hear_status(question, payload)
    else:
        raise BrokenPeer(reason=f"the server answered a request of type {question.kind} with a chunk of {head.kind}")


def count(question: Question, length: int) -> None:
    """So much of a read has come. Raises: BrokenPeer when some of it came twice."""
    question.done_bytes += length
    if question.done_bytes > question.length:
        raise BrokenPeer(reason="the server sent the same data twice")


def check_whole(question: Question) -> None:
    """See that a read is complete when its last chunk has come. Raises: BrokenPeer."""
    if question.kind == wire.CMD_READ and not question.error and question.done_bytes != question.length:
        raise BrokenPeer(reason=f"the server sent {question.done_bytes} of {question.length} bytes")


def _hear_error(question: Question, payload: bytes) -> None:
    if len(payload) < wire.ERROR_HEAD.size:
        raise BrokenPeer(reason="the server sent an error that is cut short")
    error, length = wire.ERROR_HEAD.unpack_from(payload)
    if length > len(payload) - wire.ERROR_HEAD.size:
        raise BrokenPeer(reason="the server sent an error that is cut short")
    question.error = question.error or error or wire.EIO
    text = payload[wire.ERROR_HEAD.size : wire.ERROR_HEAD.size + length].decode("utf-8", "replace")
    question.reason = question.reason or " ".join(text.split())


def _hear_hole(question: Question, payload: bytes) -> None:
    if len(payload) != wire.HOLE.size:
        raise BrokenPeer(reason="the server sent a hole that is cut short")
    offset, length = wire.HOLE.unpack(payload)
    begin = offset - question.offset
    if not length or begin < 0 or begin + length > question.length:
        raise BrokenPeer(reason="the server sent a hole that nobody asked for")
    question.into[begin : begin + length] = bytes(length)
    count(question, length)


def _hear_status(question: Question, payload: bytes) -> None:
    """Descriptors of the context that was chosen, for no other was."""
    rest = len(payload) - wire.COUNT.size
    if rest <= 0 or rest % wire.STATUS.size:
        raise BrokenPeer(reason="the server sent a status that is cut short")
    found = list(wire.STATUS.iter_unpack(memoryview(payload)[wire.COUNT.size :]))
    if not all(length for length, _ in found):
        raise BrokenPeer(reason="the server told the status of nothing")
    question.extents = found
