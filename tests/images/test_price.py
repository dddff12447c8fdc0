"""Owns the proof that a price is what the act then costs, that to ask changes nothing, and that few are asked for."""

import random
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import pytest

from cowtree.chain.view import open_chain
from cowtree.errors import CowtreeError, Refused
from cowtree.images import price as module
from cowtree.images.order import Order
from cowtree.images.price import Prices, pricer, survey_act
from cowtree.plan import clone, strategy
from cowtree.plan.family import Family, Merge
from cowtree.plan.put import Cost
from cowtree.plan.strategy import NO_TERMS, Way
from cowtree.qcow2.tables import table_offsets
from cowtree.storage.contract import FileSystem, Storage
from cowtree.storage.faults import FaultyFiles
from cowtree.storage.memory import PAGE_BYTES, MemoryFiles
from cowtree.storage.passing import PassingFile, PassingFiles
from tests.plan.test_strategy import all_commits, all_deletions, all_pulls, all_shortenings, is_legal
from tests.trees import ALL, NO_SNAPSHOTS, Tree, carry_out, grow, random_parents


class CountingFiles(PassingFiles):
    """Counts what is opened, and what is read. They share no blocks."""

    def __init__(self, inner: MemoryFiles) -> None:
        super().__init__(inner)
        self.opened = self.read = self.open_now = 0

    def open(self, path: str, access: str) -> Storage:
        self.opened += 1
        self.open_now += 1
        return CountingFile(self.inner.open(path, access), self)


class CountingFile(PassingFile):
    def __init__(self, inner: Storage, files: CountingFiles) -> None:
        super().__init__(inner)
        self.files = files

    def pread(self, offset: int, length: int) -> bytes:
        self.files.read += 1
        return self.inner.pread(offset, length)

    def preadv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self.files.read += 1
        self.inner.preadv(offset, buffers)

    def clone_block_bytes(self, source: Storage) -> int:
        return 0

    def close(self) -> None:
        self.files.open_now -= 1
        self.inner.close()


class CountingPrices(Prices):
    """Remembers what is asked for."""

    def __init__(self, files: FileSystem, family: Family) -> None:
        super().__init__(files, family)
        self.asked: set[Merge] = set()

    def __call__(self, act: Merge) -> Cost:
        self.asked.add(act)
        return super().__call__(act)


def random_tree(seed: int, choose: random.Random, sizes: Sequence[int] = (7, 8, 12, 16)) -> Tree:
    """Up to eight images of all kinds; long lines are common."""
    count = choose.randint(2, 8)
    parents = [None, *range(count - 1)] if choose.random() < 0.5 else random_parents(count, choose)
    mixed = choose.choice(["", ALL, NO_SNAPSHOTS])
    return grow(parents, seed, sizes=sizes, raw_root=choose.random() < 0.3, mixed=mixed)


def all_wishes(family: Family, prices: Prices) -> Iterator[tuple[list[Way], list[Way]]]:
    """What is offered for each wish that one may have, and all that there is."""
    for image, member in enumerate(family.members):
        line = family.line(image)
        for base in line[1:]:
            yield list(strategy.commit(family, image, base)), list(all_commits(family, image, base))
        for base in line[2:]:
            yield list(strategy.pull(family, image, base)), list(all_pulls(family, image, base))
        if member.parent is not None:
            yield list(strategy.pull(family, image)), list(all_pulls(family, image, None))
        if family.overlays(image):
            yield list(strategy.delete(family, image)), list(all_deletions(family, image))
            continue
        for depth in range(1, len(line)):
            ways = strategy.shorten(family, image, depth, prices, prices.bounds(image))
            yield list(ways), list(all_shortenings(family, image, depth))


def ranks_of(family: Family, ways: Sequence[Way], prices: Prices) -> Iterator[tuple[int, ...]]:
    """What all ways cost that are legal and can be priced, by prices that are asked for one by one."""
    for way in ways:
        if is_legal(family, way, NO_TERMS):
            try:
                plan = strategy.choose(family, [way], prices)
            except CowtreeError:
                continue
            yield rank(plan)


def rank(plan: strategy.Plan) -> tuple[int, ...]:
    renames = sum(act.name != act.target for act in plan.acts)
    return plan.cost.traffic_bytes, plan.cost.table_count, renames, len(plan.acts)


@pytest.mark.slow
@pytest.mark.soak
def test_no_price_lies_below_its_bound(seed: int, monkeypatch: pytest.MonkeyPatch):
    choose = random.Random(seed)
    # So that in small trees, too, some of what is moved is shared.
    monkeypatch.setattr(clone, "PIECE_BYTES_MIN", PAGE_BYTES)
    tree, is_atomic = random_tree(seed, choose, sizes=[41, 48, 64]), choose.random() < 0.3
    files = tree.files if choose.random() < 0.5 else CountingFiles(tree.files)
    family, slow = tree.family, pricer(files, tree.family, is_atomic=is_atomic)
    with pricer(files, family, is_atomic=is_atomic) as prices:
        for leaf in family.leaves:
            line, bounds = family.line(leaf), prices.bounds(leaf)
            assert bounds is not None
            for stop in range(2, len(line) + 1):
                for top in range(stop - 1):
                    for target in range(top, stop):
                        act = Merge(line[top:stop], line[target], line[target if top else 0])
                        low = [prices.bound(act), bounds.cost(top, stop - 1, target)]
                        try:
                            cost = slow(act)
                        except CowtreeError:
                            continue
                        for each in low:
                            assert each.traffic_bytes <= cost.traffic_bytes, act
                            assert each.table_count <= cost.table_count, act
                        assert prices(act) == cost
                        assert prices.bound(act) == cost


