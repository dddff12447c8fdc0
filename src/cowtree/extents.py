"""Extents: the one currency. Who holds each guest range, and where in that file.

An `Extents` is five parallel arrays, sorted by `start` and free of overlaps; what no extent covers is not allocated
anywhere. Lengths and offsets are bytes, and ranges are half-open.

    kind        reads as                     host_offset
    DATA        the bytes at host_offset     moves along when an extent is cut
    ZERO        zeroes                       0
    ALLOCATED   zeroes; clusters are kept    moves along, as DATA
    COMPRESSED  the cluster, inflated        the compressed descriptor, whatever is cut off
    TAIL        zeroes past a layer's end    0
    LOST        nobody knows what            0
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

DATA: Final = 1
ZERO: Final = 2
ALLOCATED: Final = 3
COMPRESSED: Final = 4
TAIL: Final = 5
LOST: Final = 6
MOVING: Final = (DATA, ALLOCATED)
BYTES: Final = (DATA, COMPRESSED, LOST)
ZEROES: Final = (ZERO, ALLOCATED, TAIL)

Offsets = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Ranges(NamedTuple):
    """Sorted, disjoint byte ranges. Shapes: int64, (count,)."""

    start: Offsets
    stop: Offsets

    @property
    def total_bytes(self) -> int:
        """All lengths added up."""
        return int((self.stop - self.start).sum())


class Extents(NamedTuple):
    """Who holds what. Shapes: all (count,); int64, but kind uint8 and layer int16."""

    start: Offsets
    length: Offsets
    kind: NDArray[np.uint8]
    layer: NDArray[np.int16]
    host_offset: Offsets

    @property
    def stop(self) -> Offsets:
        """Where each extent ends."""
        return self.start + self.length

    @property
    def ranges(self) -> Ranges:
        """The covered ranges, one per extent."""
        return Ranges(self.start, self.stop)

    @property
    def total_bytes(self) -> int:
        """All lengths added up."""
        return int(self.length.sum())

    def take(self, which: Mask | Offsets | slice) -> "Extents":
        """The extents that a mask, an index or a slice selects."""
        return Extents._make(column[which] for column in self)

    def of_kind(self, *kinds: int) -> "Extents":
        """The extents of these kinds."""
        return self.take(np.isin(self.kind, kinds))

    def on_layer(self, layer: int) -> "Extents":
        """The same extents, held by another layer."""
        return self._replace(layer=np.full(len(self.start), layer, np.int16))


class Known(NamedTuple):
    """All that one layer holds before a guest offset."""

    extents: Extents
    stop: int


def distinct(values: Offsets) -> Offsets:
    """The values in order, each once: `np.unique` without numpy's masked arrays, which take 10 ms to load."""
    ordered = np.sort(values, kind="stable")
    once: Offsets = ordered[np.diff(ordered, prepend=ordered[:1] - 1) != 0]
    return once


def is_among(values: Offsets, ordered: Offsets) -> Mask:
    """Which of the values are found in a sorted array: `np.isin` without numpy's masked arrays."""
    if not len(ordered):
        return np.zeros(values.shape, bool)
    found: Mask = ordered.take(np.searchsorted(ordered, values), mode="clip") == values
    return found


def empty() -> Extents:
    """No extents."""
    none = np.empty(0, np.int64)
    return Extents(none, none, np.empty(0, np.uint8), np.empty(0, np.int16), none)


def fill(ranges: Ranges, kind: int, *, layer: int = 0) -> Extents:
    """One extent of a kind that points nowhere over each range."""
    start, count = ranges.start, len(ranges.start)
    kinds, layers = np.full(count, kind, np.uint8), np.full(count, layer, np.int16)
    return Extents(start, ranges.stop - start, kinds, layers, np.zeros(count, np.int64))


def single(start: int, stop: int, kind: int, *, layer: int = 0, host_offset: int = 0) -> Extents:
    """One extent, or none when the range is empty."""
    one = fill(one_range(start, stop), kind, layer=layer)
    return one._replace(host_offset=one.host_offset + host_offset)


def one_range(start: int, stop: int) -> Ranges:
    """One range, or none when it is empty."""
    count = int(stop > start)
    return Ranges(np.array([start][:count], np.int64), np.array([stop][:count], np.int64))


def concatenate(parts: list[Extents]) -> Extents:
    """Put parts behind each other and sort them by start; they must not overlap."""
    if not parts:
        return empty()
    joined = Extents._make(np.concatenate(columns) for columns in zip(*parts, strict=True))
    return joined.take(np.argsort(joined.start, kind="stable"))


