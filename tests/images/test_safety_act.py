"""Merges of families, stopped everywhere: every leaf sees what it saw, and the same merge then comes to its end."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pytest

from cowtree.errors import MissingImage, Refused
from cowtree.images import order, snapshot
from cowtree.plan.create import NewImage
from cowtree.plan.family import Family, Member, Merge
from cowtree.qcow2.header import is_qcow2
from cowtree.storage.contract import FileSystem
from cowtree.storage.memory import MemoryFiles
from tests.crash import (
    Check,
    Trial,
    assert_sound,
    cut_power_everywhere,
    fail_everywhere,
    guest_view,
    kill_everywhere,
    patched,
    snapshot_views,
    write_more,
)
from tests.pictures import CLUSTER_BITS, CLUSTER_BYTES, draw
from tests.trees import STAMP, carry_out

HAT, COAT, SHOE, BOOT = range(4)


class Case(NamedTuple):
    """Pictures of images that lie on each other, by their indices, and what is done to them. Some have subclusters, an
    external data file, or an internal snapshot.
    """

    pictures: Sequence[str]
    parents: Sequence[int | None]
    acts: Sequence[Merge]
    ending: str = order.RENAME
    folders: Sequence[str] = ("",) * 4
    root_format: str = "qcow2"
    is_atomic: bool = False
    fine: Sequence[int] = ()
    data_file: Sequence[int] = ()
    snapshots: Sequence[int] = ()


LINE = (1, 2, 3, None)
PICTURES = ("A--0----", "-BB0--B-", "--CC0-C-", "DDDDDD-0")
CASES = {
    "commit a leaf": Case(PICTURES, LINE, [Merge((0, 1), 1, 1)]),
    "commit under a leaf": Case(PICTURES, LINE, [Merge((1, 2, 3), 3, 3)]),
    "commit into a raw root": Case(PICTURES, LINE, [Merge((1, 2, 3), 3, 3)], root_format="raw"),
    "commit a larger leaf": Case(("A--0----FF", *PICTURES[1:]), LINE, [Merge((0, 1), 1, 1)]),
    "commit a smaller leaf": Case(("A--0", *PICTURES[1:]), LINE, [Merge((0, 1, 2, 3), 3, 3)]),
    "pull into a leaf": Case(PICTURES, LINE, [Merge((0, 1, 2), 0, 0)]),
    "the bottom takes the leaf's name": Case(PICTURES, LINE, [Merge((0, 1), 1, 0)]),
    "the middle takes the leaf's name": Case(PICTURES, LINE, [Merge((0, 1, 2), 1, 0)]),
    "the top takes the name of its base": Case(PICTURES, LINE, [Merge((1, 2), 1, 2)]),
    "the middle takes the name of the root": Case(PICTURES, LINE, [Merge((1, 2, 3), 2, 3)]),
    "the middle takes a smaller leaf's name": Case(("A--0", *PICTURES[1:]), LINE, [Merge((0, 1, 2), 1, 0)]),
    "the middle has a snapshot": Case(PICTURES, LINE, [Merge((0, 1, 2), 1, 0)], snapshots=(1, 2)),
    "the root has a snapshot": Case(PICTURES, LINE, [Merge((1, 2, 3), 3, 3)], snapshots=(1, 3)),
    "the bottom has subclusters": Case(PICTURES, LINE, [Merge((1, 2), 2, 2)], fine=(2,)),
    "the middle has a data file": Case(PICTURES, LINE, [Merge((0, 1, 2), 1, 0)], data_file=(1, 2)),
    "from folder to folder": Case(PICTURES, LINE, [Merge((0, 1, 2), 1, 0)], folders=("/a", "/b", "/c", "/d")),
    "two children": Case(PICTURES, (1, 3, 1, None), [Merge((0, 1), 0, 0), Merge((2, 1), 1, 2)]),
    "removing what is left": Case(PICTURES, LINE, [Merge((0, 1, 2), 1, 0)], order.DELETE),
    "keeping what is left": Case(PICTURES, LINE, [Merge((0, 1, 2), 1, 0)], order.KEEP),
}

# Errors take long to try, and most of these are stopped in the same places.
FAILING = (
    "commit into a raw root",
    "commit a larger leaf",
    "the middle takes a smaller leaf's name",
    "the middle has a snapshot",
    "from folder to folder",
    "two children",
    "removing what is left",
)


def family_of(case: Case) -> tuple[dict[str, bytes], Family]:
    """Draw the images of a case."""
    files, members = MemoryFiles(), dict[int, Member]()
    paths = [f"{folder}/image-{index}" if folder else f"image-{index}" for index, folder in enumerate(case.folders)]
    for index in sorted(range(len(paths)), key=lambda each: depth(case.parents, each)):
        parent, picture = case.parents[index], case.pictures[index]
        kind = case.root_format if parent is None else "qcow2"
        new = NewImage(paths[index], kind, len(picture) * CLUSTER_BYTES, CLUSTER_BITS)
        if parent is not None:
            name = f"..{paths[parent]}" if case.folders[index] else paths[parent]
            new = new._replace(backing_file=name, backing_format=members[parent].format)
        if index in case.fine:
            new = new._replace(cluster_bits=14, has_subclusters=True)
        if index in case.data_file:
            new = new._replace(data_file=f"{new.path}.data")
        draw(files, new, picture)
        if index in case.snapshots:
            snapshot.create(files, new.path, name=f"of {index}", time_ns=1)
            write_more(files, new.path, {CLUSTER_BYTES: b"?" * CLUSTER_BYTES})
        members[index] = Member(new.path, kind, new.size_bytes, parent)
    return files.snapshot(), Family(tuple(members[index] for index in range(len(paths))))


def depth(parents: Sequence[int | None], index: int) -> int:
    parent = parents[index]
    return 0 if parent is None else 1 + depth(parents, parent)


def trial_of(case: Case) -> Trial:
    initial, family = family_of(case)
    start, now = MemoryFiles(initial), family
    for act in case.acts:
        now = now.after(act)
    views = {leaf: guest_view(start, family.path(leaf)) for leaf in family.leaves}
    snapshots = all_snapshots(start)

    def operation(files: FileSystem) -> None:
        try:
            carry_out(files, family, case.acts, case.ending, is_atomic=case.is_atomic)
        except (MissingImage, Refused):
            # The journal was removed just before the stop: all is done, and what was planned is not there any more.
            assert is_ended(files, now, initial)

    def check(files: MemoryFiles, is_done: bool) -> None:
        # A leaf that is committed lives on in its base as soon as its own name is gone.
        names = set(files.snapshot())
        places = {whereabouts(family, case.acts, leaf, names): view for leaf, view in views.items()}
        for place, view in places.items():
            assert guest_view(files, *place) == view, place
        assert all_snapshots(files) == snapshots
        for place in places:
            more = files.copy()
            write_and_look(more, place, {each: view for each, view in places.items() if each != place})
            assert all_snapshots(more) == snapshots
        if is_done:
            check_end(files, now, initial, case)

    return Trial(initial, operation, once(check))


def once(check: Check) -> Check:
    """The check that passes over images that have passed it; a journal beside them only counts when all is done."""
    passed = set[tuple[object, ...]]()

    def check_once(files: MemoryFiles, is_done: bool) -> None:
        images = files.copy()
        for name in files.snapshot():
            if order.SUFFIX in name and not is_done:
                images.unlink(name)
        key = (is_done, *images.key())
        if key not in passed:
            check(files, is_done)
            passed.add(key)

    return check_once


def all_snapshots(files: MemoryFiles) -> dict[str, bytes]:
    """What the internal snapshots of all images hold, by their names; those that are removed are not there."""
    found: dict[str, bytes] = {}
    for name, data in files.snapshot().items():
        if is_qcow2(data):
            found |= snapshot_views(files, name)
    return found


def whereabouts(family: Family, acts: Sequence[Merge], leaf: int, names: set[str]) -> tuple[str, str]:
    """Where what a leaf shows is found now."""
    path, kind = family.path(leaf), family.members[leaf].format
    if path in names:
        return path, kind
    (act,) = (each for each in acts if each.top == leaf)
    return family.path(act.name), family.members[act.name].format


def is_ended(files: FileSystem, now: Family, initial: Mapping[str, bytes]) -> bool:
    """Whether an act that sets something aside is done, and no journal is left."""
    there = {now.path(index) for index in range(len(now.members)) if index not in now.gone}
    for name in initial:
        try:
            files.identity(name)
        except MissingImage:
            there.discard(name)
            return name not in there
    return False


def write_and_look(files: MemoryFiles, place: tuple[str, str], others: Mapping[tuple[str, str], bytes]) -> None:
    """Let the guest write a little: that is seen through its leaf, and through no other one."""
    path, kind = place
    if kind != "qcow2":
        return
    before, patches = guest_view(files, path), {700: b"!" * 900}
    write_more(files, path, patches)
    assert guest_view(files, path) == patched(before, patches)
    for other, view in others.items():
        assert guest_view(files, *other) == view, other


def check_end(files: MemoryFiles, now: Family, initial: Mapping[str, bytes], case: Case) -> None:
    """Everything has its name, and nothing is left but what was to be."""
    names = {name for name in files.snapshot() if not name.endswith(".data")}
    there = {now.path(index) for index in range(len(now.members)) if index not in now.gone}
    rest = names - there
    assert there <= names
    if case.ending == order.RENAME:
        assert all(name.endswith(f".invalid-{STAMP}") for name in rest), rest
        assert len(names) == len([name for name in initial if not name.endswith(".data")])
    if case.ending == order.KEEP:
        assert all(name in initial or name.endswith(f".invalid-{STAMP}") for name in rest), rest
    if case.ending == order.DELETE:
        assert not rest
    for index, member in enumerate(now.members):
        if index not in now.gone and member.format == "qcow2":
            assert_sound(files, member.path, is_done=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_merge_can_be_killed_everywhere(name: str):
    kill_everywhere(trial_of(CASES[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_merge_survives_power_cuts(name: str):
    cut_power_everywhere(trial_of(CASES[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAILING)
def test_a_merge_survives_full_and_broken_disks(name: str):
    fail_everywhere(trial_of(CASES[name]))
