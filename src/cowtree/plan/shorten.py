"""The cheapest way to cut a line of images into at most so many groups, each of which is merged into one of its images.

There are about n^3 / 6 merges to choose from, so hardly any is priced. Each group begins with the lowest cost that one
of its merges can have (`bound.py`). Then, again and again: the cheapest way is found as if these were the prices, and
the merges on it are priced. It is done when all of them are: no other way can cost less than it may at least.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cowtree.errors import CowtreeError
from cowtree.extents import Mask, Offsets
from cowtree.plan.bound import Bounds
from cowtree.plan.family import Family, Merge
from cowtree.plan.permit import objections

# What an impossible merge costs; two of them still fit into 64 bits.
IMPOSSIBLE: Final = 1 << 61
RANK_LENGTH: Final = 4

Rank = tuple[int, ...]
Ranks = NDArray[np.int64]


class Choice(NamedTuple):
    """The cheapest target of one group, as far as is known, as its place in the line."""

    rank: Rank
    target: int
    is_priced: bool


class Groups:
    """All groups of images that lie on each other in a line, from its top down, and the cheapest merge of each.
    Shapes: `ranks` int64, (part of a rank, top, stop); `targets` and `is_priced` (top, stop).
    """

    def __init__(self, family: Family, line: tuple[int, ...], bounds: Bounds, rank_of: Callable[[Merge], Rank]) -> None:
        self.family = family
        self.line = line
        self.bounds = bounds
        self.rank_of = rank_of
        count = len(line)
        self.ranks = np.full((RANK_LENGTH, count, count + 1), IMPOSSIBLE, np.int64)
        self.targets = np.zeros((count, count + 1), np.int64)
        self.is_priced = np.zeros((count, count + 1), bool)
        self._found: dict[tuple[int, int], dict[int, Rank | None]] = {}
        for top in range(count):
            self._begin(top)

    def _begin(self, top: int) -> None:
        """Give each group with this top the lowest rank that is possible."""
        self.ranks[:, top, top + 1], self.is_priced[top, top + 1] = 0, True
        if top < self.bounds.first_top:
            return
        lowest = self._lowest(top)
        target = first_lowest(lowest)
        chosen = np.take_along_axis(lowest, target[None, :, None], axis=2)[:, :, 0]
        self.ranks[:, top, top + 2 :] = chosen[:, 1:]
        self.targets[top, top + 2 :] = target[1:] + top

    def _lowest(self, top: int) -> Ranks:
        """The lowest ranks. Shapes: (part, bottom, target), both counted from the top."""
        traffic, table_count = self.bounds.below(top)
        found = np.stack([traffic, table_count, np.zeros_like(traffic), np.ones_like(traffic)])
        if top == 0:
            found[2, :, 1:] = 1
        found[:, ~may_be(self.family, self.line, top)] = IMPOSSIBLE
        return found

    def act(self, top: int, stop: int) -> Merge:
        """The cheapest merge of a group."""
        return self._merge(top, stop, int(self.targets[top, stop]))

    def _merge(self, top: int, stop: int, target: int) -> Merge:
        return Merge(self.line[top:stop], self.line[target], self.line[target if top else 0])

    def price(self, top: int, stop: int) -> None:
        """Look up what the cheapest merge of a group really costs; then another one may be the cheapest."""
        found, act = self._found.setdefault((top, stop), {}), self.act(top, stop)
        place = int(self.targets[top, stop])
        found[place] = None
        if not any(objections(self.family, act)):
            try:
                found[place] = self.rank_of(act)
            except CowtreeError:
                found[place] = None
        row = self._lowest(top)[:, stop - top - 1]
        for target, rank in found.items():
            row[:, target - top] = IMPOSSIBLE if rank is None else rank
        priced = [target for target, rank in found.items() if rank is not None]
        target = int(first_lowest(row[:, None])[0]) + top
        # Of equals one whose price is known is as good as any.
        same = [each for each in priced if (row[:, each - top] == row[:, target - top]).all()]
        target = min(same, default=target)
        self.ranks[:, top, stop] = row[:, target - top]
        self.targets[top, stop], self.is_priced[top, stop] = target, bool(same)


def cheapest_cut(groups: Groups, count_max: int) -> list[tuple[int, int]] | None:
    """The cheapest way to cut a line into at most so many groups: where each begins and stops. None when none is
    possible.
    """
    while True:
        spans = _cut(groups.ranks, count_max)
        if spans is None:
            return None
        unpriced = [span for span in spans if not groups.is_priced[span]]
        if not unpriced:
            return spans
        for span in unpriced:
            groups.price(*span)


def _cut(ranks: Ranks, count_max: int) -> list[tuple[int, int]] | None:
    """The same by the ranks of all groups: for each place the best ways to get there with so many groups."""
    count = ranks.shape[1]
    totals = np.full((RANK_LENGTH, count + 1, count_max + 1), IMPOSSIBLE, np.int64)
    totals[:, 0, 0] = 0
    came_from = np.zeros((count + 1, count_max + 1), np.int64)
    for stop in range(1, count + 1):
        # Shapes: (part, groups before, place before).
        sums = (totals[:, :stop, :-1] + ranks[:, :stop, stop, None]).swapaxes(1, 2)
        sums = np.minimum(sums, IMPOSSIBLE)
        starts = first_lowest(sums)
        totals[:, stop, 1:] = np.take_along_axis(sums, starts[None, :, None], axis=2)[:, :, 0]
        came_from[stop, 1:] = starts
    number = int(first_lowest(totals[:, None, count])[0])
    if totals[0, count, number] >= IMPOSSIBLE:
        return None
    spans, stop = [], count
    while stop:
        start = int(came_from[stop, number])
        spans.append((start, stop))
        stop, number = start, number - 1
    return spans[::-1]


def first_lowest(ranks: Ranks) -> Offsets:
    """Where the lowest rank is along the last axis, the first of equals. Shapes: (part, rows, places) to (rows,)."""
    is_left: Mask = np.ones(ranks.shape[1:], bool)
    for part in ranks:
        lowest = np.where(is_left, part, np.iinfo(np.int64).max).min(axis=-1, keepdims=True)
        is_left &= part == lowest
    found: Offsets = is_left.argmax(axis=-1)
    return found


def may_be(family: Family, line: tuple[int, ...], top: int) -> Mask:
    """Which merges of the groups with this top nothing speaks against: what `objections` says, for all of them at once.
    Shapes: (bottom, target), both counted from the top.
    """
    members, rest = [family.members[each] for each in line[top:]], line[top:]
    overlays = family.overlays_of(rest)
    place = np.arange(len(rest))
    bottom, target = place[:, None], place[None, :]
    is_branch = np.array([False, *(len(overlays[each]) > 1 for each in rest[1:])])
    branch = int(is_branch.argmax()) if is_branch.any() else len(rest)
    fine = (target <= bottom) & (target < branch)
    above = [family.members[each] for each in overlays[rest[0]]]
    is_bad = np.array([each.why_not is not None or each.use not in (None, "read") for each in members])
    fine &= (np.cumsum(is_bad) == 0)[:, None] & (np.array([each.use is None for each in members]))
    if members[0].use is not None or any(each.why_not is not None or each.use is not None for each in above):
        return np.zeros_like(fine)
    is_raw = np.array([each.format == "raw" for each in members])
    has_parent = np.array([each.parent is not None for each in members])
    fine &= ~(is_raw & has_parent[:, None])
    if top == 0:
        fine &= np.array([(each.format, each.device) == (members[0].format, members[0].device) for each in members])
    return fine & ~_loses_snapshots(np.array([each.has_snapshots for each in members]), branch, is_leaf=top == 0)


def _loses_snapshots(has_snapshots: Mask, branch: int, *, is_leaf: bool) -> Mask:
    """Which merges of the groups with one top lose internal snapshots; from `branch` on images are needed by others."""
    place = np.arange(len(has_snapshots))
    bottom, target = place[:, None], place[None, :]
    left = np.cumsum(has_snapshots)[np.minimum(place, branch - 1)][:, None]
    # The target of a group, where it is one of those that are counted, is not left behind.
    own = has_snapshots & (target <= np.minimum(bottom, branch - 1))
    lost = left - own > 0
    moved = has_snapshots & (target != bottom)
    found: Mask = lost | moved
    if is_leaf and has_snapshots[0]:
        found |= target > 0
    return found
