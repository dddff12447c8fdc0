"""Holds the layout of an image that is written once: every cluster counted, every table where its entry says."""

import numpy as np
import pytest

from cowtree.plan import convert as plan
from cowtree.plan.create import NewImage
from cowtree.qcow2 import refcounts, tables
from cowtree.steps import Truncate, Write

CLUSTER = 512


def begun(*, refcount_order: int = 4, size_bytes: int = 1 << 20) -> plan.Layout:
    """The layout of a new image with small clusters."""
    return plan.begin(NewImage("new", "qcow2", size_bytes, 9, 3, refcount_order))[1]


def test_clusters_are_taken_behind_the_l1_table():
    header, layout = plan.begin(NewImage("new", "qcow2", 1 << 20, 9))
    assert header.l1_table_offset == CLUSTER
    first = CLUSTER + -(-header.l1_entry_count * 8 // CLUSTER) * CLUSTER
    hosts, after = plan.take(layout, 3)
    assert hosts.tolist() == [first, first + CLUSTER, first + 2 * CLUSTER]
    assert after.next_cluster == first // CLUSTER + 3


def test_a_table_is_complete_when_the_next_one_begins():
    per_table = CLUSTER // 8
    words = plan.data_words(begun().geometry, np.array([CLUSTER * 9, CLUSTER * 10]))
    filled, layout = plan.enter(begun(), np.array([1, per_table + 2]), words)
    assert filled.l1_index.tolist() == [0]
    assert filled.words[0][1] == np.uint64(CLUSTER * 9) | tables.COPIED
    last, _ = plan.close(layout)
    assert last.l1_index.tolist() == [1]
    assert last.words[0][2] == np.uint64(CLUSTER * 10) | tables.COPIED
    assert last.first_cluster == filled.first_cluster + 1


def test_closing_an_empty_image_gives_no_table():
    filled, layout = plan.close(begun())
    assert not len(filled.l1_index)
    assert layout.next_cluster == begun().next_cluster


def test_compressed_clusters_lie_close_and_their_clusters_count_each_of_them():
    layout = begun()
    first = layout.next_cluster * CLUSTER
    offsets, shared, after = plan.pack(layout, [100, 300, 200, CLUSTER])
    # The third goes on into the cluster behind; the last is as long as a cluster and gets one of its own.
    assert offsets.tolist() == [first, first + 100, first + 400, first + 2 * CLUSTER]
    assert shared.tolist() == [first // CLUSTER, first // CLUSTER]
    assert after.next_cluster == first // CLUSTER + 3


def test_a_count_of_one_bit_lets_no_two_compressed_clusters_share():
    offsets, shared, _ = plan.pack(begun(refcount_order=0), [100, 100, 100])
    assert np.diff(offsets).tolist() == [CLUSTER, CLUSTER]
    assert not len(shared)


def test_a_descriptor_counts_the_sectors_behind_the_first():
    geometry = begun().geometry
    word = plan.packed_words(geometry, np.array([1000]), np.array([100]))[0, 0]
    start, length = tables.compressed_location(geometry, np.array([int(word & tables.DESCRIPTOR)]))
    assert (start.tolist(), length.tolist()) == ([1000], [1536 - 1000])


@pytest.mark.parametrize("refcount_order", range(7))
def test_finish_counts_all_that_was_taken_and_itself(refcount_order):
    header, layout = plan.begin(NewImage("new", "qcow2", 1 << 20, 9, 3, refcount_order))
    _, layout = plan.take(layout, 700)
    steps = list(plan.finish(layout, header, np.zeros(header.l1_entry_count, np.uint64), np.empty(0, np.int64)))
    end = next(step.size_bytes for step in steps if isinstance(step, Truncate))
    disk = bytearray(end)
    for step in steps:
        if isinstance(step, Write):
            disk[step.offset : step.offset + len(step.data)] = step.data
    table_offset = int.from_bytes(disk[48:56], "big")
    table = tables.decode_words(bytes(disk[table_offset:end]))
    found = []
    for offset in table[table != 0].tolist():
        block = refcounts.decode(
            layout.geometry, np.array([0]), np.array([offset]), bytes(disk[offset : offset + CLUSTER])
        )
        found += block.counts.ravel().tolist()
    assert found[: end // CLUSTER] == [1] * (end // CLUSTER)
    assert not any(found[end // CLUSTER :])
