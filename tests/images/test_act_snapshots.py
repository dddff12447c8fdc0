"""Merges under overlays whose internal snapshots had larger disks than they have now."""

import shutil
from pathlib import Path

import pytest

from cowtree.images.family import permit_commit
from cowtree.images.merge import Into, commit
from cowtree.images.wish import Wish, grant, make_plan
from cowtree.storage.file import LocalFiles
from tests.qemu import content, qemu_img, qemu_io

FILES = LocalFiles()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base, a shorter image on it, and on that one that was as long as the base when its snapshot was taken."""
    make = ("create", "-q", "-f", "qcow2")
    qemu_img(*make, tmp_path / "base", "4M")
    qemu_io(tmp_path / "base", "write -P 1 0 4M")
    qemu_img(*make, "-b", "base", "-F", "qcow2", tmp_path / "middle", "1M")
    qemu_io(tmp_path / "middle", "write -P 2 0 64k")
    qemu_img(*make, "-b", "middle", "-F", "qcow2", tmp_path / "top", "4M")
    qemu_img("snapshot", "-c", "one", tmp_path / "top")
    qemu_img("resize", "-q", "--shrink", tmp_path / "top", "1M")
    return tmp_path


def snapshot_of(path: Path) -> bytes:
    """What the image shows when its snapshot is applied."""
    copy = Path(shutil.copy(path, path.with_name("copy")))
    qemu_img("snapshot", "-a", "one", copy)
    shown = content(copy)
    copy.unlink()
    return shown


def test_a_snapshot_shows_zeroes_where_it_saw_past_the_end_of_what_was_merged(folder: Path):
    shown, view = snapshot_of(folder / "top"), content(folder / "top")
    planned = make_plan(FILES, Wish("commit", str(folder / "middle"), str(folder / "base")))
    assert [(act.target, act.group) for act in planned.plan.acts] == [(0, (1, 0))]
    grant(FILES, planned, [])
    top = folder / "top"
    assert snapshot_of(top) == shown
    assert content(top) == view


def test_so_it_is_when_an_image_is_committed_and_its_overlay_named(folder: Path):
    shown = snapshot_of(folder / "top")
    paths = [str(folder / name) for name in ("base", "middle", "top")]
    commit(FILES, paths[1], into=Into(permit_commit(FILES, paths[1]), overlays=[paths[2]]))
    assert snapshot_of(folder / "top") == shown
