"""Bitmaps, stopped everywhere: what changes them leaves the old ones or the new ones, and what changes guest data
leaves them right or marked as inconsistent.

The images are made by qemu-img and qemu-io, small enough to be tried hundreds of times in memory.
"""

import contextlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from cowtree.errors import Refused
from cowtree.images.bitmap import change
from cowtree.images.convert import Manner, convert, convert_into
from cowtree.images.merge import pull, rebase
from cowtree.plan.bitmap import Action
from cowtree.plan.create import NewImage
from cowtree.storage.contract import FileSystem
from cowtree.storage.memory import MemoryFiles
from tests.crash import (
    Trial,
    assert_sound,
    cut_power_everywhere,
    fail_everywhere,
    guest_view,
    kill_everywhere,
    stop_everywhere,
    trial_of_new,
)
from tests.dirty import AUTO, Found, Spans, dirty_through_nbd, read_bitmaps
from tests.permits import commit
from tests.qemu import assert_clean, qemu_img, qemu_io

Operation = Callable[[FileSystem], object]

# An image as qemu-img commands and, where a space is in it, qemu-io commands make it.
Made = dict[str, bytes]
SMALL = "cluster_size=512"


class Recipe(NamedTuple):
    """How an image is made. In `steps` a word stands for a new bitmap, with its granularity; else qemu-io is asked."""

    options: str = SMALL
    size: str = "96k"
    steps: Sequence[str] = ()
    backing: str | None = None


STEPS = ("one:512", "write -P 1 3k 5k", "two:4096", "write -P 2 40k 300", "off two", "write -P 3 70k 2k")
RECIPE = Recipe(steps=STEPS)
LITTLE = Recipe(
    size="24k", steps=("one:512", "write -P 1 1k 2k", "two:4096", "write -P 2 9k 300", "off two", "write -P 3 20k 1k")
)
BACKED = Recipe(
    size="24k", steps=("write -P 7 512 2k", "write -P 8 18k 3k", "two:4096", "write -P 9 8k 1k"), backing="image"
)


def make(folder: Path, **recipes: Recipe) -> Made:
    """Make images, and return their bytes by name."""
    with contextlib.chdir(folder):
        for name, recipe in recipes.items():
            backing = ["-b", recipe.backing, "-F", "qcow2"] if recipe.backing else []
            qemu_img("create", "-q", "-f", "qcow2", "-o", recipe.options, *backing, name, recipe.size)
            for step in recipe.steps:
                _do(Path(name), step)
        return {name: Path(name).read_bytes() for name in recipes}


def _do(path: Path, step: str) -> None:
    if step.startswith("off "):
        qemu_img("bitmap", "--disable", path, step.removeprefix("off "))
    elif ":" in step:
        qemu_img("bitmap", "--add", "-g", step.partition(":")[2], path, step.partition(":")[0])
    else:
        qemu_io(path, step)


def insist(operation: Operation) -> Operation:
    """Do it, or find it done already."""

    def again(files: FileSystem) -> None:
        try:
            operation(files)
        except Refused as error:
            if "already exists" not in error.reason and "not found" not in error.reason:
                raise

    return again


def changing(bitmap: str, *words: str, granularity: int | None = None, source: str | None = None) -> Operation:
    """Actions on one bitmap of `image`."""
    pairs = [word.partition(" ") for word in words]
    actions = [Action(verb, merged, granularity) for verb, _, merged in pairs]
    other = (source, "qcow2") if source else None
    return insist(lambda files: change(files, ("image", "qcow2"), bitmap, actions, other))


def trial_of_bitmaps(initial: Made, operation: Operation) -> Trial:
    """A trial of what changes bitmaps and nothing else: they are the old ones or the new ones."""
    files = MemoryFiles(initial)
    operation(files)
    old, new = read_bitmaps(initial["image"]), read_bitmaps(files.content("image"))
    assert new != old
    seen = guest_view(MemoryFiles(initial), "image")

    def check(files: MemoryFiles, is_done: bool) -> None:
        assert read_bitmaps(files.content("image")) in ((new,) if is_done else (old, new))
        assert guest_view(files, "image") == seen
        assert_sound(files, "image", is_done=is_done)

    return Trial(initial, operation, check)


