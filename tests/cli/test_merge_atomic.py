"""The merge verbs with --atomic on real files: killed at any moment, completed, proven, and undone."""

import os
import random
import shutil
import signal
from pathlib import Path

import pytest

from cowtree.cli.main import main
from cowtree.errors import MissingImage
from cowtree.images.digest import digest
from tests.cli.running import Ran
from tests.cli.test_merge import kill_once, large_tree, leaves_of, whereabouts
from tests.disktrees import FILES, NAMES, DiskTree, plant
from tests.qemu import assert_clean, qemu_img

REFUSED = 15
ATOMIC = ["--atomic", "--verify=full"]
VERBS = (
    ["commit", "middle"],
    ["commit", "top", "--with-dependants"],
    ["pull", "top", "--base", "base"],
    ["flatten", "other"],
    ["delete", "middle"],
    ["delete", "base"],
    ["shorten", "top", "--max-depth", "1"],
)


def words_in(folder: Path, words: list[str]) -> list[str]:
    return [str(folder / word) if word in NAMES else word for word in words] + ATOMIC


def assert_sound(tree: DiskTree) -> None:
    """Fail unless each image that is there is sound for stock, and nothing is left of a merge."""
    for name in tree.names():
        assert not name.endswith((".cowtree-merge", ".cowtree-named")), name
        if name in NAMES:
            assert_clean(tree.folder / name)


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_every_verb_keeps_what_leaves_show_and_is_undone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
):
    tree = plant(tmp_path)
    shape, before = tree.shape(), leaves_of(tree)
    ran = Ran(capsys, *words_in(tmp_path, words))
    assert ran.status == 0, ran.err
    for leaf, shown in before.items():
        assert digest(FILES, whereabouts(tree, leaf)) == shown, leaf
    assert_sound(tree)
    ran = Ran(capsys, "undo")
    assert ran.status == 0, ran.err
    assert (tree.shape(), leaves_of(tree)) == (shape, before)
    assert_sound(tree)


def views_after(tree: DiskTree, folder: Path, words: list[str]) -> dict[str, str]:
    """What each name shows when the merge is done, from a copy of the tree."""
    shutil.copytree(tree.folder, folder)
    assert main(["cowtree", *words_in(folder, words)]) == 0
    return {name: digest(FILES, str(folder / name)) for name in NAMES if (folder / name).exists()}


@pytest.mark.slow
@pytest.mark.soak
def test_every_image_shows_its_old_or_its_new_content_whenever_a_merge_is_killed(tmp_path: Path, seed: int):
    choose = random.Random(seed)
    folder, words = tmp_path / "images", VERBS[seed % len(VERBS)]
    folder.mkdir()
    tree = large_tree(folder)
    shape, old, before = tree.shape(), tree.digests(), leaves_of(tree)
    new = views_after(tree, tmp_path / "ended", words)
    for _ in range(choose.randint(1, 3)):
        delay_s = choose.choice([0.0, choose.uniform(0, 0.02), choose.uniform(0, 0.2)])
        status = kill_once(words_in(folder, words), folder, delay_s)
        for path, shown in tree.digests().items():
            assert shown in (old[path], new.get(os.path.basename(path))), (words, path)
        for leaf, shown in before.items():
            assert digest(FILES, whereabouts(tree, leaf)) == shown, (words, leaf)
        if status != -signal.SIGKILL:
            # It may have been killed when all was done: then what it is about is gone.
            is_gone = not (folder / words[1]).exists()
            assert status == (MissingImage.exit_status if is_gone and status else 0), words
            break
    assert main(["cowtree", "recover", str(folder)]) == 0
    ended = {os.path.basename(path): shown for path, shown in tree.digests().items()}
    assert ended == new, words
    assert_sound(tree)
    assert main(["cowtree", "undo"]) == 0
    assert (tree.shape(), leaves_of(tree)) == (shape, before), words
    assert_sound(tree)


def test_a_data_file_is_refused_with_a_way_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    # Into neither of them may be merged; else the other would be taken.
    for name in ("base", "top"):
        qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path / name}.data", tmp_path / name, "1M")
    qemu_img("rebase", "-u", "-f", "qcow2", "-b", "base", "-F", "qcow2", tmp_path / "top")
    names = sorted(os.listdir(tmp_path))
    for dry in (["--dry-run"], []):
        ran = Ran(capsys, "flatten", str(tmp_path / "top"), "--atomic", *dry)
        assert (ran.status, ran.out) == (REFUSED, ""), ran.out
        assert "has an external data file, and what lies in that cannot change in one step" in ran.err
        assert ran.err.endswith("Try: the same without --atomic\n")
    assert sorted(os.listdir(tmp_path)) == names
    assert Ran(capsys, "flatten", str(tmp_path / "top")).status == 0
