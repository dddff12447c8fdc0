"""The merge verbs and `cowtree plan` as people and programs see them, on real files, and killed at any moment."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cowtree.cli.main import main
from cowtree.images import proof
from cowtree.images.digest import digest
from cowtree.images.order import SUFFIX
from cowtree.units import MIB
from tests.cli.running import Ran
from tests.disktrees import FILES, NAMES, DiskTree, plant, random_tree, random_words
from tests.qemu import assert_clean, content, qemu_img, qemu_io

WRONG_USE, MISSING, NOT_OF_THE_FAMILY, REFUSED, LOCKED, UNPROVEN = 2, 11, 11, 15, 16, 22
COWTREE = [sys.executable, "-m", "cowtree"]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DiskTree:
    folder = tmp_path / "images"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return plant(folder)


def leaves_of(tree: DiskTree) -> dict[str, str]:
    return {path: shown for path, shown in tree.digests().items() if path in tree.leaves}


BAD_WORDS = (
    ("commit",),
    ("commit", "top", "other"),
    ("commit", "top", "--max-depth", "1"),
    ("shorten", "top"),
    ("shorten", "top", "--max-depth", "0"),
    ("shorten", "top", "--max-depth", "-1"),
    ("shorten", "top", "--max-depth", "x"),
    ("delete", "middle", "--keep", "--delete"),
    ("delete", "middle", "--verify=some"),
    ("delete", "middle", "--force", "top", "--with-dependants"),
    ("flatten", "top", "--base", "base"),
    ("commit", "top", "--base", "other"),
    ("pull", "top", "--base", "top"),
    ("plan",),
    ("plan", "merge", "top"),
    ("plan", "delete", "middle", "--delete"),
)


@pytest.mark.parametrize("words", BAD_WORDS, ids=" ".join)
def test_bad_words_are_one_sentence_and_change_nothing(
    tree: DiskTree, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
):
    before = {path: Path(path).read_bytes() for path in tree.paths}
    ran = Ran(capsys, *words)
    assert (ran.status, ran.out, ran.err.count("\n")) == (WRONG_USE, "", 1), ran.err
    assert ran.err.startswith("cowtree: ")
    assert {path: Path(path).read_bytes() for path in tree.paths} == before
    assert tree.names() == sorted(NAMES)


@pytest.mark.parametrize("verb", ["commit", "pull", "flatten", "delete"])
def test_a_missing_image_is_named(tree: DiskTree, capsys: pytest.CaptureFixture[str], verb: str):
    ran = Ran(capsys, verb, "nothing-here")
    assert ran.status == MISSING
    assert "nothing-here" in ran.err
    ran = Ran(capsys, "plan", "commit", "top", "--base", "nothing-here")
    assert ran.status == MISSING


def test_an_image_of_another_family_is_no_base(tree: DiskTree, capsys: pytest.CaptureFixture[str]):
    qemu_img("create", "-q", "-f", "qcow2", "stranger", "1M")
    ran = Ran(capsys, "commit", "top", "--base", "stranger")
    assert ran.status == NOT_OF_THE_FAMILY
    assert "it has nothing to do with" in ran.err


def test_whoever_would_be_harmed_is_named_with_the_ways_out(tree: DiskTree, capsys: pytest.CaptureFixture[str]):
    before = tree.digests()
    ran = Ran(capsys, "commit", "top")
    other = tree.paths[3]
    assert ran.status == REFUSED
    assert f"{tree.paths[1]} would change, and {other} reads it" in ran.err
    assert "--with-dependants" in ran.err
    assert f"--force {other}" in ran.err
    assert tree.digests() == before
    assert Ran(capsys, "commit", "top", "--force", "other").status == 0


NAME_CASES = ("with space", "new\nline", "a:colon", "byte-\udcff", "-dash", "ümlaut", "{braces}", "--verify")


@pytest.mark.parametrize("name", NAME_CASES)
def test_any_name_will_do(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str):
    folder = tmp_path / "odd"
    folder.mkdir()
    tree = plant(folder, names=("base", name, "top", "other"))
    before = leaves_of(tree)
    ran = Ran(capsys, "delete", str(folder / name), "--verify")
    assert ran.status == 0, ran.err
    assert leaves_of(tree) == before
    assert not os.path.lexists(folder / name)
    assert Ran(capsys, "undo").status == 0
    assert leaves_of(tree) == before
    assert os.path.lexists(folder / name)


@pytest.mark.slow
@pytest.mark.soak
def test_a_dry_run_says_what_is_done_and_ends_as_it_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int):
    choose = random.Random(seed)
    tree = random_tree(tmp_path, choose, choose.randint(2, 7))
    words = random_words(tree, choose)
    before, leaves = {path: Path(path).read_bytes() for path in tree.paths}, leaves_of(tree)
    planned = Ran(capsys, "plan", *words, "--output=json")
    dry = Ran(capsys, *words, "--dry-run", "--output=json")
    assert {path: Path(path).read_bytes() for path in tree.paths} == before
    human = Ran(capsys, *words, "--dry-run")
    done = Ran(capsys, *words, "--output=json")
    assert [ran.status for ran in (planned, dry, human)] == [done.status] * 3
    assert (planned.out, planned.err) == (dry.out, dry.err)
    assert planned.err == done.err
    if done.status == 0:
        said, did = json.loads(planned.out), json.loads(done.out)
        assert said.pop("moved") is None
        assert did.pop("moved") == did["to-move"]
        assert said.pop("cloned") is None
        assert did.pop("cloned") >= did["to-clone"]
        assert said == did
        for leaf, shown in leaves_of(tree).items():
            assert shown == leaves[leaf], leaf
        for path in tree.paths:
            if os.path.exists(path):
                assert_clean(Path(path))


def test_the_endings(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for ending, rest in (
        ("", ["base", "middle.invalid", "other", "top"]),
        ("--keep", ["base", "middle", "other", "top"]),
        ("--delete", ["base", "other", "top"]),
    ):
        folder = tmp_path / f"images{ending}"
        folder.mkdir()
        # All overlays hold much, so that nothing is gained by giving one's file to another.
        tree = plant(folder, (None, 0, 1, 1), ("AAAAAAAA", "B-------", "-CCCCCCC", "-DDDDDDD"))
        before = leaves_of(tree)
        assert Ran(capsys, "delete", tree.paths[1], *([ending] if ending else [])).status == 0
        assert leaves_of(tree) == before
        assert [name.partition("-2")[0] for name in tree.names()] == rest


@pytest.mark.parametrize("mode", ["--verify", "--verify=full"])
@pytest.mark.parametrize("ending", [[], ["--keep"], ["--delete"]])
def test_what_fails_its_proof_is_told_and_nothing_is_removed(
    tree: DiskTree, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, mode: str, ending: list[str]
):
    prove = proof.prove

    def spoil(*arguments: Any) -> None:
        qemu_io(tree.folder / "top", "write -P 9 2048 512")
        prove(*arguments)

    before, middle = leaves_of(tree), Path(tree.paths[1]).read_bytes()
    monkeypatch.setattr(proof, "prove", spoil)
    ran = Ran(capsys, "delete", "middle", mode, *ending)
    assert ran.status == UNPROVEN, ran.err
    assert f"cowtree: {tree.folder}/top: shows something else than before the merge" in ran.err
    assert len(tree.names()) >= len(NAMES)
    assert not [name for name in tree.names() if name.endswith(".cowtree-merge")]
    assert middle in [(tree.folder / name).read_bytes() for name in tree.names()]
    assert leaves_of(tree)[tree.paths[3]] == before[tree.paths[3]]


def test_a_stale_base_is_told_before_anything_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tree = large_tree(tmp_path)
    assert Ran(capsys, "verify", "--record", str(tmp_path)).status == 0
    qemu_io(tmp_path / "base", "write -P 9 0 64k")
    for words in (("plan", "flatten", tree.paths[2]), ("flatten", tree.paths[2])):
        ran = Ran(capsys, *words)
        assert ran.status == 0
        assert f"{tree.paths[1]}: base was changed after this overlay was made: {tree.paths[0]}" in ran.err


@pytest.mark.parametrize("verb", ["commit", "delete", "flatten"])
def test_after_a_merge_no_base_is_called_stale(tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str):
    tree = large_tree(tmp_path)
    assert Ran(capsys, "verify", "--record", str(tmp_path)).status == 0
    assert Ran(capsys, verb, tree.paths[1]).status in (0, REFUSED)
    found = json.loads(Ran(capsys, "verify", str(tmp_path), "--output=json").out)
    assert {each["state"] for each in found["overlays"]} <= {"unchanged", "touched"}


def test_a_large_base_takes_the_place_of_the_small_overlay_that_lies_on_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    base, top = tmp_path / "base", tmp_path / "top"
    qemu_img("create", "-q", "-f", "qcow2", base, "32M")
    qemu_io(base, "write -P 1 0 18M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", top)
    qemu_io(top, "write -P 2 17M 2M")
    shown, held = content(top), base.stat()
    ran = Ran(capsys, "delete", str(base), "--delete", "--verify", "--output=json")
    assert ran.status == 0, ran.err
    said = json.loads(ran.out)
    assert (said["to-move"], said["moved"]) == (2 * MIB, 2 * MIB)
    assert os.listdir(tmp_path) == ["top"]
    assert top.stat().st_ino == held.st_ino
    # One MiB lay in the base already; the other one is new to it, and nothing else.
    assert top.stat().st_size <= held.st_size + MIB
    assert content(top) == shown
    assert_clean(top)


def test_a_catalogue_that_cannot_be_written_is_a_warning(
    tree: DiskTree, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    (tmp_path / "file").touch()
    ran = Ran(capsys, "flatten", "top", "--catalog", str(tmp_path / "file" / "catalog.db"))
    assert ran.status == 0, ran.err
    assert "this merge is not kept for cowtree undo" in ran.err


def test_an_image_in_use_is_refused_before_anything_changes(tree: DiskTree, capsys: pytest.CaptureFixture[str]):
    holder = subprocess.Popen(
        ["qemu-io", "-f", "qcow2", str(tree.paths[2])], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        time.sleep(1)
        names = tree.names()
        ran = Ran(capsys, "flatten", "top")
        assert ran.status in (LOCKED, REFUSED)
        assert tree.paths[2] in ran.err
        assert tree.names() == names
    finally:
        holder.communicate(b"quit\n", timeout=30)


def large_tree(folder: Path) -> DiskTree:
    """Base, middle, top and other, with some MiB each."""
    paths = [folder / name for name in NAMES]
    qemu_img("create", "-q", "-f", "qcow2", paths[0], "32M")
    qemu_io(paths[0], "write -P 1 0 8M")
    for index, below, command in ((1, 0, "write -P 2 4M 6M"), (2, 1, "write -P 3 6M 7M"), (3, 1, "write -P 4 16M 3M")):
        qemu_img("create", "-q", "-f", "qcow2", "-b", NAMES[below], "-F", "qcow2", paths[index])
        qemu_io(paths[index], command)
    return DiskTree(folder, tuple(map(str, paths)), (None, 0, 1, 1))


KILLED = (
    ["commit", "middle"],
    ["commit", "top", "--with-dependants"],
    ["pull", "top", "--base", "base"],
    ["flatten", "other", "--verify"],
    ["delete", "middle", "--delete"],
    ["delete", "base"],
    ["shorten", "top", "--max-depth", "1", "--verify", "--delete"],
)


def kill_once(words: list[str], folder: Path, delay_s: float | None) -> int:
    """Begin a merge, and kill it a while after it has begun to write; without a delay let it end.
    Returns: its exit status.
    """
    process = subprocess.Popen([*COWTREE, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and delay_s is not None:
        if any(name.endswith(SUFFIX) for name in os.listdir(folder)):
            time.sleep(delay_s)
            process.kill()
            break
        time.sleep(0.002)
    return process.wait(timeout=60)


def whereabouts(tree: DiskTree, leaf: str) -> str:
    """Where what a leaf shows is found when its own name is gone: what it was committed into."""
    if os.path.exists(leaf):
        return leaf
    return next(path for path in (tree.paths[1], tree.paths[0]) if os.path.exists(path))


@pytest.mark.slow
@pytest.mark.soak
def test_a_merge_that_is_killed_at_any_moment_harms_no_leaf_and_is_completed(tmp_path: Path, seed: int):
    choose = random.Random(seed)
    tree = large_tree(tmp_path)
    before = leaves_of(tree)
    words = [str(tmp_path / word) if word in NAMES else word for word in choose.choice(KILLED)]
    for _ in range(choose.randint(1, 3)):
        # Now and then at any moment, most often early on, when all is short.
        delay_s = choose.choice([0.0, choose.uniform(0, 0.02), choose.uniform(0, 0.2)])
        status = kill_once(words, tmp_path, delay_s)
        for leaf, shown in before.items():
            assert digest(FILES, whereabouts(tree, leaf)) == shown, (words, leaf)
        if status != -signal.SIGKILL:
            break
    assert main(["cowtree", "recover", str(tmp_path)]) == 0
    for leaf, shown in before.items():
        assert digest(FILES, whereabouts(tree, leaf)) == shown, (words, leaf)
    for name in tree.names():
        assert not name.endswith((".cowtree-merge", ".cowtree-named")), name
        if name in NAMES:
            assert_clean(tmp_path / name)
