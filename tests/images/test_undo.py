"""Owns the proof that an undone merge leaves names, links and views as they were, and is refused when it could not."""

import os
import random
import shutil
from pathlib import Path

import pytest

from cowtree.catalog.store import Merge, open_catalog
from cowtree.cli.main import main
from cowtree.images.undo import find_last, undo
from cowtree.storage.contract import FileSystem
from cowtree.storage.faults import AFTER, BEFORE, Fault, FaultyFiles, Killed
from cowtree.storage.file import LocalFiles
from tests.disktrees import PICTURES, DiskTree, plant, random_tree, random_words
from tests.qemu import assert_clean, qemu_img, qemu_io

DONE, REFUSED = 0, 15


@pytest.fixture(autouse=True)
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "state" / "catalog.db"
    monkeypatch.setenv("COWTREE_CATALOG", str(path))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "images"
    path.mkdir()
    return path


def cowtree(*words: str) -> int:
    return main(["cowtree", *words])


def merges(catalog: Path) -> list[Merge]:
    with open_catalog(str(catalog), creates=False) as opened:
        return opened.merges()


def leaf_digests(tree: DiskTree) -> dict[str, str]:
    return {path: shown for path, shown in tree.digests().items() if path in tree.leaves}


@pytest.mark.slow
@pytest.mark.soak
def test_random_merges_are_undone_one_after_the_other(folder: Path, catalog: Path, seed: int):
    choose = random.Random(seed)
    tree = random_tree(folder, choose, choose.randint(2, 9))
    states = []
    for _ in range(4):
        before = (tree.shape(), leaf_digests(tree))
        words = random_words(tree, choose)
        manner = choose.choice([[], ["--keep"], ["--verify"]])
        count = len(merges(catalog))
        if os.path.exists(words[1]) and cowtree(*words, *manner) == DONE and len(merges(catalog)) > count:
            states.append((words, before))
    for words, (shape, digests) in reversed(states):
        assert cowtree("undo", "--dry-run") == DONE, words
        assert cowtree("undo") == DONE, words
        assert tree.shape() == shape, words
        assert leaf_digests(tree) == digests, words
    assert cowtree("undo") == REFUSED
    for path in tree.paths:
        assert_clean(Path(path))


# The words of a merge of the tree of `tests/disktrees`, for every way of giving names.
MERGES = {
    "swap": ["commit", "top", "--with-dependants"],
    "delete": ["delete", "middle"],
    "delete the root": ["delete", "base"],
    "flatten": ["flatten", "top"],
    "commit to the root": ["commit", "middle"],
    "shorten": ["shorten", "top", "--max-depth", "1"],
    "the top takes the name of its base": ["commit", "middle"],
    "keep": ["commit", "middle", "--keep"],
}


def words_in(folder: Path, words: list[str]) -> list[str]:
    return [str(folder / word) if word in ("base", "middle", "top", "other") else word for word in words]


@pytest.mark.slow
@pytest.mark.parametrize("name", MERGES)
def test_an_undo_that_is_killed_anywhere_is_completed_by_the_same_command(tmp_path: Path, folder: Path, name: str):
    pictures = ("A-----------", "-BBBBBBBBBB-", *PICTURES[2:]) if "takes the name" in name else PICTURES
    tree = plant(folder, pictures=pictures)
    shape, digests = tree.shape(), leaf_digests(tree)
    assert cowtree(*words_in(folder, MERGES[name])) == DONE
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)
    number = 0
    while True:
        faulty = FaultyFiles(LocalFiles(), Fault(number, moment=AFTER if number % 2 else BEFORE))
        is_killed = undo_with(faulty)
        present = leaf_digests(tree)
        assert set(present.items()) <= set(digests.items()), number
        undo_with(LocalFiles())
        assert (tree.shape(), leaf_digests(tree)) == (shape, digests), number
        if not is_killed:
            break
        shutil.rmtree(folder)
        # Inodes may change: names and content are what counts.
        shutil.copytree(kept, folder)
        number += 1
    assert number > 2 or name == "keep"


def undo_with(files: FileSystem) -> bool:
    """Undo without noting it. Returns: whether it was killed."""
    with open_catalog(creates=False) as catalog:
        last = find_last(files, catalog)
    try:
        undo(files, last)
    except Killed:
        return True
    return False


def test_an_undo_is_refused_when_a_file_is_gone(folder: Path, capsys: pytest.CaptureFixture[str]):
    plant(folder)
    assert cowtree("flatten", "--delete", str(folder / "top")) == DONE
    assert cowtree("delete", "--delete", str(folder / "middle")) == DONE
    names = sorted(os.listdir(folder))
    for words in (["--dry-run"], []):
        assert cowtree("undo", *words) == REFUSED
        assert "not all files of that merge are there any more: " in capsys.readouterr().err
    assert sorted(os.listdir(folder)) == names


def test_an_undo_is_refused_when_it_would_hide_what_a_guest_wrote(folder: Path, capsys: pytest.CaptureFixture[str]):
    tree = plant(folder, (None, 0), ("AAAA", "B---"), ("base", "top"))
    assert cowtree("commit", tree.paths[1]) == DONE
    qemu_io(folder / "base", "write -P 7 0 512")
    before = tree.digests()
    assert cowtree("undo") == REFUSED
    assert f"{folder}/base was written to since" in capsys.readouterr().err
    assert tree.digests() == before


def test_what_a_guest_wrote_and_what_stays_seen_is_kept(folder: Path):
    tree = plant(folder, (None, 0, 1), ("---A", "--B-", "CC--"), ("base", "middle", "top"))
    shape = tree.shape()
    assert cowtree("flatten", tree.paths[2]) == DONE
    qemu_io(folder / "top", "write -P 7 1024 512")
    before = tree.digests()[tree.paths[2]]
    assert cowtree("undo") == DONE
    assert tree.digests()[tree.paths[2]] == before
    assert tree.shape() == shape


def test_an_undo_is_refused_when_new_images_lie_on_what_would_go(folder: Path, capsys: pytest.CaptureFixture[str]):
    tree = plant(folder, (None, 0), ("AAAAAAAA", "B-------"), ("base", "top"))
    assert cowtree("pull", tree.paths[1]) == DONE
    path = folder / "new"
    aside = next(name for name in tree.names() if ".invalid-" in name)
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", folder / aside, "-F", "qcow2", path, "4k")
    assert cowtree("undo") == REFUSED
    assert f"{path} would show something else" in capsys.readouterr().err
    path.unlink()
    qemu_img("create", "-q", "-f", "qcow2", "-b", tree.paths[1], "-F", "qcow2", path)
    assert cowtree("undo") == DONE


def test_an_undo_is_refused_when_another_file_has_the_name(folder: Path, capsys: pytest.CaptureFixture[str]):
    tree = plant(folder, (None, 0, 1), ("AAAA", "BB--", "C---"), ("base", "middle", "top"))
    assert cowtree("delete", tree.paths[1]) == DONE
    gone = next(path for path in tree.paths if not os.path.exists(path))
    Path(gone).write_bytes(b"mine")
    assert cowtree("undo") == REFUSED
    assert f"another file has the name by now: {gone}" in capsys.readouterr().err
    assert Path(gone).read_bytes() == b"mine"
