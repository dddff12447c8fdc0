"""Owns the proof that a layer takes over what its old backing chain shows, where the new one shows something else."""

from cowtree import extents as ex
from cowtree.extents import Extents, Ranges
from cowtree.plan.pull import Views, both_show_data, may_differ, pull_wish


def drawn(picture: str, layer: int) -> Extents:
    """Extents of a picture: a sign is one byte, letters are data, `z` compressed, `0` zeroes."""
    kinds = {"0": ex.ZERO, "o": ex.ALLOCATED, "z": ex.COMPRESSED}
    parts = [
        ex.single(index, index + 1, kinds.get(sign, ex.DATA), layer=layer, host_offset=100 + index)
        for index, sign in enumerate(picture)
        if sign != "-"
    ]
    return ex.coalesce(ex.concatenate(parts))


def views(own: str, old: str, new: str) -> Views:
    return Views(drawn(own, 0), drawn(old, 1), drawn(new, 2))


def picture(ranges: Ranges, length: int = 8) -> str:
    marked = [any(start <= at < stop for start, stop in zip(*ranges, strict=True)) for at in range(length)]
    return "".join("x" if each else "-" for each in marked)


def test_two_chains_may_differ_where_one_of_them_shows_data():
    found = may_differ(views(own="A-------", old="BB0-B-o-", new="C---CC0-"), (0, 8))
    assert picture(found) == "-x--xx--"


def test_only_the_bytes_can_tell_where_both_show_data():
    shown = views(own="--------", old="BzB-0---", new="CCz-C---")
    where = may_differ(shown, (0, 8))
    assert picture(where) == "xxx-x---"
    assert picture(both_show_data(shown, where)) == "xxx-----"


def test_what_the_old_chain_shows_is_taken_over_and_zeroes_where_it_holds_nothing():
    shown = views(own="A-------", old="BB0-z---", new="CCCCC---")
    wish = pull_wish(shown, may_differ(shown, (0, 8)), has_backing=True)
    rows = list(zip(*(column.tolist() for column in wish.wanted), strict=True))
    assert [(start, length, kind) for start, length, kind, *_ in rows] == [
        (1, 1, ex.DATA),
        (2, 2, ex.ZERO),
        (4, 1, ex.COMPRESSED),
    ]
    assert (wish.shown.layer.tolist(), wish.after.layer.tolist()) == ([0, 1, 1, 1], [0, 2])


def test_nothing_is_wanted_where_nothing_differs():
    shown = views(own="A-------", old="BB------", new="BB------")
    wish = pull_wish(shown, ex.one_range(0, 0), has_backing=False)
    assert wish.wanted.total_bytes == 0
    assert not wish.has_backing_after
