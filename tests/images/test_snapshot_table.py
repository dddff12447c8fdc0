"""A snapshot table that says too much is a failure, and a repair drops only what is too much."""

import struct
from pathlib import Path

import pytest

from cowtree.chain.gate import Layer
from cowtree.images.check import open_to_check
from cowtree.images.snapshot_table import Found, read
from cowtree.storage.memory import MemoryFiles
from tests.qemu import qemu_img

TABLE_FIELD, COUNT_FIELD = 64, 60


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An image with two snapshots."""
    path: Path = tmp_path_factory.mktemp("image") / "disk"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4096", path, "1M")
    for name in ("one", "two"):
        qemu_img("snapshot", "-c", name, path)
    return path.read_bytes()


def found(data: bytes, *, mends: bool) -> Found:
    """What is read of the table."""
    layer: Layer = open_to_check(MemoryFiles({"disk": data}), "disk", "qcow2")
    assert layer.header is not None
    return read(layer, layer.header, mends=mends)


def patched(image: bytes, offset: int, value: bytes) -> bytes:
    """The image with other bytes somewhere."""
    return image[:offset] + value + image[offset + len(value) :]


def table(image: bytes) -> int:
    """Where the table lies."""
    return int.from_bytes(image[TABLE_FIELD : TABLE_FIELD + 8], "big")


@pytest.mark.parametrize("mends", [False, True])
def test_a_sound_table_is_read_as_it_is(image: bytes, mends: bool):
    result = found(image, mends=mends)
    assert [each.name for each in result.snapshots] == ["one", "two"]
    assert (result.dropped_count, result.cut_count, result.remarks, result.failure) == (0, 0, (), None)


def test_extra_data_that_is_too_long_is_cut_by_a_repair_only(image: bytes):
    data = patched(image, table(image) + 36, struct.pack(">I", 5000))
    failure = found(data, mends=False).failure
    assert failure is not None
    assert failure[0] == ("ERROR failed to read the snapshot table: Too much extra metadata in snapshot table entry 0")
    result = found(data, mends=True)
    assert result.remarks[0] == "Discarding too much extra metadata in snapshot table entry 0 (5000 > 1024)"
    assert len(result.snapshots[0].extra_data) == 1024
    assert result.cut_count == 1


@pytest.mark.slow
def test_more_snapshots_than_there_may_be_are_dropped_by_a_repair_only(image: bytes):
    data = patched(image, COUNT_FIELD, struct.pack(">I", 65536 + 3))
    failure = found(data, mends=False).failure
    assert failure == (
        "ERROR snapshot table too large",
        "You can force-remove all 3 overhanging snapshots with qemu-img check -r all",
        "File too large",
    )
    result = found(data, mends=True)
    assert result.dropped_count == 3
    assert result.remarks == ("Discarding 3 overhanging snapshots",)
    assert [each.name for each in result.snapshots[:2]] == ["one", "two"]


def test_a_table_that_ends_too_far_away_loses_what_lies_there(image: bytes):
    data = patched(image, table(image) + 36, struct.pack(">I", (1 << 32) - 1))
    result = found(data, mends=True)
    assert result.snapshots == ()
    assert result.dropped_count == 2
    assert result.remarks[-1] == "Discarding 2 overhanging snapshots (snapshot table is too big)"


def test_a_table_that_is_not_aligned_is_not_read(image: bytes):
    for offset in (512, 1 << 63):
        data = patched(image, TABLE_FIELD, offset.to_bytes(8, "big"))
        assert found(data, mends=True).failure == ("ERROR snapshot table offset invalid", "", "Invalid argument")
