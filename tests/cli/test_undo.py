"""`cowtree undo` as people see it."""

import os
from pathlib import Path

import pytest

from cowtree.images.act import Act
from tests.cli.running import Ran
from tests.disktrees import DiskTree, plant

REFUSED, WRONG_USE = 15, 2


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DiskTree:
    folder = tmp_path / "images"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return plant(folder, (None, 0, 1), ("AAAAAAAA", "-B------", "--CC----"), ("base", "middle", "top"))


def test_without_a_merge_there_is_nothing_to_undo(capsys: pytest.CaptureFixture[str], catalog: Path):
    ran = Ran(capsys, "undo")
    assert (ran.status, ran.out, ran.err) == (REFUSED, "", "cowtree: there is no merge that could be undone\n")
    assert not catalog.exists()


def test_what_will_be_done_is_said_and_done(tree: DiskTree, capsys: pytest.CaptureFixture[str]):
    shape, shown = tree.shape(), tree.digests()[tree.paths[2]]
    assert Ran(capsys, "commit", "middle").status == 0
    merged = tree.shape()
    (aside,) = (name for name in tree.names() if ".invalid-" in name)
    dry = Ran(capsys, "undo", "--dry-run")
    assert tree.shape() == merged
    assert dry.status == 0
    assert dry.out.splitlines() == [
        f"undo: cowtree commit {tree.paths[1]}",
        f"rename {tree.folder}/{aside} to {tree.paths[1]}",
        f"link {tree.paths[2]} to {tree.paths[1]}",
    ]
    ran = Ran(capsys, "undo")
    assert (ran.status, ran.out) == (0, f"{dry.out}undone; every leaf shows what it showed\n")
    assert tree.shape() == shape
    assert tree.digests()[tree.paths[2]] == shown
    assert Ran(capsys, "undo").status == REFUSED


def test_a_merge_that_failed_its_proof_can_be_undone(tree: DiskTree, capsys: pytest.CaptureFixture[str]):
    shape, shown = tree.shape(), tree.digests()[tree.paths[2]]
    leave = Act.leave

    def spoil(act: Act) -> None:
        path = Path(act.name_path)
        path.write_bytes(path.read_bytes().replace(b"C" * 512, b"x" * 512))
        leave(act)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Act, "leave", spoil)
        assert Ran(capsys, "commit", "top", "--base", "base", "--verify", "--delete").status == 22
    assert Ran(capsys, "undo").status == 0
    assert tree.shape() == shape
    assert tree.digests()[tree.paths[2]] == shown


def test_a_merge_that_is_not_done_has_to_be_completed_first(tree: DiskTree, capsys: pytest.CaptureFixture[str]):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    assert Ran(capsys, "flatten", "top").status == 0
    assert Ran(capsys, "undo").status == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Act, "leave", stop)
        assert Ran(capsys, "commit", "middle").status == 130
    ran = Ran(capsys, "undo")
    assert ran.status == REFUSED
    assert f"cowtree commit {tree.paths[1]} was begun and is not done. Try: cowtree recover " in ran.err
    assert Ran(capsys, "recover", ".").status == 0
    assert Ran(capsys, "undo").status == 0


def test_bad_words_are_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    ran = Ran(capsys, "undo", "top")
    assert (ran.status, ran.err.count("\n")) == (WRONG_USE, 1)
    path = tmp_path / "no-catalogue"
    path.write_bytes(b"something else")
    assert Ran(capsys, "undo", "--catalog", str(path)).status == 19
    assert os.path.getsize(path) == 14
