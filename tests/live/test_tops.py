"""A raw layer on top of a disk."""

import pytest

from cowtree.errors import StorageFailed
from cowtree.storage.faults import Fault, FaultyFiles
from cowtree.storage.memory import MemoryFiles
from cowtree.units import KIB
from tests.live.guests import serving


def test_a_raw_image_is_written_where_the_guest_says():
    files = MemoryFiles({"disk": bytes(64 * KIB)})
    with serving(files, "disk", "raw") as disk:
        disk.write(1000, memoryview(b"hello"), is_durable=False)
        disk.write(2000, memoryview(b"x" * 8000), is_durable=True)
        disk.write_zeroes(3000, 1000, may_trim=False, is_fast=True, is_durable=False)
        disk.trim(4000, 4096, is_durable=False)
        assert disk.read(1000, 5) == b"hello"
    data = files.content("disk")
    assert data[1000:1005] == b"hello"
    assert data[2000:3000] == b"x" * 1000
    assert data[3000:4000] == bytes(1000)
    assert len(data) == 64 * KIB


def test_the_last_sector_of_an_odd_file_is_whole():
    files = MemoryFiles({"disk": b"a" * 700})
    with serving(files, "disk", "raw") as disk:
        assert disk.read(0, 1024) == b"a" * 700 + bytes(324)
        disk.write(1000, memoryview(b"end"), is_durable=False)
    assert files.content("disk") == b"a" * 700 + bytes(300) + b"end"


def test_a_flush_that_fails_is_told():
    files = FaultyFiles(MemoryFiles({"disk": bytes(1024)}), Fault(1, 5))
    with pytest.raises(StorageFailed), serving(files, "disk", "raw") as disk:
        disk.write(0, memoryview(b"x"), is_durable=True)
