"""A part of a file as the whole."""

import pytest

from cowtree.errors import StorageFailed
from cowtree.storage.contract import Access
from cowtree.storage.memory import MemoryFiles
from cowtree.storage.part import Part


def part(size_bytes: int | None) -> Part:
    return Part(MemoryFiles({"a": b"0123456789"}).open("a", Access.WRITE), 2, size_bytes)


@pytest.mark.parametrize(("size_bytes", "shown"), [(None, b"23456789"), (4, b"2345")])
def test_nothing_outside_is_read(size_bytes, shown):
    found = part(size_bytes)
    assert found.size_bytes == len(shown)
    assert found.pread(0, 10) == shown.ljust(10, b"\0")
    assert found.pread(20, 2) == b"\0\0"
    buffers = [bytearray(b"xxx") for _ in range(4)]
    found.preadv(1, [memoryview(each) for each in buffers])
    assert b"".join(buffers) == shown[1:].ljust(12, b"\0")
    assert [(span.start, span.length) for span in found.extents(1, 3)] == [(1, 3)]


def test_nothing_outside_is_written():
    found = part(4)
    found.pwrite(2, b"ab")
    assert found.inner.pread(0, 10) == b"0123ab6789"
    found.write_zeroes(0, 1)
    found.allocate(0, 4)
    assert found.inner.pread(0, 10) == b"01\x003ab6789"
    for act in (lambda: found.pwrite(3, b"xy"), lambda: found.write_zeroes(0, 5), lambda: found.truncate(5)):
        with pytest.raises(StorageFailed):
            act()
    found.truncate(4)
    assert found.inner.pread(0, 10) == b"01\x003ab6789"
    assert found.inner.size_bytes == 10


def test_a_part_without_a_size_grows_with_its_file():
    found = part(None)
    found.truncate(10)
    assert found.inner.size_bytes == 12
