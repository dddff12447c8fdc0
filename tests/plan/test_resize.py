"""Which parts of an image a smaller disk leaves behind, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from cowtree.chain import load
from cowtree.chain.gate import open_layer
from cowtree.errors import BrokenTable, Refused
from cowtree.plan import resize
from cowtree.qcow2 import tables
from cowtree.qcow2.image import Image, Slice
from cowtree.steps import Flush, Write
from cowtree.storage.memory import MemoryFiles
from tests.qemu import qemu_img, qemu_io

KIB = 1024


def loaded(folder: Path, *, options: str = "cluster_size=512", snapshot: bool = False) -> tuple[MemoryFiles, Image]:
    """An image of 96 KiB, three L2 tables, all of it written."""
    path = folder / "image"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, "96k")
    qemu_io(path, "write -P 1 0 96k")
    if snapshot:
        qemu_img("snapshot", "-c", "one", path)
    files = MemoryFiles({"image": path.read_bytes()})
    layer = open_layer(files, "image", "qcow2")
    image = load.load_image(layer)
    layer.close()
    assert image is not None
    return files, image


def cut(files: MemoryFiles, image: Image, size_bytes: int) -> tuple[list[object], Image]:
    """Cut all windows, which must be one."""
    layer = open_layer(files, "image", "qcow2")
    ((start, stop),) = resize.windows(image, size_bytes)
    held = load.load_tables(layer.file, image, start, stop)
    counts = load.load_counts(layer.file, image, *resize.demand(image, held, size_bytes))
    steps, new = resize.cut(Slice(image, held, counts), size_bytes)
    layer.close()
    return list(steps), new


def test_tables_past_the_end_go_and_the_one_at_the_end_stays(tmp_path: Path):
    files, image = loaded(tmp_path)
    steps, new = cut(files, image, 40 * KIB)
    assert (tables.table_offsets(new.l1) > 0).tolist() == [True, True, False]
    # Pointers go before counts do.
    assert isinstance(steps[0], Flush)
    l1_bytes = range(image.header.l1_table_offset, image.header.l1_table_offset + 24)
    assert any(isinstance(step, Write) and step.offset in l1_bytes for step in steps)


def test_a_table_goes_when_nothing_is_left_in_it(tmp_path: Path):
    files, image = loaded(tmp_path)
    _, new = cut(files, image, 32 * KIB)
    assert (tables.table_offsets(new.l1) > 0).tolist() == [True, False, False]


def test_a_table_that_a_snapshot_has_is_copied(tmp_path: Path):
    files, image = loaded(tmp_path, snapshot=True)
    _, new = cut(files, image, 40 * KIB)
    assert new.l1[0] == image.l1[0]
    assert tables.table_offsets(new.l1)[1] != tables.table_offsets(image.l1)[1]
    assert int(new.l1[1]) & int(tables.COPIED)


def test_nothing_is_written_when_nothing_lies_past_the_end(tmp_path: Path):
    files, image = loaded(tmp_path)
    assert list(resize.windows(image, 96 * KIB)) == []
    steps, new = cut(files, image, 96 * KIB - 100)
    assert steps == []
    assert np.array_equal(new.l1, image.l1)


def test_counts_that_are_too_low_are_refused(tmp_path: Path):
    files, image = loaded(tmp_path)
    file = files.open("image", "write")
    file.pwrite(int(image.refcount_table[0]) + 40, bytes(400))
    file.close()
    with pytest.raises(BrokenTable):
        cut(files, image, 1 * KIB)


@pytest.mark.parametrize(
    ("options", "size_bytes", "reason"),
    [
        ("cluster_size=512", 1000, "The new size must be a multiple of 512"),
        ("cluster_size=512", 1 << 40, "Failed to grow the L1 table: File too large"),
        ("cluster_size=512,compat=0.10", 1 << 20, "Can't resize a v2 image which has snapshots"),
    ],
)
def test_sizes_that_cannot_be_are_refused(tmp_path: Path, options: str, size_bytes: int, reason: str):
    _, image = loaded(tmp_path, options=options, snapshot=True)
    with pytest.raises(Refused) as caught:
        resize.refuse(image, size_bytes)
    assert caught.value.reason == reason


def test_an_old_image_does_not_grow_over_a_longer_backing_file(tmp_path: Path):
    _, image = loaded(tmp_path, options="cluster_size=512,compat=0.10")
    resize.refuse_hiding(image, 128 * KIB, 96 * KIB)
    with pytest.raises(Refused):
        resize.refuse_hiding(image, 128 * KIB, 97 * KIB)
