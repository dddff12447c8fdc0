"""Internal snapshots and persistent bitmaps of one open layer."""

import struct
from pathlib import Path

import pytest

from cowtree.chain import gate
from cowtree.chain.gate import Layer
from cowtree.chain.lists import read_bitmaps, read_snapshots
from cowtree.errors import BrokenTable, TruncatedImage
from cowtree.qcow2.header import BITMAPS, Header
from cowtree.storage.memory import MemoryFiles
from tests.qemu import qemu_img

CLUSTER = 65536
SNAPSHOT_COUNT, SNAPSHOTS_OFFSET = 60, 64
# From the start of the bitmaps extension's data to the offset of the directory.
DIRECTORY_OFFSET = 16


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An image with two snapshots and two bitmaps."""
    path = tmp_path / "disk"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    for name in ("one", "ü"):
        qemu_img("snapshot", "-c", name, path)
    qemu_img("bitmap", "--add", path, "first")
    qemu_img("bitmap", "--add", "--disable", "-g", "4k", path, "second")
    return path


def opened(data: bytes) -> tuple[Layer, Header]:
    layer = gate.open_layer(MemoryFiles({"disk": data}), "disk")
    assert layer.header is not None
    return layer, layer.header


def patched(path: Path, offset: int, layout: str, value: int) -> bytes:
    data = bytearray(path.read_bytes())
    struct.pack_into(layout, data, offset, value)
    return bytes(data)


def directory_field(data: bytes) -> int:
    return data.index(struct.pack(">II", BITMAPS, 24)) + 8 + DIRECTORY_OFFSET


def test_snapshots_are_read_in_order(path: Path):
    snapshots, length = read_snapshots(*opened(path.read_bytes()))
    assert [(each.id, each.name, each.l1_entry_count) for each in snapshots] == [("1", "one", 1), ("2", "ü", 1)]
    assert 2 * 40 < length < 256


def test_bitmaps_are_read_in_order(path: Path):
    directory, bitmaps = read_bitmaps(*opened(path.read_bytes()))
    assert directory is not None
    assert directory.bitmap_count == 2
    assert [(each.name, each.granularity_bits, each.is_auto) for each in bitmaps] == [
        *(("first", 16, True), ("second", 12, False))
    ]


def test_an_image_without_lists_has_none(tmp_path: Path):
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "disk", "1M")
    layer = opened((tmp_path / "disk").read_bytes())
    assert read_snapshots(*layer) == ((), 0)
    assert read_bitmaps(*layer) == (None, ())


def test_bitmaps_that_a_program_without_them_left_behind_do_not_count(path: Path):
    assert read_bitmaps(*opened(patched(path, 88, ">Q", 0))) == (None, ())


def test_more_snapshots_than_the_table_holds_are_an_error(path: Path):
    data = patched(path, SNAPSHOT_COUNT, ">I", 60000)
    with pytest.raises(BrokenTable, match=r"disk: .*napshot"):
        read_snapshots(*opened(data))


def test_a_table_at_the_end_of_the_file_is_not_read_past_it(path: Path):
    offset = struct.unpack_from(">Q", path.read_bytes(), SNAPSHOTS_OFFSET)[0]
    layer, header = opened(path.read_bytes())
    layer.file.close()
    cut = opened(path.read_bytes()[: offset + 100])[0]
    with pytest.raises(BrokenTable, match=r"past the (table's )?end"):
        read_snapshots(cut, header)


@pytest.mark.parametrize(
    ("value", "error"),
    [(1 << 40, TruncatedImage), (CLUSTER + 512, BrokenTable)],
    ids=["past the end", "not aligned"],
)
def test_a_bitmap_directory_must_be_where_one_can_be(path: Path, value: int, error: type[Exception]):
    data = patched(path, directory_field(path.read_bytes()), ">Q", value)
    with pytest.raises(error, match="itmap directory"):
        read_bitmaps(*opened(data))
