"""Resizing, stopped everywhere: the disk has the old size or the new one, and shows what it must.

What was stopped is run again, and then all is right and nothing leaks.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from cowtree.chain.view import open_chain
from cowtree.images.resize import resize
from cowtree.plan.create import OFF
from cowtree.storage.contract import Access, FileSystem
from cowtree.storage.memory import MemoryFiles
from tests.crash import (
    Trial,
    assert_sound,
    cut_power_everywhere,
    fail_everywhere,
    guest_view,
    kill_everywhere,
    snapshot_views,
)
from tests.dirty import read_bitmaps
from tests.qemu import assert_clean, qemu_img, qemu_io

KIB = 1024
WRITES = ("write -P 1 0 20k", "write -P 2 60k 36k")


class Recipe(NamedTuple):
    """An image as qemu-img and, for what has a space in it, qemu-io make it: other steps name snapshots or bitmaps."""

    options: str = "cluster_size=512"
    size: str = "96k"
    steps: Sequence[str] = WRITES
    backing_size: str = ""


RECIPES = {
    "plain": Recipe(),
    "old": Recipe("cluster_size=512,compat=0.10"),
    "lazy": Recipe("cluster_size=512,lazy_refcounts=on"),
    "extended": Recipe("cluster_size=16k,extended_l2=on"),
    "backed": Recipe(backing_size="120k"),
    "backed old": Recipe("cluster_size=512,compat=0.10", backing_size="120k"),
    "backed old at the end of a table": Recipe("cluster_size=512,compat=0.10", "2040k", backing_size="2044k"),
    "snapshots": Recipe(steps=(*WRITES, "snap:one", "write -P 3 70k 3k", "snap:two", "write -P 4 10k 2k")),
    "bitmaps": Recipe(steps=("map:one", "map:two", *WRITES, "off:two")),
}
SIZES = {"grow": 150 * KIB, "shrink": 65 * KIB + 512, "shrink to nearly nothing": 512, "grow the table": 3000 * KIB}
LITTLE = {"grow a little": 2054 * KIB}
# All of what is new is filled there, so it must not be much: a table of one cluster ends at 2 MiB.
FILLED = ("backed old", "backed old at the end of a table")
PAIRS = [(recipe, size) for recipe in RECIPES if recipe != FILLED[1] for size in SIZES]
PAIRS.remove((FILLED[0], "grow the table"))
PAIRS.append((FILLED[1], "grow a little"))
PREALLOCATIONS = ("metadata", "falloc", "full")


def make(folder: Path, recipe: Recipe) -> dict[str, bytes]:
    """Make the image, and perhaps a longer backing file."""
    with contextlib.chdir(folder):
        backing = []
        if recipe.backing_size:
            qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "base", recipe.backing_size)
            qemu_io(Path("base"), f"write -P 9 0 {recipe.backing_size}")
            backing = ["-b", "base", "-F", "qcow2"]
        qemu_img("create", "-q", "-f", "qcow2", "-o", recipe.options, *backing, "image", recipe.size)
        for step in recipe.steps:
            verb, _, name = step.partition(":")
            if verb == "snap":
                qemu_img("snapshot", "-c", name, "image")
            elif name:
                qemu_img("bitmap", "--add" if verb == "map" else "--disable", "image", name)
            else:
                qemu_io(Path("image"), step)
        return {name: Path(name).read_bytes() for name in ("image", "base") if Path(name).exists()}


def trial_of(initial: dict[str, bytes], size_bytes: int, preallocation: str = OFF) -> Trial:
    """A trial of a resize."""

    def operation(files: FileSystem) -> None:
        chain = open_chain(files, "image", "qcow2", Access.WRITE)
        try:
            resize(chain, size_bytes, preallocation if chain.size_bytes < size_bytes else OFF)
        finally:
            chain.close()

    old, snapshots = guest_view(MemoryFiles(initial), "image"), snapshot_views(MemoryFiles(initial), "image")
    new = old[:size_bytes].ljust(size_bytes, b"\0")
    dirty = read_bitmaps(initial["image"])

    def check(files: MemoryFiles, is_done: bool) -> None:
        assert guest_view(files, "image") in ((new,) if is_done else (old, new))
        assert snapshot_views(files, "image") == snapshots
        assert_sound(files, "image", is_done=is_done)
        found = read_bitmaps(files.content("image"))
        assert list(found) == list(dirty)
        for name, each in found.items():
            if each.dirty is None:
                continue
            spans = [(start, min(stop, size_bytes)) for start, stop in dirty[name].dirty or [] if start < size_bytes]
            assert [(start, min(stop, size_bytes)) for start, stop in each.dirty if start < size_bytes] == spans
        if "base" in initial:
            assert files.content("base") == initial["base"]

    return Trial(initial, operation, check)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "size"), PAIRS)
def test_a_resize_can_be_stopped_everywhere(tmp_path: Path, recipe: str, size: str):
    is_hidden = recipe in FILLED and size.startswith("grow")
    trial = trial_of(make(tmp_path, RECIPES[recipe]), (SIZES | LITTLE)[size], "falloc" if is_hidden else OFF)
    kill_everywhere(trial)
    cut_power_everywhere(trial)
    for number, (_, files) in enumerate(trial.sample(2)):
        path = tmp_path / f"sample-{number}"
        path.write_bytes(files.content("image"))
        qemu_img("check", "-q", "-r", "all", path)
        assert_clean(path)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["grow", "shrink"])
@pytest.mark.parametrize("recipe", ["snapshots", "backed", "bitmaps"])
def test_a_resize_survives_a_failing_disk(tmp_path: Path, recipe: str, size: str):
    fail_everywhere(trial_of(make(tmp_path, RECIPES[recipe]), SIZES[size]))


@pytest.mark.slow
@pytest.mark.parametrize("preallocation", PREALLOCATIONS)
@pytest.mark.parametrize("recipe", ["plain", "backed", "extended"])
def test_growing_with_space_set_aside_can_be_stopped_everywhere(tmp_path: Path, recipe: str, preallocation: str):
    trial = trial_of(make(tmp_path, RECIPES[recipe]), 110 * KIB, preallocation)
    kill_everywhere(trial)
    cut_power_everywhere(trial)
