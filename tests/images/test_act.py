"""Owns the proof that a merge of a family leaves every leaf's view as it was, moves what it was said to move, and is
the cheapest way there is: exhaustively on Figure 2 grown to twelve layers, and on random trees.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path

import pytest

from cowtree.errors import CowtreeError, Locked, Refused
from cowtree.images.merge import relink
from cowtree.images.price import pricer
from cowtree.images.wish import Wish as WishOf
from cowtree.images.wish import make_plan
from cowtree.plan import strategy
from cowtree.plan.family import Family, Member, Merge
from cowtree.plan.permit import permit
from cowtree.plan.strategy import Plan, Price, Terms, Way
from cowtree.storage.file import LocalFiles
from cowtree.storage.memory import MemoryFiles
from tests.qemu import assert_clean, content, qemu_img
from tests.trees import ALL, FIGURE_2, NO_SNAPSHOTS, Tree, after, assert_same_leaves, carry_out, grow, random_parents

Wish = tuple[str, Callable[[], Iterator[Way]]]


def wishes(family: Family) -> Iterator[Wish]:
    """Every commit, every pull, every deletion that can be asked of a family."""
    for index in range(len(family.members)):
        for base in family.line(index)[1:]:
            yield f"commit {index} {base}", partial(strategy.commit, family, index, base)
            yield f"pull {index} {base}", partial(strategy.pull, family, index, base)
        yield f"flatten {index}", partial(strategy.pull, family, index)
        yield f"delete {index}", partial(strategy.delete, family, index)


def legal(family: Family, ways: Sequence[Way], price: Price) -> list[Way]:
    found = []
    for way in ways:
        try:
            permit(family, way)
            for act in way:
                price(act)
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
    price = cache(pricer(tree.files, tree.family))
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
        assert not ways or refusal.facts.get("harmed") or "internal snapshots" in refusal.reason, (name, refusal)
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
    for way in legal(tree.family, ways, price):
        other = strategy.choose(tree.family, [way], price)
        if other.acts != plan.acts:
            assert do(tree, other)[1] == other.cost.moved_bytes, (name, way)
        costs.append(other.cost.traffic_bytes)
    assert plan.cost.traffic_bytes == min(costs), name


def present(family: Family) -> list[int]:
    return [index for index in range(len(family.members)) if index not in family.gone]


@pytest.mark.slow
@pytest.mark.parametrize("drawing", range(2))
def test_every_wish_on_figure_2_is_refused_with_the_right_names_or_changes_no_leaf(drawing: int):
    tree = grow(FIGURE_2, drawing, mixed=ALL if drawing else "")
    count = 0
    for name, ways_of in wishes(tree.family):
        check_wish(tree, name, ways_of)
        count += 1
    assert count == 2 * sum(len(tree.family.line(each)) - 1 for each in range(12)) + 24


@pytest.mark.slow
@pytest.mark.soak
def test_random_wishes_on_random_trees_change_no_leaf(seed: int):
    choose = random.Random(seed)
    is_mixed = seed % 2 == 1
    parents = random_parents(choose.randint(2, 12 if is_mixed else 30), choose)
    sizes = [16, 24, 24, 33, 47] if is_mixed else [8, 12, 12, 16]
    tree = grow(parents, seed, sizes=sizes, raw_root=seed % 3 == 0, mixed=ALL if is_mixed else "")
    everything = list(wishes(tree.family))
    for name, ways_of in choose.sample(everything, min(len(everything), 8)):
        check_wish(tree, name, ways_of)


@pytest.mark.slow
@pytest.mark.soak
def test_qemu_sees_the_same_through_every_leaf_and_finds_no_error(seed: int, tmp_path: Path, monkeypatch):
    choose = random.Random(seed)
    tree = grow(
        random_parents(choose.randint(2, 6), choose), seed, sizes=[16, 24, 33], raw_root=seed % 3 == 0, mixed=ALL
    )
    views = tree.views
    for name, ways_of in choose.sample(list(wishes(tree.family)), 2):
        try:
            plan = strategy.choose(tree.family, list(ways_of()), pricer(tree.files, tree.family))
        except Refused:
            continue
        files, _ = do(tree, plan)
        now, folder = after(tree.family, plan), tmp_path / name.replace(" ", "-")
        folder.mkdir()
        # QEMU looks for data files from where it is.
        monkeypatch.chdir(folder)
        for path, data in files.snapshot().items():
            (folder / path).write_bytes(data)
        for act in plan.acts:
            if now.members[act.target].format == "qcow2" and act.target not in now.gone:
                assert_clean(folder / now.path(act.target))
        for leaf in now.leaves:
            path, kind = now.path(leaf), now.members[leaf].format
            like = [index for index, each in enumerate(tree.family.members) if each.path == path]
            like += tree.family.readers(like[0])
            assert content(folder / path, kind) in [views[index] for index in like], (name, path)


@pytest.mark.slow
@pytest.mark.soak
def test_with_dependants_nothing_is_refused_and_no_leaf_changes(seed: int):
    choose = random.Random(seed)
    # What snapshots need cannot be pulled; all else can.
    tree = grow(random_parents(choose.randint(3, 12), choose), seed, mixed=NO_SNAPSHOTS if seed % 2 else "")
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
    tree = grow(random_parents(choose.randint(2, 8), choose), seed, mixed=NO_SNAPSHOTS if seed % 2 else "")
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


@pytest.mark.slow
def test_what_nobody_has_the_key_of_is_not_merged(tmp_path: Path):
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    secret = ["--object", "secret,id=key,data=word"]
    luks = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10"
    qemu_img("create", "-q", *secret, "-f", "qcow2", "-o", luks, base, "1M")
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", base, "-F", "qcow2", top, "1M")
    before = [path.read_bytes() for path in (base, top)]
    for wish in (WishOf("commit", str(top)), WishOf("flatten", str(top)), WishOf("delete", str(base))):
        with pytest.raises(Locked, match="key-secret"):
            make_plan(LocalFiles(), wish)
    assert [path.read_bytes() for path in (base, top)] == before


def test_a_chain_that_somebody_has_changed_meanwhile_is_left_alone():
    tree = grow((None, 0, 1, 0), 1)
    acts = strategy.choose(tree.family, list(strategy.pull(tree.family, 2)), pricer(tree.files, tree.family)).acts
    relink(tree.files, "image-2", "qcow2", backing=("image-3", "qcow2"))
    before = tree.files.snapshot()
    with pytest.raises(Refused, match="image-2 does not lie on what it was planned with"):
        carry_out(tree.files, tree.family, acts)
    assert tree.files.snapshot() == before


def test_who_takes_a_name_takes_the_rights_of_that_name(tmp_path: Path):
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", base, "1M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top, "1M")
    base.chmod(0o640)
    top.chmod(0o604)
    family = Family((Member(str(base), "qcow2", 1 << 20), Member(str(top), "qcow2", 1 << 20, 0)))
    carry_out(LocalFiles(), family, [Merge((1, 0), 0, 1)])
    assert not base.exists()
    assert top.stat().st_mode & 0o777 == 0o604
