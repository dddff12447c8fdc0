"""Tests each foreign format against images that qemu-img made, and hostile ones made from them."""

import os
import struct

import pytest

from cowtree.errors import BrokenHeader, ChainError
from cowtree.storage.file import LocalFiles
from cowtree.storage.foreign import open_disk
from tests.qemu import qemu_img, qemu_io

SIZE = 4 << 20


def make(path, image_format, options):
    """An image with something in it, and its content."""
    qemu_img("create", "-q", "-f", image_format, "-o", options, path, str(SIZE))
    qemu_io(path, "write -P 7 70000 130000", "write -P 9 3000000 512", image_format=image_format)
    plain = path.with_name("plain")
    qemu_img("convert", "-f", image_format, "-O", "raw", path, plain)
    return plain.read_bytes()


def read(path, image_format):
    """The disk in an image."""
    files = LocalFiles()
    file = files.open(str(path), "read")
    try:
        disk = open_disk(files, file, image_format, "read")
    except BaseException:
        file.close()
        raise
    try:
        data = disk.pread(0, disk.size_bytes)
        for span in disk.extents(0, disk.size_bytes):
            assert span.is_data or not any(data[span.start : span.start + span.length])
        assert disk.pread(70001, 99999) == data[70001:170000]
        return data
    finally:
        disk.close()


def patch(path, offset, data):
    """Write bytes into the file itself."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("vmdk", "subformat=monolithicSparse"),
        ("vmdk", "subformat=monolithicFlat"),
        ("vmdk", "subformat=twoGbMaxExtentSparse"),
        ("vmdk", "subformat=twoGbMaxExtentFlat"),
        ("vhdx", "subformat=dynamic,block_size=1M"),
        ("vhdx", "subformat=fixed"),
        ("vpc", "subformat=dynamic"),
        ("vpc", "subformat=dynamic,force_size=on"),
        ("vpc", "subformat=fixed"),
        ("vdi", "static=off"),
        ("vdi", "static=on"),
    ],
)
def test_a_disk_reads_as_qemu_reads_it(tmp_path, image_format, options):
    path = tmp_path / "image"
    content = make(path, image_format, options)
    assert any(content)
    assert read(path, image_format) == content


@pytest.mark.parametrize("name", ["../image-flat.vmdk", "/etc/passwd", "..", "pipe", "link"])
def test_an_extent_is_a_regular_file_of_the_same_folder(tmp_path, name):
    make(tmp_path / "image.vmdk", "vmdk", "subformat=monolithicFlat")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("image-flat.vmdk")
    path = tmp_path / "image.vmdk"
    path.write_text(path.read_text().replace("image-flat.vmdk", name))
    with pytest.raises(ChainError, match=r"is not a (regular )?file"):
        read(path, "vmdk")


def test_an_extent_that_is_too_short_or_missing_is_told(tmp_path):
    make(tmp_path / "image.vmdk", "vmdk", "subformat=monolithicFlat")
    os.truncate(tmp_path / "image-flat.vmdk", SIZE - 512)
    with pytest.raises(BrokenHeader, match="is shorter than the descriptor says"):
        read(tmp_path / "image.vmdk", "vmdk")
    (tmp_path / "image-flat.vmdk").unlink()
    with pytest.raises(ChainError, match="No such file"):
        read(tmp_path / "image.vmdk", "vmdk")


def test_an_image_that_is_built_on_another_is_refused(tmp_path):
    qemu_img("create", "-q", "-f", "vmdk", tmp_path / "base.vmdk", str(SIZE))
    qemu_img("create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", tmp_path / "top.vmdk")
    with pytest.raises(ChainError, match="built on others"):
        read(tmp_path / "top.vmdk", "vmdk")


SPARSE, VHDX, VDI = ("vmdk", "subformat=monolithicSparse"), ("vhdx", "subformat=dynamic"), ("vdi", "static=off")


@pytest.mark.parametrize(
    ("kind", "offset", "data", "sentence"),
    [
        (SPARSE, 12, b"\xff" * 8, "a disk of "),
        (SPARSE, 20, b"\xff" * 8, "grains of "),
        (SPARSE, 44, bytes(4), "a grain table of 0 entries"),
        (VHDX, 3 * 65536 + 8, b"\xff" * 4, "a region table of 4294967295 entries"),
        (VDI, 0x178, struct.pack("<I", 1 << 31), "unsupported block size"),
        (VDI, 0x180, bytes(4), "unsupported disk size"),
        (("vpc", "subformat=dynamic"), 8, b"\xff", "incorrect checksum"),
    ],
)
def test_numbers_without_sense_are_refused_before_they_cost_anything(tmp_path, kind, offset, data, sentence):
    path = tmp_path / "image"
    make(path, *kind)
    patch(path, offset, data)
    with pytest.raises(BrokenHeader, match=sentence):
        read(path, kind[0])


def test_a_log_that_has_to_be_replayed_is_refused(tmp_path):
    path = tmp_path / "image"
    make(path, "vhdx", "subformat=dynamic")
    for offset in (65536, 131072):
        patch(path, offset + 48, b"\1" * 16)
    with pytest.raises(ChainError, match="contains a log that needs to be replayed"):
        read(path, "vhdx")
