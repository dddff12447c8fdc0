"""Owns the proof that reference counts of every width are read, written and looked up as the specification says."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowtree.chain import gate, load
from cowtree.errors import BrokenTable
from cowtree.qcow2 import refcounts
from cowtree.qcow2.geometry import Geometry
from cowtree.qcow2.refcounts import Counts
from cowtree.qcow2.tables import table_offsets
from cowtree.storage.file import LocalFiles
from tests.qemu import qemu_img, qemu_io

CLUSTER = 512
widths = pytest.mark.parametrize("order", range(7), ids=lambda order: f"{1 << order} bits")


def geometry_of(order: int) -> Geometry:
    return Geometry(3, 9, order)


def blocks_of(order: int, *block_index: int) -> Counts:
    """Blocks that count 0 everywhere."""
    index = np.array(block_index, np.int64)
    return refcounts.decode(geometry_of(order), index, (index + 1) * CLUSTER, bytes(len(index) * CLUSTER))


@given(st.integers(0, 6), st.binary(min_size=2 * CLUSTER, max_size=2 * CLUSTER))
def test_the_bytes_of_blocks_come_back(order, data):
    geometry = geometry_of(order)
    held = refcounts.decode(geometry, np.array([0, 1]), np.array([CLUSTER, 2 * CLUSTER]), data)
    assert held.counts.shape == (2, 4096 >> order)
    assert held.counts.max() <= geometry.refcount_max
    assert refcounts.encode(geometry, held.counts) == data


@given(st.data())
def test_the_counts_of_blocks_come_back(data):
    order = data.draw(st.integers(0, 6))
    geometry = geometry_of(order)
    some = data.draw(st.lists(st.integers(0, geometry.refcount_max), min_size=8, max_size=8))
    counts = np.resize(np.array(some, refcounts.count_type(geometry)), geometry.refcount_block_entry_count)
    held = refcounts.decode(geometry, np.array([0]), np.array([CLUSTER]), refcounts.encode(geometry, counts))
    assert held.counts.dtype == counts.dtype
    assert held.counts[0].tolist() == counts.tolist()


@pytest.mark.parametrize(
    ("order", "head", "expected"),
    [
        (0, b"\x01\x80", [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        (1, b"\x1b\x01", [3, 2, 1, 0, 1, 0, 0, 0]),
        (2, b"\x21\x43", [1, 2, 3, 4]),
        (3, b"\x01\xff", [1, 255]),
        (4, b"\x01\x02\xff\xfe", [0x102, 0xFFFE]),
        (5, b"\x01\x02\x03\x04", [0x1020304]),
        (6, b"\x01\x02\x03\x04\x05\x06\x07\x08", [0x102030405060708]),
    ],
)
def test_counts_lie_in_the_order_of_the_specification(order, head, expected):
    held = refcounts.decode(geometry_of(order), np.array([0]), np.array([CLUSTER]), head.ljust(CLUSTER, b"\0"))
    assert held.counts[0, : len(expected)].tolist() == expected
    assert not held.counts[0, len(expected) :].any()


@widths
def test_what_is_put_is_got_and_nothing_else_changes(order):
    held, per_block = blocks_of(order, 1, 4), 4096 >> order
    clusters = np.array([per_block, 2 * per_block - 1, 4 * per_block + 3])
    high = (1 << (1 << order)) - 1
    changed = held.put(clusters, np.full(3, high, held.counts.dtype))
    assert changed.get(clusters).tolist() == [high] * 3
    assert np.count_nonzero(changed.counts) == 3
    assert not held.counts.any()


def test_a_cluster_without_a_block_counts_0():
    held = blocks_of(4, 1, 4)
    held = held._replace(counts=held.counts + np.uint16(1))
    assert held.get(np.array([0, 255, 256, 511, 512, 1024, 1280, 1 << 40])).tolist() == [0, 0, 1, 1, 0, 1, 0, 0]


def test_new_blocks_take_their_place_among_the_others():
    held = blocks_of(4, 1, 4).put(np.array([256, 1024]), np.array([7, 9], np.uint16))
    more = held.with_blocks(np.array([2, 5, 0]), np.array([100, 200, 300]) * CLUSTER)
    assert more.block_index.tolist() == [0, 1, 2, 4, 5]
    assert (more.host_offset // CLUSTER).tolist() == [300, 2, 100, 5, 200]
    assert more.get(np.array([256, 1024])).tolist() == [7, 9]
    assert more.counts.sum() == 16


def test_free_runs_go_on_from_block_to_block_but_not_over_a_gap():
    held = blocks_of(6, 0, 1, 3)
    used = np.array([0, 1, 5, 100, 192])
    held = held.put(used, np.ones(5, np.uint64))
    runs = held.free_runs()
    assert list(zip(runs.start.tolist(), runs.stop.tolist(), strict=True)) == [(2, 5), (6, 100), (101, 128), (193, 256)]


@pytest.mark.soak
def test_free_clusters_are_those_that_count_0(seed):
    choose = np.random.default_rng(seed)
    order = int(choose.integers(0, 7))
    held = blocks_of(order, *sorted(choose.choice(12, int(choose.integers(1, 8)), replace=False).tolist()))
    bits = choose.random(held.counts.shape) < choose.choice([0.02, 0.5, 0.98, 1])
    held = held._replace(counts=bits.astype(held.counts.dtype))
    per_block = 4096 >> order
    free = [
        int(block) * per_block + column
        for block, row in zip(held.block_index, bits, strict=True)
        for column in range(per_block)
        if not row[column]
    ]
    limit = int(choose.integers(0, len(free) + 2))
    assert held.free(limit).tolist() == free[:limit]
    runs = held.free_runs()
    assert [cluster for pair in zip(*runs, strict=True) for cluster in range(*pair)] == free
    assert (runs.start[1:] > runs.stop[:-1]).all()


@pytest.mark.parametrize(
    ("offset", "reason"),
    [
        (0x10200, "byte 66048, which is not aligned to a cluster"),
        (0x40000, "byte 262144, which is outside the file's data"),
        (1 << 62, "is outside the file's data"),
        (0x20000, "byte 131072, which is already another refcount block"),
    ],
)
def test_a_refcount_table_that_no_writer_may_follow_is_refused(offset, reason):
    geometry = Geometry(3, 16, 4)
    with pytest.raises(BrokenTable, match=reason):
        refcounts.check_table("image", geometry, np.array([0x20000, 0, offset], np.uint64), 0x40000)


def test_a_sound_refcount_table_is_taken_and_its_reserved_bits_are_not_looked_at():
    table = np.array([0x20000, 0, 0x301FF], np.uint64)
    refcounts.check_table("image", Geometry(3, 16, 4), table, 0x30001)
    assert refcounts.block_offsets(table).tolist() == [0x20000, 0, 0x30000]


@widths
def test_real_images_count_what_we_read(tmp_path: Path, order):
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"refcount_bits={1 << order},cluster_size=512", path, "1M")
    qemu_io(path, "write -P 7 0 300k", "write -P 8 700k 100k")
    if order:
        qemu_img("snapshot", "-c", "before", path)
        qemu_io(path, "write -P 9 10k 5k")
    layer = gate.open_layer(LocalFiles(), str(path), "qcow2")
    image = load.load_image(layer)
    assert image is not None
    counts = load.load_blocks(layer.file, image, 0, len(image.refcount_table))
    active = load.load_tables(layer.file, image, 0, layer.size_bytes)
    layer.close()
    data = table_offsets(active.entries[active.entries != 0]) // CLUSTER
    alone = (active.entries[active.entries != 0] >> np.uint64(63)).astype(bool)
    assert len(data) == 800
    assert counts.get(image.metadata_clusters()).min() == 1
    assert (counts.get(data) == np.where(alone, 1, 2)).all()
    assert alone.sum() == (10 if order else 800)
    assert not counts.get(np.arange(image.host_cluster_count, 2 * image.host_cluster_count)).any()
