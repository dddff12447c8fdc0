"""What a server exports, as a storage: one connection, one blocking socket.

Large reads and writes go in pieces, several of them under way at once. Nothing is tried again: a connection that broke
stays broken, and whatever is asked of it then fails.
"""

import errno
import os
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Final

from cowtree.chain.place import Place
from cowtree.errors import BrokenPeer, CowtreeError, MissingImage, RequestFailed, StorageFailed
from cowtree.nbd import replies, wire
from cowtree.nbd.opening import Opened, Opening, Send, StartTls
from cowtree.nbd.replies import Question
from cowtree.nbd.stream import Gone, Inbox, send
from cowtree.storage.contract import Access, Bytes, Span, Storage

HANDSHAKE_S: Final = 10.0
PIECE_BYTES: Final = 2 << 20
IN_FLIGHT_MAX: Final = 8
# One request tells, zeroes or gives up no more than this; a multiple of every block size.
RANGE_BYTES_MAX: Final = 1 << 30
_RECEIVE_BYTES: Final = 4096


class Connection:
    """One connection behind its handshake. Several threads may ask; one at a time is answered."""

    def __init__(self, place: Place, tls: ssl.SSLContext | None = None, tls_name: str = "") -> None:
        self.address = place.address
        self._lock = threading.Lock()
        self._cookie = 0
        self._peer = _connect(place)
        try:
            self._peer.settimeout(HANDSHAKE_S)
            self.opened = self._open(place, tls, tls_name or place.host or "localhost")
            self._peer.settimeout(None)
        except BaseException:
            self._peer.close()
            raise

    def _open(self, place: Place, tls: ssl.SSLContext | None, tls_name: str) -> Opened:
        """Raises: BrokenPeer, MissingImage."""
        opening = Opening(place.export, wants_tls=tls is not None)
        try:
            while True:
                data = self._peer.recv(_RECEIVE_BYTES)
                if not data:
                    raise Gone
                events: list[object] = []
                for event in opening.receive(data):
                    events.append(event)
                    while events:
                        match events.pop(0):
                            case Send(data=asked):
                                self._peer.sendall(asked)
                            case StartTls() if tls is not None:
                                self._peer = tls.wrap_socket(self._peer, server_hostname=tls_name)
                                events += opening.secure()
                            case Opened() as opened:
                                self._inbox = Inbox(self._peer, opening.leftover)
                                return opened
        except RequestFailed as error:
            with suppress(OSError):
                self._peer.sendall(wire.option(wire.OPT_ABORT))
            code = {wire.ERR_UNKNOWN: errno.ENOENT}.get(error.facts["reply"], errno.EACCES)
            hint = _OPENING_HINTS.get(error.facts["reply"], "another name of an export: nbdinfo --list shows them")
            raise MissingImage(path=self.address, reason=error.reason, errno=code, hint=hint) from error
        except CowtreeError as error:
            raise BrokenPeer(reason=f"{self.address}: {error.facts['reason']}") from error
        except (Gone, OSError) as error:
            raise BrokenPeer(reason=f"{self.address}: {_words(error, 'it ended the handshake')}") from error

    def ask(self, action: str, questions: Iterable[Question]) -> None:
        """Have all of these answered. Raises: StorageFailed for the first that fails, BrokenPeer."""
        with self._lock:
            try:
                failed = self._exchange(questions)
            except (Gone, OSError, BrokenPeer) as error:
                self._peer.close()
                if isinstance(error, BrokenPeer):
                    raise BrokenPeer(reason=f"{self.address}: {error.facts['reason']}") from error
                code = errno.ECONNRESET if isinstance(error, Gone) else error.errno
                reason = _words(error, "the server has ended the connection")
                raise StorageFailed(
                    path=self.address, action=action, reason=reason, errno=code, hint=_GONE_HINT
                ) from error
            except BaseException:
                # Whoever is interrupted here knows no more which answer is whose.
                self._peer.close()
                raise
        if failed is not None:
            reason = failed.reason or os.strerror(failed.error)
            raise StorageFailed(path=self.address, action=action, reason=reason, errno=failed.error)

    def _exchange(self, questions: Iterable[Question]) -> Question | None:
        """Ask, a few at a time, and take what comes. Returns: the first that failed; what was not asked by then never
        is.
        """
        waiting, todo, failed = dict[int, Question](), iter(questions), None
        while True:
            while failed is None and len(waiting) < IN_FLIGHT_MAX and (each := next(todo, None)) is not None:
                self._cookie += 1
                waiting[self._cookie] = each
                head = wire.request(each.kind, self._cookie, each.offset, each.length, each.flags)
                send(self._peer, [head, each.data] if each.data else [head])
            if not waiting:
                return failed
            done = self._take_answer(waiting)
            if done is not None and done.error and failed is None:
                failed = done

    def _take_answer(self, waiting: dict[int, Question]) -> Question | None:
        """Take one head and what follows it. Returns: the question, when that was all of its answer."""
        head = (
            replies.parse_simple(simple) if not replies.is_chunk(simple := self._take_head()) else self._chunk(simple)
        )
        question = waiting.get(head.cookie)
        if question is None:
            raise BrokenPeer(reason="the server answered what nobody asked")
        offset = None
        if (head.kind, question.kind) == (wire.CHUNK_OFFSET_DATA, wire.CMD_READ) and head.length > wire.OFFSET.size:
            (offset,) = wire.OFFSET.unpack(self._inbox.take(wire.OFFSET.size))
        found = replies.data_range(question, head, offset)
        if found is not None:
            self._inbox.take_into(question.into[found[0] : found[1]])
            replies.count(question, found[1] - found[0])
        else:
            if head.length > replies.PAYLOAD_BYTES_MAX:
                raise BrokenPeer(reason=f"the server sent {head.length} bytes that nobody asked for")
            replies.hear(question, head, bytes(self._inbox.take(head.length)) if head.length else b"")
        if not head.is_last:
            return None
        replies.check_whole(question)
        return waiting.pop(head.cookie)

    def _take_head(self) -> bytes:
        return bytes(self._inbox.take(replies.SIMPLE_BYTES))

    def _chunk(self, begin: bytes) -> replies.Head:
        return replies.parse_chunk(begin + bytes(self._inbox.take(replies.CHUNK_REST_BYTES)))

    def close(self) -> None:
        """Say goodbye. May be called twice."""
        with self._lock, suppress(OSError):
            self._peer.settimeout(1.0)
            self._peer.sendall(wire.request(wire.CMD_DISC, 0))
        self._peer.close()


