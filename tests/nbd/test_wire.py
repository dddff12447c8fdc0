"""Messages as the protocol's text prints them, byte by byte."""

import errno

import pytest

from cowtree.nbd import wire


def test_a_greeting_and_the_head_of_an_option_are_as_the_text_prints_them():
    greeting = wire.GREETING.pack(magic=wire.INIT_MAGIC, option_magic=wire.OPTION_MAGIC, flags=3)
    assert greeting.hex() == "4e42444d41474943" + "49484156454f5054" + "0003"
    assert wire.option(7, b"abc").hex() == "49484156454f5054" + "00000007" + "00000003" + "616263"
    assert wire.CLIENT_FLAGS.pack(3).hex() == "00000003"


def test_an_answer_to_an_option_is_as_the_text_prints_it():
    assert wire.option_reply(6, wire.REP_ACK).hex() == "0003e889045565a9" + "00000006" + "00000001" + "00000000"
    refused = wire.option_reply(3, wire.ERR_POLICY, b"no")
    assert refused.hex() == "0003e889045565a9" + "00000003" + "80000002" + "00000002" + "6e6f"


def test_what_is_told_of_an_export_is_as_the_text_prints_it():
    size_bytes, flags = 1 << 40, wire.HAS_FLAGS | wire.SEND_FLUSH
    assert wire.EXPORT.pack(size_bytes=size_bytes, flags=flags).hex() == "0000010000000000" + "0005"
    told = wire.INFO_EXPORT_REPLY.pack(info=wire.INFO_EXPORT, size_bytes=size_bytes, flags=flags)
    assert told.hex() == "0000" + "0000010000000000" + "0005"
    blocks = wire.INFO_BLOCK_SIZE_REPLY.pack(info=wire.INFO_BLOCK_SIZE, minimum=1, preferred=4096, maximum=32 << 20)
    assert blocks.hex() == "0003" + "00000001" + "00001000" + "02000000"


def test_a_request_is_as_the_text_prints_it():
    request = wire.request(wire.CMD_WRITE, 0x1122334455667788, 4096, 512, wire.CMD_FLAG_FUA)
    assert request.hex() == "25609513" + "0001" + "0001" + "1122334455667788" + "0000000000001000" + "00000200"


def test_answers_are_as_the_text_prints_them():
    assert wire.simple_reply(1, wire.EIO).hex() == "67446698" + "00000005" + "0000000000000001"
    none = wire.chunk(2, wire.CHUNK_NONE)
    assert none.hex() == "668e33ef" + "0001" + "0000" + "0000000000000002" + "00000000"
    data = wire.chunk(2, wire.CHUNK_OFFSET_DATA, wire.OFFSET.pack(512), more_bytes=1024, is_last=False)
    assert data.hex() == "668e33ef" + "0000" + "0001" + "0000000000000002" + "00000408" + "0000000000000200"
    hole = wire.chunk(2, wire.CHUNK_OFFSET_HOLE, wire.HOLE.pack(512, 1024))
    assert (
        hole.hex() == "668e33ef" + "0001" + "0002" + "0000000000000002" + "0000000c" + "0000000000000200" + "00000400"
    )
    failed = wire.error_chunk(2, wire.ENOSPC, "full")
    assert (
        failed.hex()
        == "668e33ef" + "0001" + "8001" + "0000000000000002" + "0000000a" + "0000001c" + "0004" + "66756c6c"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("OPT_EXPORT_NAME", 1), ("OPT_ABORT", 2), ("OPT_LIST", 3), ("OPT_STARTTLS", 5), ("OPT_INFO", 6)],
        *[("OPT_GO", 7), ("OPT_STRUCTURED_REPLY", 8), ("OPT_LIST_META", 9), ("OPT_SET_META", 10)],
        *[("CMD_READ", 0), ("CMD_WRITE", 1), ("CMD_DISC", 2), ("CMD_FLUSH", 3), ("CMD_TRIM", 4), ("CMD_CACHE", 5)],
        *[("CMD_WRITE_ZEROES", 6), ("CMD_BLOCK_STATUS", 7), ("CMD_FLAG_FUA", 1), ("CMD_FLAG_NO_HOLE", 2)],
        *[("CMD_FLAG_DF", 4), ("CMD_FLAG_REQ_ONE", 8), ("CMD_FLAG_FAST_ZERO", 16), ("READ_ONLY", 2)],
        *[("SEND_FUA", 8), ("SEND_TRIM", 32), ("SEND_WRITE_ZEROES", 64), ("SEND_DF", 128), ("CAN_MULTI_CONN", 256)],
        *[("SEND_CACHE", 1024), ("SEND_FAST_ZERO", 2048), ("CHUNK_BLOCK_STATUS", 5), ("CHUNK_ERROR_OFFSET", 32770)],
        *[("ERR_UNSUP", (1 << 31) + 1), ("ERR_TLS_REQD", (1 << 31) + 5), ("ERR_UNKNOWN", (1 << 31) + 6)],
        *[("ERR_BLOCK_SIZE_REQD", (1 << 31) + 8), ("ERR_TOO_BIG", (1 << 31) + 9)],
    ],
)
def test_a_number_is_that_of_the_text(name: str, value: int):
    assert getattr(wire, name) == value


def test_every_command_has_a_name():
    assert wire.NAMES_OF_COMMANDS[wire.CMD_BLOCK_STATUS] == "block status"
    assert len(wire.NAMES_OF_COMMANDS) == wire.CMD_BLOCK_STATUS + 1


@pytest.mark.parametrize(
    ("code", "told"),
    [
        *[(errno.EROFS, wire.EPERM), (errno.EDQUOT, wire.ENOSPC), (errno.EFBIG, wire.ENOSPC)],
        *[(errno.ENOTSUP, wire.ENOTSUP), (errno.ENXIO, wire.EIO), (None, wire.EIO), (0, wire.EIO)],
    ],
)
def test_the_systems_errors_become_those_of_the_protocol(code: int | None, told: int):
    assert wire.error_number(code) == told


def test_a_name_with_any_bytes_goes_out_as_it_came_in():
    name = b"caf\xe9 \xf0".decode("utf-8", "surrogateescape")
    assert wire.counted(name) == b"\0\0\0\x06caf\xe9 \xf0"


def test_a_long_reason_is_cut():
    assert len(wire.error_chunk(1, wire.EIO, "x" * 100_000)) == 20 + 6 + wire.NAME_BYTES_MAX
