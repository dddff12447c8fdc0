"""Snapshots made, applied and deleted, stopped everywhere: no snapshot ever changes, and a second run ends it.

What a stop leaves is not always what a check calls clean: a flag "used once" may be missing, and clusters may be
counted too often. Neither does harm. What would, a flag too many or a count too low, is looked for in every state.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from cowtree.chain import gate
from cowtree.chain.load import load_image
from cowtree.chain.view import Chain, resolve, through_snapshot
from cowtree.errors import Refused
from cowtree.execute.read import fetch
from cowtree.images.count import Count, OnDisk
from cowtree.images.mend import active_windows
from cowtree.images.snapshot import apply, create, delete
from cowtree.qcow2 import check as rules
from cowtree.qcow2.findings import CORRUPTION, INTERNAL, Finding
from cowtree.qcow2.snapshots import Snapshot
from cowtree.qcow2.tables import COPIED
from cowtree.storage.contract import FileSystem
from cowtree.storage.memory import MemoryFiles
from tests.crash import (
    Trial,
    assert_sound,
    cut_power_everywhere,
    guest_view,
    kill_everywhere,
    patched,
    run_through,
    stop_everywhere,
    write_more,
)
from tests.images.test_safety_merge import Disk, make
from tests.qemu import assert_clean, content, qemu_img, qemu_io, run

IMAGE, NEW = "top.qcow2", "new"
SAMPLE_COUNT = 3

Key = tuple[str, str]
Operation = Callable[[FileSystem], object]


def snapshots_of(files: FileSystem) -> dict[Key, bytes]:
    """What each snapshot holds, by ID and name; zeroes where it leaves it to a backing file."""
    layer = gate.open_layer(files, IMAGE, gate.QCOW2)
    try:
        image = load_image(layer)
        alone = Chain((layer,), (image,))
        return {(each.id, each.name): _read(alone, each) for each in (image.snapshots if image else ())}
    finally:
        layer.close()


def _read(chain: Chain, snapshot: Snapshot) -> bytes:
    chain = through_snapshot(chain, [(snapshot.id, snapshot.name)])
    data = bytearray(chain.size_bytes)
    seen = resolve(chain, 0, len(data))
    fetch(chain, seen, seen.start, memoryview(data))
    return bytes(data)


def assert_safe(files: FileSystem) -> None:
    """Fail when something is counted too low, or flagged as used once though it is not, or any table is wrong."""
    layer = gate.open_layer(files, IMAGE, gate.QCOW2)
    try:
        image = load_image(layer)
        assert image is not None
        count = Count(layer, image, _tell)
        count.count()
        references = count.references
        for wrong, _ in OnDisk(layer.file, image).windows(references):
            assert not (wrong.counted < wrong.used).any(), wrong
        l1 = image.l1[rules.find_wrong_l1_flags(image.geometry, image.l1, references)]
        assert not (l1 & COPIED).any()
        for held, _ in active_windows(layer.file, image, references):
            wrong_flags = rules.find_wrong_flags(image.geometry, held.entries, references)
            assert not (held.entries[wrong_flags] & COPIED).any()
    finally:
        layer.close()


def _tell(finding: Finding) -> None:
    assert not finding.error_count or finding.kind.counts_as not in (CORRUPTION, INTERNAL), list(finding.sentences())


class Goal(NamedTuple):
    """What an operation may do. `views` are what the guest may see, the last one once all is done."""

    operation: Operation
    views: Sequence[bytes]
    makes: bool = False
    deletes: Key | None = None


def trial_of(initial: dict[str, bytes], goal: Goal) -> Trial:
    """A trial of an operation on the image."""
    before = snapshots_of(MemoryFiles(initial))
    taken = held_by(initial)

    def check(files: MemoryFiles, is_done: bool) -> None:
        assert_safe(files)
        if is_done:
            assert_sound(files, IMAGE, is_done=True)
        view, found = guest_view(files, IMAGE), snapshots_of(files)
        assert view in (goal.views[-1:] if is_done else goal.views)
        fresh = [key for key in found if key[1] == NEW]
        kept = {key: data for key, data in found.items() if key[1] != NEW}
        assert kept in ([] if is_done and goal.deletes else [before]) + [
            {key: data for key, data in before.items() if key != goal.deletes}
        ]
        # A second run makes a second one.
        assert len(fresh) in (range(is_done, 4) if goal.makes else [0])
        assert all(found[key] == taken for key in fresh)
        write_elsewhere(files, view)
        assert snapshots_of(files) == found

    return Trial(initial, goal.operation, check)


def held_by(initial: dict[str, bytes]) -> bytes:
    """What the image holds itself, which a new snapshot of it shows."""
    files = MemoryFiles(initial)
    create(files, IMAGE, name="probe")
    return next(data for key, data in snapshots_of(files).items() if key[1] == "probe")


def write_elsewhere(files: MemoryFiles, view: bytes) -> None:
    """Write a little everywhere, as a guest does next."""
    patches = dict.fromkeys(range(512, len(view) - 700, len(view) // 9), b"!" * 700)
    write_more(files, IMAGE, patches)
    assert guest_view(files, IMAGE) == patched(view, patches)
    assert_safe(files)


def make_goal(initial: dict[str, bytes], verb: str, wanted: str = "") -> Goal:
    """The goal of one of the three operations."""
    view = guest_view(MemoryFiles(initial), IMAGE)
    if verb == "create":
        return Goal(lambda files: create(files, IMAGE, name=NEW, time_ns=1), [view], makes=True)
    if verb == "apply":
        files = MemoryFiles(initial)
        apply(files, IMAGE, wanted=wanted)
        return Goal(lambda files: apply(files, IMAGE, wanted=wanted), [view, guest_view(files, IMAGE)])
    key = next(each for each in snapshots_of(MemoryFiles(initial)) if each[1] == wanted)

    def delete_once(files: FileSystem) -> None:
        try:
            delete(files, IMAGE, name=wanted)
        except Refused as error:
            # A run that was stopped has deleted it.
            if error.facts["cause"] != "ENOENT":
                raise

    return Goal(delete_once, [view], deletes=key)


def ask_qemu(trial: Trial, folder: Path) -> None:
    """Let QEMU look at some of the states: what it writes changes no snapshot, and its repair finds all it needs."""
    for number, (how, files) in enumerate(trial.sample(SAMPLE_COUNT)):
        place = folder / str(number)
        place.mkdir()
        for name, data in files.snapshot().items():
            (place / name).write_bytes(data)
        image, before = place / IMAGE, snapshots_of(files)
        view = content(image)
        qemu_io(image, f"write -P 33 {len(view) // 2} 4096", "write -P 34 0 512")
        changed = MemoryFiles({path.name: path.read_bytes() for path in place.iterdir()})
        assert snapshots_of(changed) == before, how
        assert content(image) == patched(view, {len(view) // 2: b"!" * 4096, 0: b'"' * 512}), how
        run("qemu-img", "check", "-r", "all", "-f", "qcow2", image)
        assert_clean(image)
        changed = MemoryFiles({path.name: path.read_bytes() for path in place.iterdir()})
        assert snapshots_of(changed) == before, how


def finish(trial: Trial, folder: Path) -> None:
    """Let QEMU see that the operation's end is clean, and then some of the other states."""
    for name, data in run_through(trial).files.snapshot().items():
        (folder / name).write_bytes(data)
    assert_clean(folder / IMAGE)
    ask_qemu(trial, folder)


