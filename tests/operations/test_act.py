"""Owns the proof that a merge of a family leaves every leaf's view as it was, moves what it was said to move, and is
the cheapest way there is: exhaustively on Figure 2 grown to twelve layers, and on random trees.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pytest

from cowtree.errors import CowtreeError, Refused
from cowtree.operations.price import pricer
from cowtree.plan import strategy
from cowtree.plan.family import Family
from cowtree.plan.permit import permit
from cowtree.plan.strategy import Plan, Terms, Way
from cowtree.storage.memory import MemoryFiles
from tests.trees import FIGURE_2, Tree, after, assert_same_leaves, carry_out, grow, random_parents

Wish = tuple[str, Callable[[], Iterator[Way]]]


def wishes(family: Family) -> Iterator[Wish]:
    """Every commit, every pull, every deletion that can be asked of a family."""
    for index in range(len(family.members)):
        for base in family.line(index)[1:]:
            yield f"commit {index} {base}", partial(strategy.commit, family, index, base)
            yield f"pull {index} {base}", partial(strategy.pull, family, index, base)
        yield f"flatten {index}", partial(strategy.pull, family, index)
        yield f"delete {index}", partial(strategy.delete, family, index)


def legal(family: Family, ways: Sequence[Way]) -> list[Way]:
    found = []
    for way in ways:
        try:
            permit(family, way)
        except Refused:
            continue
        found.append(way)
    return found


def do(tree: Tree, plan: Plan) -> tuple[MemoryFiles, int]:
    files = tree.files.copy()
    return files, carry_out(files, tree.family, plan.acts)


def harmed_by(tree: Tree, way: Way) -> set[str]:
    """Who sees something else when a refused way is gone all the same: nobody outside may be among them."""
    family = tree.family
    found: set[int] = set()
    for act in way:
        for each in family.in_the_way(act):
            found |= {each, *family.readers(each)}
        family = family.after(act)
    return set(tree.family.paths(tuple(found)))


def check_wish(tree: Tree, name: str, ways_of: Callable[[], Iterator[Way]]) -> None:
    price = pricer(tree.files, tree.family)
    refusal, ways, plan = None, [], None
    try:
        ways = list(ways_of())
        plan = strategy.choose(tree.family, ways, price)
    except Refused as error:
        refusal = error
    if plan is None or refusal is not None:
        assert refusal is not None
        assert set(refusal.facts.get("harmed", ())) == (harmed_by(tree, ways[0]) if ways else set()), name
        assert ways or name.startswith("delete"), (name, refusal)
        return
    files, moved_bytes = do(tree, plan)
    assert moved_bytes == plan.cost.moved_bytes, name
    now = after(tree.family, plan)
    assert_same_leaves(tree, files, now)
    assert not [path for path in files.snapshot() if path.endswith(".cowtree-merge")]
    verb, index, *_ = name.split()
    if verb == "delete":
        assert int(index) in now.gone or tree.family.path(int(index)) not in now.paths(tuple(present(now))), name
    costs = []
    for way in legal(tree.family, ways):
        cost = strategy.choose(tree.family, [way], price).cost
        assert do(tree, strategy.choose(tree.family, [way], price))[1] == cost.moved_bytes, (name, way)
        costs.append(cost.traffic_bytes)
    assert plan.cost.traffic_bytes == min(costs), name


def present(family: Family) -> list[int]:
    return [index for index in range(len(family.members)) if index not in family.gone]


@pytest.mark.slow
@pytest.mark.parametrize("drawing", range(2))
def test_every_wish_on_figure_2_is_refused_with_the_right_names_or_changes_no_leaf(drawing: int):
    tree = grow(FIGURE_2, drawing)
    count = 0
    for name, ways_of in wishes(tree.family):
        check_wish(tree, name, ways_of)
        count += 1
    assert count == 2 * sum(len(tree.family.line(each)) - 1 for each in range(12)) + 24


@pytest.mark.slow
@pytest.mark.soak
def test_random_wishes_on_random_trees_change_no_leaf(seed: int):
    choose = random.Random(seed)
    tree = grow(random_parents(choose.randint(2, 30), choose), seed, sizes=[8, 12, 12, 16], raw_root=seed % 3 == 0)
    for name, ways_of in choose.sample(list(wishes(tree.family)), 8):
        check_wish(tree, name, ways_of)


@pytest.mark.slow
@pytest.mark.soak
def test_with_dependants_nothing_is_refused_and_no_leaf_changes(seed: int):
    choose = random.Random(seed)
    tree = grow(random_parents(choose.randint(3, 12), choose), seed)
    for name, ways_of in choose.sample(list(wishes(tree.family)), 5):
        try:
            ways = list(ways_of())
        except CowtreeError:
            assert name.startswith("delete")
            continue
        plan = strategy.choose(tree.family, ways, pricer(tree.files, tree.family), Terms(with_dependants=True))
        files, moved_bytes = do(tree, plan)
        assert moved_bytes == plan.cost.moved_bytes, name
        assert_same_leaves(tree, files, after(tree.family, plan))


@pytest.mark.slow
@pytest.mark.soak
def test_a_chain_is_shortened_by_the_cheapest_merges(seed: int):
    choose = random.Random(seed)
    tree = grow(random_parents(choose.randint(2, 8), choose), seed)
    price = pricer(tree.files, tree.family)
    for leaf in tree.family.leaves:
        for depth in range(1, len(tree.family.line(leaf)) + 1):
            ways = list(strategy.shorten(tree.family, leaf, depth, price))
            plan = strategy.choose(tree.family, ways, price)
            files, moved_bytes = do(tree, plan)
            assert moved_bytes == plan.cost.moved_bytes
            now = after(tree.family, plan)
            assert_same_leaves(tree, files, now)
            place = next(index for index in present(now) if now.path(index) == tree.family.path(leaf))
            assert len(now.line(place)) <= depth