CHANGES = {
    "add": changing("new", "add", granularity=1024),
    "add and merge": changing("new", "add", "merge one", "merge two", granularity=2048),
    "remove": changing("one", "remove"),
    "clear": changing("one", "clear"),
    "disable": changing("one", "disable"),
    "enable": changing("two", "enable"),
    "merge": changing("one", "merge two"),
    "merge what is finer": changing("two", "merge one"),
    "merge from elsewhere": changing("one", "merge one", source="other"),
    "remove and make anew": changing("one", "remove", "add", "merge two", granularity=65536),
}
SHAPES = {
    "small clusters": RECIPE,
    "64 KiB clusters": Recipe("cluster_size=64k", "1M", STEPS),
    "wide counts": Recipe(SMALL + ",refcount_bits=64", "96k", STEPS),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_bitmaps_can_be_stopped_everywhere(tmp_path: Path, name: str):
    other = Recipe("cluster_size=4k", "96k", ("one:1024", "write -P 1 20k 9k"))
    stop_everywhere(trial_of_bitmaps(make(tmp_path, image=RECIPE, other=other), CHANGES[name]))


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["add and merge", "remove"])
def test_images_of_every_shape_can_be_stopped(tmp_path: Path, shape: str, name: str):
    trial = trial_of_bitmaps(make(tmp_path, image=SHAPES[shape]), CHANGES[name])
    cut_power_everywhere(trial)
    for number, (_, files) in enumerate(trial.sample(3)):
        path = tmp_path / f"sample-{number}"
        path.write_bytes(files.content("image"))
        qemu_img("check", "-q", "-r", "all", path)
        assert_clean(path)
        for bitmap, each in read_bitmaps(path.read_bytes()).items():
            assert dirty_through_nbd(path, bitmap) == each.dirty


def test_the_last_bitmap_takes_the_extension_along(tmp_path: Path):
    made = make(tmp_path, image=Recipe(steps=("one:512", "write -P 1 0 9k")))
    trial = trial_of_bitmaps(made, changing("one", "remove"))
    stop_everywhere(trial)
    files = MemoryFiles(made)
    changing("one", "remove")(files)
    assert read_bitmaps(files.content("image")) == {}
    assert files.content("image")[95] == 0


# Operations that change guest data.


def covers(spans: Spans, inner: Spans) -> bool:
    """Whether ranges hold all that others hold."""
    return all(any(start <= first and last <= stop for start, stop in spans) for first, last in inner)


def differing(old: bytes, new: bytes) -> Spans:
    """The sectors in which two disks differ; what only one of them has reads as zeroes in the other."""
    length = max(len(old), len(new))
    old, new = old.ljust(length, b"\0"), new.ljust(length, b"\0")
    return [(at, at + 512) for at in range(0, length, 512) if old[at : at + 512] != new[at : at + 512]]


def assert_kept(path: str, found: dict[str, Found], old: dict[str, Found], changed: Spans) -> None:
    """Fail unless bitmaps that recorded hold what they held and what has changed, or are marked as inconsistent, and
    the others are as they were.
    """
    assert list(found) == list(old)
    for name, each in found.items():
        before = old[name]
        assert each.flags & AUTO == before.flags & AUTO
        if not before.flags & AUTO:
            assert each == before, (path, name)
        elif each.dirty is not None:
            assert covers(each.dirty, before.dirty or []), (path, name)
            assert covers(each.dirty, [(first, last) for first, last in changed]), (path, name, each, changed)


