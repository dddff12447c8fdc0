"""The client's half of the handshake: bytes in, events out, no socket.

    greeting -> flags -> (TLS) -> structured replies -> base:allocation -> GO

What a server cannot do is done without; an old server that knows no GO is asked for the export in the old way.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from cowtree.errors import BrokenPeer, RequestFailed
from cowtree.nbd import wire
from cowtree.nbd.export import Blocks

# No server has that much to say about one export.
REPLY_BYTES_MAX: Final = 64 << 10
REPLY_COUNT_MAX: Final = 256
BLOCK_BYTES_MAX: Final = 64 << 10
# QEMU's words.
REASONS: Final = {wire.ERR_UNKNOWN: "Requested export not available"}


class Send(NamedTuple):
    """Send these bytes."""

    data: bytes


class StartTls(NamedTuple):
    """Shake hands for TLS now; then call `secure`."""


class Opened(NamedTuple):
    """The handshake is over. `context` is the number of base:allocation, when the server tells it."""

    size_bytes: int
    flags: int
    blocks: Blocks
    is_structured: bool
    context: int | None


Event = Send | StartTls | Opened


class Opening:
    """One handshake, which opens the export of this name."""

    def __init__(self, export: str, *, wants_tls: bool = False) -> None:
        self._export = export
        self._wants_tls = wants_tls
        self._buffer = bytearray()
        self._option = 0
        self._reply_count = 0
        self._sends_zeroes = True
        self._is_structured = False
        self._context: int | None = None
        self._blocks = Blocks()
        self._size_and_flags: tuple[int, int] | None = None
        self._is_over = False

    @property
    def leftover(self) -> bytes:
        """What the server has sent behind the handshake."""
        return bytes(self._buffer)

    def secure(self) -> Iterator[Event]:
        """Go on over TLS. Raises: BrokenPeer when something came before it."""
        if self._buffer:
            raise BrokenPeer(reason="the server said something before TLS began")
        yield self._ask(wire.OPT_STRUCTURED_REPLY)

    def receive(self, data: bytes) -> Iterator[Event]:
        """Take what the server sent. Raises: BrokenPeer, RequestFailed."""
        self._buffer += data
        if not self._option:
            if len(self._buffer) < wire.GREETING.size_bytes:
                return
            yield from self._begin()
        while not self._is_over:
            if self._option == wire.OPT_EXPORT_NAME:
                yield from self._take_export()
                return
            reply = self._take_reply()
            if reply is None:
                return
            yield from self._hear(*reply)

    def _take(self, length: int) -> bytes:
        data = bytes(self._buffer[:length])
        del self._buffer[:length]
        return data

    def _begin(self) -> Iterator[Event]:
        head = wire.GREETING.unpack(self._take(wire.GREETING.size_bytes))
        flags = int(head["flags"])
        if (head["magic"], head["option_magic"]) != (wire.INIT_MAGIC, wire.OPTION_MAGIC):
            raise BrokenPeer(reason="this is no NBD server, or one that speaks the protocol before 2011")
        if not flags & wire.FLAG_FIXED_NEWSTYLE:
            raise BrokenPeer(reason="the server does not speak the fixed newstyle protocol")
        self._sends_zeroes = not flags & wire.FLAG_NO_ZEROES
        answer = wire.CLIENT_FLAGS.pack(flags & (wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES))
        first = self._ask(wire.OPT_STARTTLS if self._wants_tls else wire.OPT_STRUCTURED_REPLY)
        yield Send(answer + first.data)

    def _ask(self, number: int) -> Send:
        self._option = number
        export = self._export.encode("utf-8", "surrogateescape")
        data = b""
        if number == wire.OPT_SET_META:
            data = wire.counted(self._export) + wire.COUNT.pack(1) + wire.counted(wire.BASE_ALLOCATION)
        elif number == wire.OPT_GO:
            data = wire.counted(self._export) + wire.INFO.pack(1) + wire.INFO.pack(wire.INFO_BLOCK_SIZE)
        elif number == wire.OPT_EXPORT_NAME:
            data = export
        return Send(wire.option(number, data))

    def _take_reply(self) -> tuple[int, bytes] | None:
        """The next whole answer to the option that was sent last. Raises: BrokenPeer."""
        head_bytes = wire.OPTION_REPLY.size_bytes
        if len(self._buffer) < head_bytes:
            return None
        head = wire.OPTION_REPLY.integers(bytes(self._buffer[:head_bytes]))
        if head["magic"] != wire.REPLY_MAGIC or head["option"] != self._option:
            raise BrokenPeer(reason="the server sent something else where the answer to an option begins")
        if head["length"] > REPLY_BYTES_MAX:
            raise BrokenPeer(reason=f"the server answered an option with {head['length']} bytes")
        if len(self._buffer) < head_bytes + head["length"]:
            return None
        self._reply_count += 1
        if self._reply_count > REPLY_COUNT_MAX:
            raise BrokenPeer(reason=f"the server sent more than {REPLY_COUNT_MAX} answers to options")
        self._take(head_bytes)
        return head["reply"], self._take(head["length"])

    def _hear(self, reply: int, data: bytes) -> Iterator[Event]:
        """One answer; the next option follows the last one."""
        if reply & wire.REP_ERROR:
            yield self._do_without(reply, data)
        elif reply == wire.REP_ACK:
            yield from self._go_on()
        elif (reply, self._option) == (wire.REP_INFO, wire.OPT_GO):
            self._learn(data)
        elif (reply, self._option) == (wire.REP_META_CONTEXT, wire.OPT_SET_META) and len(data) > wire.COUNT.size:
            if data[wire.COUNT.size :] == wire.BASE_ALLOCATION.encode():
                (self._context,) = wire.COUNT.unpack_from(data)
        else:
            raise BrokenPeer(reason=f"the server answered option {self._option} with {reply}")

    def _do_without(self, reply: int, data: bytes) -> Send:
        """What comes after a refusal. Raises: RequestFailed when the export cannot be had without it."""
        if self._option == wire.OPT_STRUCTURED_REPLY and reply != wire.ERR_TLS_REQD:
            return self._ask(wire.OPT_GO)
        if self._option == wire.OPT_SET_META and reply != wire.ERR_TLS_REQD:
            return self._ask(wire.OPT_GO)
        if self._option == wire.OPT_GO and reply == wire.ERR_UNSUP:
            return self._ask(wire.OPT_EXPORT_NAME)
        raise refusal(reply, data)

    def _go_on(self) -> Iterator[Event]:
        """What comes after an answer is complete."""
        if self._option == wire.OPT_STARTTLS:
            yield StartTls()
        elif self._option == wire.OPT_STRUCTURED_REPLY:
            self._is_structured = True
            yield self._ask(wire.OPT_SET_META)
        elif self._option == wire.OPT_SET_META:
            yield self._ask(wire.OPT_GO)
        else:
            if self._size_and_flags is None:
                raise BrokenPeer(reason="the server opened an export and did not say how large it is")
            yield self._opened(*self._size_and_flags)

    def _learn(self, data: bytes) -> None:
        """What the server tells of the export. Raises: BrokenPeer."""
        kind = data[: wire.INFO.size]
        expected = {
            wire.INFO.pack(wire.INFO_EXPORT): wire.INFO_EXPORT_REPLY,
            wire.INFO.pack(wire.INFO_BLOCK_SIZE): wire.INFO_BLOCK_SIZE_REPLY,
        }.get(kind)
        if len(kind) < wire.INFO.size or (expected and len(data) != expected.size_bytes):
            raise BrokenPeer(reason="the server told of an export in a way that cannot be understood")
        if expected is wire.INFO_EXPORT_REPLY:
            told = expected.integers(data)
            self._size_and_flags = told["size_bytes"], told["flags"]
        elif expected is not None:
            told = expected.integers(data)
            minimum, preferred, maximum = told["minimum"], told["preferred"], told["maximum"]
            is_power = minimum > 0 and minimum & (minimum - 1) == 0
            if not is_power or minimum > BLOCK_BYTES_MAX or preferred < minimum or maximum < minimum:
                raise BrokenPeer(reason=f"the server has blocks of {minimum} to {maximum} bytes")
            self._blocks = Blocks(minimum, preferred, min(maximum // minimum * minimum, wire.PAYLOAD_BYTES_MAX))

    def _take_export(self) -> Iterator[Event]:
        """The answer in the old way, which has no head and no words for no."""
        head_bytes = wire.EXPORT.size_bytes
        if len(self._buffer) >= head_bytes + len(wire.NEWSTYLE_ZEROES) * self._sends_zeroes:
            told = wire.EXPORT.integers(self._take(head_bytes))
            self._take(len(wire.NEWSTYLE_ZEROES) * self._sends_zeroes)
            yield self._opened(told["size_bytes"], told["flags"])

    def _opened(self, size_bytes: int, flags: int) -> Opened:
        if size_bytes >> 63:
            raise BrokenPeer(reason=f"the server has an export of {size_bytes} bytes")
        self._is_over = True
        return Opened(size_bytes, flags, self._blocks, self._is_structured, self._context)


def refusal(reply: int, data: bytes) -> RequestFailed:
    """What a server's refusal means, in our words and its own. The fact `reply` is its number."""
    reason = REASONS.get(reply) or wire.ERRORS_OF_OPTIONS.get(reply, f"the server refuses with {reply:#x}")
    text = " ".join(data[: wire.NAME_BYTES_MAX].decode("utf-8", "replace").split())
    return RequestFailed(reason=f"{reason} (it says: {text})" if text else reason, reply=reply)
