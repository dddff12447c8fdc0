"""Commit, pull and rebase, stopped everywhere: guest and snapshots see what they saw, and a second run ends it.

The images are made by qemu-img and qemu-io, small enough to be tried hundreds of times in memory; some of the states
are written to disk for QEMU's own opinion.
"""

import contextlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from cowtree.images.merge import pull, rebase
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
    snapshot_views,
    stop_everywhere,
    write_more,
)
from tests.permits import Into, commit
from tests.qemu import assert_clean, check_of, content, qemu_img, qemu_io

SAMPLE_COUNT = 4


class Disk(NamedTuple):
    """A disk image to be made: options for qemu-img, and what is done to it then. A command that is no word of qemu-io
    is `snapshot NAME` or `compressed START LENGTH BYTE`.
    """

    name: str
    size: str
    options: str = "cluster_size=512"
    backing: str | None = None
    commands: Sequence[str] = ()

    @property
    def format(self) -> str:
        """By its name."""
        return self.name.rpartition(".")[2]


def make(folder: Path, disks: Sequence[Disk]) -> dict[str, bytes]:
    """Make the images, and return their bytes by name."""
    for disk in disks:
        words = ["create", "-q", "-f", disk.format]
        if disk.format == "qcow2":
            words += ["-o", disk.options]
        if disk.backing:
            words += ["-b", disk.backing, "-F", disk.backing.rpartition(".")[2]]
        # A data file is named as seen from here.
        with contextlib.chdir(folder):
            qemu_img(*words, disk.name, disk.size)
            for command in disk.commands:
                if command.startswith("snapshot "):
                    qemu_img("snapshot", "-c", command.removeprefix("snapshot "), disk.name)
                else:
                    qemu_io(Path(disk.name), command, image_format=disk.format)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def trial_of(
    initial: dict[str, bytes],
    operation: Callable[[FileSystem], object],
    changed: Sequence[str],
    seen: Sequence[str] = ("top.qcow2",),
) -> Trial:
    """A trial of a merge: it may change the files in `changed`, and not what is seen through those in `seen`."""
    start = MemoryFiles(initial)
    views = {name: guest_view(start, name) for name in seen}
    images = [name for name in changed if name.endswith("qcow2")]
    snapshots = {name: snapshot_views(start, name) for name in images}

    def check(files: MemoryFiles, is_done: bool) -> None:
        assert files.snapshot().keys() == initial.keys()
        for name in initial.keys() - set(changed):
            assert files.content(name) == initial[name], f"{name} was changed"
        for name in images:
            assert_sound(files, name, is_done=is_done)
            assert snapshot_views(files, name) == snapshots[name]
        for name, view in views.items():
            assert guest_view(files, name) == view
        write_elsewhere(files, views, images)
        for name in images:
            assert snapshot_views(files, name) == snapshots[name]

    return Trial(initial, operation, check)


