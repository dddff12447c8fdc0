"""Chains of every kind of image through every command that merges, copies or reads them, beside qemu-img.

A kind is what its layers are made with, the base first; l0 is the base, other an image beside the chain, and data files
are called after the image.
"""

import contextlib
import filecmp
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.cli.img.differential import Both, describe, read_both, run_both
from tests.qemu import SECTOR, assert_clean, content, qemu_img, qemu_io

pytestmark = pytest.mark.slow

RAW = "raw"
EXTENDED = "extended_l2=on"
DATA, DATA_RAW = "data_file={name}.data", "data_file={name}.data,data_file_raw=on"


class Kind(NamedTuple):
    """The options of three layers and of the image beside them, and how large each disk is."""

    layers: tuple[str, str, str]
    other: str = ""
    sector_counts: tuple[int, int, int] = (1400, 1400, 1400)
    packs: bool = True


KINDS = {
    "extended-16k": Kind((f"{EXTENDED},cluster_size=16k",) * 3, f"{EXTENDED},cluster_size=32k"),
    "extended-64k": Kind((EXTENDED,) * 3, f"{EXTENDED},cluster_size=16k", (1001, 1400, 1203)),
    "extended-2m": Kind((f"{EXTENDED},cluster_size=2M",) * 3, EXTENDED, (5000, 4097, 4097)),
    "extended-over-small": Kind(("cluster_size=512", EXTENDED, f"{EXTENDED},cluster_size=128k"), "cluster_size=4k"),
    "small-over-extended": Kind((EXTENDED, f"{EXTENDED},cluster_size=16k", "cluster_size=1k"), EXTENDED),
    "extended-over-raw": Kind((RAW, EXTENDED, EXTENDED), "compat=0.10", (900, 1400, 1401)),
    "data": Kind((DATA,) * 3, DATA, packs=False),
    "data-odd": Kind((DATA,) * 3, EXTENDED, (1400, 1001, 1203), packs=False),
    "data-raw": Kind((DATA_RAW, DATA, ""), DATA_RAW, packs=False),
    "data-raw-longer": Kind((f"{DATA_RAW},cluster_size=4k", DATA, DATA), "", (700, 1001, 1400), packs=False),
    "data-extended": Kind((f"{DATA_RAW},{EXTENDED}", f"{DATA},{EXTENDED}", EXTENDED), "", packs=False),
    "old": Kind(("compat=0.10",) * 3, "compat=0.10,cluster_size=512", (1400, 1203, 1001)),
    "old-and-new": Kind(("compat=0.10,cluster_size=4k", EXTENDED, "compat=0.10"), EXTENDED),
    "zstd": Kind(
        ("compression_type=zstd", f"compression_type=zstd,{EXTENDED}", "compression_type=zstd"), "", (9, 8, 7)
    ),
    "bits-1": Kind(("refcount_bits=1", "refcount_bits=2", "refcount_bits=4"), "refcount_bits=1"),
    "bits-64": Kind(("refcount_bits=8", "refcount_bits=64", "refcount_bits=32"), "refcount_bits=64"),
    "lazy": Kind(("lazy_refcounts=on", f"lazy_refcounts=on,{EXTENDED}", "lazy_refcounts=on"), "lazy_refcounts=on"),
}
WRITING = (
    *("commit -q l2", "commit -d l2", "commit -b l0 l2", "commit -p -d -b l1 l2", "commit -t none l1"),
    *("rebase -b l0 -F {base} l2", "rebase -b {none} l2", "rebase -p -b other -F qcow2 l2", "rebase -b {none} l1"),
    *("rebase -u -b l0 -F {base} l2", "rebase -u -b {none} l1", "rebase -b other -F qcow2 l1"),
    *("convert -O qcow2 l2 out", "convert -O qcow2 -B l1 -F qcow2 l2 out", "convert -n -O qcow2 l2 other"),
    *("convert -c -O qcow2 -o {options} l2 out", "dd -O qcow2 bs=1000 skip=3 if=l2 of=out"),
)
READING = (
    *("map l2", "map --output=json l2", "map --output=json -s 70000 -l 200001 l0", "compare l2 l1", "compare -s l2 l0"),
    *("measure -O qcow2 l2", "measure --output=json -O raw l1", "check l0", "check --output=json l2", "info l1"),
)


