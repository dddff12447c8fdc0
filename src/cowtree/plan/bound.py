"""What merges along one line of images cost at least: for all of them at once, from one look at each image's extents.

`shown[top, holder]` are the bytes that are seen through `top` and held by `holder`. A merge of the images from `top`
down to `bottom` moves what these show, but for what its target shows itself already:

    moved(top, bottom, target)  =  shown[top, top] + ... + shown[top, bottom]  -  shown[top, target]

Where others are held in smaller pieces than the target has clusters, whole clusters of it are counted in the same way.
An act may cost more, for shared clusters are moved as well, and zeroes at times. It never costs less: where files can
share blocks, only what is too short for that is taken for copied. The disk is counted zone by zone, each of them whole
L2 tables of every image: where more is shown than a target holds, one of its tables changes.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cowtree import extents as ex
from cowtree.extents import Extents, Mask, Offsets, Ranges
from cowtree.plan.clone import is_long
from cowtree.plan.put import Cost

ZONE_COUNT_MAX: Final = 32
ZONE_BYTES_MIN: Final = 2 << 20
# What is seen of a piece of the disk.
NOTHING, BYTES, ZEROES, SHARED = range(4)

Window = tuple[int, int, Sequence[Extents]]


class Form(NamedTuple):
    """What must be known of an image beside its extents. What has no tables has a span of 0; `unit_bytes` is what it
    writes whole.
    """

    size_bytes: int
    cluster_bytes: int = 1
    unit_bytes: int = 1
    table_span_bytes: int = 0


class Bounds(NamedTuple):
    """The lowest costs along one line, from its top down; of a line that is looked at as one group, only the first top
    counts. `whole` are the units in which `holder` is the first to hold more than zeroes, for each size of a unit, and
    `read` what is seen in these that must be copied, whoever holds it; `unit` tells which size is a target's, and
    `spared` what of those units may be left alone. Merges whose top lies over `first_top` have no price: nobody can
    open the chain from there.
    Shapes: int64, `shown` (zone, top, holder), `held` (zone, holder), `whole` and `read` (size, top, holder), `spared`
    (top, holder), `unit` (holder,); `has_tables` bool, (holder,).
    """

    shown: Offsets
    held: Offsets
    whole: Offsets
    read: Offsets
    spared: Offsets
    unit: Offsets
    has_tables: Mask
    first_top: int = 0

    def cost(self, top: int, bottom: int, target: int) -> Cost:
        """What the merge of one group costs at least."""
        seen, own_bytes, unit = (
            self.shown[:, top, : bottom + 1].sum(axis=1),
            self.read[0, top, target],
            self.unit[target],
        )
        read_bytes = self.read[unit, top, : bottom + 1].sum() - own_bytes
        whole_bytes = self.whole[unit, top, : bottom + 1].sum() - own_bytes - self.spared[top, target]
        table_count = int((seen > self.held[:, target]).sum()) if self.has_tables[target] else 0
        return Cost(int(read_bytes), int(max(read_bytes, whole_bytes)), 0, table_count)

    def below(self, top: int) -> tuple[Offsets, Offsets]:
        """The same for all groups with this top: the bytes that are read and written, and the tables that change.
        Shapes: (bottom, target), both counted from the top.
        """
        shown, held = self.shown[:, top, top:], self.held[:, top:]
        seen, own_bytes = shown.cumsum(axis=1), self.read[0, top, top:]
        read, whole = (
            each[:, top, top:].cumsum(axis=1)[self.unit[top:]].T - own_bytes for each in (self.read, self.whole)
        )
        whole -= self.spared[top, top:]
        table_count = np.zeros(read.shape, np.int64)
        # Zone by zone, for all at once would take much memory.
        for zone in np.flatnonzero(seen[:, -1]).tolist():
            table_count += seen[zone][:, None] > held[zone]
        return read + np.maximum(read, whole), table_count * self.has_tables[top:]


def over_nothing(bounds: Bounds, count: int) -> Bounds:
    """The bounds of a longer line, with so many images at its top that nobody can open."""
    square, row = [(0, 0), (count, 0), (count, 0)], [(0, 0), (count, 0)]
    return Bounds(
        np.pad(bounds.shown, square),
        np.pad(bounds.held, row),
        np.pad(bounds.whole, square),
        np.pad(bounds.read, square),
        np.pad(bounds.spared, square[1:]),
        np.pad(bounds.unit, row[1:]),
        np.pad(bounds.has_tables, row[1:]),
        bounds.first_top + count,
    )


def nothing_known(count: int) -> Bounds:
    """The bounds of so many images of which nothing is known."""
    none = np.zeros((1, count, count), np.int64)
    return Bounds(none, none[0, :1], none, none, none[0], none[0, 0], np.zeros(count, bool))


def weigh(
    forms: Sequence[Form], windows: Iterable[Window], *, is_one_group: bool = False, can_share: bool = False
) -> Bounds:
    """Find the bounds of a line; each window says from where to where it goes, and what each image holds there. With
    `can_share` some files may share blocks.
    """
    scale, count = _Scale(forms, can_share=can_share), len(forms)
    top_count = 1 if is_one_group else count
    shown = np.zeros((scale.zone_count, top_count, count), np.int64)
    held = np.zeros((scale.zone_count, count), np.int64)
    whole, read = np.zeros((2, 1 + len(scale.units), top_count, count), np.int64)
    zeroes = np.zeros((top_count, 1), np.int64)
    for start, stop, parts in windows:
        view = _View(scale, start, stop, parts)
        for holder in reversed(range(count)):
            size_bytes = min(max(forms[holder].size_bytes, start), stop)
            # Past its end it shows zeroes, which hide what lies below.
            tail = ex.single(size_bytes, stop, ex.TAIL)
            held[:, holder] += view.lay_over(holder, ex.concatenate([parts[holder], tail]))
            if holder == 0 or not is_one_group:
                shown[:, holder] += view.shown
                read[0, holder] += view.copied
                zeroes[holder] += view.zero_bytes
                for size, units in enumerate(view.units, 1):
                    whole[size, holder] += units.whole[:count]
                    read[size, holder] += units.read[:count]
    # The rest of its last cluster may be the target's own, and is written in place.
    rest = np.array([-form.size_bytes % form.cluster_bytes for form in forms], np.int64)
    spared = np.minimum(held.sum(axis=0), zeroes) + rest
    ends = [min(form.size_bytes // scale.zone_bytes, scale.zone_count - 1) for form in forms]
    held[ends, np.arange(count)] += rest
    unit = [scale.units.index(form.unit_bytes) + 1 if form.unit_bytes in scale.units else 0 for form in forms]
    has_tables = np.array([form.table_span_bytes > 0 for form in forms])
    return Bounds(shown, held, whole, read, spared, np.array(unit), has_tables)


class _Scale:
    """In what a line is counted: zones, each a multiple of what every image's L2 tables map; and the sizes of units
    that are larger than the smallest one, unless what is around may be shared.
    """

    def __init__(self, forms: Sequence[Form], *, can_share: bool) -> None:
        self.can_share = can_share
        size_bytes = max(form.size_bytes for form in forms)
        self.zone_bytes = max(ZONE_BYTES_MIN, *(form.table_span_bytes for form in forms))
        while self.zone_bytes * ZONE_COUNT_MAX < size_bytes:
            self.zone_bytes *= 2
        self.zone_count = max(-(-size_bytes // self.zone_bytes), 1)
        self.holder_count = len(forms)
        self.sizes = [form.size_bytes for form in forms]
        self.units = [] if can_share else sorted({form.unit_bytes for form in forms})[1:]


class _View:
    """What is seen of one window, which is cut wherever somebody's extent begins or ends, while image after image is
    laid over the others.
    Shapes: int64, `shown` (zone, holder), `copied` (holder,); pieces (count,).
    """

    def __init__(self, scale: _Scale, start: int, stop: int, parts: Sequence[Extents]) -> None:
        zones = np.arange(start // scale.zone_bytes + 1, -(-stop // scale.zone_bytes)) * scale.zone_bytes
        ends = np.array([start, stop, *(min(max(size, start), stop) for size in scale.sizes)], np.int64)
        ends = ex.distinct(np.concatenate([ends, zones, *(side for each in parts for side in each.ranges)]))
        borders = [ex.distinct(np.concatenate((ends // size, -(-ends // size)))) * size for size in scale.units]
        self.edge = ex.distinct(np.concatenate((ends, *borders)))
        self.length = np.diff(self.edge)
        self.zone = self.edge[:-1] // scale.zone_bytes
        self.first = np.zeros(len(self.length), np.int64)
        self.state: NDArray[np.uint8] = np.full(len(self.length), NOTHING, np.uint8)
        self.can_share = scale.can_share
        self.shown = np.zeros((scale.zone_count, scale.holder_count), np.int64)
        self.copied = np.zeros(scale.holder_count, np.int64)
        self.zero_bytes = 0
        self.units = [_Units(each, self.edge, scale.holder_count) for each in borders]

    def lay_over(self, holder: int, extents: Extents) -> Offsets:
        """Let an image hide what was seen. Returns: how many bytes it holds, for each zone."""
        low, high = np.searchsorted(self.edge, extents.start), np.searchsorted(self.edge, extents.stop)
        index = ex.integers(Ranges(low, high))
        states = np.where(np.isin(extents.kind, ex.BYTES), BYTES, ZEROES)
        states[is_long(extents) & self.can_share] = SHARED
        state, old = np.repeat(states.astype(np.uint8), high - low), self.state[index]
        lost, gained = index[np.isin(old, (BYTES, SHARED))], index[np.isin(state, (BYTES, SHARED))]
        self.shown -= self._add_up(lost, self.first[lost], self.shown.shape)
        added = self._add_up(gained, np.zeros_like(gained), (len(self.shown), 1))[:, 0]
        self.shown[:, holder] += added
        lost = index[old == BYTES]
        self.copied -= np.bincount(self.first[lost], self.length[lost], len(self.copied)).astype(np.int64)
        self.copied[holder] += self.length[index[state == BYTES]].sum()
        self.zero_bytes += int(self.length[index[state == ZEROES]].sum() - self.length[index[old == ZEROES]].sum())
        self.first[index], self.state[index] = holder, state
        for unit in self.units:
            holds = self.state == BYTES
            unit.look(np.where(holds, self.first, len(self.shown[0])), self.length * holds)
        return added

    def _add_up(self, index: Offsets, column: Offsets, shape: tuple[int, ...]) -> Offsets:
        """Add the lengths of pieces up, for each zone and column."""
        place = self.zone[index] * shape[1] + column
        total = np.bincount(place, self.length[index], shape[0] * shape[1])
        return total.astype(np.int64).reshape(shape)


class _Units:
    """Whole units of one size, neighbours in which nothing begins or ends taken together.
    Shapes: `whole` and `read` int64, (holder + 1,), the last for units that show nothing.
    """

    def __init__(self, border: Offsets, edge: Offsets, holder_count: int) -> None:
        self.begin = np.searchsorted(edge, border[:-1])
        self.length = np.diff(border)
        self.whole = self.read = np.zeros(holder_count + 1, np.int64)

    def look(self, first: Offsets, length: Offsets) -> None:
        """Count anew who is the first to hold something in each unit, and how much each shows."""
        highest = np.minimum.reduceat(first, self.begin)
        self.whole = np.bincount(highest, self.length, len(self.whole)).astype(np.int64)
        shown_bytes = np.add.reduceat(length, self.begin)
        self.read = np.bincount(highest, shown_bytes, len(self.whole)).astype(np.int64)