WRITES = ("write -P 1 0 80k", "write -P 2 120k 20k", "write -z 88k 16k")
LATER = ("write -P 3 20k 36k", "write -z 4k 8k", "write -P 4 164k 4k")
LAST = ("write -P 5 64k 36k", "discard 124k 8k", "write -P 6 200k 20k", "write -P 7 140k 30k")
STORY = (*WRITES, "snapshot one", *LATER, "snapshot two", *LAST)
BASE = Disk("base.qcow2", "256k", "cluster_size=512", None, ("write -P 9 0 256k",))
DISKS = {
    "version 3": [Disk(IMAGE, "256k", "cluster_size=512", None, STORY)],
    "version 2": [Disk(IMAGE, "256k", "cluster_size=512,compat=0.10", None, STORY)],
    "lazy counts": [Disk(IMAGE, "256k", "cluster_size=512,lazy_refcounts=on,refcount_bits=4", None, STORY)],
    "compressed": [Disk(IMAGE, "256k", "cluster_size=4k,refcount_bits=64", None, ("write -c -P 6 0 80k", *STORY[1:]))],
    "subclusters": [Disk(IMAGE, "640k", "cluster_size=16k,extended_l2=on", None, STORY)],
    "an overlay": [BASE, Disk(IMAGE, "256k", "cluster_size=512", "base.qcow2", STORY)],
    "another size": [Disk(IMAGE, "256k", "cluster_size=512", None, (*STORY[:4], "resize 400k", *STORY[4:]))],
    "full of tables": [Disk(IMAGE, "224k", "cluster_size=512,refcount_bits=64", None, STORY)],
}
ACTS = (("create", ""), ("apply", "one"), ("apply", "two"), ("delete", "one"), ("delete", "two"))
EVERYWHERE = [("version 3", *act) for act in (ACTS[0], ACTS[1], ACTS[3])]
POWER = [
    *(("version 2", *act) for act in (ACTS[0], ACTS[1], ACTS[3])),
    *((name, *act) for name in ("lazy counts", "compressed", "subclusters") for act in ACTS[::2]),
    ("full of tables", *ACTS[0]),
    *((name, *act) for name in ("an overlay", "another size") for act in ACTS[1:3]),
]


def initial_of(folder: Path, name: str) -> dict[str, bytes]:
    """The images of this name."""
    disks, resized = [], ""
    for disk in DISKS[name]:
        commands = list(disk.commands)
        for index, command in enumerate(commands):
            if command.startswith("resize "):
                resized, later = command.removeprefix("resize "), commands[index + 1 :]
                commands = commands[:index]
                break
        disks.append(disk._replace(commands=commands))
    found = make(folder, disks)
    if resized:
        image = folder / IMAGE
        qemu_img("resize", "-q", image, resized)
        for command in later:
            verb, _, rest = command.partition(" ")
            if verb == "snapshot":
                qemu_img("snapshot", "-c", rest, image)
            else:
                qemu_io(image, command)
        found[IMAGE] = image.read_bytes()
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "verb", "wanted"), EVERYWHERE)
def test_it_can_be_stopped_everywhere(tmp_path: Path, name: str, verb: str, wanted: str):
    initial = initial_of(tmp_path, name)
    trial = trial_of(initial, make_goal(initial, verb, wanted))
    stop_everywhere(trial)
    finish(trial, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "verb", "wanted"), POWER)
def test_it_survives_kills_and_power_cuts(tmp_path: Path, name: str, verb: str, wanted: str):
    initial = initial_of(tmp_path, name)
    trial = trial_of(initial, make_goal(initial, verb, wanted))
    kill_everywhere(trial)
    cut_power_everywhere(trial)
    finish(trial, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["create", "delete"])
def test_the_second_run_may_be_stopped_as_well(tmp_path: Path, verb: str):
    initial = initial_of(tmp_path, "version 3")
    trial = trial_of(initial, make_goal(initial, verb, "one" if verb == "delete" else ""))
    kill_everywhere(trial)
    for _, files in trial.sample(1):
        cut_power_everywhere(trial.from_here(files))