def _pair(first: Ranges, second: Ranges) -> tuple[Offsets, Offsets]:
    """Index pairs of all (first, second) ranges that overlap, in order."""
    low = np.searchsorted(second.stop, first.start, "right")
    high = np.searchsorted(second.start, first.stop, "left")
    counts = np.maximum(high - low, 0)
    which = np.repeat(np.arange(len(counts)), counts)
    skipped = np.repeat(np.cumsum(counts) - counts, counts)
    return which, np.repeat(low, counts) + np.arange(len(which)) - skipped


def intersect(first: Ranges, second: Ranges) -> Ranges:
    """What both cover."""
    left, right = _pair(first, second)
    return Ranges(np.maximum(first.start[left], second.start[right]), np.minimum(first.stop[left], second.stop[right]))


def cut(extents: Extents, ranges: Ranges) -> Extents:
    """The parts of the extents that lie inside the ranges."""
    left, right = _pair(extents.ranges, ranges)
    parts = extents.take(left)
    start = np.maximum(parts.start, ranges.start[right])
    stop = np.minimum(parts.stop, ranges.stop[right])
    moved = np.where(np.isin(parts.kind, MOVING), start - parts.start, 0)
    return parts._replace(start=start, length=stop - start, host_offset=parts.host_offset + moved)


def clip(extents: Extents, start: int, stop: int) -> Extents:
    """The parts of the extents inside one range."""
    # A narrow range of many extents costs only what it holds.
    first = max(int(np.searchsorted(extents.start, start, "right")) - 1, 0)
    last = int(np.searchsorted(extents.start, stop, "left"))
    return cut(Extents._make(column[first:last] for column in extents), one_range(start, stop))


def merge_ranges(ranges: Ranges) -> Ranges:
    """Join sorted ranges that touch or overlap."""
    if not len(ranges.start):
        return ranges
    reach = np.maximum.accumulate(ranges.stop)
    first = np.concatenate(([True], ranges.start[1:] > reach[:-1]))
    return Ranges(ranges.start[first], reach[np.append(np.flatnonzero(first)[1:] - 1, len(reach) - 1)])


def widen(ranges: Ranges, unit: int) -> Ranges:
    """The whole units that sorted ranges touch, joined."""
    return merge_ranges(Ranges(ranges.start // unit * unit, -(-ranges.stop // unit) * unit))


def gaps(ranges: Ranges, start: int, stop: int) -> Ranges:
    """What sorted ranges leave uncovered between `start` and `stop`."""
    merged = intersect(merge_ranges(ranges), one_range(start, stop))
    begins = np.concatenate(([start], merged.stop)).astype(np.int64)
    ends = np.concatenate((merged.start, [stop])).astype(np.int64)
    keep = ends > begins
    return Ranges(begins[keep], ends[keep])


def subtract(ranges: Ranges, holes: Ranges) -> Ranges:
    """The parts of `ranges` that `holes` leave."""
    if not len(ranges.start):
        return ranges
    return intersect(ranges, gaps(holes, int(ranges.start[0]), int(ranges.stop[-1])))


def over(top: Extents, bottom: Extents) -> Extents:
    """What is seen when `top` lies over `bottom`: the top wins where both hold something."""
    if not len(top.start) or not len(bottom.start):
        return top if len(top.start) else bottom
    free = gaps(top.ranges, int(bottom.start[0]), int(bottom.stop[-1]))
    return concatenate([top, cut(bottom, free)])


def coalesce(extents: Extents) -> Extents:
    """Join neighbours that go on in the same place; compressed clusters stay apart."""
    if len(extents.start) < 2:
        return extents
    stop, moves = extents.stop, np.isin(extents.kind, MOVING)
    goes_on = (
        (extents.start[1:] == stop[:-1])
        & (extents.kind[1:] == extents.kind[:-1])
        & (extents.layer[1:] == extents.layer[:-1])
        & (extents.kind[1:] != COMPRESSED)
        & (~moves[1:] | (extents.host_offset[1:] == extents.host_offset[:-1] + extents.length[:-1]))
    )
    first = np.flatnonzero(np.concatenate(([True], ~goes_on)))
    last = np.append(first[1:] - 1, len(stop) - 1)
    return extents.take(first)._replace(length=stop[last] - extents.start[first])


def union(first: Ranges, second: Ranges) -> Ranges:
    """What at least one of both covers."""
    start, stop = np.concatenate((first.start, second.start)), np.concatenate((first.stop, second.stop))
    order = np.argsort(start, kind="stable")
    return merge_ranges(Ranges(start[order], stop[order]))


def integers(ranges: Ranges) -> Offsets:
    """All the integers in the ranges."""
    counts = ranges.stop - ranges.start
    skipped = np.repeat(np.cumsum(counts) - counts, counts)
    numbers: Offsets = np.repeat(ranges.start, counts) + np.arange(len(skipped)) - skipped
    return numbers
