"""What the subcommands say of damaged images and chains: one sentence, and not one byte changes."""

import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cli.img.differential import Result, content_of, run_both, run_cowtree
from tests.qemu import qemu_img, qemu_io

CLUSTER = 65536
# Where the fields of the header are.
BACKING_OFFSET, L1_SIZE, L1_OFFSET, REFCOUNT_OFFSET, SNAPSHOT_COUNT, INCOMPATIBLE = 8, 36, 40, 48, 60, 72
CALLS = (
    ("commit", "-f", "qcow2", "{}"),
    ("commit", "-d", "-b", "base", "-f", "qcow2", "{}"),
    ("rebase", "-b", "", "-f", "qcow2", "{}"),
    ("rebase", "-b", "base", "-F", "raw", "-f", "qcow2", "{}"),
    ("compare", "-f", "qcow2", "{}", "base"),
    ("convert", "-f", "qcow2", "{}", "out"),
)


class Case(NamedTuple):
    """One kind of damage to `top` or its neighbours, and what must be said of it."""

    damage: Callable[[Path], object]
    sentence: str
    top: str = "top"


def put(name: str, offset: int, code: str, *values: int | bytes) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        with (folder / name).open("r+b") as file:
            file.seek(offset)
            file.write(struct.pack(code, *values))

    return damage


def cut(name: str, size_bytes: int) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size_bytes])


def field(path: Path, offset: int) -> int:
    return int.from_bytes(path.read_bytes()[offset : offset + 8], "big")


def l2_entry(name: str, value: int) -> Callable[[Path], object]:
    """Replace the first entry of the first L2 table."""

    def damage(folder: Path) -> None:
        l2 = field(folder / name, field(folder / name, L1_OFFSET)) & 0x00FFFFFFFFFFFE00
        put(name, l2, ">Q", value)(folder)

    return damage


def l1_entry(name: str, value: int) -> Callable[[Path], object]:
    return lambda folder: put(name, field(folder / name, L1_OFFSET), ">Q", value)(folder)


def l1_into_refcounts(folder: Path) -> None:
    put("top", L1_OFFSET, ">Q", field(folder / "top", REFCOUNT_OFFSET))(folder)


def relink(name: str, backing: str) -> Callable[[Path], object]:
    return lambda folder: qemu_img("rebase", "-u", "-b", backing, "-F", "qcow2", folder / name)


def unknown_feature(folder: Path) -> None:
    """Set bit 40, and name it in the table of names."""
    data = (folder / "top").read_bytes()
    name = b"dirty bit"
    entry = data.index(b"\0\0" + name)
    put("top", entry, "BB", 0, 40)(folder)
    put("top", entry + 2, "46s", b"time travel")(folder)
    put("top", INCOMPATIBLE, ">Q", 1 << 40)(folder)


def deep_chain(folder: Path) -> None:
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", "deep000", "-F", "qcow2", folder / "deep", "1M")
    pattern = (folder / "deep").read_bytes()
    for index in range(300):
        (folder / f"deep{index:03}").write_bytes(pattern.replace(b"deep000", f"deep{index + 1:03}".encode()))


