"""Owns the proof that refcount blocks and counts are made where nothing else lies, and say the truth."""

import numpy as np
import pytest

from cowtree.errors import Refused
from cowtree.qcow2.check import References
from cowtree.qcow2.geometry import Geometry
from cowtree.qcow2.header import Header
from cowtree.qcow2.image import Image
from cowtree.qcow2.mend import true_counts, with_blocks
from cowtree.qcow2.refcounts import block_offsets

BITS = 9
SIZE = 1 << BITS


def image_with(table: list[int], cluster_count: int, refcount_order: int = 4) -> Image:
    """An image of clusters of 512 bytes whose refcount table is cluster 1 and names blocks in these clusters."""
    header = Header(3, BITS, 0, 0, 0, SIZE, 1, refcount_order)
    words = np.zeros(SIZE // 8, np.uint64)
    words[: len(table)] = np.array(table, np.uint64) << np.uint64(BITS)
    none = np.empty(0, np.uint64)
    return Image("disk", header, none, words, (), 0, (), None, (), cluster_count * SIZE)


def references_of(image: Image, used: list[int]) -> References:
    references = References(image.geometry, image.file_size_bytes)
    references.use(np.array(used, np.int64) * SIZE, SIZE, np.ones(len(used), np.int64))
    return references


def assert_right(image: Image, references: References, used: list[int]) -> None:
    """Every used cluster has a block; table and blocks lie where nothing else is, and are counted once."""
    blocks = block_offsets(image.refcount_table) // SIZE
    header = image.header
    first = header.refcount_table_offset // SIZE
    own = [*range(first, first + header.refcount_table_cluster_count), *blocks[blocks != 0].tolist()]
    assert len(set(own)) == len(own)
    assert not set(own) & set(used)
    expected = sorted([*used, *own])
    assert np.flatnonzero(references.counts.window(0, 1 << 20)).tolist() == expected
    assert set(references.uses(np.array(expected)).tolist()) <= {1}
    per_block = image.geometry.refcount_block_entry_count
    assert all(blocks[cluster // per_block] for cluster in expected)


def test_nothing_changes_when_no_block_is_missing():
    image = image_with([2], 10)
    references = references_of(image, [0, 1, 2, 5])
    assert with_blocks(image, references) is image
    assert_right(image, references, [0, 5])


def test_a_missing_block_lies_in_the_first_free_cluster():
    image = image_with([2], 600)
    used = [0, 3, 300, 599]
    references = references_of(image, [*used, 1, 2])
    changed = with_blocks(image, references)
    assert (block_offsets(changed.refcount_table)[:3] // SIZE).tolist() == [2, 4, 5]
    assert_right(changed, references, used)


def test_a_full_file_grows_by_the_blocks_that_are_missing():
    image = image_with([], 256)
    used = [0, *range(2, 256)]
    references = references_of(image, [*used, 1])
    changed = with_blocks(image, references)
    assert (block_offsets(changed.refcount_table)[:2] // SIZE).tolist() == [256, 257]
    assert_right(changed, references, used)


@pytest.mark.parametrize("order", range(7))
def test_a_refcount_table_that_is_too_short_is_followed_by_a_longer_one(order: int):
    per_block = Geometry(3, BITS, order).refcount_block_entry_count
    cluster_count = per_block * (SIZE // 8) + 7
    image = image_with([2], cluster_count, order)
    used = [0, 9, cluster_count - 1]
    references = references_of(image, [*used, 1, 2])
    changed = with_blocks(image, references)
    assert changed.header.refcount_table_offset >= cluster_count * SIZE
    assert_right(changed, references, used)


def test_all_is_made_anew_beside_what_was_there():
    image = image_with([2, 7], 300)
    used = [0, 4, 299]
    references = references_of(image, [*used, 1, 2, 7])
    changed = with_blocks(image, references, anew=True)
    blocks = block_offsets(changed.refcount_table) // SIZE
    assert not {1, 2, 7} & {changed.header.refcount_table_offset // SIZE, *blocks.tolist()}
    assert_right(changed, references, used)


def test_blocks_that_were_too_broken_to_be_counted_are_not_written_over():
    image = image_with([2, 7], 300)
    image.refcount_table[:2] |= np.uint64(1)
    used = [0, 4, 299]
    references = references_of(image, [*used, 1])
    changed = with_blocks(image, references, anew=True)
    assert not {2, 7} & set((block_offsets(changed.refcount_table) // SIZE).tolist())
    assert_right(changed, references, used)


def test_an_image_that_no_refcount_table_can_hold_is_refused():
    image = image_with([2], 1 << 27, 6)
    references = references_of(image, [0, 1, 2, (1 << 27) - 1])
    with pytest.raises(Refused, match="too large for its cluster size"):
        with_blocks(image, references)


def test_true_counts_stop_at_the_largest_that_fits():
    image = image_with([2], 12, 1)
    references = references_of(image, [0, 1, 2, 5, 5, 6, 6, 6, 7, 7, 7, 7])
    counts = true_counts(image, references, np.array([0]))
    assert counts.counts[0, :9].tolist() == [1, 1, 1, 0, 0, 2, 3, 3, 0]
    assert counts.host_offset.tolist() == [2 * SIZE]
