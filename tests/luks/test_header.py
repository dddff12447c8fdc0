"""The header of a LUKS volume: what it says comes back, and every broken rule is told in QEMU's words."""

import pytest

from cowtree.errors import BrokenHeader
from cowtree.luks.header import (
    ITERATION_COUNT_MAX,
    Slot,
    Suite,
    Volume,
    is_luks,
    new_slots,
    pack,
    parse,
    payload_offset,
)

SUITE = Suite()
VOLUME = Volume(SUITE, payload_offset(SUITE), b"d" * 20, b"s" * 32, 1000, "uuid", new_slots(SUITE))
PLACE = VOLUME.slots[0].offset


def test_what_is_packed_is_parsed():
    filled = VOLUME.with_slot(3, Slot(True, 5000, b"t" * 32, VOLUME.slots[3].offset))
    assert parse("a", pack(filled)) == filled
    assert filled.active == [3]
    assert is_luks(pack(filled))


def test_a_volume_is_laid_out_as_qemu_lays_it():
    assert payload_offset(SUITE) == 2068480
    assert [slot.offset for slot in new_slots(SUITE)][:2] == [4096, 262144]


@pytest.mark.parametrize(
    ("offset", "data", "reason"),
    [
        (0, b"x", "Volume is not in LUKS format"),
        (6, b"\0\2", "LUKS version 2 is not supported"),
        (8, b"x" * 32, "LUKS header cipher name is not NUL terminated"),
        (104, bytes(4), "LUKS payload is overlapping with the header"),
        (164, bytes(4), "LUKS key iteration count is zero"),
        (164, b"\xff" * 4, f"LUKS key iteration count is above {ITERATION_COUNT_MAX}"),
        (108, b"\xff" * 4, "Keyslot 0 is overlapping with the encrypted payload"),
        (108, b"\0\0\0\x21", "Algorithm 'aes' with key size 16 bytes not supported"),
        (208 + 44, b"\xff" * 4, "Keyslot 0 is corrupted (stripes -1 != 4000)"),
        (208, b"\0", "Keyslot 0 iteration count is zero"),
        (208 + 40, bytes(4), "Keyslot 0 is overlapping with the LUKS header"),
        (208 + 48 + 40, b"\0\0\0\x08", "Keyslots 0 and 1 are overlapping in the header"),
        (72, b"sha257\0", "Hash algorithm 'sha257' not supported"),
        (40, b"xtsplain64\0", "Unexpected cipher mode string format 'xtsplain64'"),
        (40, b"xts-essiv\0", "Missing IV generator hash specification"),
        (40, b"cbc-essiv:sha512\0", "Algorithm 'aes' with key size 64 bytes not supported"),
        (40, b"xts-essiv:sha512\0", "No AES cipher with key size 64 available"),
    ],
)
def test_a_broken_rule_is_told(offset, data, reason):
    broken = bytearray(pack(VOLUME))
    if offset == 208 and len(data) == 1:
        data = (0x00AC71F3).to_bytes(4, "big")
    broken[offset : offset + len(data)] = data
    with pytest.raises(BrokenHeader) as caught:
        parse("a", bytes(broken))
    assert caught.value.reason.startswith(reason)