CASES = {
    "no image": Case(lambda folder: (folder / "top").write_bytes(b"x" * 3000), "", "top"),
    "empty": Case(cut("top", 0), ""),
    "header cut short": Case(cut("top", 60), "the header at byte 0 needs"),
    "tables cut off": Case(cut("top", 3 * CLUSTER), "but the file ends at"),
    "data cut off": Case(cut("top", 5 * CLUSTER), "past the end"),
    "L1 table past the end": Case(put("top", L1_OFFSET, ">Q", 1 << 40), "Active L1 table at byte 1099511627776"),
    "L1 table in the refcount table": Case(l1_into_refcounts, "offset invalid"),
    "L1 table too large": Case(put("top", L1_SIZE, ">I", 1 << 31), "Active L1 table too large"),
    "refcount table past the end": Case(put("top", REFCOUNT_OFFSET, ">Q", 1 << 40), "Reference count table at byte"),
    "L2 table past the end": Case(l1_entry("top", 1 << 63 | 1 << 40), "past the end"),
    "L2 table not aligned": Case(l1_entry("top", 1 << 63 | 5 * CLUSTER + 512), "not aligned"),
    "data past the end": Case(l2_entry("top", 1 << 63 | 1 << 40), "past the end"),
    "data not aligned": Case(l2_entry("top", 1 << 63 | 5 * CLUSTER + 512), "not aligned"),
    "snapshots past the end": Case(put("top", SNAPSHOT_COUNT, ">IQ", 1, 1 << 40), "Snapshot"),
    "unknown feature": Case(unknown_feature, "Unsupported qcow2 feature(s): time travel"),
    "backing file missing": Case(lambda folder: (folder / "middle").unlink(), "No such file or directory"),
    "backing file is no image": Case(cut("middle", 0), "Image is not in qcow2 format"),
    "loop": Case(relink("middle", "top"), "infinite loop"),
    "own child": Case(relink("top", "top"), "infinite loop"),
    "chain of 300": Case(deep_chain, "deeper than 256 layers", "deep"),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images that are sound."""
    folder = tmp_path_factory.mktemp("sound")
    qemu_img("create", "-q", "-f", "raw", folder / "base", "1M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", folder / "middle")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "middle", "-F", "qcow2", folder / "top")
    qemu_io(folder / "middle", "write -P 1 0 200k")
    qemu_io(folder / "top", "write -P 2 0 300k")
    return folder


def run_unchanged(folder: Path, words: list[str]) -> Result:
    """Run a call that must fail with one sentence, and change nothing."""
    before = content_of(folder)
    result = run_cowtree(folder, *words)
    assert result.status not in (0, 130), (words, result)
    assert result.stdout == ""
    assert result.stderr.startswith("qemu-img: ")
    assert result.stderr.count("\n") == 1, result
    assert content_of(folder) == before, words
    return result


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS, ids=" ".join)
@pytest.mark.parametrize("name", CASES)
def test_damage_is_named_and_nothing_changes(sound: Path, tmp_path: Path, name: str, call: tuple[str, ...]):
    case, folder = CASES[name], tmp_path / "folder"
    shutil.copytree(sound, folder)
    case.damage(folder)
    words = [word.format(case.top) for word in call]
    assert case.sentence in run_unchanged(folder, words).stderr


def into_table(offset: int) -> Callable[[Path], object]:
    """Let the first guest cluster of `middle` and of `top` lie where one of its tables is."""

    def damage(folder: Path) -> None:
        for name in ("middle", "top"):
            l2_entry(name, 1 << 63 | field(folder / name, offset))(folder)

    return damage


TRAPS = {
    "data in the L1 table": Case(into_table(L1_OFFSET), "host cluster"),
    "data in the refcount table": Case(into_table(REFCOUNT_OFFSET), "host cluster"),
}


@pytest.mark.parametrize("name", TRAPS)
def test_guest_data_is_not_written_over_a_table(sound: Path, tmp_path: Path, name: str):
    folder, case = tmp_path / "folder", TRAPS[name]
    shutil.copytree(sound, folder)
    case.damage(folder)
    assert case.sentence in run_unchanged(folder, ["commit", "top"]).stderr


@pytest.mark.parametrize("call", CALLS[:4], ids=" ".join)
def test_an_image_that_is_marked_corrupt_is_not_opened_for_writing(sound: Path, tmp_path: Path, call: tuple[str, ...]):
    folder = tmp_path / "folder"
    shutil.copytree(sound, folder)
    put("top", INCOMPATIBLE, ">Q", 2)(folder)
    result = run_unchanged(folder, [word.format("top") for word in call])
    assert result.stderr.startswith("qemu-img: Could not open 'top': Image is corrupt; cannot be opened read/write")


def test_a_shorter_base_reads_as_zeroes_past_its_end(sound: Path, tmp_path: Path):
    shutil.copytree(sound, tmp_path / "folder")
    cut("base", 100 * 1024)(tmp_path / "folder")
    run_both(tmp_path / "folder", tmp_path, "convert", "top", "out").assert_same()
