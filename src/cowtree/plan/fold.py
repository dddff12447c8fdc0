"""Fold: one layer of a group of layers takes over what the others hold, so that in the end it shows what the top shows.

The target is written in place. What lies over it hides everything that is written there until that is linked past, and
what it takes over from below it shows already; so whoever looks through the top sees the same at every moment, and so
does whoever looks at the target when it is the top itself. Its size and its backing link change last.
"""

from typing import NamedTuple

from cowtree import extents as ex
from cowtree.extents import Extents
from cowtree.plan.put import Wish


class Views(NamedTuple):
    """One window: what the layers over the target hold, the target itself, those below it in the group; what is seen
    through the target now, and what would be seen in the end if nothing were put.
    """

    above: Extents
    own: Extents
    below: Extents
    shown: Extents
    after: Extents


def fold_wish(views: Views, below_span: tuple[int, int], past_end: Extents, *, has_backing: bool) -> Wish:
    """What one window puts into the target. `below_span` is where what lies below it is seen through it; `past_end`
    must read as zeroes, because it lies past the end of the target or of the top.
    """
    over_it = ex.over(views.above, past_end)
    lower = ex.cut(views.below, ex.gaps(views.own.ranges, *below_span))
    return Wish(ex.over(over_it, lower), views.shown, views.after, has_backing)
