"""Owns the proof that a table of a structure is checked against itself, and that it reads and writes as it says."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowtree.records import bits, record
from tests.qemu import run

PAIR = record((0, "S4", "magic"), (4, ">u1", "kind"), (5, ">u2", "count"), (7, ">u8", "offset"), size=15)


def test_a_gap_between_two_fields_is_named():
    with pytest.raises(ValueError, match="b is declared at 8, but the fields before it end at 4"):
        record((0, ">u4", "a"), (8, ">u4", "b"), size=12)


def test_two_fields_may_not_overlap():
    with pytest.raises(ValueError, match="b is declared at 4, but the fields before it end at 8"):
        record((0, ">u8", "a"), (4, ">u4", "b"), size=8)


def test_a_first_field_that_is_not_at_the_start_is_named():
    with pytest.raises(ValueError, match="a is declared at 4, but the fields before it end at 0"):
        record((4, ">u4", "a"), size=4)


@pytest.mark.parametrize("size", [11, 13])
def test_a_wrong_size_is_named(size: int):
    with pytest.raises(ValueError, match=f"the fields fill 12 bytes, not {size}"):
        record((0, ">u8", "a"), (8, "S4", "b"), size=size)


@pytest.mark.parametrize("kind", ["<u4", "u4", ">i4", ">u3"])
def test_integers_are_big_endian_and_have_no_sign(kind: str):
    with pytest.raises(KeyError):
        record((0, kind, "a"), size=4)


def test_fields_lie_where_the_table_says():
    data = b"MAGC" + b"\x07" + b"\x01\x02" + b"\0\0\0\0\0\0\x10\0"
    assert PAIR.size_bytes == 15
    assert PAIR.unpack(data) == {"magic": b"MAGC", "kind": 7, "count": 0x102, "offset": 0x1000}
    assert PAIR.integers(b"--" + data, 2) == {"kind": 7, "count": 0x102, "offset": 0x1000}


@given(st.binary(min_size=15, max_size=15))
def test_what_was_read_is_written_back_byte_for_byte(data: bytes):
    assert PAIR.pack(**PAIR.unpack(data)) == data


def test_a_field_that_was_forgotten_is_named():
    with pytest.raises(KeyError, match="count"):
        PAIR.pack(magic=b"MAGC", kind=1, offset=2)


def test_a_mask_holds_both_of_its_ends():
    assert bits(0, 0) == 1
    assert bits(9, 11) == 0b1110_0000_0000
    assert bits(0, 63) == (1 << 64) - 1
    assert bits(9, 55) == 0x00FF_FFFF_FFFF_FE00


LIGHT = ("records", "errors", "units", "qcow2.geometry", "qcow2.header", "qcow2.snapshots", "qcow2.bitmaps")


@pytest.mark.parametrize("name", LIGHT)
def test_what_reads_structures_needs_no_numpy(name: str):
    code = f"import sys, cowtree.{name}; sys.exit('numpy' in sys.modules)"
    assert run(sys.executable, "-c", code).returncode == 0
