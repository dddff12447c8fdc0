"""Pull and rebase: a layer takes over what its old backing chain shows, and then gets another backing file, or none.

The link changes last, in one sector, when all that it relies on is durable. Until then the layer shows the same through
its old chain, with every cluster that was pulled already its own.
"""

from typing import NamedTuple

from cowtree import extents as ex
from cowtree.extents import Extents, Ranges
from cowtree.plan.put import Wish


class Views(NamedTuple):
    """One window: what the layer itself holds, and what its old and its new backing chain show."""

    own: Extents
    old: Extents
    new: Extents


def pull_wish(views: Views, differing: Ranges, *, has_backing: bool) -> Wish:
    """What one window of a pull puts into the layer, which must answer itself where the two chains are `differing`.
    It holds nothing there yet. Where the old chain holds nothing either, it shows zeroes.
    """
    own, old, new = views
    data = ex.cut(old.of_kind(*ex.BYTES), differing)
    zero = ex.fill(ex.subtract(differing, data.ranges), ex.ZERO)
    return Wish(ex.concatenate([data, zero]), ex.over(own, old), ex.over(own, new), has_backing)


def may_differ(views: Views, window: tuple[int, int]) -> Ranges:
    """Where the layer holds nothing itself and at least one of the two chains shows more than zeroes."""
    shown = [each.of_kind(*ex.BYTES).ranges for each in (views.old, views.new)]
    return ex.intersect(ex.union(*shown), ex.gaps(views.own.ranges, *window))


def both_show_data(views: Views, where: Ranges) -> Ranges:
    """The part of `where` in which only the bytes themselves can tell whether the two chains differ."""
    shown = [each.of_kind(*ex.BYTES).ranges for each in (views.old, views.new)]
    return ex.intersect(where, ex.intersect(*map(ex.merge_ranges, shown)))
