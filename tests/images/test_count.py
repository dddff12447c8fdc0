"""Owns the proof that every table is read once, whoever shares it, and that counts are read wherever blocks lie."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cowtree.chain import gate
from cowtree.chain.gate import Layer
from cowtree.chain.load import load_image
from cowtree.images.count import Count, OnDisk, Stopped
from cowtree.qcow2.findings import OUTSIDE, Finding
from cowtree.qcow2.image import Image
from cowtree.storage.contract import Access, Storage
from cowtree.storage.memory import MemoryFiles
from cowtree.storage.passing import PassingFile, PassingFiles
from tests.damage import find_words, put_word
from tests.qemu import qemu_img, qemu_io

CLUSTER = 4096


class ReadFiles(PassingFiles):
    """Keeps where whole clusters are read."""

    def __init__(self, files: MemoryFiles) -> None:
        super().__init__(files)
        self.read: list[int] = []

    def open(self, path: str, access: str) -> Storage:
        """Open a file whose reads are kept."""
        return ReadFile(self.inner.open(path, access), self.read)


class ReadFile(PassingFile):
    """Keeps where whole clusters are read."""

    def __init__(self, inner: Storage, read: list[int]) -> None:
        super().__init__(inner)
        self._read = read

    def preadv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Read, and keep the clusters."""
        length = sum(len(buffer) for buffer in buffers)
        self._read += range(offset // CLUSTER, (offset + length) // CLUSTER)
        self.inner.preadv(offset, buffers)


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    """An image with four snapshots that share all that they hold with each other, and a bitmap."""
    path = tmp_path / "disk"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={CLUSTER}", path, "8M")
    qemu_io(path, "write -P 1 0 64k", "write -c -P 2 4M 4k")
    for index in range(4):
        qemu_img("snapshot", "-c", f"s{index}", path)
    qemu_img("bitmap", "--add", path, "changes")
    qemu_io(path, "write -P 3 4k 4k")
    return path.read_bytes()


def opened(files: PassingFiles | MemoryFiles) -> tuple[Layer, Image]:
    layer = gate.open_layer(files, "disk", "qcow2", Access.READ)
    image = load_image(layer)
    assert image is not None
    return layer, image


def test_a_table_that_snapshots_share_is_read_once(data: bytes):
    files = ReadFiles(MemoryFiles({"disk": data}))
    layer, image = opened(files)
    files.read.clear()
    found: list[Finding] = []
    count = Count(layer, image, found.append)
    count.count()
    # Two tables of the disk as it is, one of which the snapshots have as well, and the one that they had before.
    assert len(count.use.offset) == 3
    assert sorted(files.read) == sorted((count.use.offset // CLUSTER).tolist())
    assert sorted(count.use.times.tolist()) == [1, 4, 5]
    assert not sum(finding.error_count for finding in found)
    assert count.statistics.allocated == 17


def test_references_are_the_counts_of_a_sound_image(data: bytes):
    layer, image = opened(MemoryFiles({"disk": data}))
    count = Count(layer, image, lambda finding: None)
    count.count()
    on_disk = OnDisk(layer.file, image)
    assert all(
        not len(mismatch.cluster) and unreadable is None for mismatch, unreadable in on_disk.windows(count.references)
    )
    clusters = np.arange(count.references.cluster_count)
    assert on_disk.get(clusters).tolist() == count.references.get(clusters).tolist()
    assert on_disk.once(clusters).tolist() == count.references.once(clusters).tolist()
    assert on_disk.used_end == int(np.flatnonzero(count.references.counts.window(0, 1 << 20))[-1]) + 1
    assert not count.must_rebuild


def test_a_cluster_behind_the_end_has_a_count_if_its_block_has_one(data: bytes):
    words = find_words(data)
    block = int.from_bytes(data[words.refcount_table[0] :][:8], "big")
    changed = bytearray(data)
    changed[block + 2 * 2000 : block + 2 * 2000 + 4] = b"\0\1\0\2"
    layer, image = opened(MemoryFiles({"disk": bytes(changed)}))
    on_disk = OnDisk(layer.file, image)
    clusters = np.array([2000, 2001, 2002, 1 << 40])
    assert on_disk.once(clusters).tolist() == [True, False, False, False]
    assert on_disk.get(clusters).tolist() == [1, 2, 0, 0]
    assert on_disk.known(clusters).all()


def test_counts_of_a_block_that_is_nowhere_are_not_known(data: bytes):
    words = find_words(data)
    changed = bytearray(data)
    put_word(changed, words.refcount_table[0], 512)
    layer, image = opened(MemoryFiles({"disk": bytes(changed)}))
    count = Count(layer, image, lambda finding: None)
    count.count()
    on_disk = OnDisk(layer.file, image)
    ((mismatch, unreadable),) = on_disk.windows(count.references)
    assert not len(mismatch.cluster)
    assert unreadable is not None
    assert unreadable.error_count == count.references.cluster_count
    assert on_disk.known(np.array([0, 2047, 2048])).tolist() == [False, False, True]
    assert count.must_rebuild


def test_the_data_of_bitmaps_is_counted_and_its_damage_stops_the_count(tmp_path: Path):
    path = tmp_path / "disk"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={CLUSTER}", path, "8M")
    qemu_img("bitmap", "--add", "-g", "512", path, "changes")
    qemu_io(path, "write -P 3 4k 4k")
    files = MemoryFiles({"disk": path.read_bytes()})
    layer, image = opened(files)
    (bitmap,) = image.bitmaps
    entry = int.from_bytes(layer.file.pread(bitmap.table_offset, 8), "big")
    for value, is_stopped in ((entry, False), (1 << 40, False), (entry | 1, True)):
        changed = bytearray(path.read_bytes())
        put_word(changed, bitmap.table_offset, value)
        layer, image = opened(MemoryFiles({"disk": bytes(changed)}))
        said: list[Finding] = []
        count = Count(layer, image, said.append)
        if is_stopped:
            with pytest.raises(Stopped, match="Invalid argument"):
                count.count()
            continue
        count.count()
        assert bool(count.references.uses(np.array([entry // CLUSTER]))[0]) == (value == entry)
        assert any(each.kind is OUTSIDE and each.error_count for each in said) == (value != entry)
