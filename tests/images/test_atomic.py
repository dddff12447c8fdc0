"""Atomic merges of families, stopped everywhere: the target too shows its old content or its new one at each moment."""

import random

import pytest

from cowtree.errors import Refused
from cowtree.images.create import create
from cowtree.images.price import pricer
from cowtree.plan.create import NewImage
from cowtree.plan.family import Family, Member, Merge
from cowtree.plan.permit import objections
from cowtree.storage.memory import MemoryFiles
from tests.crash import Trial, cut_power_everywhere, fail_everywhere, guest_view, kill_everywhere, write_more
from tests.images.test_safety_act import CASES, LINE, Case, family_of, once, trial_of
from tests.pictures import draw
from tests.trees import assert_same_leaves, carry_out, grow, random_parents

FAR = "-" * 70
MORE = {
    "two tables": Case(("A" + FAR + "A", "-BB" + FAR[:-2] + "B", "C" * 72, "D" * 72), LINE, [Merge((1, 2, 3), 3, 3)]),
    "zeroes over what lies below": Case(("AA------", "-0000---", "-CCC----", "D---DDD-"), LINE, [Merge((1, 2), 1, 1)]),
    "zeroes over what the middle takes over": Case(
        ("0000----", "------B-", "CCCC----", "--DD--D-"), LINE, [Merge((0, 1, 2), 1, 1)]
    ),
    "nothing to put": Case(("--------", *CASES["commit a leaf"].pictures[1:]), LINE, [Merge((0, 1), 1, 1)]),
}
# These differ from others in what comes after the data is moved, which is the same in place and beside.
SAME_MOVE = ("from folder to folder", "two children", "removing what is left", "keeping what is left")
# What is built beside must lie in the same file as its tables.
ALL = {name: case for name, case in {**CASES, **MORE}.items() if name not in SAME_MOVE and not case.data_file}


def atomic_trial(case: Case) -> Trial:
    """A trial in which each target shows what it showed or what it shall show, beside all that holds in place too."""
    case = case._replace(is_atomic=True)
    initial, family = family_of(case)
    trial, ended = trial_of(case), MemoryFiles(initial)
    carry_out(ended, family, case.acts, case.ending, is_atomic=True)
    now = family
    for act in case.acts:
        now = now.after(act)
    allowed: dict[tuple[str, str], list[bytes]] = {}
    for act in case.acts:
        target, name = family.members[act.target], family.members[act.name]
        new = guest_view(ended, name.path, target.format)
        for each in (target, name):
            old = guest_view(MemoryFiles(initial), each.path, each.format)
            allowed.setdefault((each.path, each.format), []).extend([old, new])

    def check(files: MemoryFiles, is_done: bool) -> None:
        there = files.snapshot()
        for (path, kind), views in allowed.items():
            assert path not in there or guest_view(files, path, kind) in views, path
        trial.check(files, is_done)

    return Trial(initial, trial.operation, once(check))


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_an_atomic_merge_can_be_killed_everywhere(name: str):
    kill_everywhere(atomic_trial(ALL[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_an_atomic_merge_survives_power_cuts(name: str):
    cut_power_everywhere(atomic_trial(ALL[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_an_atomic_merge_survives_full_and_broken_disks(name: str):
    fail_everywhere(atomic_trial(ALL[name]))


@pytest.mark.slow
@pytest.mark.soak
def test_atomic_merges_of_images_of_all_kinds_move_what_they_cost(seed: int):
    choose = random.Random(seed)
    tree = grow(random_parents(choose.randint(2, 6), choose), seed, raw_root=seed % 3 == 0, mixed="all")
    family = tree.family
    price = pricer(tree.files, family, is_atomic=True)
    acts = [
        Merge(line[:count], target, name)
        for line in map(family.line, range(len(family.members)))
        for count in range(2, len(line) + 1)
        for target in line[:count]
        for name in (line[0], line[count - 1])
    ]
    for act in choose.sample(acts, min(6, len(acts))):
        if any(objections(family, act)):
            continue
        files = tree.files.copy()
        try:
            cost = price(act)
        except Refused as error:
            assert "external data file" in str(error) or "bitmaps" in str(error)  # noqa: PT017
            continue
        assert carry_out(files, family, [act], is_atomic=True) == cost.moved_bytes
        assert_same_leaves(tree, files, family.after(act))


def test_an_external_data_file_is_refused_with_a_sentence():
    files = MemoryFiles()
    draw(files, NewImage("base", "qcow2", 4096, 9, data_file="base.data"), "AA------")
    draw(files, NewImage("top", "qcow2", 4096, 9, backing_file="base", backing_format="qcow2"), "-B------")
    family = Family((Member("top", "qcow2", 4096, 1), Member("base", "qcow2", 4096)))
    before = files.snapshot()
    with pytest.raises(Refused, match="external data file"):
        carry_out(files, family, [Merge((0, 1), 1, 1)], is_atomic=True)
    assert files.snapshot() == before


def test_an_atomic_merge_takes_space_that_one_in_place_does_not():
    initial, family = family_of(CASES["commit a leaf"])
    act = Merge((0, 1), 1, 1)
    in_place, beside = (pricer(MemoryFiles(initial), family, is_atomic=each)(act) for each in (False, True))
    assert beside.new_bytes > in_place.new_bytes
    assert beside.moved_bytes >= in_place.moved_bytes


def test_a_table_that_two_windows_copy_is_counted_once():
    files, size_bytes = MemoryFiles(), 512 << 20
    # A window of clusters of 512 bytes ends in the middle of a table for clusters of 64 KiB.
    for path, bits, below in (("base", 16, None), ("top", 9, "base")):
        new = NewImage(path, "qcow2", size_bytes, bits)
        create(files, new if below is None else new._replace(backing_file=below, backing_format="qcow2"))
    write_more(files, "top", {0: b"A" * 512, 300 << 20: b"B" * 512})
    family = Family((Member("top", "qcow2", size_bytes, 1), Member("base", "qcow2", size_bytes)))
    act, before = Merge((0, 1), 1, 1), len(files.snapshot()["base"])
    cost = pricer(files, family, is_atomic=True)(act)
    carry_out(files, family, [act], is_atomic=True)
    # Two clusters of data, their table, and the L1 table.
    assert cost.new_bytes == 4 << 16
    assert cost.table_count == 1
    assert len(files.snapshot()["base"]) - before <= cost.new_bytes
