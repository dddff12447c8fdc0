"""Owns the proof that a line is cut the cheapest way although hardly any merge is priced; test_strategy.py compares the
ways with all that there are.
"""

import random

import numpy as np
import pytest

from cowtree.errors import Refused
from cowtree.plan.bound import Bounds, Form, nothing_known, over_nothing, weigh
from cowtree.plan.family import Family, Member, Merge
from cowtree.plan.permit import objections
from cowtree.plan.put import Cost
from cowtree.plan.shorten import Groups, cheapest_cut, first_lowest, may_be
from tests.plan.test_bound import UNIT, bounds_of


def line_of(count: int) -> tuple[Family, tuple[int, ...]]:
    parents = [None, *range(count - 1)]
    family = Family(tuple(Member(f"image-{each}", "qcow2", 100, parent) for each, parent in enumerate(parents)))
    return family, family.line(count - 1)


def random_family(choose: random.Random) -> Family:
    """A tree with one long line, of images of all kinds."""
    count = choose.randint(2, 9)
    parents = [None, *(index - 1 if choose.random() < 0.8 else choose.randrange(index) for index in range(1, count))]
    members = []
    for index, parent in enumerate(parents):
        rare = [choose.random() < 0.08 for _ in range(4)]
        members.append(
            Member(
                f"image-{index}",
                "raw" if rare[0] or (parent is None and choose.random() < 0.3) else "qcow2",
                100,
                parent,
                int(rare[1]),
                "it is damaged" if rare[2] else None,
                choose.random() < 0.15,
                choose.choice(["read", "written"]) if rare[3] else None,
            )
        )
    return Family(tuple(members))


@pytest.mark.soak
def test_what_may_be_is_what_nothing_speaks_against(seed: int):
    choose = random.Random(seed)
    for _ in range(10):
        family = random_family(choose)
        for leaf in range(len(family.members)):
            line = family.line(leaf)
            for top in range(len(line) - 1):
                found = may_be(family, line, top)
                for bottom in range(top + 1, len(line)):
                    for target in range(top, bottom + 1):
                        act = Merge(line[top : bottom + 1], line[target], line[target if top else 0])
                        is_legal = not any(objections(family, act))
                        assert found[bottom - top, target - top] == is_legal, (family, act)


def test_only_the_merges_of_the_cheapest_way_are_priced():
    pictures = ["A-------", "-BB-----", "---CC---", "-----DDD"]
    family, line = line_of(len(pictures))
    bounds, asked = bounds_of(*pictures), []

    def rank_of(act: Merge) -> tuple[int, ...]:
        asked.append(act)
        cost = bounds.cost(line.index(act.top), line.index(act.group[-1]), line.index(act.target))
        return 2 * cost.moved_bytes, cost.table_count, int(act.name != act.target), 1

    groups = Groups(family, line, bounds, rank_of)
    spans = cheapest_cut(groups, 3)
    assert spans == [(0, 2), (2, 3), (3, 4)]
    assert asked == [groups.act(0, 2)]
    assert groups.ranks[:, 0, 2].tolist() == [2 * UNIT, 1, 1, 1]


def test_what_turns_out_to_be_dear_or_impossible_gives_way_to_the_next():
    family, line = line_of(3)
    asked = []

    def rank_of(act: Merge) -> tuple[int, ...]:
        asked.append(act)
        if act.target == act.top:
            raise Refused(reason="it cannot grow")
        return (7 if len(act.group) == 3 else 9), 0, 0, 1

    groups = Groups(family, line, nothing_known(3), rank_of)
    assert cheapest_cut(groups, 2) == [(0, 3)]
    assert groups.act(0, 3).target != line[0]
    assert len(asked) == len(set(asked))


def test_a_line_of_which_nothing_can_be_merged_has_no_way():
    family, line = line_of(3)

    def rank_of(_: Merge) -> tuple[int, ...]:
        raise Refused(reason="it is too full")

    assert cheapest_cut(Groups(family, line, nothing_known(3), rank_of), 2) is None


def test_merges_that_begin_where_nobody_can_open_the_chain_are_not_asked_for():
    family, line = line_of(4)
    groups = Groups(family, line, over_nothing(nothing_known(3), 1), lambda _: (0, 0, 0, 1))
    assert cheapest_cut(groups, 3) == [(0, 1), (1, 4)]
    assert cheapest_cut(groups, 1) is None


def test_the_first_of_the_lowest_ranks_is_found():
    ranks = np.array([[[2, 1, 1, 1]], [[0, 5, 4, 4]]])
    assert first_lowest(ranks).tolist() == [2]


def test_256_images_that_cost_the_same_are_cut_with_few_prices():
    count = 256
    family, line = line_of(count)
    forms = [Form(count * UNIT, UNIT, UNIT, 8192 * UNIT)] * count
    bounds: Bounds = bounds_of(*("-" * index + "A" for index in range(count)), forms=forms)
    asked: list[Cost] = []

    def rank_of(act: Merge) -> tuple[int, ...]:
        cost = bounds.cost(line.index(act.top), line.index(act.group[-1]), line.index(act.target))
        asked.append(cost)
        return 2 * cost.moved_bytes, cost.table_count, int(act.name != act.target), 1

    spans = cheapest_cut(Groups(family, line, bounds, rank_of), 8)
    assert spans is not None
    assert len(spans) == 8
    assert sum(each.moved_bytes for each in asked) == (count - 8) * UNIT
    assert len(asked) < 16
    assert weigh(forms[:1], []).cost(0, 0, 0) == Cost()
