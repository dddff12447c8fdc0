"""Owns the proof that the tables of an open layer come into memory right, and no more of them than is bounded."""

import itertools
import random

import numpy as np
import pytest

from cowtree.chain import gate, load
from cowtree.errors import BrokenTable, TruncatedImage
from cowtree.plan.create import NewImage
from cowtree.qcow2 import tables
from cowtree.qcow2.image import Image
from cowtree.storage.contract import Access
from cowtree.storage.file import LocalFiles
from cowtree.storage.memory import MemoryFiles
from cowtree.storage.passing import PassingFile
from tests.pictures import Family, draw, family
from tests.qemu import check_of, qemu_img, random_chain

FILES = LocalFiles()


class CountingFile(PassingFile):
    """Counts its reads."""

    def __init__(self, inner):
        super().__init__(inner)
        self.read_count = 0

    def preadv(self, offset, buffers):
        self.read_count += 1
        super().preadv(offset, buffers)


def loaded(made: Family, index: int = 0) -> tuple[gate.Layer, Image]:
    layer = gate.open_layer(made.files, made.names[index], made.formats[index])
    image = load.load_image(layer)
    assert image is not None
    return layer, image


def wide(cluster_count: int) -> Family:
    """An image with data in so many clusters, and 64 of them in each L2 table."""
    files = MemoryFiles()
    draw(files, NewImage("wide", "qcow2", cluster_count * 512, 9), "A" * cluster_count)
    return Family(files, ("wide",), ("qcow2",))


def test_raw_has_no_tables():
    made = family("A", raw_base=True)
    layer = gate.open_layer(made.files, made.top, "raw")
    assert load.load_image(layer) is None
    assert load.table_bytes(layer) == 0


@pytest.mark.slow
@pytest.mark.soak
def test_counts_are_those_that_qemu_finds(seed, tmp_path):
    chain = random_chain(tmp_path, seed, 1)
    if chain.formats[0] == "raw":
        qemu_img("convert", "-O", "qcow2", chain.top, tmp_path / "image")
    path = tmp_path / "image" if chain.formats[0] == "raw" else chain.top
    layer = gate.open_layer(FILES, str(path), "qcow2")
    image = load.load_image(layer)
    assert image is not None
    windows = [load.read_blocks(layer.file, image, index) for index in load.block_windows(image, 64)]
    used = sum(int((counts.counts != 0).sum()) for counts in windows)
    last = max(
        int(counts.block_index[row] * counts.counts.shape[1] + column)
        for counts in windows
        for row, column in np.argwhere(counts.counts)[-1:]
    )
    assert (last + 1) << image.header.cluster_bits == check_of(path)["image-end-offset"]
    assert used <= last + 1
    layer.close()


def test_only_the_tables_of_the_window_are_read():
    layer, image = loaded(wide(300))
    held = load.load_tables(layer.file, image, 70 * 512, 130 * 512)
    assert held.l1_index.tolist() == [1, 2]
    assert held.entries.shape == (2, 64)
    assert len(load.load_tables(layer.file, image, 1 << 30, 1 << 31).l1_index) == 0


def test_neighbours_in_the_file_are_read_at_once():
    layer, image = loaded(wide(300))
    file = CountingFile(layer.file)
    here = np.array([0, 512, 1024, 5120, 5632, 1536], np.int64)
    data = load.read_clusters(file, image.geometry, here)
    assert bytes(data) == b"".join(layer.file.pread(int(offset), 512) for offset in here)
    assert file.read_count == 3
    assert not load.read_clusters(file, image.geometry, np.empty(0, np.int64))


def test_free_clusters_are_found_without_reading_everything():
    made = wide(3000)
    layer, image = loaded(made)
    assert len(load.load_counts(layer.file, image, np.empty(0, np.int64), 0).block_index) == 0
    counts = load.load_counts(layer.file, image, np.array([1000, 1001]), 0)
    assert counts.block_index.tolist() == [1000 // 256]
    counts = load.load_counts(layer.file, image, np.array([1000]), 10)
    # Full blocks are left out: free clusters are in the last one.
    last = int(np.flatnonzero(image.refcount_table)[-1])
    assert counts.block_index.tolist() == [1000 // 256, last]
    assert counts.counts[1].min() == 0


def test_a_cluster_behind_the_refcount_table_has_no_count():
    layer, image = loaded(wide(10))
    with pytest.raises(BrokenTable, match="cluster 999999 is in use but has no reference count"):
        load.load_counts(layer.file, image, np.array([999999]), 0)


def test_a_table_that_lies_behind_the_end_of_the_file():
    made = family("A")
    layer, image = loaded(made)
    with pytest.raises(TruncatedImage, match="a table at byte 1048576 needs 80 bytes, but the file ends at"):
        load.read_table(layer, "a table", 1 << 20, 10)
    assert len(load.read_table(layer, "a table", image.header.l1_table_offset, 0)) == 0


def test_the_last_cluster_of_a_file_may_be_cut():
    made = family("A")
    layer, image = loaded(made)
    offset = image.header.l1_table_offset
    layer.close()
    file = made.files.open(made.top, Access.WRITE)
    file.truncate(file.size_bytes - 100)
    file.close()
    layer, image = loaded(made)
    assert len(tables.table_offsets(image.l1)) == 1
    assert image.header.l1_table_offset == offset


def test_snapshots_whose_tables_are_too_many_are_left_out(tmp_path, monkeypatch):
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    for name in "ab":
        qemu_img("snapshot", "-c", name, path)
    layer = gate.open_layer(FILES, str(path), "qcow2")
    image = load.load_image(layer)
    assert image is not None
    assert [len(l1) for l1 in image.snapshot_l1s] == [1, 1]
    monkeypatch.setattr(load, "SNAPSHOT_L1_BYTES_MAX", 15)
    image = load.load_image(layer)
    assert image is not None
    assert (len(image.snapshots), image.snapshot_l1s) == (2, ())
    assert load.read_snapshot_l1(layer, image.snapshots[0]).tolist() == image.l1.tolist()
    layer.close()


def test_blocks_are_read_some_at_a_time():
    layer, image = loaded(wide(3000))
    choose = random.Random(1)
    for _ in range(5):
        count = choose.randint(1, 2000)
        parts = [index.tolist() for index in load.block_windows(image, count)]
        assert list(itertools.chain(*parts)) == np.flatnonzero(image.refcount_table).tolist()
        assert max(map(len, parts)) <= max(count // 256, 1)
    assert len(load.load_blocks(layer.file, image, 2, 4).block_index) == 2
