"""Owns the proof that the algebra of extents and ranges says what a disk of single bytes says."""

import random
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowtree import extents as ex
from cowtree.extents import Extents, Ranges

DISK_BYTES = 40


def random_ranges(choose: random.Random) -> Ranges:
    """Sorted, disjoint ranges inside a small disk; some touch."""
    edges = sorted(choose.sample(range(DISK_BYTES + 1), 2 * choose.randint(0, 8)))
    pairs = [(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True) if choose.random() < 0.9]
    if pairs and choose.random() < 0.5 and pairs[-1][1] < DISK_BYTES:
        pairs.append((pairs[-1][1], DISK_BYTES))
    return ranges_of(pairs)


def ranges_of(pairs: Iterable[tuple[int, int]]) -> Ranges:
    table = np.array(list(pairs), np.int64).reshape(-1, 2)
    return Ranges(table[:, 0], table[:, 1])


def random_extents(choose: random.Random, layer: int) -> Extents:
    ranges = random_ranges(choose)
    kinds = [choose.choice([ex.DATA, ex.ZERO, ex.ALLOCATED, ex.COMPRESSED, ex.TAIL]) for _ in ranges.start]
    filled = ex.fill(ranges, ex.DATA, layer=layer)
    points = np.isin(kinds, [ex.DATA, ex.ALLOCATED, ex.COMPRESSED])
    hosts = np.where(points, 1000 * (1 + np.arange(len(kinds))) + choose.randint(0, 3), 0)
    return filled._replace(kind=np.array(kinds, np.uint8), host_offset=hosts.astype(np.int64))


def covered(ranges: Ranges) -> set[int]:
    """Every byte of the ranges, which must be disjoint."""
    found = [byte for start, stop in zip(*ranges, strict=True) for byte in range(start, stop)]
    assert len(found) == len(set(found))
    return set(found)


def bytes_of(extents: Extents) -> dict[int, tuple[int, ...]]:
    """What each byte of the disk is: kind, layer, and where it lies."""
    found: dict[int, tuple[int, ...]] = {}
    for start, length, kind, layer, host in zip(*extents, strict=True):
        for step in range(length):
            assert start + step not in found
            found[start + step] = (kind, layer, host + step if kind in ex.MOVING else host)
    return found


@pytest.mark.soak
def test_ranges_are_sets_of_bytes(seed):
    choose = random.Random(seed)
    first, second = random_ranges(choose), random_ranges(choose)
    start, stop = sorted(choose.sample(range(DISK_BYTES + 1), 2))
    assert covered(ex.intersect(first, second)) == covered(first) & covered(second)
    assert covered(ex.subtract(first, second)) == covered(first) - covered(second)
    assert covered(ex.union(first, second)) == covered(first) | covered(second)
    assert covered(ex.merge_ranges(first)) == covered(first)
    assert covered(ex.gaps(first, start, stop)) == set(range(start, stop)) - covered(first)
    assert first.total_bytes == len(covered(first))


@pytest.mark.soak
def test_merged_ranges_do_not_touch(seed):
    merged = ex.merge_ranges(random_ranges(random.Random(seed)))
    assert (merged.start[1:] > merged.stop[:-1]).all()


@pytest.mark.soak
def test_extents_are_maps_of_bytes(seed):
    choose = random.Random(seed)
    top, bottom, where = random_extents(choose, 0), random_extents(choose, 1), random_ranges(choose)
    start, stop = sorted(choose.sample(range(DISK_BYTES + 1), 2))
    inside = covered(where)
    assert bytes_of(ex.over(top, bottom)) == bytes_of(bottom) | bytes_of(top)
    assert bytes_of(ex.cut(top, where)) == {byte: it for byte, it in bytes_of(top).items() if byte in inside}
    assert bytes_of(ex.clip(top, start, stop)) == {
        byte: it for byte, it in bytes_of(top).items() if start <= byte < stop
    }
    assert bytes_of(ex.coalesce(ex.cut(ex.over(top, bottom), where))) == bytes_of(ex.cut(ex.over(top, bottom), where))


@pytest.mark.soak
def test_the_order_of_parts_does_not_matter(seed):
    whole = random_extents(random.Random(seed), 3)
    parts = [whole.take(np.array([index])) for index in range(len(whole.start))]
    random.Random(seed).shuffle(parts)
    joined = ex.concatenate([*parts, ex.empty()])
    assert [column.tolist() for column in joined] == [column.tolist() for column in whole]


def test_pieces_that_go_on_in_the_same_place_become_one():
    whole = ex.single(0, 100, ex.DATA, host_offset=5000)
    pieces = ex.cut(whole, ranges_of([(0, 10), (10, 60), (60, 100)]))
    assert len(pieces.start) == 3
    joined = ex.coalesce(pieces)
    assert (joined.start.tolist(), joined.length.tolist(), joined.host_offset.tolist()) == ([0], [100], [5000])


def test_pieces_in_different_places_stay_apart():
    parts = [ex.single(0, 10, ex.DATA, host_offset=0), ex.single(10, 20, ex.DATA, host_offset=20)]
    assert len(ex.coalesce(ex.concatenate(parts)).start) == 2


def test_compressed_neighbours_stay_apart():
    parts = [ex.single(0, 10, ex.COMPRESSED, host_offset=7), ex.single(10, 20, ex.COMPRESSED, host_offset=7)]
    assert len(ex.coalesce(ex.concatenate(parts)).start) == 2


def test_a_part_of_a_compressed_extent_keeps_the_descriptor():
    part = ex.clip(ex.single(0, 100, ex.COMPRESSED, host_offset=77), 40, 50)
    assert (part.start.tolist(), part.length.tolist(), part.host_offset.tolist()) == ([40], [10], [77])


def test_an_empty_range_holds_nothing():
    assert len(ex.one_range(5, 5).start) == 0
    assert len(ex.single(5, 4, ex.ZERO).start) == 0
    assert ex.concatenate([]).total_bytes == 0


def test_extents_are_chosen_by_kind_and_moved_to_a_layer():
    both = ex.concatenate([ex.single(0, 4, ex.DATA), ex.single(4, 8, ex.TAIL, layer=2)])
    assert both.of_kind(*ex.ZEROES).start.tolist() == [4]
    assert both.on_layer(9).layer.tolist() == [9, 9]
    assert both.total_bytes == 8


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)), max_size=6), st.sampled_from([1, 8, 32]))
def test_a_range_is_widened_to_the_units_that_it_touches(pairs, unit):
    start = np.array(sorted(first for first, _ in pairs), np.int64)
    stop = start + np.array([length for _, length in pairs], np.int64)
    touched = {
        at // unit for first, last in zip(start.tolist(), stop.tolist(), strict=True) for at in range(first, last)
    }
    found = ex.widen(Ranges(start, stop), unit)
    assert {at // unit for at in ex.integers(found).tolist()} == touched
    assert found.total_bytes == len(touched) * unit
    assert (found.start[1:] > found.stop[:-1]).all()


@given(st.lists(st.integers(-5, 9)), st.lists(st.integers(-5, 9)))
def test_values_are_told_apart_and_found_as_in_sets(values, others):
    one, other = np.array(values, np.int64), ex.distinct(np.array(others, np.int64))
    assert other.tolist() == sorted(set(others))
    assert ex.is_among(one, other).tolist() == [value in others for value in values]
