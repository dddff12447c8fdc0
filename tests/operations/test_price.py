"""Owns the proof that a price is what the act then costs, and that to ask for it changes nothing."""

import random

import pytest

from cowtree.errors import Refused
from cowtree.operations.order import Order
from cowtree.operations.price import pricer, survey_act
from cowtree.plan.family import Merge
from cowtree.storage.faults import FaultyFiles
from tests.trees import carry_out, grow, random_parents


@pytest.mark.soak
def test_the_price_of_a_random_act_is_what_it_moves(seed: int):
    choose = random.Random(seed)
    tree = grow(random_parents(choose.randint(2, 6), choose), seed, sizes=[8, 12, 16])
    price = pricer(tree.files, tree.family)
    top = choose.choice([index for index, each in enumerate(tree.family.members) if each.parent is not None])
    group = tree.family.line(top)[:2]
    act = Merge(group, group[0], group[0])
    before = tree.files.snapshot()
    cost = price(act)
    assert price(act) is cost
    assert tree.files.snapshot() == before
    assert carry_out(tree.files, tree.family, [act]) == cost.moved_bytes


def test_a_survey_changes_nothing_and_refuses_what_somebody_changed():
    tree = grow((None, 0), 1)
    files = FaultyFiles(tree.files)
    act = Merge((1, 0), 1, 1)
    survey_act(files, Order(tree.family, (act,)))
    assert not files.calls
    members = (tree.family.members[0]._replace(path="image-9"), tree.family.members[1])
    with pytest.raises(Refused, match="does not lie on what it was planned with"):
        survey_act(files, Order(tree.family._replace(members=members), (act,)))
