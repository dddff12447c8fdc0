"""The server's half of the handshake: bytes in, events out, no socket.

    greeting -> client flags -> option ... option -> the export is open, or the connection ends

A client that breaks the rules is answered as long as it keeps to the framing; else the connection ends. What it sent
before TLS began is forgotten when it begins.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from cowtree.errors import BrokenPeer
from cowtree.nbd import wire
from cowtree.nbd.export import Export, transmission_flags


class Send(NamedTuple):
    """Send these bytes."""

    data: bytes


class StartTls(NamedTuple):
    """Shake hands for TLS now; then call `secure`."""


class Opened(NamedTuple):
    """The handshake is over: requests for this export follow. `contexts` are numbered from 0."""

    export: Export
    is_structured: bool
    contexts: tuple[str, ...]


class Ended(NamedTuple):
    """The client is done."""


Event = Send | StartTls | Opened | Ended


class Exports(Protocol):
    """What there is to open."""

    def names(self) -> Sequence[str]:
        """What a client is told when it asks; may leave some out."""

    def find(self, name: str) -> Export | None:
        """The export of this name; the empty one is whatever is served when nobody names anything."""


class _Refused(Exception):
    """An option is answered with an error."""

    def __init__(self, reply: int, reason: str = "") -> None:
        super().__init__(reason)
        self.reply = reply
        self.reason = reason or wire.ERRORS_OF_OPTIONS[reply]


class Negotiation:
    """One handshake. With `offers_tls` a client may ask for TLS; when it `needs_tls` it must do so first."""

    def __init__(self, exports: Exports, *, offers_tls: bool = False, needs_tls: bool = False) -> None:
        self._exports = exports
        self._offers_tls = offers_tls
        self._needs_tls = needs_tls
        self._buffer = bytearray()
        self._has_flags = False
        self._sends_zeroes = True
        self._is_structured = False
        self._meta: tuple[str, tuple[str, ...]] | None = None
        self._option_count = 0
        self._is_over = False
        self._waits_for_tls = False
        self._is_secure = False

    @staticmethod
    def greeting() -> bytes:
        """What is sent first."""
        flags = wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES
        return wire.GREETING.pack(magic=wire.INIT_MAGIC, option_magic=wire.OPTION_MAGIC, flags=flags)

    @property
    def leftover(self) -> bytes:
        """What the client has sent behind the handshake."""
        return bytes(self._buffer)

    def secure(self) -> None:
        """Go on over TLS. What was agreed on before, and what came before it, does not count."""
        self._buffer.clear()
        self._needs_tls = self._offers_tls = self._waits_for_tls = False
        self._is_secure = True
        self._is_structured, self._meta = False, None

    def receive(self, data: bytes) -> Iterator[Event]:
        """Take what the client sent. Raises: BrokenPeer when it does not keep to the protocol."""
        self._buffer += data
        if not self._has_flags:
            if len(self._buffer) < wire.CLIENT_FLAGS.size:
                return
            self._take_flags()
        while not self._is_over and not self._waits_for_tls and (found := self._take_option()):
            yield from self._answer(*found)

    def _take_flags(self) -> None:
        (flags,) = wire.CLIENT_FLAGS.unpack(self._take(wire.CLIENT_FLAGS.size))
        known = wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES
        if flags & ~known or not flags & wire.FLAG_FIXED_NEWSTYLE:
            raise BrokenPeer(reason=f"it does not speak the fixed newstyle protocol (flags {flags:#x})")
        self._has_flags, self._sends_zeroes = True, not flags & wire.FLAG_NO_ZEROES

    def _take(self, length: int) -> bytes:
        data = bytes(self._buffer[:length])
        del self._buffer[:length]
        return data

    def _take_option(self) -> tuple[int, bytes] | None:
        """The next whole option. Raises: BrokenPeer."""
        head_bytes = wire.OPTION.size_bytes
        if len(self._buffer) < head_bytes:
            return None
        head = wire.OPTION.unpack(bytes(self._buffer[:head_bytes]))
        if head["magic"] != wire.OPTION_MAGIC:
            raise BrokenPeer(reason="it sent something else where an option begins")
        number, length = int(head["option"]), int(head["length"])
        if length > wire.OPTION_BYTES_MAX + wire.NAME_BYTES_MAX:
            raise BrokenPeer(reason=f"it sent an option of {length} bytes")
        if len(self._buffer) < head_bytes + length:
            return None
        self._option_count += 1
        if self._option_count > wire.OPTION_COUNT_MAX:
            raise BrokenPeer(reason=f"it sent more than {wire.OPTION_COUNT_MAX} options")
        self._take(head_bytes)
        return number, self._take(length)

    def _answer(self, number: int, data: bytes) -> Iterator[Event]:
        if number == wire.OPT_EXPORT_NAME:
            yield from self._open_at_once(data)
            return
        try:
            if self._needs_tls and number not in (wire.OPT_STARTTLS, wire.OPT_ABORT):
                raise _Refused(wire.ERR_TLS_REQD)
            act = _OPTIONS.get(number)
            if act is None:
                raise _Refused(wire.ERR_UNSUP)
            yield from act(self, number, data)
        except _Refused as error:
            yield Send(wire.option_reply(number, error.reply, error.reason.encode("utf-8", "replace")))

    def _open_at_once(self, data: bytes) -> Iterator[Event]:
        """Open in the old way, which knows no refusal. Raises: BrokenPeer."""
        name = data.decode("utf-8", "surrogateescape")
        export = None if self._needs_tls or len(data) > wire.NAME_BYTES_MAX else self._exports.find(name)
        if export is None:
            raise BrokenPeer(reason="it asked for an export that is not there, or not without TLS")
        self._is_over = True
        head = wire.EXPORT.pack(size_bytes=export.size_bytes, flags=transmission_flags(export))
        yield Send(head + wire.NEWSTYLE_ZEROES * self._sends_zeroes)
        yield self._opened(export, name)

    def _opened(self, export: Export, name: str) -> Opened:
        contexts = self._meta[1] if self._meta is not None and self._meta[0] == name else ()
        return Opened(export, self._is_structured, contexts)

    def _abort(self, number: int, data: bytes) -> Iterator[Event]:
        self._is_over = True
        yield Send(wire.option_reply(number, wire.REP_ACK))
        yield Ended()

    def _list(self, number: int, data: bytes) -> Iterator[Event]:
        if data:
            raise _Refused(wire.ERR_INVALID)
        for name in self._exports.names():
            yield Send(wire.option_reply(number, wire.REP_SERVER, wire.counted(name)))
        yield Send(wire.option_reply(number, wire.REP_ACK))

    def _start_tls(self, number: int, data: bytes) -> Iterator[Event]:
        if data or self._is_secure:
            raise _Refused(wire.ERR_INVALID, "TLS is in use already" if self._is_secure else "")
        if not self._offers_tls:
            raise _Refused(wire.ERR_POLICY, "there is no TLS here")
        self._waits_for_tls = True
        yield Send(wire.option_reply(number, wire.REP_ACK))
        yield StartTls()

    def _structured(self, number: int, data: bytes) -> Iterator[Event]:
        if data:
            raise _Refused(wire.ERR_INVALID)
        self._is_structured = True
        yield Send(wire.option_reply(number, wire.REP_ACK))

    def _info(self, number: int, data: bytes) -> Iterator[Event]:
        """Tell what an export is, and open it if that is wanted."""
        name, rest = _counted(data)
        (count,) = _unpack(wire.INFO, rest, 0)
        wanted = {_unpack(wire.INFO, rest, (index + 1) * wire.INFO.size)[0] for index in range(count)}
        if len(rest) != (count + 1) * wire.INFO.size:
            raise _Refused(wire.ERR_INVALID)
        export = self._find(name)
        for payload in _told(export, name, wanted):
            yield Send(wire.option_reply(number, wire.REP_INFO, payload))
        yield Send(wire.option_reply(number, wire.REP_ACK))
        if number == wire.OPT_GO:
            self._is_over = True
            yield self._opened(export, name)

    def _find(self, name: str) -> Export:
        export = self._exports.find(name)
        if export is None:
            raise _Refused(wire.ERR_UNKNOWN)
        return export

    def _meta_contexts(self, number: int, data: bytes) -> Iterator[Event]:
        """List contexts, or choose those of which block status will tell."""
        is_list = number == wire.OPT_LIST_META
        if not is_list:
            self._meta = None
        if not self._is_structured:
            raise _Refused(wire.ERR_INVALID, "structured replies come first")
        name, rest = _counted(data)
        queries = _queries(rest)
        export = self._find(name)
        chosen = [
            each
            for each in export.contexts
            if any(_fits(query, each, is_list=is_list) for query in queries) or (is_list and not queries)
        ]
        for index, each in enumerate(chosen):
            identity = wire.COUNT.pack(0 if is_list else index)
            yield Send(wire.option_reply(number, wire.REP_META_CONTEXT, identity + each.encode()))
        if not is_list:
            self._meta = (name, tuple(chosen))
        yield Send(wire.option_reply(number, wire.REP_ACK))


_OPTIONS: Final[dict[int, Callable[[Negotiation, int, bytes], Iterator[Event]]]] = {
    wire.OPT_ABORT: Negotiation._abort,
    wire.OPT_LIST: Negotiation._list,
    wire.OPT_STARTTLS: Negotiation._start_tls,
    wire.OPT_INFO: Negotiation._info,
    wire.OPT_GO: Negotiation._info,
    wire.OPT_STRUCTURED_REPLY: Negotiation._structured,
    wire.OPT_LIST_META: Negotiation._meta_contexts,
    wire.OPT_SET_META: Negotiation._meta_contexts,
}


def _told(export: Export, name: str, wanted: set[int]) -> Iterator[bytes]:
    if wire.INFO_NAME in wanted:
        yield wire.INFO.pack(wire.INFO_NAME) + name.encode("utf-8", "surrogateescape")
    if wire.INFO_DESCRIPTION in wanted:
        yield wire.INFO.pack(wire.INFO_DESCRIPTION) + export.description.encode("utf-8", "surrogateescape")
    blocks = export.blocks
    # A client that does not ask for the block sizes may not obey them.
    minimum = blocks.minimum if wire.INFO_BLOCK_SIZE in wanted else 1
    yield wire.INFO_BLOCK_SIZE_REPLY.pack(
        info=wire.INFO_BLOCK_SIZE, minimum=minimum, preferred=blocks.preferred, maximum=blocks.maximum
    )
    flags = transmission_flags(export)
    yield wire.INFO_EXPORT_REPLY.pack(info=wire.INFO_EXPORT, size_bytes=export.size_bytes, flags=flags)


def _name(data: bytes) -> str:
    if len(data) > wire.NAME_BYTES_MAX:
        raise _Refused(wire.ERR_TOO_BIG)
    return data.decode("utf-8", "surrogateescape")


def _unpack(layout: struct.Struct, data: bytes, offset: int) -> tuple[int, ...]:
    if len(data) < offset + layout.size:
        raise _Refused(wire.ERR_INVALID)
    return layout.unpack_from(data, offset)


def _counted(data: bytes) -> tuple[str, bytes]:
    """A string that begins with its length, and what follows it."""
    (length,) = _unpack(wire.COUNT, data, 0)
    end = wire.COUNT.size + length
    if length > wire.NAME_BYTES_MAX or len(data) < end:
        raise _Refused(wire.ERR_TOO_BIG if length > wire.NAME_BYTES_MAX else wire.ERR_INVALID)
    return _name(data[wire.COUNT.size : end]), data[end:]


def _queries(data: bytes) -> list[str]:
    (count,) = _unpack(wire.COUNT, data, 0)
    found, rest = [], data[wire.COUNT.size :]
    for _ in range(min(count, len(rest))):
        query, rest = _counted(rest)
        found.append(query)
    if rest or len(found) != count:
        raise _Refused(wire.ERR_INVALID)
    return found


def _fits(query: str, context: str, *, is_list: bool) -> bool:
    """Whether a query means a context; in a list a namespace, or the beginning of a name, means all below it."""
    return query == context or (is_list and query.endswith(":") and context.startswith(query))
