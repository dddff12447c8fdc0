"""Owns the proof that bounds count what merges move at least; that no price lies below is tried in test_price.py."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from cowtree import extents as ex
from cowtree.extents import Extents
from cowtree.plan.bound import Bounds, Form, nothing_known, over_nothing, weigh
from cowtree.plan.put import Cost

UNIT = 1 << 16
SPAN = 32 * UNIT
KINDS = {"0": ex.ZERO, "a": ex.ALLOCATED}


def held(picture: str) -> Extents:
    """What an image holds, one sign a cluster."""
    signs = enumerate(picture)
    return ex.concatenate(
        [
            ex.single(place * UNIT, (place + 1) * UNIT, KINDS.get(sign, ex.DATA), host_offset=place * UNIT)
            for place, sign in signs
            if sign != "-"
        ]
    )


def bounds_of(*pictures: str, forms: Sequence[Form] | None = None, is_one_group: bool = False) -> Bounds:
    """The bounds of a line, the top first, looked at in windows of different length."""
    forms = forms or [Form(len(picture) * UNIT, UNIT, UNIT, SPAN) for picture in pictures]
    stop = max(form.size_bytes for form in forms)
    parts = [held(picture) for picture in pictures]
    borders = sorted({0, min(SPAN, stop), stop})
    windows = [(first, last, [ex.clip(each, first, last) for each in parts]) for first, last in pairwise(borders)]
    return weigh(forms, windows, is_one_group=is_one_group)


def moved(clusters: int, table_count: int = 0) -> Cost:
    return Cost(clusters * UNIT, clusters * UNIT, 0, table_count)


def test_what_is_held_above_and_below_is_moved_but_not_what_the_target_shows():
    found = bounds_of("A-A--", "-BB--", "CCCC-")
    # Into the base goes what others show over it; its table stays as it is.
    assert found.cost(0, 2, 2) == moved(3)
    # The top lacks clusters 1 and 3.
    assert found.cost(0, 2, 0) == moved(2, 1)
    assert found.cost(0, 2, 1) == moved(3, 1)
    assert found.cost(1, 2, 1) == moved(2, 1)


def test_zeroes_hide_what_lies_below_and_cost_nothing_themselves():
    assert bounds_of("0a--", "BB-B").cost(0, 1, 0) == moved(1, 1)
    assert bounds_of("0a--", "BB-B").cost(0, 1, 1) == moved(0)
    assert bounds_of("----", "0-0-", "CC--").cost(0, 2, 0) == moved(1, 1)


def test_past_its_end_an_image_shows_zeroes():
    assert bounds_of("----", "--", "CCCC").cost(0, 2, 0) == moved(2, 1)
    assert bounds_of("--", "BBBB").cost(0, 1, 0) == moved(2, 1)


def test_tables_are_counted_where_more_is_shown_than_is_held():
    far = 33 * "-"
    assert bounds_of(f"A{far}A", f"-{far}B").cost(0, 1, 1) == moved(2, 1)
    assert bounds_of(f"A{far}A", f"-{far}-").cost(0, 1, 1) == moved(2, 2)
    raw = [Form(35 * UNIT, UNIT, UNIT, SPAN), Form(35 * UNIT)]
    assert bounds_of(f"A{far}A", f"-{far}-", forms=raw).cost(0, 1, 1) == moved(2, 0)


def test_a_target_with_large_clusters_moves_whole_ones_with_what_is_seen_in_them():
    forms = [
        Form(8 * UNIT, UNIT, UNIT, SPAN),
        Form(8 * UNIT, 4 * UNIT, 4 * UNIT, SPAN),
        Form(8 * UNIT, UNIT, UNIT, SPAN),
    ]
    found = bounds_of("A-------", "----BBBB", "-CC---C-", forms=forms)
    assert found.cost(0, 1, 1) == Cost(3 * UNIT, 4 * UNIT, 0, 1)
    assert found.cost(0, 2, 1) == Cost(3 * UNIT, 4 * UNIT, 0, 1)
    # What it holds already is written in place.
    assert bounds_of("-----A--", "----BBBB", "-CC---C-", forms=forms).cost(0, 1, 1) == moved(1)


def test_the_rest_of_a_last_cluster_is_written_in_place():
    forms = [Form(2 * UNIT, UNIT, UNIT, SPAN), Form(UNIT, 2 * UNIT, 2 * UNIT, SPAN)]
    assert bounds_of("-A", "B", forms=forms).cost(0, 1, 1) == moved(1)


@pytest.mark.soak
def test_all_groups_at_once_and_each_alone_are_told_the_same(seed: int):
    choose = np.random.default_rng(seed)
    count = int(choose.integers(2, 7))
    sizes = choose.choice([40, 40, 64], count).tolist()
    pictures = ["".join(choose.choice(list("A0-----"), size)) for size in sizes]
    units = choose.choice([1, 1, 4], count).tolist()
    forms = [Form(size * UNIT, unit * UNIT, unit * UNIT, SPAN) for size, unit in zip(sizes, units, strict=True)]
    found, alone = bounds_of(*pictures, forms=forms), bounds_of(*pictures, forms=forms, is_one_group=True)
    for top in range(count):
        traffic, table_count = found.below(top)
        for bottom in range(top, count):
            for target in range(top, bottom + 1):
                cost = found.cost(top, bottom, target)
                at = bottom - top, target - top
                assert (int(traffic[at]), int(table_count[at])) == (
                    cost.read_bytes + cost.moved_bytes,
                    cost.table_count,
                )
                if top == 0:
                    assert alone.cost(0, bottom, target) == cost


def test_of_what_is_not_known_nothing_is_said():
    assert nothing_known(3).cost(0, 2, 1) == Cost()
    assert not nothing_known(3).below(1)[0].any()


def test_a_line_goes_on_over_what_nobody_can_open():
    found = bounds_of("A-A--", "-BB--", "CCCC-")
    longer = over_nothing(found, 2)
    assert (longer.first_top, over_nothing(found, 0).first_top) == (2, 0)
    assert longer.cost(2, 4, 3) == found.cost(0, 2, 1)
    assert all((mine == its).all() for mine, its in zip(longer.below(3), found.below(1), strict=True))
