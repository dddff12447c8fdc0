"""What is done with requests, without a socket: one request in, the bytes of its answer out."""

import errno
import random
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowtree.errors import BrokenPeer
from cowtree.nbd import wire
from cowtree.nbd.transmission import HEAD_BYTES, HOLE_READ_BYTES_MIN, READ_CHUNK_COUNT_MAX, Request, Transmission, parse
from tests.nbd.ram import MIB, PAGE_BYTES, Ram

COOKIE = 0x1122334455667788
SIGN_BYTES = HOLE_READ_BYTES_MIN
EVERY_FLAG = tuple(1 << bit for bit in range(16))
FUA, NO_HOLE, DF, REQ_ONE, FAST = EVERY_FLAG[:5]
READ, WRITE, FLUSH, TRIM, CACHE, ZEROES, STATUS = (
    *(wire.CMD_READ, wire.CMD_WRITE, wire.CMD_FLUSH, wire.CMD_TRIM),
    *(wire.CMD_CACHE, wire.CMD_WRITE_ZEROES, wire.CMD_BLOCK_STATUS),
)
ALLOWED = {READ: DF, WRITE: 0, FLUSH: 0, TRIM: 0, CACHE: 0, ZEROES: NO_HOLE | FAST, STATUS: REQ_ONE}


@pytest.fixture
def ram():
    return Ram(bytes(range(256)) * 4096)


def plain(export: Ram) -> Transmission:
    return Transmission(export)


def structured(export: Ram, *contexts: str) -> Transmission:
    return Transmission(export, is_structured=True, contexts=contexts or (wire.BASE_ALLOCATION,))


def ask(transmission: Transmission, kind: int, offset: int = 0, length: int = 0, flags: int = 0) -> bytes:
    """All bytes of the answer to a request; what it writes are zeroes."""
    request = parse(wire.request(kind, COOKIE, offset, length, flags))
    payload = memoryview(bytes(length)) if request.payload_bytes else None
    return b"".join(transmission.answer(request, payload))


def write(transmission: Transmission, offset: int, data: bytes, flags: int = 0) -> bytes:
    """All bytes of the answer to a write."""
    request, payload = parse(wire.request(WRITE, COOKIE, offset, len(data), flags)), memoryview(data)
    return b"".join(transmission.answer(request, payload))


def error_of(answer: bytes) -> int:
    """The error that an answer tells; 0 for none."""
    if answer[:4] == wire.SIMPLE_REPLY_MAGIC.to_bytes(4):
        return wire.SIMPLE_REPLY.integers(answer)["error"]
    (*_, (kind, payload)) = chunks(answer)
    return int(wire.ERROR_HEAD.unpack_from(payload)[0]) if kind & 1 << 15 else 0


def chunks(answer: bytes) -> list[tuple[int, bytes]]:
    """The chunks of a structured reply, of which the last one alone says so."""
    found, done = [], []
    while answer:
        head = wire.CHUNK.integers(answer)
        assert (head["magic"], head["cookie"]) == (wire.CHUNK_MAGIC, COOKIE)
        size_bytes = wire.CHUNK.size_bytes
        found.append((head["type"], answer[size_bytes : size_bytes + head["length"]]))
        done.append(head["flags"])
        answer = answer[size_bytes + head["length"] :]
    assert done == [0] * (len(done) - 1) + [wire.CHUNK_DONE]
    return found


def test_something_else_than_a_request_ends_the_connection():
    with pytest.raises(BrokenPeer, match="where a request begins"):
        parse(bytes(HEAD_BYTES))


def test_more_than_anybody_may_send_ends_the_connection_before_it_is_read():
    assert parse(wire.request(WRITE, 1, 0, wire.PAYLOAD_BYTES_MAX)).payload_bytes == wire.PAYLOAD_BYTES_MAX
    with pytest.raises(BrokenPeer, match="33554433 bytes at once"):
        parse(wire.request(WRITE, 1, 0, wire.PAYLOAD_BYTES_MAX + 1))


def test_only_a_write_brings_something():
    for kind in range(9):
        assert parse(wire.request(kind, 1, 0, 512)).payload_bytes == (512 if kind == WRITE else 0)


def test_a_read_is_answered_in_the_old_way(ram):
    head = wire.simple_reply(COOKIE)
    assert ask(plain(ram), READ, 100, 300) == head + ram.data[100:400]
    assert ask(plain(ram), READ, 100, 0) == head


def test_a_read_is_answered_with_chunks(ram):
    (chunk,) = chunks(ask(structured(ram), READ, 100, 300))
    assert chunk == (wire.CHUNK_OFFSET_DATA, wire.OFFSET.pack(100) + ram.data[100:400])
    assert chunks(ask(structured(ram), READ, 100, 0)) == [(wire.CHUNK_NONE, b"")]


