"""Owns the proof that of all legal ways to grant a wish the cheapest is taken: by brute force, on trees with random
costs.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import pytest

from cowtree.errors import Refused, WrongUse
from cowtree.plan import strategy
from cowtree.plan.family import Family, Member, Merge
from cowtree.plan.permit import permit
from cowtree.plan.put import Cost
from cowtree.plan.strategy import Terms, Way

Pricing = Callable[[Merge], Cost]


def family(*parents: int | None, **changes: Member) -> Family:
    members = [Member(f"image-{index}", "qcow2", 100, parent) for index, parent in enumerate(parents)]
    for name, member in changes.items():
        members[int(name.removeprefix("at_"))] = member
    return Family(tuple(members))


def random_family(choose: random.Random) -> Family:
    """A small tree; a root may be raw, some images lie on another file system or must be left alone."""
    parents = [None, *(choose.randrange(index) for index in range(1, choose.randint(2, 6)))]
    members = []
    for index, parent in enumerate(parents):
        kind = "raw" if parent is None and choose.random() < 0.3 else "qcow2"
        why_not = "it is damaged" if choose.random() < 0.05 else None
        snapshots = choose.random() < 0.1
        members.append(Member(f"image-{index}", kind, 100, parent, choose.choice([0, 0, 0, 1]), why_not, snapshots))
    return Family(tuple(members))


def random_price(choose: random.Random) -> Pricing:
    """Any cost at all for an act, and always the same; equal ones are common."""

    @cache
    def price(_: Merge) -> Cost:
        return Cost(choose.randint(0, 3), choose.randint(0, 3), 0, choose.randint(0, 2))

    return price


def free(_: Merge) -> Cost:
    return Cost()


def total(way: Way, price: Pricing) -> tuple[int, int, int, int]:
    """What a way costs, as the order of preference has it."""
    costs = [price(act) for act in way]
    traffic = sum(each.read_bytes + each.moved_bytes for each in costs)
    tables = sum(each.table_count for each in costs)
    return traffic, tables, sum(act.name != act.target for act in way), len(way)


def is_legal(now: Family, way: Way, terms: Terms) -> bool:
    try:
        permit(now, way, forced=terms.forced, kept=terms.kept)
    except Refused:
        return False
    return True


def line_of(now: Family, index: int) -> list[int]:
    found, parent = [index], now.members[index].parent
    while parent is not None:
        found.append(parent)
        parent = now.members[parent].parent
    return found


def all_commits(now: Family, top: int, base: int) -> Iterator[Way]:
    line = line_of(now, top)
    group = tuple(line[: line.index(base) + 1])
    return ((Merge(group, target, base),) for target in group)


def all_pulls(now: Family, layer: int, base: int | None) -> Iterator[Way]:
    line = line_of(now, layer)
    group = tuple(line if base is None else line[: line.index(base)])
    return ((Merge(group, target, layer),) for target in group)


def all_deletions(now: Family, image: int) -> Iterator[Way]:
    """Each overlay takes it over, in its own file or one of them in the image's; or the image goes down."""
    overlays = [index for index, each in enumerate(now.members) if each.parent == image]
    yield tuple(Merge((each, image), each, each) for each in overlays)
    for last in overlays:
        pulls = tuple(Merge((each, image), each, each) for each in overlays if each != last)
        yield (*pulls, Merge((last, image), image, last))
    parent = now.members[image].parent
    if parent is not None:
        yield (Merge((image, parent), parent, parent),)
        yield (Merge((image, parent), image, parent),)


def all_shortenings(now: Family, leaf: int, max_depth: int) -> Iterator[Way]:
    """Every partition of the chain into at most so many groups, with every target of each."""
    for groups in partitions(tuple(line_of(now, leaf))):
        if len(groups) <= max_depth:
            yield from choices(leaf, groups)


def partitions(line: tuple[int, ...]) -> Iterator[list[tuple[int, ...]]]:
    if not line:
        yield []
    for count in range(1, len(line) + 1):
        for rest in partitions(line[count:]):
            yield [line[:count], *rest]


def choices(leaf: int, groups: Sequence[tuple[int, ...]]) -> Iterator[Way]:
    if not groups:
        yield ()
        return
    group, *rest = groups
    for way in choices(leaf, rest):
        if len(group) == 1:
            yield way
            continue
        for target in group:
            yield (Merge(group, target, leaf if leaf in group else target), *way)