class NbdStorage:
    """An export, which is as long as it is."""

    def __init__(self, connection: Connection, *, is_writable: bool) -> None:
        self.path = connection.address
        self._connection = connection
        self._opened = connection.opened
        self._is_writable = is_writable
        self._broken_flush: StorageFailed | None = None

    @property
    def size_bytes(self) -> int:
        """Where it ends."""
        return self._opened.size_bytes

    def pread(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes."""
        data = bytearray(length)
        self._read("read", offset, memoryview(data))
        return bytes(data)

    def preadv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers."""
        for view in buffers:
            self._read("read", offset, view)
            offset += len(view)

    def _read(self, action: str, offset: int, view: memoryview) -> None:
        self._refuse_numbers(action, offset, len(view))
        inside = max(min(offset + len(view), self.size_bytes) - offset, 0)
        if inside < len(view):
            view[inside:] = bytes(len(view) - inside)
        begin, end = self._around(offset, inside)
        if (begin, end) == (offset, offset + inside):
            self._connection.ask(action, self._reads(offset, view[:inside]))
            return
        wide = memoryview(bytearray(end - begin))
        self._connection.ask(action, self._reads(begin, wide))
        view[:inside] = wide[offset - begin : offset - begin + inside]

    def _reads(self, offset: int, view: memoryview) -> Iterator[Question]:
        for begin, length in self._pieces(len(view), PIECE_BYTES):
            into = view[begin : begin + length]
            yield Question(wire.CMD_READ, offset + begin, length, into=into)

    def _around(self, offset: int, length: int) -> tuple[int, int]:
        """The smallest range of whole blocks that holds a range."""
        block_bytes = self._opened.blocks.minimum
        end = -(-(offset + length) // block_bytes) * block_bytes if length else offset
        return (offset // block_bytes * block_bytes if length else offset), min(end, self.size_bytes)

    def _pieces(self, length: int, piece_bytes: int) -> Iterator[tuple[int, int]]:
        piece_bytes = min(piece_bytes, self._opened.blocks.maximum) if piece_bytes == PIECE_BYTES else piece_bytes
        for begin in range(0, length, piece_bytes):
            yield begin, min(piece_bytes, length - begin)

    def pwrite(self, offset: int, data: Bytes) -> None:
        """Write all of `data`."""
        view = memoryview(data).cast("B")
        self._refuse("write", offset, len(view))
        begin, end = self._around(offset, len(view))
        if (begin, end) != (offset, offset + len(view)):
            # The blocks at its ends keep what is around it.
            wide = bytearray(self.pread(begin, end - begin))
            wide[offset - begin : offset - begin + len(view)] = view
            offset, view = begin, memoryview(wide)
        self._connection.ask("write", self._writes(offset, view))

    def _writes(self, offset: int, view: memoryview) -> Iterator[Question]:
        for begin, length in self._pieces(len(view), PIECE_BYTES):
            yield Question(wire.CMD_WRITE, offset + begin, length, data=view[begin : begin + length])

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make the range read as zeroes, as a hole where the server can."""
        self._zero("write", offset, length, 0)

    def allocate(self, offset: int, length: int) -> None:
        """Have zeroes written where there are holes; a server that cannot leaves them."""
        self._refuse("allocate", offset, length)
        if self._opened.flags & wire.SEND_WRITE_ZEROES:
            for span in self.extents(offset, length):
                if not span.is_data:
                    self._zero("allocate", span.start, span.length, wire.CMD_FLAG_NO_HOLE)

    def _zero(self, action: str, offset: int, length: int, flags: int) -> None:
        self._refuse(action, offset, length)
        block_bytes, end = self._opened.blocks.minimum, offset + length
        first, last = -(-offset // block_bytes) * block_bytes, end // block_bytes * block_bytes
        if first >= last or not self._opened.flags & wire.SEND_WRITE_ZEROES:
            first = last = end
        for begin, stop in ((offset, first), (last, end)):
            for each, piece_bytes in self._pieces(stop - begin, PIECE_BYTES):
                self.pwrite(begin + each, bytes(piece_bytes))
        ranges = self._pieces(last - first, RANGE_BYTES_MAX)
        kind = wire.CMD_WRITE_ZEROES
        self._connection.ask(action, (Question(kind, first + begin, count, flags) for begin, count in ranges))

    def trim(self, offset: int, length: int) -> None:
        """Tell the server that nobody needs what is there; whole blocks alone, and only where it listens."""
        self._refuse("discard", offset, length)
        block_bytes = self._opened.blocks.minimum
        first, last = -(-offset // block_bytes) * block_bytes, (offset + length) // block_bytes * block_bytes
        if self._opened.flags & wire.SEND_TRIM and first < last:
            ranges = self._pieces(last - first, RANGE_BYTES_MAX)
            questions = (Question(wire.CMD_TRIM, first + begin, count) for begin, count in ranges)
            self._connection.ask("discard", questions)

    def truncate(self, size_bytes: int) -> None:
        """Refuse, unless it has this size."""
        self._refuse("truncate", 0, 0)
        if size_bytes != self.size_bytes:
            reason = f"the server exports {self.size_bytes} bytes, which nobody changes from here"
            raise StorageFailed(path=self.path, action="truncate", reason=reason, errno=errno.ENOTSUP)

    def extents(self, offset: int, length: int) -> Iterator[Span]:
        """Split the range into data and zeroes, as far as the server tells; all of it is data where it does not."""
        stop = min(offset + length, self.size_bytes)
        held: Span | None = None
        for span in self._spans(offset, stop):
            if held is not None and held.is_data == span.is_data:
                held = held._replace(length=held.length + span.length)
                continue
            if held is not None:
                yield held
            held = span
        if held is not None:
            yield held

    def _spans(self, offset: int, stop: int) -> Iterator[Span]:
        if self._opened.context is None or not self._opened.is_structured:
            if offset < stop:
                yield Span(offset, stop - offset, is_data=True)
            return
        while offset < stop:
            begin, end = self._around(offset, min(stop - offset, RANGE_BYTES_MAX))
            question = Question(wire.CMD_BLOCK_STATUS, begin, end - begin)
            self._connection.ask("read", [question])
            if not question.extents:
                raise BrokenPeer(reason=f"{self.path}: the server told no status")
            for length, state in question.extents:
                end = min(begin + length, stop)
                if end > offset:
                    yield Span(offset, end - offset, is_data=not state & wire.STATE_ZERO)
                    offset = end
                begin += length

    def place(self, offset: int, length: int) -> tuple[Storage, int]:
        """Here."""
        return self, offset

    def clone_block_bytes(self, source: Storage) -> int:
        """Nothing is shared over a connection."""
        return 0

    def clone(self, source: Storage, source_offset: int, offset: int, length: int) -> bool:
        """Leave all to the caller."""
        self._refuse("clone", offset, length)
        return False

    def use(self) -> str | None:
        """The server alone knows, and does not tell."""
        return None

    def relock(self, access: str) -> None:
        """Let nobody write through it when others need not keep out; there are no locks over a connection."""
        self._is_writable = self._is_writable and access in Access.WRITERS

    def prefetch(self, offset: int, length: int) -> None:
        """Do nothing: the server reads ahead as it likes."""

    def flush(self) -> None:
        """Make everything written so far durable; after one failure never again."""
        if self._broken_flush is None and self._is_writable:
            try:
                self._flush()
            except StorageFailed as error:
                self._broken_flush = error
        if self._broken_flush is not None:
            raise StorageFailed(**self._broken_flush.facts)

    def _flush(self) -> None:
        if not self._opened.flags & wire.SEND_FLUSH:
            reason = "the server cannot make anything durable"
            raise StorageFailed(path=self.path, action="flush", reason=reason, errno=errno.ENOTSUP)
        self._connection.ask("flush", [Question(wire.CMD_FLUSH, 0, 0)])

    def close(self) -> None:
        """End the connection. Does not flush."""
        self._connection.close()

    def _refuse(self, action: str, offset: int, length: int) -> None:
        """Refuse a change of what is open for reading, or past the end."""
        if not self._is_writable:
            raise StorageFailed(path=self.path, action=action, reason="it is open for reading only", errno=errno.EBADF)
        self._refuse_numbers(action, offset, length)
        if length and offset + length > self.size_bytes:
            reason = f"the export ends at byte {self.size_bytes}"
            raise StorageFailed(path=self.path, action=action, reason=reason, errno=errno.ENOSPC)

    def _refuse_numbers(self, action: str, offset: int, length: int) -> None:
        if offset < 0 or length < 0:
            raise StorageFailed(path=self.path, action=action, reason=os.strerror(errno.EINVAL), errno=errno.EINVAL)


def open_export(place: Place, access: str, tls: ssl.SSLContext | None = None, tls_name: str = "") -> NbdStorage:
    """Connect to a server and open its export. Raises: MissingImage, BrokenPeer, ChainError."""
    if place.is_secure and tls is None:
        hint = "the folder with certificates: --object tls-creds-x509,id=ID,dir=FOLDER,endpoint=client"
        reason = "it wants TLS, and there are no certificates for that"
        raise MissingImage(path=place.address, reason=reason, errno=errno.EACCES, hint=hint)
    connection = Connection(place, tls, tls_name)
    if access == Access.WRITE and connection.opened.flags & wire.READ_ONLY:
        connection.close()
        hint = "the same for reading, or a server that lets it be written"
        raise MissingImage(path=place.address, reason="the export is read-only", errno=errno.EROFS, hint=hint)
    return NbdStorage(connection, is_writable=access == Access.WRITE)


_GONE_HINT: Final = "see whether the server of {path} still runs, then run the same command again"
_CONNECT_HINT: Final = "see whether a server listens there, and whether you may connect to it"
_OPENING_HINTS: Final = {wire.ERR_TLS_REQD: "nbds:// instead of nbd://, and certificates"}


def _connect(place: Place) -> socket.socket:
    """Raises: MissingImage."""
    try:
        if not place.socket_path:
            peer = socket.create_connection((place.host, place.port), HANDSHAKE_S)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return peer
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            peer.settimeout(HANDSHAKE_S)
            peer.connect(place.socket_path)
        except BaseException:
            peer.close()
            raise
        return peer
    except (OSError, ValueError) as error:
        where = place.socket_path or f"{place.host}:{place.port}"
        reason = f"Failed to connect to '{where}': {_words(error, 'it cannot be reached')}"
        code = getattr(error, "errno", None)
        raise MissingImage(path=place.address, reason=reason, errno=code, hint=_CONNECT_HINT) from error


def _words(error: Exception, otherwise: str) -> str:
    """What the system says, in a sentence."""
    if isinstance(error, TimeoutError):
        return f"no answer within {HANDSHAKE_S:.0f} s"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not right: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {(error.reason or str(error)).lower().replace('_', ' ')}"
    return getattr(error, "strerror", None) or str(error) or otherwise
