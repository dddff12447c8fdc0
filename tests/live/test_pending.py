"""Tables that wait for a flush."""

import numpy as np
import pytest

from cowtree.chain import load
from cowtree.chain.view import open_chain
from cowtree.errors import BrokenTable
from cowtree.qcow2 import tables
from cowtree.storage.contract import Access
from cowtree.storage.memory import MemoryFiles
from tests.crash import assert_sound, guest_view
from tests.live.guests import serving
from tests.pictures import CLUSTER_BYTES, Family, family


def write(disk, picture: str) -> None:
    """Write the clusters of a picture that are not holes."""
    for index, sign in enumerate(picture):
        if sign != "-":
            disk.write(index * CLUSTER_BYTES, memoryview(sign.encode() * CLUSTER_BYTES), is_durable=False)


def in_file(made: Family) -> str:
    """What somebody else sees in the file now, had the server been stopped."""
    return Family(MemoryFiles(made.files.snapshot()), made.names, made.formats).seen()


def test_entries_are_written_when_the_guest_flushes():
    made = family("A---", "BBBB")
    with serving(made.files, made.top) as disk:
        write(disk, "-X-Y")
        assert in_file(made) == "ABBB"
        disk.flush()
        assert in_file(made) == "AXBY"
        write(disk, "Z-")
        assert in_file(made) == "ZXBY", "what has a place of its own is there at once"


def test_a_durable_write_makes_all_durable():
    made = family("----")
    with serving(made.files, made.top) as disk:
        write(disk, "-X")
        disk.write(0, memoryview(b"W" * CLUSTER_BYTES), is_durable=True)
        assert in_file(made) == "WX00"


def test_much_that_waits_is_written_without_being_asked_for(monkeypatch):
    monkeypatch.setattr("cowtree.live.pending.DIRTY_BYTES_MAX", 1)
    made = family("-" * 256)
    with serving(made.files, made.top) as disk:
        write(disk, "X" * 256)
        assert in_file(made).count("X") > 100


def test_tables_are_forgotten_only_when_the_file_says_the_same(monkeypatch):
    monkeypatch.setattr("cowtree.live.pending.TABLE_BYTES_MAX", 2 * CLUSTER_BYTES)
    monkeypatch.setattr("cowtree.live.sight.UNITS_PER_WINDOW_BITS", 6)
    made = family("-" * 64 * 8)
    with serving(made.files, made.top) as disk:
        for index in range(8):
            write(disk, "-" * 64 * index + "X")
        assert disk.read(0, disk.size_bytes).count(b"X") == 8 * CLUSTER_BYTES
    assert guest_view(made.files, made.top).count(b"X") == 8 * CLUSTER_BYTES


def test_what_is_given_back_is_used_again():
    made = family("-" * 16)
    with serving(made.files, made.top) as disk:
        write(disk, "X" * 16)
        disk.flush()
        end = made.files.open(made.top, Access.PROBE).size_bytes
        for _ in range(20):
            disk.write_zeroes(0, disk.size_bytes, may_trim=True, is_fast=True, is_durable=True)
            write(disk, "Y" * 16)
            disk.flush()
        assert made.files.open(made.top, Access.PROBE).size_bytes < end + 80 * CLUSTER_BYTES
    assert made.seen() == "Y" * 16
    assert_sound(made.files, made.top, is_done=True)


def damaged(made: Family, host_of_0: int | None = None) -> None:
    """Let the entry of the first cluster lead elsewhere: to the L1 table, or where the second one lies."""
    chain = open_chain(made.files, made.top, "qcow2", Access.WRITE)
    image = chain.images[0]
    assert image is not None
    held = load.load_tables(chain.top.file, image, 0, 1)
    host = int(held.entries[0, 1] & tables.HOST_OFFSET) if host_of_0 is None else image.header.l1_table_offset
    word = tables.encode_words(np.array([host], np.uint64) | tables.COPIED)
    chain.top.file.pwrite(int(held.host_offset[0]), word)
    chain.close()


@pytest.mark.parametrize("host", [None, 0])
def test_nobody_writes_to_a_cluster_that_is_not_the_guests_alone(host: int | None):
    made = family("AB--")
    damaged(made, host)
    before = made.files.content(made.top)
    with serving(made.files, made.top) as disk:
        assert disk.read(CLUSTER_BYTES, 1) == b"B"
        with pytest.raises(BrokenTable):
            disk.write(0, memoryview(b"x" * CLUSTER_BYTES), is_durable=False)
    assert made.files.content(made.top)[CLUSTER_BYTES:] == before[CLUSTER_BYTES:]
