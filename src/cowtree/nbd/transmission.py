"""The server's half of what follows the handshake: one request in, the bytes of its answer out, no socket.

What a client may not ask for is answered with an error, and the connection goes on; only what breaks the framing ends
it. Where a read asks for much, zeroes are told and not sent.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from cowtree.errors import BrokenPeer, CowtreeError
from cowtree.nbd import wire
from cowtree.nbd.export import Export

# For shorter reads nobody asks where zeroes are: of a raw file that takes 10 us, a third of a read of 64 KiB. None is
# answered in more pieces than this.
HOLE_READ_BYTES_MIN: Final = 256 << 10
READ_CHUNK_COUNT_MAX: Final = 64

Answer = Sequence[bytes | bytearray | memoryview]


class Request(NamedTuple):
    """What a client asks for. Units: bytes; `cookie` tells its requests apart."""

    type: int
    flags: int
    cookie: int
    offset: int
    length: int

    @property
    def payload_bytes(self) -> int:
        """How much follows the head of the request."""
        return self.length if self.type == wire.CMD_WRITE else 0


_HEAD: Final = wire.REQUEST.layout
HEAD_BYTES: Final = wire.REQUEST.size_bytes


def parse(head: bytes | bytearray | memoryview) -> Request:
    """The request that begins so. Raises: BrokenPeer for what is none, or brings more than anybody may send."""
    magic, flags, kind, cookie, offset, length = _HEAD.unpack(head)
    if magic != wire.REQUEST_MAGIC:
        raise BrokenPeer(reason="it sent something else where a request begins")
    if kind == wire.CMD_WRITE and length > wire.PAYLOAD_BYTES_MAX:
        raise BrokenPeer(reason=f"it sent {length} bytes at once")
    return Request(kind, flags, cookie, offset, length)


class _Failed(Exception):
    def __init__(self, error: int, message: str) -> None:
        super().__init__(message)
        self.error = error


class Transmission:
    """What one connection does with one export."""

    def __init__(self, export: Export, *, is_structured: bool = False, contexts: Sequence[str] = ()) -> None:
        self._export = export
        self._is_structured = is_structured
        self._contexts = tuple(contexts)
        self._size_bytes = export.size_bytes
        self._is_read_only = export.is_read_only
        self._tells_zeroes = wire.BASE_ALLOCATION in export.contexts

    def answer(self, request: Request, payload: memoryview | None = None) -> Answer:
        """Do what is asked for. Returns: what to send, in pieces."""
        try:
            act = _COMMANDS.get(request.type)
            if act is None:
                raise _Failed(wire.EINVAL, f"there is no request of type {request.type}")
            return act(self, request, payload)
        except _Failed as error:
            return [self._failure(request, error.error, str(error))]
        except CowtreeError as error:
            return [self._failure(request, wire.error_number(error.facts.get("errno")), error.message)]
        except MemoryError:
            return [self._failure(request, wire.ENOMEM, "there is no memory left")]

    def _failure(self, request: Request, error: int, message: str) -> bytes:
        if self._is_structured:
            return wire.error_chunk(request.cookie, error, message)
        return wire.simple_reply(request.cookie, error)

    def _success(self, request: Request) -> Answer:
        if self._is_structured:
            return [wire.chunk(request.cookie, wire.CHUNK_NONE)]
        return [wire.simple_reply(request.cookie)]

    def _check(self, request: Request, flags: int, *, writes: bool = False) -> None:
        """Refuse what lies outside, and flags that mean nothing here."""
        # The protocol has every command take this flag where it is offered, whether it means something there or not.
        offered = 0 if self._is_read_only else wire.CMD_FLAG_FUA
        if request.flags & ~(flags | offered):
            raise _Failed(wire.EINVAL, f"flags {request.flags:#x} do not go with {_name(request)}")
        if writes and self._is_read_only:
            raise _Failed(wire.EPERM, "the export is read-only")
        if request.offset + request.length > self._size_bytes:
            # The disk may have grown.
            self._size_bytes = self._export.size_bytes
            if request.offset + request.length > self._size_bytes:
                code = wire.ENOSPC if writes else wire.EINVAL
                raise _Failed(code, f"the disk ends at {self._size_bytes}")

    def _read(self, request: Request, payload: memoryview | None) -> Answer:
        self._check(request, wire.CMD_FLAG_DF if self._is_structured else 0)
        if request.length > wire.PAYLOAD_BYTES_MAX:
            raise _Failed(wire.EOVERFLOW, f"at most {wire.PAYLOAD_BYTES_MAX} bytes are read at once")
        # Small reads cost no more than the question where zeroes are.
        if request.length >= HOLE_READ_BYTES_MIN and self._may_tell_holes(request):
            runs = self._runs(request.offset, request.length)
            if runs:
                return self._read_runs(request, runs)
        data = self._export.read(request.offset, request.length) if request.length else b""
        if not self._is_structured:
            return [wire.simple_reply(request.cookie), data]
        if not request.length:
            return [wire.chunk(request.cookie, wire.CHUNK_NONE)]
        where = wire.OFFSET.pack(request.offset)
        return [wire.chunk(request.cookie, wire.CHUNK_OFFSET_DATA, where, more_bytes=request.length), data]

    def _may_tell_holes(self, request: Request) -> bool:
        return self._is_structured and self._tells_zeroes and not request.flags & wire.CMD_FLAG_DF

    def _runs(self, offset: int, length: int) -> list[tuple[int, bool]]:
        """Data and zeroes in a range, by turns: lengths, and whether it is zeroes. Empty when it is one run of data, or
        cut into so many that one piece is cheaper.
        """
        found = _within(self._export.status(wire.BASE_ALLOCATION, offset, length), length)
        if len(found) == 1 and not found[0][1] & wire.STATE_ZERO:
            return []
        # What nothing was said of is data.
        found.append((length - sum(each_bytes for each_bytes, _ in found), 0))
        runs: list[tuple[int, bool]] = []
        for each_bytes, state in found:
            is_zero = bool(state & wire.STATE_ZERO)
            before = runs.pop()[0] if runs and runs[-1][1] == is_zero else 0
            runs.append((before + each_bytes, is_zero))
        runs = [run for run in runs if run[0]]
        has_zeroes = any(is_zero for _, is_zero in runs)
        return runs if has_zeroes and len(runs) <= READ_CHUNK_COUNT_MAX else []

    def _read_runs(self, request: Request, runs: list[tuple[int, bool]]) -> Answer:
        answer: list[bytes | bytearray | memoryview] = []
        offset, end = request.offset, request.offset + request.length
        for length, is_zero in runs:
            is_last = offset + length == end
            if is_zero:
                hole = wire.HOLE.pack(offset, length)
                answer.append(wire.chunk(request.cookie, wire.CHUNK_OFFSET_HOLE, hole, is_last=is_last))
            else:
                data, where = self._export.read(offset, length), wire.OFFSET.pack(offset)
                kind = wire.CHUNK_OFFSET_DATA
                answer += [wire.chunk(request.cookie, kind, where, more_bytes=length, is_last=is_last), data]
            offset += length
        return answer

    def _write(self, request: Request, payload: memoryview | None) -> Answer:
        self._check(request, 0, writes=True)
        if payload:
            self._export.write(request.offset, payload, is_durable=bool(request.flags & wire.CMD_FLAG_FUA))
        return self._success(request)

    def _flush(self, request: Request, payload: memoryview | None) -> Answer:
        self._check(request, 0)
        if request.offset or request.length:
            raise _Failed(wire.EINVAL, "a flush has neither offset nor length")
        self._export.flush()
        return self._success(request)

    def _trim(self, request: Request, payload: memoryview | None) -> Answer:
        self._check(request, 0, writes=True)
        if request.length:
            is_durable = bool(request.flags & wire.CMD_FLAG_FUA)
            self._export.trim(request.offset, request.length, is_durable=is_durable)
        return self._success(request)

    def _cache(self, request: Request, payload: memoryview | None) -> Answer:
        self._check(request, 0)
        if request.length:
            self._export.cache(request.offset, request.length)
        return self._success(request)

    def _write_zeroes(self, request: Request, payload: memoryview | None) -> Answer:
        flags = request.flags
        self._check(request, wire.CMD_FLAG_NO_HOLE | wire.CMD_FLAG_FAST_ZERO, writes=True)
        if request.length:
            self._export.write_zeroes(
                request.offset,
                request.length,
                may_trim=not flags & wire.CMD_FLAG_NO_HOLE,
                is_fast=bool(flags & wire.CMD_FLAG_FAST_ZERO),
                is_durable=bool(flags & wire.CMD_FLAG_FUA),
            )
        return self._success(request)

    def _block_status(self, request: Request, payload: memoryview | None) -> Answer:
        self._check(request, wire.CMD_FLAG_REQ_ONE)
        if not self._contexts or not request.length:
            raise _Failed(wire.EINVAL, "no context was chosen" if request.length else "an empty range has no status")
        count = 1 if request.flags & wire.CMD_FLAG_REQ_ONE else wire.EXTENT_COUNT_MAX
        chunks = []
        for index, context in enumerate(self._contexts):
            found = _within(self._export.status(context, request.offset, request.length), request.length)[:count]
            data = wire.COUNT.pack(index) + b"".join(wire.STATUS.pack(*each) for each in found)
            is_last = index + 1 == len(self._contexts)
            chunks.append(wire.chunk(request.cookie, wire.CHUNK_BLOCK_STATUS, data, is_last=is_last))
        return chunks


_COMMANDS: Final[dict[int, Callable[[Transmission, Request, memoryview | None], Answer]]] = {
    wire.CMD_READ: Transmission._read,
    wire.CMD_WRITE: Transmission._write,
    wire.CMD_FLUSH: Transmission._flush,
    wire.CMD_TRIM: Transmission._trim,
    wire.CMD_CACHE: Transmission._cache,
    wire.CMD_WRITE_ZEROES: Transmission._write_zeroes,
    wire.CMD_BLOCK_STATUS: Transmission._block_status,
}


def _name(request: Request) -> str:
    return wire.NAMES_OF_COMMANDS[request.type]


def _within(found: Sequence[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """What was said of a range, cut where the range ends; at least one piece, for nothing said means nothing known."""
    pieces = []
    for each_bytes, state in found:
        if length and each_bytes:
            pieces.append((min(each_bytes, length), state))
            length -= pieces[-1][0]
    return pieces or [(length, 0)]
