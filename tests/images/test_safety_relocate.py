"""Relocate, stopped everywhere: each image is whole at its old place or at its new one, and a second run ends it."""

import errno
import os

import pytest

from cowtree.errors import CowtreeError, Refused, StorageFailed
from cowtree.images.create import create
from cowtree.images.relocate import relocate
from cowtree.images.relocation import JOURNAL, Member, Relocation
from cowtree.plan.create import NewImage
from cowtree.storage.contract import FileSystem
from cowtree.storage.faults import Fault
from cowtree.storage.memory import MemoryFiles
from cowtree.storage.passing import PassingFiles
from tests.crash import (
    Trial,
    assert_sound,
    cut_power_everywhere,
    fail_everywhere,
    guest_view,
    kill_everywhere,
    write_more,
)

SIZE = 16 << 10
OLD, NEW = "/old", "/new"
STRANGER = "/old/far/middle"


class FarFiles(PassingFiles):
    """The new folder is on another file system: no file has names in both."""

    def link(self, source: str, target: str) -> None:
        raise StorageFailed(path=target, action="link", reason=os.strerror(errno.EXDEV), errno=errno.EXDEV)


def image(name: str, backing: str | None = None, data: str | None = None) -> NewImage:
    kind = None if backing is None else "qcow2"
    return NewImage(name, "qcow2", SIZE, 9, backing_file=backing, backing_format=kind, data_file=data)


# Name, and the places of the base and of the data file in this list.
FAMILY = (("base", None, None), ("middle", 0, None), ("far/leaf", 1, None), ("far/raw", None, None), ("far/data", 0, 3))


def made(count: int = len(FAMILY)) -> MemoryFiles:
    """A base, one overlay that names it in its own folder, and two elsewhere that name theirs by longer paths."""
    files = MemoryFiles()
    create(files, image("/old/base"))
    create(files, image("/old/middle", "base"))
    if count > 2:
        create(files, image("/old/far/leaf", "/old/middle"))
        # Seen from the leaf's old place, the name that its base gets beside it means this stranger.
        create(files, image(STRANGER))
    if count > 3:
        create(files, image("/old/far/data", "../base", "/old/far/raw"))
    for number, (name, *_) in enumerate(FAMILY[:count]):
        if name != "far/raw":
            write_more(files, f"{OLD}/{name}", {number * 3000: b"%d" % number * 2000})
    return files


def wanted(*, is_flat: bool, count: int = len(FAMILY), is_absolute: bool = False) -> Relocation:
    members = []
    for name, base, data in FAMILY[:count]:
        new = os.path.basename(name) if is_flat else name
        members.append(Member(f"{OLD}/{name}", f"{NEW}/{new}", name != "far/raw", base, data))
    return Relocation(NEW, tuple(members), is_absolute)


def trial_of(move: Relocation, *, is_far: bool) -> Trial:
    """A trial of a relocation: nobody ever misses an image."""
    start = made(len(move.members))
    views = {member: guest_view(start, member.old) for member in move.members if member.is_qcow2}

    def operation(files: FileSystem) -> None:
        relocate(FarFiles(files) if is_far else files, move)

    def check(files: MemoryFiles, is_done: bool) -> None:
        for member, view in views.items():
            places = [path for path in (member.old, member.new) if is_whole(files, path, view)]
            assert places, member
            assert not is_done or places == [member.new]
            for path in places:
                assert_sound(files, path, is_done=True)
        assert not is_done or set(files.pages()) - {STRANGER} == {member.new for member in move.members}

    return Trial(start.snapshot(), operation, check)


def is_whole(files: MemoryFiles, path: str, view: bytes) -> bool:
    """Whether an image opens there. It never does and shows something else."""
    try:
        found = guest_view(files, path)
    except CowtreeError:
        return False
    assert found == view, path
    return True


@pytest.mark.slow
@pytest.mark.parametrize("is_flat", [False, True], ids=["as it lies", "flat"])
def test_no_stop_leaves_anybody_without_an_image(is_flat: bool):
    trial = trial_of(wanted(is_flat=is_flat), is_far=False)
    kill_everywhere(trial)
    cut_power_everywhere(trial)


@pytest.mark.slow
def test_no_stop_of_copying_leaves_anybody_without_an_image():
    trial = trial_of(wanted(is_flat=True, count=3, is_absolute=True), is_far=True)
    kill_everywhere(trial)
    cut_power_everywhere(trial)


@pytest.mark.slow
@pytest.mark.parametrize("is_far", [False, True], ids=["linked", "copied"])
def test_no_failure_leaves_anybody_without_an_image(is_far: bool):
    fail_everywhere(trial_of(wanted(is_flat=True, count=2), is_far=is_far))


@pytest.mark.parametrize("side", ["old", "new"])
def test_what_is_written_between_two_runs_is_never_lost(side: str):
    move = wanted(is_flat=True)
    log = Trial(made().snapshot(), lambda files: relocate(FarFiles(files), move), lambda files, is_done: None)
    count = len(log.run().calls)
    refused = 0
    for number in range(0, count, 11):
        files, leaf = stopped(log, number), move.members[2]
        path = leaf.old if side == "old" else leaf.new
        if path not in files.pages() or not is_written(files, path):
            continue
        view = guest_view(files, path)
        reason = run_again(files, move)
        refused += bool(reason)
        assert guest_view(files, path if reason else leaf.new) == view
        assert not reason or (leaf.new in reason and leaf.old in reason)
    assert refused


def is_written(files: MemoryFiles, path: str) -> bool:
    """Write as a guest would; not when the image does not find what backs it."""
    try:
        write_more(files, path, {9000: b"!" * 600})
    except CowtreeError:
        return False
    return True


def run_again(files: MemoryFiles, move: Relocation) -> str:
    """Run it again. Returns: why that is refused; empty when it is not."""
    try:
        relocate(FarFiles(files), move)
    except Refused as error:
        return str(error)
    return ""


def stopped(trial: Trial, number: int) -> MemoryFiles:
    return trial.run(Fault(number)).files.copy()


def test_a_file_that_has_the_name_is_left_alone():
    files, move = made(), wanted(is_flat=True)
    create(files, image("/new/middle"))
    before = files.snapshot()
    with pytest.raises(Refused, match="/new/middle is there already"):
        relocate(files, move)
    assert files.snapshot() == before


def test_a_dry_run_changes_nothing_and_a_run_leaves_no_notes():
    files, move = made(), wanted(is_flat=False)
    before = files.snapshot()
    relocate(files, move, is_dry=True)
    assert files.snapshot() == before
    relocate(files, move)
    assert not any(JOURNAL in path for path in files.pages())
