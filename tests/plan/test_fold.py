"""Owns the proof that a layer takes over what those around it hold, and not what it or something above holds itself."""

from cowtree import extents as ex
from cowtree.plan.fold import Views, fold_wish

NONE = ex.empty()


def test_what_lies_past_an_end_reads_as_zeroes_where_nothing_above_holds_it():
    above, past_end = ex.single(0, 10, ex.DATA), ex.single(5, 20, ex.ZERO)
    wish = fold_wish(Views(above, NONE, NONE, NONE, NONE), (0, 5), past_end, has_backing=True)
    assert (wish.wanted.start.tolist(), wish.wanted.stop.tolist()) == ([0, 10], [10, 20])
    assert wish.wanted.kind.tolist() == [ex.DATA, ex.ZERO]
    assert wish.has_backing_after


def test_what_lies_below_is_wanted_only_where_neither_the_target_nor_its_end_hides_it():
    above, own, below = ex.single(0, 4, ex.DATA, layer=0), ex.single(2, 8, ex.ZERO, layer=1), ex.single(0, 40, ex.DATA)
    wish = fold_wish(Views(above, own, below, NONE, NONE), (0, 20), NONE, has_backing=False)
    assert list(zip(wish.wanted.start.tolist(), wish.wanted.stop.tolist(), strict=True)) == [(0, 4), (8, 20)]
