"""Owns the proof that new clusters are free ones, and that what is added to make room is counted by its own blocks."""

import numpy as np
import pytest

from cowtree.chain import gate, load
from cowtree.errors import Refused
from cowtree.images.create import create
from cowtree.plan.create import NewImage
from cowtree.qcow2.allocate import allocate, allocate_run
from cowtree.qcow2.image import Slice, no_slice
from cowtree.qcow2.refcounts import block_offsets
from cowtree.storage.memory import MemoryFiles

widths = pytest.mark.parametrize("order", range(7), ids=lambda order: f"{1 << order} bits")
# Header, refcount table, refcount block, L1 table.
FIRST_FREE = 4


def new_slice(order: int, cluster_bits: int = 9) -> Slice:
    """An empty image with all its refcount blocks in memory."""
    files = MemoryFiles()
    create(files, NewImage("image", "qcow2", 1 << 20, cluster_bits, refcount_order=order))
    layer = gate.open_layer(files, "image")
    image = load.load_image(layer)
    assert image is not None
    piece = no_slice(image)._replace(counts=load.load_blocks(layer.file, image, 0, len(image.refcount_table)))
    layer.close()
    if cluster_bits == 9:
        # The L1 table of 1 MiB takes more than one cluster; only its first matters here.
        piece = piece._replace(counts=piece.counts.put(np.arange(4096 >> order), counted(piece, order, FIRST_FREE)))
    return piece


def counted(piece: Slice, order: int, used: int) -> np.ndarray:
    return (np.arange(4096 >> order) < used).astype(piece.counts.counts.dtype)


def used_clusters(piece: Slice) -> set[int]:
    row, column = np.nonzero(piece.counts.counts)
    return set((piece.counts.block_index[row] * piece.counts.counts.shape[1] + column).tolist())


def table_clusters(piece: Slice) -> set[int]:
    first = piece.image.header.refcount_table_offset >> piece.image.header.cluster_bits
    return set(range(first, first + piece.image.header.refcount_table_cluster_count))


def assert_consistent(before: Slice, after: Slice, taken: set[int]) -> None:
    """Exactly the old clusters, those taken, and the new blocks and table count 1; the table names every block."""
    bits = after.image.header.cluster_bits
    offsets = block_offsets(after.image.refcount_table)
    assert np.flatnonzero(offsets).tolist() == after.counts.block_index.tolist()
    assert offsets[after.counts.block_index].tolist() == after.counts.host_offset.tolist()
    assert len(after.image.refcount_table) * 8 == after.image.header.refcount_table_cluster_count << bits
    fresh = set((after.counts.host_offset >> bits).tolist()) - set((before.counts.host_offset >> bits).tolist())
    moved = table_clusters(after) - table_clusters(before)
    gone = table_clusters(before) - table_clusters(after)
    # The place of the old table may be taken at once: nothing is written there before the header names the new one.
    assert not taken & (used_clusters(before) - gone)
    assert not (fresh | moved) & (taken | used_clusters(before))
    assert used_clusters(after) == (used_clusters(before) - gone) | taken | fresh | moved
    assert after.counts.counts.max() == 1


def test_the_lowest_free_clusters_are_taken_first():
    piece = new_slice(4)
    piece = piece._replace(counts=piece.counts.put(np.array([5, 7]), np.ones(2, np.uint16)))
    clusters, after = allocate(piece, 4)
    assert clusters.tolist() == [4, 6, 8, 9]
    assert_consistent(piece, after, {4, 6, 8, 9})


def test_nothing_changes_when_nothing_is_wanted():
    piece = new_slice(4)
    clusters, after = allocate(piece, 0)
    assert len(clusters) == 0
    assert used_clusters(after) == used_clusters(piece)


def test_the_slice_that_was_given_stays_as_it_was():
    piece = new_slice(6)
    before = piece.counts.counts.copy(), piece.image.refcount_table.copy()
    allocate(piece, 64 * 70)
    assert (piece.counts.counts == before[0]).all()
    assert (piece.image.refcount_table == before[1]).all()