def pictured(picture: str) -> Ram:
    """One sign for 256 KiB: a letter is data, `-` a hole."""
    return Ram(b"".join(bytes(SIGN_BYTES) if sign == "-" else sign.encode() * SIGN_BYTES for sign in picture))


def seen(answer: bytes) -> str:
    """What a read shows, one sign for 256 KiB; holes that are told and not sent are `-`."""
    found = ""
    for kind, payload in chunks(answer):
        if kind == wire.CHUNK_OFFSET_HOLE:
            offset, length = wire.HOLE.unpack(payload)
            text = "-" * (length // SIGN_BYTES)
        else:
            (offset,), length = wire.OFFSET.unpack_from(payload), len(payload) - 8
            text = payload[8::SIGN_BYTES].replace(b"\0", b"0").decode()
        assert offset == len(found) * SIGN_BYTES
        found += text
    return found


@pytest.mark.parametrize("picture", ["A--B", "-A-B", "---", "AB-", "-", "AAAA"])
def test_holes_are_told_and_not_sent(picture: str):
    ram = pictured(picture)
    length = len(picture) * SIGN_BYTES
    assert seen(ask(structured(ram), READ, 0, length)) == picture
    assert seen(ask(structured(ram), READ, 0, length, DF)) == picture.replace("-", "0")
    assert ask(plain(ram), READ, 0, length) == wire.simple_reply(COOKIE) + ram.data


def test_a_small_read_does_not_ask_for_holes():
    ram = Ram(MIB)
    assert chunks(ask(structured(ram), READ, 0, 65536)) == [(wire.CHUNK_OFFSET_DATA, bytes(8 + 65536))]
    assert ram.calls == [("read", 0, 65536)]


def test_an_export_that_does_not_know_is_not_asked_for_holes():
    ram = Ram(MIB)
    ram.contexts = ()  # type: ignore[assignment]
    assert len(ask(structured(ram), READ, 0, MIB)) > MIB


def test_a_range_in_too_many_pieces_is_sent_in_one():
    ram = Ram((b"x" * PAGE_BYTES + bytes(PAGE_BYTES)) * READ_CHUNK_COUNT_MAX)
    half = ram.size_bytes // 2
    assert len(chunks(ask(structured(ram), READ, 0, half))) == READ_CHUNK_COUNT_MAX
    assert chunks(ask(structured(ram), READ, 0, ram.size_bytes)) == [(wire.CHUNK_OFFSET_DATA, bytes(8) + ram.data)]


@pytest.mark.parametrize("said", [[], [(2 * SIGN_BYTES, 3)], [(SIGN_BYTES // 2, 3), (0, 0), (SIGN_BYTES // 2, 2)]])
def test_what_an_export_says_nothing_of_is_data(said: list[tuple[int, int]]):
    ram = pictured("-")
    ram.status = lambda context, offset, length: said  # type: ignore[method-assign]
    assert seen(ask(structured(ram), READ, 0, SIGN_BYTES)) == ("-" if said else "0")
    found = [wire.STATUS.pack(min(length, SIGN_BYTES), state) for length, state in said if length]
    expected = wire.COUNT.pack(0) + b"".join(found or [wire.STATUS.pack(SIGN_BYTES, 0)])
    assert chunks(ask(structured(ram), STATUS, 0, SIGN_BYTES)) == [(wire.CHUNK_BLOCK_STATUS, expected)]


def test_a_read_of_more_than_32_mib_is_refused_and_the_connection_goes_on():
    ram = Ram(wire.PAYLOAD_BYTES_MAX + 512)
    for transmission in (plain(ram), structured(ram)):
        assert error_of(ask(transmission, READ, 0, wire.PAYLOAD_BYTES_MAX + 1)) == wire.EOVERFLOW
        assert error_of(ask(transmission, READ, 0, 512)) == 0
    assert ("read", 0, wire.PAYLOAD_BYTES_MAX + 1) not in ram.calls


def test_a_write_arrives(ram):
    assert write(plain(ram), 10, b"abc") == wire.simple_reply(COOKIE)
    assert write(structured(ram), 20, b"xyz", FUA) == wire.chunk(COOKIE, wire.CHUNK_NONE)
    assert (ram.data[10:13], ram.data[20:23]) == (b"abc", b"xyz")
    assert ram.calls == [("write", 10, 3, False), ("write", 20, 3, True)]


def test_the_other_commands_arrive(ram):
    for transmission in (plain(ram), structured(ram)):
        ram.calls.clear()
        for kind, flags in ((TRIM, 0), (TRIM, FUA), (CACHE, 0), (ZEROES, 0), (ZEROES, FUA | NO_HOLE), (ZEROES, FAST)):
            assert error_of(ask(transmission, kind, 4096, 8192, flags)) == 0
        assert error_of(ask(transmission, FLUSH)) == 0
        assert ram.calls == [
            *[("trim", 4096, 8192, False), ("trim", 4096, 8192, True), ("cache", 4096, 8192)],
            *[("write zeroes", 4096, 8192, True, False, False), ("write zeroes", 4096, 8192, False, False, True)],
            *[("write zeroes", 4096, 8192, True, True, False), ("flush",)],
        ]


@pytest.mark.parametrize("kind", [WRITE, TRIM, CACHE, ZEROES])
def test_nothing_is_done_well_where_there_is_nothing_to_do(ram, kind: int):
    assert error_of(ask(structured(ram), kind, 4096, 0)) == 0
    assert ram.calls == []


@pytest.mark.parametrize("kind", ALLOWED)
@pytest.mark.parametrize("flag", EVERY_FLAG)
def test_a_flag_goes_with_its_commands_alone(ram, kind: int, flag: int):
    length = 0 if kind == FLUSH else 512
    answer = error_of(ask(structured(ram), kind, 0, length, flag))
    assert answer == (0 if flag & (ALLOWED[kind] | FUA) else wire.EINVAL)
    assert bool(ram.calls) == (not answer)


@pytest.mark.parametrize("kind", [READ, FLUSH, CACHE, STATUS])
def test_what_offers_no_forced_access_does_not_take_that_flag(kind: int):
    ram = Ram(MIB, is_read_only=True)
    assert error_of(ask(structured(ram), kind, 0, 0 if kind == FLUSH else 512, FUA)) == wire.EINVAL


def test_fragments_are_a_matter_of_structured_replies(ram):
    assert error_of(ask(plain(ram), READ, 0, 512, DF)) == wire.EINVAL


@pytest.mark.parametrize("kind", [8, 9, 0x7FFF, 0xFFFF])
def test_a_command_that_nobody_knows_is_refused(ram, kind: int):
    assert error_of(ask(plain(ram), kind, 0, 512)) == wire.EINVAL
    assert error_of(ask(structured(ram), kind, 0, 512)) == wire.EINVAL


@pytest.mark.parametrize(
    ("offset", "length"), [(MIB, 1), (MIB - 511, 512), ((1 << 64) - 1, 512), (1 << 63, 1), (0, MIB + 1)]
)
def test_what_lies_outside_is_refused(ram, offset: int, length: int):
    for kind in (READ, CACHE, STATUS):
        assert error_of(ask(structured(ram), kind, offset, length)) == wire.EINVAL
    for kind in (WRITE, TRIM, ZEROES):
        assert error_of(ask(structured(ram), kind, offset, length)) == wire.ENOSPC
    assert ram.calls == []


def test_the_last_byte_lies_inside(ram):
    for kind in (READ, CACHE, STATUS, WRITE, TRIM, ZEROES):
        assert error_of(ask(structured(ram), kind, MIB - 1, 1)) == 0


def test_a_disk_may_grow(ram):
    transmission = structured(ram)
    assert error_of(ask(transmission, READ, MIB, 512)) == wire.EINVAL
    ram.data += bytes(512)
    assert error_of(ask(transmission, READ, MIB, 512)) == 0


def test_a_flush_has_no_range(ram):
    for offset, length in ((1, 0), (0, 1), (512, 512)):
        assert error_of(ask(structured(ram), FLUSH, offset, length)) == wire.EINVAL
    assert ram.calls == []


def test_what_is_read_only_is_not_written():
    ram = Ram(MIB, is_read_only=True)
    for kind in (WRITE, TRIM, ZEROES):
        assert error_of(ask(structured(ram), kind, 0, 512)) == wire.EPERM
    for kind in (READ, CACHE, STATUS):
        assert error_of(ask(structured(ram), kind, 0, 512)) == 0
    assert error_of(ask(structured(ram), FLUSH)) == 0


@pytest.mark.parametrize(
    ("code", "told"),
    [(errno.ENOSPC, wire.ENOSPC), (errno.EIO, wire.EIO), (errno.ENOTSUP, wire.ENOTSUP), (errno.EROFS, wire.EPERM)],
)
def test_a_failure_is_told_with_its_reason_and_the_connection_goes_on(ram, code: int, told: int):
    ram.fail(code)
    transmission = structured(ram)
    for kind in ALLOWED:
        answer = ask(transmission, kind, 0, 0 if kind == FLUSH else 1 << 16)
        assert error_of(answer) == told
        ((_, payload),) = chunks(answer)
        assert payload[6:].decode() == ram.error.message
        if kind != STATUS:
            assert ask(plain(ram), kind, 0, 0 if kind == FLUSH else 1 << 16) == wire.simple_reply(COOKIE, told)
    ram.error = None
    assert error_of(ask(transmission, READ, 0, 512)) == 0


def test_memory_that_is_not_there_is_told(ram):
    ram.error = MemoryError()
    assert error_of(ask(structured(ram), READ, 0, 512)) == wire.ENOMEM


def test_the_status_is_told_for_each_context_by_its_number():
    ram = Ram(b"x" * PAGE_BYTES + bytes(2 * PAGE_BYTES) + b"x" * PAGE_BYTES)
    allocation = [(PAGE_BYTES, 0), (2 * PAGE_BYTES, 3), (PAGE_BYTES, 0)]
    odd = [(PAGE_BYTES, number % 2) for number in range(4)]
    for contexts, wanted in (
        ((wire.BASE_ALLOCATION,), [allocation]),
        ((wire.BASE_ALLOCATION, "x-tests:odd"), [allocation, odd]),
    ):
        for flags, count in ((0, 4), (REQ_ONE, 1)):
            found = chunks(ask(structured(ram, *contexts), STATUS, 0, ram.size_bytes, flags))
            assert found == [
                (
                    wire.CHUNK_BLOCK_STATUS,
                    wire.COUNT.pack(number) + b"".join(wire.STATUS.pack(*each) for each in extents[:count]),
                )
                for number, extents in enumerate(wanted)
            ]


def test_the_status_needs_a_context_and_a_range(ram):
    assert error_of(ask(Transmission(ram, is_structured=True), STATUS, 0, 512)) == wire.EINVAL
    assert error_of(ask(plain(ram), STATUS, 0, 512)) == wire.EINVAL
    assert error_of(ask(structured(ram), STATUS, 0, 0)) == wire.EINVAL


def test_no_more_is_told_of_a_range_than_fits(ram):
    ram.status = lambda context, offset, length: [(1, number % 2) for number in range(length)]
    ((_, payload),) = chunks(ask(structured(ram), STATUS, 0, MIB))
    assert len(payload) == 4 + 8 * wire.EXTENT_COUNT_MAX


KINDS = st.one_of(st.sampled_from([*ALLOWED, 2, 8]), st.integers(0, 0xFFFF))
OFFSETS = st.one_of(st.integers(0, 4096), st.integers(0, (1 << 64) - 1))
LENGTHS = st.one_of(st.integers(0, 4096), st.integers(0, (1 << 32) - 1))


@given(KINDS, st.integers(0, 0xFFFF), OFFSETS, LENGTHS, st.booleans())
def test_whatever_is_asked_there_is_one_answer_of_bounded_size(kind, flags, offset, length, is_structured):
    ram = Ram(4096)
    try:
        request = parse(wire.request(kind, COOKIE, offset, length, flags))
    except BrokenPeer:
        return
    payload = memoryview(bytes(request.payload_bytes)) if request.payload_bytes else None
    transmission = structured(ram) if is_structured else plain(ram)
    answer = b"".join(transmission.answer(request, payload))
    assert len(answer) < 4096 + 1024
    assert error_of(answer) in (0, wire.EINVAL, wire.ENOSPC, wire.EOVERFLOW)
    assert all(0 <= call[1] < 4096 for call in ram.calls if call[0] not in ("flush", "status"))


@given(st.binary(min_size=HEAD_BYTES, max_size=HEAD_BYTES))
def test_whatever_bytes_come_they_are_a_request_or_the_end(data):
    for head in (data, wire.request(0, 0)[:4] + data[4:]):
        with suppress(BrokenPeer):
            assert isinstance(parse(head), Request)


def test_a_session_is_what_a_disk_would_have_done(seed: int):
    rng, ram, model = random.Random(seed), Ram(64 << 10), bytearray(64 << 10)
    transmission = structured(ram) if seed % 2 else plain(ram)
    for _ in range(200):
        offset = rng.randrange(len(model))
        length = rng.randrange(len(model) - offset) + 1
        kind = rng.choice((READ, WRITE, ZEROES))
        if kind == WRITE:
            data = rng.randbytes(length)
            assert error_of(write(transmission, offset, data)) == 0
            model[offset : offset + length] = data
        elif kind == ZEROES:
            assert error_of(ask(transmission, ZEROES, offset, length)) == 0
            model[offset : offset + length] = bytes(length)
        else:
            answer = ask(transmission, READ, offset, length)
            assert error_of(answer) == 0
            assert answer[-length:] == model[offset : offset + length]
    assert ram.data == model