def trial_of_data(initial: Made, operation: Operation, changed: str, seen: str) -> Trial:
    """A trial of what changes the disk of the image `changed`, while `seen` shows the same."""
    files = MemoryFiles(initial)
    operation(files)
    old = read_bitmaps(initial[changed])
    disk, top = guest_view(MemoryFiles(initial), changed), guest_view(MemoryFiles(initial), seen)
    assert all(each.dirty is not None for each in read_bitmaps(files.content(changed)).values())

    def check(files: MemoryFiles, is_done: bool) -> None:
        for name, data in initial.items():
            found = read_bitmaps(files.content(name))
            if name == changed:
                assert_kept(name, found, old, differing(disk, guest_view(files, changed)))
            else:
                assert_kept(name, found, read_bitmaps(data), [])
            assert_sound(files, name, is_done=is_done)
        assert guest_view(files, seen) == top

    return Trial(initial, operation, check)


def convert_over(files: FileSystem) -> object:
    """Write a disk over another."""
    return convert_into(files, [("other", "qcow2")], ("image", "qcow2"))


DATA = {
    "commit": (lambda files: commit(files, "top"), "image", "top"),
    "pull": (lambda files: pull(files, "top"), "top", "top"),
    "rebase": (lambda files: rebase(files, "top", backing=("other", "qcow2")), "top", "top"),
    "convert over": (convert_over, "image", "other"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DATA)
def test_bitmaps_survive_a_change_of_the_disk_that_is_stopped(tmp_path: Path, name: str):
    other = Recipe("cluster_size=1k", "24k", ("write -P 1 5k 4k",))
    initial = make(tmp_path, image=LITTLE, top=BACKED, other=other)
    operation, changed, seen = DATA[name]
    trial = trial_of_data(initial, operation, changed, seen)
    kill_everywhere(trial)
    if changed == "image":
        cut_power_everywhere(trial)


@pytest.mark.slow
def test_bitmaps_survive_a_failing_disk_in_a_pull(tmp_path: Path):
    initial = make(tmp_path, image=LITTLE, top=BACKED)
    fail_everywhere(trial_of_data(initial, lambda files: pull(files, "top"), "top", "top"))


@pytest.mark.slow
def test_bitmaps_follow_a_disk_that_grows_in_a_commit(tmp_path: Path):
    steps = ("one:512", "write -P 1 3k 5k", "two:4096", "off two", "three:512", "off three")
    larger = BACKED._replace(options="cluster_size=64k", size="2200k", steps=(*BACKED.steps, "write -P 5 2100k 700"))
    initial = make(tmp_path, image=RECIPE._replace(steps=steps), top=larger)
    kill_everywhere(trial_of_data(initial, lambda files: commit(files, "top"), "image", "top"))


@pytest.mark.slow
def test_a_converted_image_has_all_bitmaps_or_does_not_exist(tmp_path: Path):
    initial = make(tmp_path, image=RECIPE)
    new, manner = NewImage("new", "qcow2", 0, 12), Manner(copies_bitmaps=True)
    trial = trial_of_new(initial, lambda files: convert(files, [("image", "qcow2")], new, manner), ["new"])
    kill_everywhere(trial)
    files = MemoryFiles(initial)
    convert(files, [("image", "qcow2")], new, manner)
    assert read_bitmaps(files.content("new")) == read_bitmaps(initial["image"])


def random_actions(choose: random.Random) -> Operation:
    """A few actions on one bitmap."""
    words = choose.choices(["clear", "enable", "disable", "merge one", "merge two"], k=choose.randint(1, 3))
    if choose.random() < 0.5:
        return changing("new", "add", *words, granularity=1 << choose.choice([9, 12, 20]))
    return changing(choose.choice(["one", "two"]), *words, "merge two", *choose.choice([(), ("disable",)]))


@pytest.mark.slow
@pytest.mark.soak
def test_random_changes_can_be_cut_anywhere(tmp_path: Path, seed: int):
    choose = random.Random(seed)
    recipe = Recipe(f"cluster_size={1 << choose.choice([9, 9, 12])}", f"{choose.randint(90, 900)}k", STEPS)
    initial = make(tmp_path, image=recipe)
    operation = random_actions(choose)
    files = MemoryFiles(initial)
    operation(files)
    if read_bitmaps(files.content("image")) == read_bitmaps(initial["image"]):
        # It asked for what is there.
        operation = changing("one", "remove")
    cut_power_everywhere(trial_of_bitmaps(initial, operation), seed)