@widths
def test_a_full_block_is_followed_by_a_new_one_that_counts_itself(order):
    piece, per_block = new_slice(order), 4096 >> order
    clusters, after = allocate(piece, per_block - FIRST_FREE + 1)
    assert clusters.tolist() == [*range(FIRST_FREE, per_block), per_block + 1]
    assert after.counts.host_offset.tolist()[-1] == per_block * 512
    assert after.counts.get(np.array([per_block])).tolist() == [1]
    assert after.image.header == piece.image.header
    assert_consistent(piece, after, set(clusters.tolist()))


@widths
def test_a_full_refcount_table_moves_into_the_region_and_leaves_its_old_place(order):
    piece, per_block = new_slice(order), 4096 >> order
    count = 64 * per_block
    clusters, after = allocate(piece, count)
    assert len(clusters) == count
    start = per_block * 512
    assert after.image.header.refcount_table_offset == start
    assert after.image.header.refcount_table_cluster_count == 2
    assert int(after.counts.host_offset[1]) == start + 2 * 512
    assert clusters[0] == 1
    assert_consistent(piece, after, set(clusters.tolist()))


@pytest.mark.parametrize("call", [allocate, allocate_run])
def test_a_region_has_room_for_the_table_too(call):
    piece = new_slice(6)
    free = len(piece.counts.free(64)) if call is allocate else 0
    # Without the table 64 new blocks would be just enough.
    count = 64 * 63 + free
    got, after = call(piece, count)
    taken = set(got.tolist()) if call is allocate else set(range(got, got + count))
    assert len(taken) == count
    assert len(after.counts.block_index) == 1 + 65
    assert_consistent(piece, after, taken)


@pytest.mark.parametrize("cluster_bits", [9, 12, 16])
def test_a_region_is_never_larger_than_it_must_be(cluster_bits):
    piece = new_slice(6, cluster_bits)
    per_block = piece.image.geometry.refcount_block_entry_count
    free = len(piece.counts.free(per_block))
    exact, after = allocate(piece, free + per_block - 1)
    assert len(after.counts.block_index) == 2
    _, after = allocate(piece, free + per_block)
    assert len(after.counts.block_index) == 3
    assert len(exact) == free + per_block - 1


@pytest.mark.soak
def test_an_image_that_grows_and_shrinks_is_consistent_at_every_step(seed):
    choose = np.random.default_rng(seed)
    piece = new_slice(int(choose.integers(0, 7)))
    per_block = piece.image.geometry.refcount_block_entry_count
    held: set[int] = set()
    for _ in range(12):
        before, count = piece, int(choose.integers(0, 3 * per_block))
        if choose.random() < 0.4 and count:
            first, piece = allocate_run(piece, count)
            taken = set(range(first, first + count))
        else:
            clusters, piece = allocate(piece, count)
            taken = set(clusters.tolist())
            assert len(clusters) == count
        assert_consistent(before, piece, taken)
        held |= taken
        gone = np.array([each for each in sorted(held) if choose.random() < 0.5], np.int64)
        held -= set(gone.tolist())
        piece = piece._replace(counts=piece.counts.put(gone, np.zeros(len(gone), piece.counts.counts.dtype)))


def test_a_run_goes_into_the_first_gap_that_is_long_enough():
    piece = new_slice(6)
    used = np.array([6, 7, 11, 20])
    piece = piece._replace(counts=piece.counts.put(used, np.ones(4, np.uint64)))
    assert [allocate_run(piece, count)[0] for count in (1, 2, 3, 8, 9)] == [4, 4, 8, 12, 21]


def test_a_run_that_fits_nowhere_goes_into_a_region_of_its_own():
    piece = new_slice(6)
    first, after = allocate_run(piece, 100)
    # The rest of the first block ends where the new blocks lie, so the run starts behind them.
    assert first == 64 + 2
    assert_consistent(piece, after, set(range(first, first + 100)))


@pytest.mark.parametrize("call", [allocate, allocate_run])
def test_what_is_too_large_for_any_refcount_table_is_refused(call):
    with pytest.raises(Refused, match="image: the image would be too large for its cluster size"):
        call(new_slice(6), 1 << 27)