def write_elsewhere(files: MemoryFiles, views: dict[str, bytes], images: list[str]) -> None:
    """Write a little everywhere, as a guest does next."""
    for name, view in views.items():
        patches = dict.fromkeys(range(512, len(view) - 700, len(view) // 9), b"!" * 700)
        write_more(files, name, patches)
        assert guest_view(files, name) == patched(view, patches)
        for image in images:
            assert_sound(files, image, is_done=False)


def ask_qemu(trial: Trial, folder: Path, changed: Sequence[str]) -> None:
    """Let QEMU look at some of the states: it finds nothing wrong, and what it writes changes no snapshot."""
    view = guest_view(MemoryFiles(trial.initial), "top.qcow2")
    for number, (how, files) in enumerate(trial.sample(SAMPLE_COUNT)):
        place = folder / str(number)
        place.mkdir()
        for name, data in files.snapshot().items():
            (place / name).write_bytes(data)
        with contextlib.chdir(place):
            ask_qemu_here(view, how, [Path(name) for name in changed if name.endswith("qcow2")])


def ask_qemu_here(view: bytes, how: str, images: list[Path]) -> None:
    """Let QEMU look at the images of the current folder, and write to the top one."""
    top = Path("top.qcow2")
    for image in images:
        found = check_of(image)
        assert not {"check-errors", "corruptions"} & {key for key in found if found[key]}, f"{how}\n{found}"
    assert content(top) == view, how
    before = [saved(image) for image in images]
    offset = len(view) // 2 // 512 * 512
    length = min(4096, len(view) - offset)
    qemu_io(top, f"write -P 33 {offset} {length}", "write -P 34 0 512")
    assert [saved(image) for image in images] == before, how
    assert content(top) == patched(view, {offset: b"!" * length, 0: b'"' * 512}), how


def saved(image: Path) -> dict[str, bytes]:
    """What QEMU reads from each snapshot of an image, whatever backs it."""
    names = [line.split()[1] for line in qemu_img("snapshot", "-l", image).splitlines()[2:]]
    found = {}
    for name in names:
        plain = image.with_name("saved")
        qemu_img("convert", "-f", "qcow2", "-O", "raw", "-l", f"snapshot.name={name}", image, plain)
        found[name] = plain.read_bytes()
    return found


def finish(trial: Trial, folder: Path, changed: Sequence[str]) -> None:
    """Let QEMU see that the operation's end is clean, and then some of the other states."""
    ended = run_through(trial)
    for name, data in ended.files.snapshot().items():
        (folder / name).write_bytes(data)
    with contextlib.chdir(folder):
        for name in changed:
            if name.endswith("qcow2"):
                assert_clean(Path(name))
    ask_qemu(trial, folder, changed)


BASE_WRITES = ("write -P 1 0 20k", "write -P 2 30k 5k", "write -z 40k 4k")
TOP_WRITES = ("write -P 3 5k 20k", "write -z 31k 2k", "write -P 4 41k 1k", "write -P 5 60k 3k")
V2, V3 = "cluster_size=512,compat=0.10", "cluster_size=512,compat=1.1"

# Names that need another place in the header, within its first sector and behind it.
LONG_NAME, LONGER_NAME = ("./" * count + "other.qcow2" for count in (70, 400))


class Case(NamedTuple):
    """A merge: the disks, what is done, and which files that may change."""

    disks: Sequence[Disk]
    operation: Callable[[FileSystem], object]
    changed: Sequence[str] = ("top.qcow2",)


def commit_case(base: Disk, top: Disk) -> Case:
    return Case([base, top], lambda files: commit(files, "top.qcow2"), (base.name, top.name))


COMMITS = {
    "small clusters": commit_case(
        Disk("base.qcow2", "64k", V3, None, BASE_WRITES),
        Disk("top.qcow2", "64k", V3, "base.qcow2", TOP_WRITES),
    ),
    "version 2": commit_case(
        Disk("base.qcow2", "64k", V2, None, BASE_WRITES),
        Disk("top.qcow2", "64k", V2, "base.qcow2", TOP_WRITES),
    ),
    "64 KiB clusters": commit_case(
        Disk("base.qcow2", "1M", "cluster_size=64k", None, ("write -P 1 0 200k", "write -P 2 500k 5k")),
        Disk("top.qcow2", "1M", "cluster_size=64k", "base.qcow2", ("write -P 3 100k 200k", "write -z 512k 128k")),
    ),
    "64 KiB clusters over raw": commit_case(
        Disk("base.raw", "512k", "", None, ("write -P 1 0 200k", "write -P 2 400k 5k")),
        Disk("top.qcow2", "512k", "cluster_size=64k", "base.raw", ("write -P 3 100k 200k",)),
    ),
    "raw base": commit_case(
        Disk("base.raw", "64k", "", None, BASE_WRITES),
        Disk("top.qcow2", "64k", V3, "base.raw", TOP_WRITES),
    ),
    "snapshots in the base": commit_case(
        Disk(
            "base.qcow2", "64k", V3, None, (BASE_WRITES[0], "snapshot a", BASE_WRITES[1], "snapshot b", BASE_WRITES[2])
        ),
        Disk("top.qcow2", "64k", V3, "base.qcow2", TOP_WRITES),
    ),
    "snapshots in a version 2 base": commit_case(
        Disk("base.qcow2", "64k", V2, None, (BASE_WRITES[0], "snapshot a", *BASE_WRITES[1:], "snapshot b")),
        Disk("top.qcow2", "64k", V2, "base.qcow2", TOP_WRITES),
    ),
    "zeroes over a table that a snapshot shares": commit_case(
        Disk("base.qcow2", "64k", V3, None, ("write -P 1 0 64k", "snapshot a")),
        Disk("top.qcow2", "64k", V3, "base.qcow2", ("write -P 3 5k 1k", "write -z 40k 3k")),
    ),
    "more refcount blocks": commit_case(
        Disk("base.qcow2", "64k", V3 + ",refcount_bits=64", None, BASE_WRITES[1:]),
        Disk("top.qcow2", "64k", V3, "base.qcow2", ("write -P 3 0 60k",)),
    ),
    "a longer refcount table": commit_case(
        Disk("base.qcow2", "2M", V3 + ",refcount_bits=64", None, ("write -P 1 0 1920k",)),
        Disk("top.qcow2", "2M", V3, "base.qcow2", ("write -P 3 1900k 148k",)),
    ),
    "a snapshot in the top": commit_case(
        Disk("base.qcow2", "64k", V3, None, BASE_WRITES),
        Disk("top.qcow2", "64k", V3, "base.qcow2", (TOP_WRITES[0], "snapshot a", *TOP_WRITES[1:], "write -P 7 9k 3k")),
    ),
    "a larger top": commit_case(
        Disk("base.qcow2", "40k", V3, None, BASE_WRITES[:2]),
        Disk("top.qcow2", "3M", V3, "base.qcow2", (*TOP_WRITES[:2], "write -P 5 2900k 3k")),
    ),
    "a larger top over raw": commit_case(
        Disk("base.raw", "40k", "", None, BASE_WRITES[:2]),
        Disk("top.qcow2", "100k", V3, "base.raw", TOP_WRITES),
    ),
    "a smaller top": commit_case(
        Disk("base.qcow2", "64k", V3, None, BASE_WRITES),
        Disk("top.qcow2", "32k", V3, "base.qcow2", TOP_WRITES[:1]),
    ),
    "wide and narrow counts": commit_case(
        Disk("base.qcow2", "64k", "cluster_size=512,refcount_bits=1", None, BASE_WRITES),
        Disk("top.qcow2", "64k", "cluster_size=1k,refcount_bits=64", "base.qcow2", TOP_WRITES),
    ),
    "lazy counts": commit_case(
        Disk("base.qcow2", "64k", "cluster_size=512,lazy_refcounts=on", None, BASE_WRITES),
        Disk("top.qcow2", "64k", "cluster_size=512,lazy_refcounts=on", "base.qcow2", TOP_WRITES),
    ),
    "preallocated zeroes": commit_case(
        Disk("base.qcow2", "64k", V3 + ",preallocation=metadata", None, ("write -P 1 0 9k", "write -z 2k 3k")),
        Disk("top.qcow2", "64k", V3, "base.qcow2", TOP_WRITES),
    ),
    "compressed clusters": commit_case(
        Disk("base.qcow2", "64k", V3, None, ("write -c -P 1 0 512", "write -c -P 2 5k 512", "write -c -P 2 6k 512")),
        Disk(
            "top.qcow2", "64k", V3, "base.qcow2", ("write -c -P 3 5k 512", "write -P 4 6k 100", "write -c -P 5 9k 512")
        ),
    ),
}

THREE = (
    Disk("base.qcow2", "64k", V3, None, BASE_WRITES),
    Disk("middle.qcow2", "48k", V3, "base.qcow2", ("write -P 7 8k 9k", "write -z 12k 1k")),
    Disk("top.qcow2", "64k", V3, "middle.qcow2", TOP_WRITES),
)
OTHERS = (
    Disk("base.qcow2", "64k", V3, None, BASE_WRITES),
    Disk("other.qcow2", "40k", V3, None, ("write -P 1 0 10k", "write -P 8 30k 5k")),
    Disk("top.qcow2", "64k", V3, "base.qcow2", TOP_WRITES),
)
WIDE = (
    Disk("base.qcow2", "1M", "cluster_size=4k", None, BASE_WRITES),
    Disk("other.qcow2", "1M", "cluster_size=4k", None, BASE_WRITES[:2]),
    Disk("top.qcow2", "1M", "cluster_size=4k", "base.qcow2", TOP_WRITES),
)

# What lies past the end of the middle is hidden from the top.
HIDDEN = (
    Disk("base.qcow2", "64k", V3, None, ("write -P 1 0 64k",)),
    Disk("middle.qcow2", "40k", V3, "base.qcow2", ("write -P 2 0 9k",)),
    Disk("top.qcow2", "64k", V3, "middle.qcow2", ("write -P 3 5k 9k", "write -P 4 50k 3k")),
)

MERGES = {
    "commit into a middle that hides something": Case(
        HIDDEN, lambda files: commit(files, "top.qcow2"), ("middle.qcow2", "top.qcow2")
    ),
    "pull what the middle hides": Case(
        HIDDEN, lambda files: rebase(files, "top.qcow2", backing=("base.qcow2", "qcow2"))
    ),
    "commit into the middle": Case(THREE, lambda files: commit(files, "top.qcow2"), ("middle.qcow2", "top.qcow2")),
    "commit two layers": Case(
        THREE,
        lambda files: commit(files, "top.qcow2", into=Into("base.qcow2")),
        ("base.qcow2", "top.qcow2"),
    ),
    "commit the middle for an overlay": Case(
        THREE,
        lambda files: commit(files, "middle.qcow2", into=Into(overlays=["top.qcow2"])),
        ("base.qcow2", "middle.qcow2", "top.qcow2"),
    ),
    "commit and leave the top": Case(
        THREE,
        lambda files: commit(files, "top.qcow2", into=Into(empties_top=False)),
        ("middle.qcow2",),
    ),
    "pull everything": Case(THREE, lambda files: pull(files, "top.qcow2")),
    "pull a part": Case(THREE, lambda files: pull(files, "top.qcow2", base="base.qcow2")),
    "pull everything in version 2": Case(
        [THREE[0], THREE[1], THREE[2]._replace(options=V2)], lambda files: pull(files, "top.qcow2")
    ),
    "pull 64 KiB clusters": Case(
        [
            Disk("base.qcow2", "512k", "cluster_size=64k", None, ("write -P 1 0 200k", "write -P 2 400k 100k")),
            Disk("top.qcow2", "512k", "cluster_size=64k", "base.qcow2", ("write -P 3 100k 5k",)),
        ],
        lambda files: pull(files, "top.qcow2"),
    ),
    "pull from raw": Case(
        [Disk("base.raw", "50k", "", None, BASE_WRITES), THREE[2]._replace(backing="base.raw")],
        lambda files: pull(files, "top.qcow2"),
    ),
    "pull into a disk with snapshots": Case(
        [*THREE[:2], THREE[2]._replace(commands=(TOP_WRITES[0], "snapshot a", "write -P 3 6k 9k", "snapshot b"))],
        lambda files: pull(files, "top.qcow2"),
    ),
    "rebase to another disk": Case(OTHERS, lambda files: rebase(files, "top.qcow2", backing=("other.qcow2", None))),
    "rebase to another disk in version 2": Case(
        [*OTHERS[:2], OTHERS[2]._replace(options=V2)],
        lambda files: rebase(files, "top.qcow2", backing=("other.qcow2", "qcow2")),
    ),
    "rebase to a long name": Case(OTHERS, lambda files: rebase(files, "top.qcow2", backing=(LONG_NAME, "qcow2"))),
    "rebase to a name in another sector": Case(
        WIDE, lambda files: rebase(files, "top.qcow2", backing=(LONGER_NAME, "qcow2"))
    ),
    "rebase from one long name to another": Case(
        [*WIDE[:2], WIDE[2]._replace(backing="./" * 401 + "base.qcow2")],
        lambda files: rebase(files, "top.qcow2", backing=(LONGER_NAME, "qcow2")),
    ),
    "rebase to nothing": Case(OTHERS, lambda files: rebase(files, "top.qcow2", backing=None)),
    "rebase down the chain": Case(THREE, lambda files: rebase(files, "top.qcow2", backing=("base.qcow2", "qcow2"))),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*COMMITS, *MERGES])
def test_a_merge_can_be_stopped_everywhere(tmp_path, name):
    case = (COMMITS | MERGES)[name]
    trial = trial_of(make(tmp_path, case.disks), case.operation, case.changed)
    stop_everywhere(trial)
    finish(trial, tmp_path, case.changed)


def random_disks(choose: random.Random) -> list[Disk]:
    """Two to four layers with all that a layer can hold."""
    disks: list[Disk] = []
    for name in ["base.raw" if choose.random() < 0.2 else "base.qcow2", *choose.choice(MIDDLES), "top.qcow2"]:
        size = 512 * choose.randint(8, 160)
        version = choose.choice(["compat=0.10", "compat=1.1", f"compat=1.1,refcount_bits={1 << choose.randint(1, 6)}"])
        options = f"cluster_size={1 << choose.choice([9, 9, 9, 10, 12])},{version}"
        commands = [_random_command(choose, size) for _ in range(choose.randint(1, 8))]
        if name.endswith("qcow2") and choose.random() < 0.3:
            commands.insert(choose.randrange(len(commands)), "snapshot a")
        disks.append(Disk(name, str(size), options, disks[-1].name if disks else None, commands))
    return disks


MIDDLES = ((), (), ("middle.qcow2",), ("lower.qcow2", "middle.qcow2"))


def _random_command(choose: random.Random, size: int) -> str:
    start = choose.randrange(size // 512) * 512
    length = min(512 * choose.randint(1, 48), size - start)
    verb = choose.choice(["write", "write", "write", "write -z", "write -zu", "discard"])
    return f"{verb} {start} {length}" if verb != "write" else f"write -P {choose.randint(1, 255)} {start} {length}"


def random_operation(choose: random.Random, disks: Sequence[Disk]) -> tuple[Callable[[FileSystem], object], list[str]]:
    """A merge of these disks, and the files that it changes."""
    names = [disk.name for disk in disks]
    below = choose.randrange(len(names) - 1)
    base = names[below]
    return choose.choice(
        [
            (lambda files: commit(files, "top.qcow2", into=Into(base)), [base, "top.qcow2"]),
            (lambda files: commit(files, names[-2], into=Into(overlays=["top.qcow2"])), names[-3:])
            if len(names) > 2
            else (lambda files: commit(files, "top.qcow2"), names),
            (lambda files: pull(files, "top.qcow2", base=base), ["top.qcow2"]),
            (lambda files: pull(files, "top.qcow2"), ["top.qcow2"]),
            (lambda files: rebase(files, "top.qcow2", backing=(base, disks[below].format)), ["top.qcow2"]),
            (lambda files: rebase(files, "top.qcow2", backing=("other.raw", "raw")), ["top.qcow2"]),
        ]
    )


@pytest.mark.slow
@pytest.mark.soak
def test_a_random_merge_can_be_stopped_anywhere(tmp_path, seed):
    choose = random.Random(seed)
    disks = random_disks(choose)
    other = Disk("other.raw", "20k", "", None, [_random_command(choose, 20480) for _ in range(3)])
    operation, changed = random_operation(choose, disks)
    trial = trial_of(make(tmp_path, [*disks, other]), operation, changed)
    kill_everywhere(trial)
    cut_power_everywhere(trial, seed)
    # The second run may be stopped as well as the first.
    for _, files in trial.sample(1, seed):
        cut_power_everywhere(trial.from_here(files), seed)
    finish(trial, tmp_path, changed)