def make(folder: Path, kind: Kind) -> Path:
    """Make the images of a kind in a new folder, and write to each of them."""
    folder.mkdir()
    choose = random.Random(repr(kind))
    with contextlib.chdir(folder):
        for index, options in enumerate((*kind.layers, kind.other)):
            name = "other" if index == 3 else f"l{index}"
            image_format = RAW if options == RAW else "qcow2"
            words = ["create", "-q", "-f", image_format]
            if image_format == "qcow2" and options:
                words += ["-o", options.format(name=name)]
            if index in (1, 2):
                words += ["-b", f"l{index - 1}", "-F", RAW if kind.layers[index - 1] == RAW else "qcow2"]
            sector_count = kind.sector_counts[index % 3]
            qemu_img(*words, name, str(sector_count * SECTOR))
            packs = kind.packs and image_format == "qcow2"
            qemu_io(Path(name), *_commands(choose, index, sector_count, packs=packs), image_format=image_format)
    return folder


def _commands(choose: random.Random, index: int, sector_count: int, *, packs: bool) -> list[str]:
    size, found = sector_count * SECTOR, []
    if packs:
        found.append(f"write -c -P {200 + index} 0 {min(2 << 20, size // (64 << 10) * (64 << 10) or size)}")
    for number in range(8):
        start = choose.randrange(sector_count) * SECTOR
        length = min(choose.choice([1, 3, 8, 64, 200]) * SECTOR, size - start)
        verb = ("write -z", "write -zu", "discard")[number % 3] if number % 4 == 3 else f"write -P {8 * index + number}"
        found.append(f"{verb} {start} {length}")
    return [*found, f"write -P {100 + index} {size - SECTOR} {SECTOR}"]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder with the images of a kind; not to be written to."""
    return cache(lambda name: make(tmp_path_factory.mktemp("kind") / "images", KINDS[name]))


def words_of(call: str, kind: Kind) -> list[str]:
    """The words of a call. What is said of no image, in the first place."""
    base = RAW if kind.layers[0] == RAW else "qcow2"
    options = "cluster_size=16k,extended_l2=on" if "extended" in kind.layers[2] else "refcount_bits=8"
    return [word.format(base=base, none="", options=options) for word in call.split()]


def assert_same_images(both: Both) -> None:
    """Compare what is in both folders, each looked at from inside, for there its data files are."""
    names = sorted(path.name for path in both.stock_folder.iterdir())
    assert sorted(path.name for path in both.own_folder.iterdir()) == names
    for name in names:
        if not filecmp.cmp(both.stock_folder / name, both.own_folder / name, shallow=False) or ".data" in name:
            seen = [look(folder, name.removesuffix(".data")) for folder in (both.stock_folder, both.own_folder)]
            assert seen[0] == seen[1], name


def look(folder: Path, name: str) -> tuple[dict[str, Any], bytes]:
    """What QEMU says of an image, which must be clean, and what a guest sees; of a raw data file that is the same."""
    with contextlib.chdir(folder):
        facts = describe(Path(name))
        seen = content(Path(name), facts["format"])
        if facts["format"] == "qcow2":
            assert_clean(Path(name))
            if facts["format-specific"]["data"].get("data-file-raw"):
                assert Path(f"{name}.data").read_bytes().startswith(seen)
        return facts, seen


@pytest.mark.parametrize("call", WRITING)
@pytest.mark.parametrize("name", KINDS)
def test_what_is_written_to_every_kind_is_what_stock_writes(folder_of, tmp_path: Path, name: str, call: str):
    both = run_both(folder_of(name), tmp_path, *words_of(call, KINDS[name]))
    both.assert_same_result()
    if both.stock.status:
        both.assert_unchanged()
    assert_same_images(both)


@pytest.mark.parametrize("call", READING)
@pytest.mark.parametrize("name", KINDS)
def test_what_is_said_of_every_kind_is_what_stock_says(folder_of, name: str, call: str):
    both = read_both(folder_of(name), *words_of(call, KINDS[name]))
    both.assert_same_result()
    assert bool(both.own.stderr) == bool(both.stock.stderr)
