"""Zeroes by each of the three ways."""

import errno
import os

import pytest

from cowtree.storage import holes


@pytest.fixture
def descriptor(tmp_path):
    number = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.pwrite(number, b"\1" * (3 << 20), 0)
    yield number
    os.close(number)


def check(descriptor, offset, length):
    data = os.pread(descriptor, 4 << 20, 0)
    assert data == b"\1" * offset + bytes(length) + b"\1" * ((3 << 20) - offset - length)


@pytest.mark.parametrize("way_count", [2, 1, 0], ids=["hole", "zero range", "written"])
def test_each_way_makes_zeroes_of_the_range_alone(descriptor, monkeypatch, way_count):
    # A mode that no kernel knows is refused by the kernel, as a file system that cannot do it refuses.
    monkeypatch.setattr(holes, "_WAYS", (0x1000,) * (2 - way_count) + holes._WAYS[2 - way_count :])
    holes.zero(descriptor, 1000, (2 << 20) + 3000)
    check(descriptor, 1000, (2 << 20) + 3000)


def test_only_a_hole_gives_space_back(descriptor, monkeypatch):
    full = os.fstat(descriptor).st_blocks
    monkeypatch.setattr(holes, "_WAYS", ())
    holes.zero(descriptor, 0, 1 << 20)
    assert os.fstat(descriptor).st_blocks == full
    monkeypatch.undo()
    holes.zero(descriptor, 0, 1 << 20)
    assert os.fstat(descriptor).st_blocks < full


def test_a_file_that_cannot_be_written_says_so(descriptor, tmp_path):
    reader = os.open(tmp_path / "file", os.O_RDONLY)
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        holes.zero(reader, 0, 100)
    assert caught.value.errno == errno.EBADF
    os.close(reader)
    check(descriptor, 0, 0)