@pytest.mark.slow
@pytest.mark.soak
def test_of_random_trees_of_all_kinds_the_cheapest_way_is_chosen(seed: int):
    choose = random.Random(seed)
    tree, is_atomic = random_tree(seed, choose), choose.random() < 0.3
    files = tree.files if choose.random() < 0.2 else CountingFiles(tree.files)
    family, slow = tree.family, pricer(files, tree.family, is_atomic=is_atomic)
    with pricer(files, family, is_atomic=is_atomic) as prices:
        for ways, all_ways in all_wishes(family, prices):
            found = list(ranks_of(family, all_ways, slow))
            try:
                plan = strategy.choose(family, ways, prices, NO_TERMS, prices.bound)
            except CowtreeError:
                assert not found
                continue
            assert rank(plan) == min(found)
            assert plan.costs == tuple(map(slow, plan.acts))


def test_a_line_of_256_images_is_opened_once_and_each_table_is_read_once():
    tree = grow([None, *range(255)], 1)
    files, family = CountingFiles(tree.files), tree.family
    with CountingPrices(files, family) as prices:
        ways = list(strategy.shorten(family, 255, 8, prices, prices.bounds(255)))
        strategy.choose(family, ways, prices, NO_TERMS, prices.bound)
        assert files.opened == 256
        assert len(prices.asked) < 20
        # Header, its two tables and the L2 table of each, and those of the targets once more.
        assert files.read < 256 * 4 + 100
        priced = len(prices.asked)
        strategy.choose(family, list(strategy.commit(family, 230, 30)), prices, NO_TERMS, prices.bound)
        strategy.choose(family, list(strategy.pull(family, 255)), prices, NO_TERMS, prices.bound)
        assert files.opened == 256
        assert len(prices.asked) - priced < 10
        assert files.open_now == 256
    assert files.open_now == 0


def test_an_image_with_100_overlays_is_opened_once():
    tree = grow([None, *(0 for _ in range(100))], 1)
    files, family = CountingFiles(tree.files), tree.family
    with CountingPrices(files, family) as prices:
        strategy.choose(family, list(strategy.delete(family, 0)), prices, NO_TERMS, prices.bound)
        assert len(prices.asked) <= 200
        # Each overlay for its bounds and for its prices, the image that they lie on once for all.
        assert files.opened <= 1 + 4 * 100
    assert files.open_now == 0


def test_tables_for_which_there_is_no_room_are_read_again(monkeypatch: pytest.MonkeyPatch):
    tree = grow((None, 0, 1, 2), 1)
    act = Merge((3, 2, 1), 2, 3)
    monkeypatch.setattr(module, "KNOWN_COUNT_MAX", 3)
    with pricer(tree.files, tree.family) as prices:
        assert prices(act) == pricer(tree.files, tree.family)(act)
        assert len(prices.known) < 4
        assert prices.bound(act) == prices(act)


def test_below_an_image_that_cannot_be_opened_the_rest_of_the_line_is_shortened():
    tree = grow((None, 0, 1, 2, 3), 1)
    tree.files.open("image-4", "write").pwrite(0, b"nothing")
    with pricer(tree.files, tree.family) as prices:
        bounds = prices.bounds(4)
        assert bounds is not None
        assert bounds.first_top == 1
        (way,) = strategy.shorten(tree.family, 4, 3, prices, bounds)
        assert way
        assert all(4 not in act.group for act in way)


def test_below_an_image_with_a_broken_table_the_rest_of_the_line_is_shortened_without_asking_for_more():
    tree = grow([None, *range(29)], 1)
    with closing(open_chain(tree.files, "image-20")) as chain:
        image = chain.images[0]
        assert image is not None
        offset = int(table_offsets(image.l1)[0])
    tree.files.open("image-20", "write").pwrite(offset, (1 << 63 | 1 << 40).to_bytes(8, "big"))
    with CountingPrices(tree.files, tree.family) as prices:
        bounds = prices.bounds(29)
        assert bounds is not None
        assert bounds.first_top == 10
        (way,) = strategy.shorten(tree.family, 29, 15, prices, bounds)
        assert way
        assert all(act.top < 20 for act in way)
        assert len(prices.asked) < 30


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
    with pricer(tree.files, tree.family) as prices:
        prices(act)
    survey_act(files, Order(tree.family, (act,)), prices.known)
    assert not files.calls
    members = (tree.family.members[0]._replace(path="image-9"), tree.family.members[1])
    with pytest.raises(Refused, match="does not lie on what it was planned with"):
        survey_act(files, Order(replace(tree.family, members=members), (act,)))