def check(now: Family, ways: Sequence[Way], all_ways: Sequence[Way], price: Pricing) -> None:
    """Whatever is offered is possible, and what is chosen is the cheapest of all that is."""
    assert set(ways) <= set(all_ways)
    legal = [total(way, price) for way in all_ways if is_legal(now, way, Terms())]
    if not legal:
        with pytest.raises(Refused):
            strategy.choose(now, ways, price)
        return
    plan = strategy.choose(now, ways, price)
    assert is_legal(now, plan.acts, Terms())
    assert total(plan.acts, price) == min(legal)
    assert plan.costs == tuple(price(act) for act in plan.acts)


@pytest.mark.soak
def test_the_cheapest_of_all_legal_ways_is_chosen(seed: int):
    for drawing in range(20):
        choose = random.Random(f"{seed} {drawing}")
        now, price = random_family(choose), random_price(choose)
        for index in range(len(now.members)):
            for base in line_of(now, index)[1:]:
                check(now, list(strategy.commit(now, index, base)), list(all_commits(now, index, base)), price)
                if base != now.members[index].parent:
                    check(now, list(strategy.pull(now, index, base)), list(all_pulls(now, index, base)), price)
            if now.members[index].parent is not None:
                check(now, list(strategy.pull(now, index)), list(all_pulls(now, index, None)), price)
            if now.overlays(index):
                check(now, list(strategy.delete(now, index)), list(all_deletions(now, index)), price)


@pytest.mark.soak
def test_the_cheapest_of_all_partitions_shortens_a_chain(seed: int):
    for drawing in range(10):
        choose = random.Random(f"{seed} {drawing}")
        now, price = random_family(choose), random_price(choose)
        for leaf in now.leaves:
            for depth in range(1, len(line_of(now, leaf)) + 1):
                ways = list(strategy.shorten(now, leaf, depth, price))
                if depth == len(line_of(now, leaf)):
                    assert ways == [()]
                    continue
                # A merge that is not needed costs nothing at times, but it is one more.
                check(now, ways, list(all_shortenings(now, leaf, depth)), price)


def test_of_ways_that_cost_the_same_the_first_is_taken():
    now = family(None, 0, 1)
    commit = strategy.choose(now, list(strategy.commit(now, 2, 0)), free)
    assert commit.acts == (Merge((2, 1, 0), 0, 0),)
    pull = strategy.choose(now, list(strategy.pull(now, 2)), free)
    assert pull.acts == (Merge((2, 1, 0), 2, 2),)


def test_tables_count_when_bytes_are_the_same_and_names_when_tables_are():
    now = family(None, 0)
    down, up = Merge((1, 0), 0, 0), Merge((1, 0), 1, 0)
    costs = {down: Cost(1, 1, table_count=2), up: Cost(1, 1, table_count=1)}
    assert strategy.choose(now, [(down,), (up,)], costs.__getitem__).acts == (up,)
    costs[up] = costs[down]
    assert strategy.choose(now, [(up,), (down,)], costs.__getitem__).acts == (down,)


def test_all_acts_together_cost_the_sum():
    now = family(None, 0, 0)
    way = (Merge((1, 0), 1, 1), Merge((2, 0), 2, 2))
    plan = strategy.choose(now, [way], lambda _: Cost(1, 2, 3, 4))
    assert plan.cost == Cost(2, 4, 6, 8)


def test_what_cannot_be_priced_is_passed_over():
    now = family(None, 0)

    def price(act: Merge) -> Cost:
        if act.target == 0:
            raise Refused(reason="it cannot grow")
        return Cost(9, 9)

    ways = list(strategy.commit(now, 1))
    assert strategy.choose(now, ways, price).acts == (Merge((1, 0), 1, 0),)
    with pytest.raises(Refused, match="it cannot grow"):
        strategy.choose(now, ways[:1], price)
    short = list(strategy.shorten(now, 1, 1, price))
    assert strategy.choose(now, short, price).acts == (Merge((1, 0), 1, 1),)


def test_what_is_refused_is_what_the_plain_way_would_harm():
    now = family(None, 0, 0)
    with pytest.raises(Refused, match="image-0 would change, and image-2 reads it") as caught:
        strategy.choose(now, list(strategy.commit(now, 1)), free)
    assert caught.value.facts["harmed"] == ("image-2",)


