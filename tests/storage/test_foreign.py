"""Tests how disks in foreign formats are told apart and read, over disks made up for it."""

import sys

import pytest

import cowtree.storage
from cowtree.chain import gate
from cowtree.errors import BrokenHeader, BrokenTable, ChainError
from cowtree.storage.contract import Span
from cowtree.storage.foreign import FORMATS, READ_BYTES_MAX, VDI_MAGIC, ForeignFile, Stream, open_disk, probe
from cowtree.storage.memory import MemoryFiles


def opened(data: bytes, size_bytes: int | None = None):
    """A file of these bytes."""
    file = MemoryFiles({"a": data}).open("a", "read")
    return file if size_bytes is None else _Large(file, size_bytes)


class _Large:
    """A file that says it is longer than it is, as one with a hole at its end."""

    def __init__(self, inner, size_bytes):
        self.inner, self.size_bytes, self.path = inner, size_bytes, inner.path

    def pread(self, offset, length):
        return self.inner.pread(offset, length)


class _Stripes:
    """A disk of blocks of four bytes: a hole, `bbbb`, a hole and so on; the last block is cut off in the file."""

    size_bytes = 16
    is_closed = False

    def run(self, offset):
        block = offset // 4
        return 4 * (block + 1), block % 2 == 1

    def read(self, offset, length):
        assert offset // 4 == (offset + length - 1) // 4
        return b"b" * (length if offset < 12 else length - 1)

    def close(self):
        self.is_closed = True


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"KDMV", "vmdk"),
        (b"COWD", "vmdk"),
        (b"# Disk DescriptorFile\nversion=1\nCID=1\n", "vmdk"),
        (b"# a\r\n  \r\n#\nversion=3\r\n", "vmdk"),
        (b"version=4\n", None),
        (b"# a\n x\nversion=1\n", None),
        (b"#" * 512, None),
        (b"vhdxfile", "vhdx"),
        (b"conectix", "vpc"),
        (bytes(0x40) + VDI_MAGIC, "vdi"),
        (bytes(512), None),
    ],
)
def test_the_first_bytes_tell_the_format(data, found):
    assert probe(data) == found
    assert gate.probe(opened(data)) == (found or "raw")


def test_blocks_are_read_one_by_one_and_holes_never():
    disk = _Stripes()
    file = ForeignFile(opened(b""), "vdi", disk)
    assert file.pread(0, 12) == bytes(4) + b"bbbb" + bytes(4)
    assert file.pread(6, 4) == b"bb\0\0"
    assert list(file.extents(2, 100)) == [
        Span(2, 2, is_data=False),
        Span(4, 4, is_data=True),
        Span(8, 4, is_data=False),
        Span(12, 4, is_data=True),
    ]
    assert file.pread(16, 4) == bytes(4)
    with pytest.raises(BrokenTable, match="the file ends before the data of guest offset 12"):
        file.pread(8, 8)
    file.close()
    assert disk.is_closed


def test_the_library_reads_no_more_than_there_is_and_than_makes_sense():
    stream = Stream(opened(b"0123456789"))
    stream.seek(-4, 2)
    assert (stream.read(100), stream.tell(), stream.read()) == (b"6789", 10, b"")
    stream.seek(3)
    assert stream.read(2) == b"34"
    assert stream.seek(-1, 1) == 4
    with pytest.raises(EOFError):
        stream.seek(-11, 2)
    with pytest.raises(ValueError, match="longer than any that makes sense"):
        Stream(opened(b"", 1 << 40)).read(READ_BYTES_MAX + 1)


@pytest.mark.parametrize("image_format", FORMATS)
def test_what_is_no_such_image_is_told_so_in_one_sentence(image_format):
    for data in (b"", b"\xff" * 70000, bytes(70000)):
        with pytest.raises(BrokenHeader, match=f"the {image_format} image is damaged: .") as caught:
            open_disk(MemoryFiles(), opened(data), image_format, "read")
        assert "\n" not in str(caught.value)


def test_without_the_library_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dissect.hypervisor.disk.c_vhd", None)
    monkeypatch.delitem(sys.modules, "cowtree.storage.foreign_disks", raising=False)
    monkeypatch.delattr(cowtree.storage, "foreign_disks", raising=False)
    with pytest.raises(ChainError, match=r"needs dissect\.hypervisor, which is not installed") as caught:
        open_disk(MemoryFiles(), opened(b"KDMV"), "vmdk", "read")
    assert caught.value.advice == "pip install 'cowtree[foreign]'"
