"""Owns the proof that a new image is laid out without gaps and overlaps, and that each cluster is counted right."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowtree.errors import Refused, WrongUse
from cowtree.plan import convert as plan
from cowtree.plan.create import NewImage
from cowtree.qcow2 import header as qcow2
from cowtree.qcow2 import refcounts, tables
from cowtree.qcow2.geometry import Geometry, ceil_div
from cowtree.steps import Step, Truncate, Write
from cowtree.units import GIB

SIZE = 512


def small_image(**options) -> NewImage:
    return NewImage("image", "qcow2", 1 << 20, cluster_bits=9, **options)


def written(steps: list[Step]) -> bytearray:
    """The file after these steps."""
    data = bytearray()
    for step in steps:
        if isinstance(step, Write):
            data = data.ljust(step.offset + len(step.data), b"\0")
            data[step.offset : step.offset + len(step.data)] = step.data
        elif isinstance(step, Truncate):
            data = data[: step.size_bytes].ljust(step.size_bytes, b"\0")
    return data


def count_all(new: NewImage, layout: plan.Layout, shared: np.ndarray) -> list[int]:
    """Finish the layout, and read every count of the file back."""
    header, _ = plan.begin(new)
    l1 = np.zeros(header.l1_entry_count, np.uint64)
    data = bytes(written(list(plan.finish(layout, header, l1, shared))))
    found = qcow2.parse("image", data, len(data))
    geometry = found.geometry
    table_bytes = found.refcount_table_cluster_count * geometry.cluster_size_bytes
    table = tables.decode_words(data[found.refcount_table_offset : found.refcount_table_offset + table_bytes])
    offsets = refcounts.block_offsets(table)
    offsets = offsets[offsets != 0]
    blocks = b"".join(data[offset : offset + geometry.cluster_size_bytes] for offset in offsets.tolist())
    counts: list[int] = refcounts.decode(geometry, np.arange(len(offsets)), offsets, blocks).counts.ravel().tolist()
    assert len(data) % geometry.cluster_size_bytes == 0
    assert not any(counts[len(data) // geometry.cluster_size_bytes :])
    return counts[: len(data) // geometry.cluster_size_bytes]


def test_an_empty_image_counts_header_l1_table_block_and_refcount_table():
    new = small_image()
    _, layout = plan.begin(new)
    assert count_all(new, layout, np.empty(0, np.int64)) == [1] * 4


@pytest.mark.parametrize("order", range(7))
def test_every_cluster_counts_once(order: int):
    new = small_image(refcount_order=order)
    _, layout = plan.begin(new)
    _, layout = plan.take(layout, 1000)
    counts = count_all(new, layout, np.empty(0, np.int64))
    assert len(counts) > 1000
    assert set(counts) == {1}


def test_taken_clusters_lie_side_by_side():
    _, layout = plan.begin(small_image())
    first, layout = plan.take(layout, 3)
    second, layout = plan.take(layout, 2)
    assert np.diff(np.concatenate((first, second))).tolist() == [SIZE] * 4
    assert layout.next_cluster == int(second[-1]) // SIZE + 1


lengths_of = st.lists(st.integers(1, SIZE), max_size=60)


@given(st.lists(lengths_of, max_size=4), st.integers(0, 4), st.integers(0, 3))
def test_packed_clusters_do_not_overlap_and_are_all_counted(parts, order, between):
    new = small_image(refcount_order=order)
    _, layout = plan.begin(new)
    start, users, spans = layout.next_cluster, np.zeros(4096, int), []
    shared = [np.empty(0, np.int64)]
    for lengths in parts:
        offsets, more, layout = plan.pack(layout, lengths)
        shared.append(more)
        spans += list(zip(offsets.tolist(), lengths, strict=True))
        # Something else may come to lie behind the last one.
        taken, layout = plan.take(layout, between)
        spans += [(offset, SIZE) for offset in taken.tolist()]
    for offset, length in spans:
        users[offset // SIZE : (offset + length - 1) // SIZE + 1] += 1
    ordered = sorted(spans)
    assert all(one + length <= other for (one, length), (other, _) in pairwise(ordered))
    assert all(offset % SIZE == 0 for offset, length in spans if length == SIZE)
    assert (users <= (1 << (1 << order)) - 1).all()
    counts = count_all(new, layout, np.concatenate(shared))
    assert counts[start : layout.next_cluster] == users[start : layout.next_cluster].tolist()
    assert np.all(np.diff(np.concatenate(shared)) >= 0)


def test_small_packed_clusters_share_a_host_cluster():
    _, layout = plan.begin(small_image())
    first = layout.next_cluster * SIZE
    offsets, shared, layout = plan.pack(layout, [100, 200, 300, SIZE, 400, 20])
    assert (offsets - first).tolist() == [0, 100, 300, 1024, 600, 1000]
    assert (shared - first // SIZE).tolist() == [0, 0, 1, 1]


def test_a_packed_cluster_goes_on_only_into_the_cluster_right_behind():
    _, layout = plan.begin(small_image())
    first = layout.next_cluster * SIZE
    _, _, layout = plan.pack(layout, [400])
    _, layout = plan.take(layout, 1)
    offsets, _, _ = plan.pack(layout, [200, 112])
    assert (offsets - first).tolist() == [1024, 1224]


@pytest.mark.parametrize("has_subclusters", [False, True])
def test_tables_are_filled_in_guest_order(has_subclusters: bool):
    new = NewImage("image", "qcow2", GIB, cluster_bits=14, has_subclusters=has_subclusters)
    _, layout = plan.begin(new)
    geometry = layout.geometry
    per_table = geometry.l2_entry_count
    first = layout.next_cluster
    words = plan.data_words(geometry, np.array([1 << 20, 2 << 20, 3 << 20]))
    none, layout = plan.enter(layout, np.array([5]), words[:1])
    assert len(none.l1_index) == 0
    one, layout = plan.enter(layout, np.array([7, 3 * per_table]), words[1:])
    last, layout = plan.close(layout)
    nothing, layout = plan.close(layout)
    assert (one.l1_index.tolist(), last.l1_index.tolist(), len(nothing.l1_index)) == ([0], [3], 0)
    assert (one.first_cluster, last.first_cluster, layout.next_cluster) == (first, first + 1, first + 2)
    entries = one.words.reshape(per_table, -1)
    assert np.flatnonzero(entries.any(axis=1)).tolist() == [5, 7]
    assert int(entries[5, 0]) == 1 << 63 | 1 << 20
    assert last.words.reshape(per_table, -1)[0].tolist() == words[2].tolist()
    assert entries.shape[1] == (2 if has_subclusters else 1)


def test_the_entries_say_what_the_specification_says():
    geometry = Geometry(3, 16, 4)
    wide = geometry._replace(has_subclusters=True)
    assert plan.zero_words(geometry, 1).tolist() == [[1]]
    assert plan.zero_words(wide, 1).tolist() == [[0, 0xFFFFFFFF << 32]]
    assert plan.data_words(wide, np.array([1 << 16])).tolist() == [[1 << 63 | 1 << 16, 0xFFFFFFFF]]
    offset, length = np.array([65536 + 500, 1 << 20]), np.array([13, 65536])
    packed, plain = plan.packed_words(geometry, offset, length).ravel().tolist()
    assert packed == 1 << 62 | 1 << geometry.compressed_offset_bits | 66036
    assert plain == 1 << 63 | 1 << 20


@given(st.integers(0, 6), st.integers(9, 21))
def test_packed_entries_lead_to_all_their_bytes(order, bits):
    geometry = Geometry(3, bits, order)
    choose = np.random.default_rng(order * 100 + bits)
    length = choose.integers(1, 1 << bits, 50)
    offset = choose.integers(1 << bits, 1 << 40, 50)
    words = plan.packed_words(geometry, offset, length).ravel()
    assert (tables.classify(geometry, words) == 4).all()
    start, stored = tables.compressed_location(geometry, tables.host_offsets(words, tables.classify(geometry, words)))
    assert (start == offset).all()
    assert (stored >= length).all()
    assert (stored < length + 512).all()


def test_what_is_too_large_is_refused():
    with pytest.raises(WrongUse):
        plan.begin(small_image()._replace(size_bytes=1 << 50))
    header, layout = plan.begin(small_image(refcount_order=6))
    huge = layout._replace(next_cluster=ceil_div(8 << 20, 8) * 64)
    with pytest.raises(Refused):
        list(plan.finish(huge, header, np.zeros(header.l1_entry_count, np.uint64), np.empty(0, np.int64)))