def test_what_is_given_up_by_name_is_no_obstacle_but_its_overlays_are():
    now = family(None, 0, 0, 2)
    ways = list(strategy.commit(now, 1))
    with pytest.raises(Refused) as caught:
        strategy.choose(now, ways, free, Terms(forced=(2,)))
    assert caught.value.facts["harmed"] == ("image-3",)
    plan = strategy.choose(now, ways, free, Terms(forced=(2, 3)))
    assert (plan.acts, plan.permit.forced) == ((Merge((1, 0), 0, 0),), (2, 3))


def test_an_image_that_is_to_be_kept_is_neither_changed_nor_left_behind():
    now = family(None, 0, 1)
    for kept in (0, 1):
        with pytest.raises(Refused, match=f"image-{kept} is to be kept"):
            strategy.choose(now, list(strategy.commit(now, 2, 0)), free, Terms(kept=(kept,)))
    assert strategy.choose(now, list(strategy.pull(now, 2, 0)), free, Terms(kept=(0,))).acts


def test_those_who_stand_in_the_way_are_served_first():
    now = family(None, 0, 1, 0, 1)
    plan = strategy.choose(now, list(strategy.commit(now, 2, 0)), free, Terms(with_dependants=True))
    *first, last = plan.acts
    assert last == Merge((2, 1, 0), 0, 0)
    assert sorted(first) == [Merge((3, 0), 3, 3), Merge((4, 1, 0), 4, 4)]


def test_nobody_is_served_who_reads_only_what_stays():
    now = family(None, 0, 1, 0, 2)
    # Image 3 reads image 0, which stays: only image 1 changes.
    assert strategy.with_dependants(now, (Merge((2, 1), 1, 1),)) == (Merge((2, 1), 1, 1),)


def test_what_lies_deeper_than_the_change_is_not_pulled_along():
    now = family(None, 0, 1, 1)
    assert strategy.with_dependants(now, (Merge((2, 1), 1, 1),)) == (Merge((3, 1), 3, 3), Merge((2, 1), 1, 1))


def test_nothing_is_done_where_nothing_needs_to_be():
    now = family(None, 0)
    assert list(strategy.pull(now, 1, 0)) == [()]
    assert list(strategy.pull(now, 0)) == [()]
    assert list(strategy.shorten(now, 1, 2, free)) == [()]
    assert strategy.choose(now, [()], free).cost == Cost()


def test_wishes_that_mean_nothing_are_refused():
    now = family(None, 0, 0)
    with pytest.raises(Refused, match="image-0 has no base"):
        list(strategy.commit(now, 0))
    with pytest.raises(WrongUse, match="image-1 does not lie on image-2"):
        list(strategy.commit(now, 1, 2))
    with pytest.raises(WrongUse, match="image-1 does not lie on image-1"):
        list(strategy.commit(now, 1, 1))
    with pytest.raises(WrongUse, match="image-1 does not lie on image-2"):
        list(strategy.pull(now, 1, 2))
    with pytest.raises(Refused, match="image-1 is what a guest sees"):
        list(strategy.delete(now, 1))
    with pytest.raises(WrongUse, match="0 layers"):
        list(strategy.shorten(now, 1, 0, free))


def test_a_chain_that_cannot_be_shortened_says_why():
    now = family(None, 0, at_0=Member("image-0", "qcow2", 100, None, 0, "it is damaged"))
    with pytest.raises(Refused, match="image-0: it is damaged"):
        strategy.choose(now, list(strategy.shorten(now, 1, 1, free)), free)


def test_who_lies_on_a_data_file_that_changes_takes_it_over_first():
    members = [Member(name, "qcow2", 1, parent) for name, parent in zip("ABDR", (None, 0, None, 2), strict=True)]
    members[1] = members[1]._replace(data=2)
    act = Merge((1, 0), 1, 1)
    assert strategy.with_dependants(Family(tuple(members)), (act,)) == (Merge((3, 2), 3, 3), act)
    # Nothing saves an image whose own data file changes.
    assert strategy.with_dependants(Family(tuple(members)), (Merge((3, 2), 2, 2),)) == (Merge((3, 2), 2, 2),)
