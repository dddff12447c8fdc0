"""New files: there is never a part of one under its final name."""

import os
import stat
from pathlib import Path

import pytest

from cowtree.chain import gate
from cowtree.errors import ImageLocked, MissingImage, Refused, StorageFailed
from cowtree.images.create import create, kept_mode, new_file, temporary_name
from cowtree.plan.create import NewImage
from cowtree.storage.contract import Access
from cowtree.storage.file import LocalFiles
from cowtree.storage.memory import MemoryFiles
from tests.crash import Trial, assert_sound, guest_view, stop_everywhere
from tests.qemu import assert_clean

NEW = NewImage("new", "qcow2", 1 << 16, cluster_bits=9)
KINDS = {
    "empty": NEW,
    "preallocated": NEW._replace(preallocation="metadata"),
    "falloc": NEW._replace(preallocation="falloc"),
    "full": NEW._replace(preallocation="full"),
    "overlay": NEW._replace(backing_file="base", backing_format="raw"),
    "data file": NEW._replace(data_file="data", preallocation="metadata"),
    "raw": NewImage("new", "raw", 1 << 16, preallocation="full"),
}
BASE = b"base" * (1 << 14)


def is_whole(files: MemoryFiles, new: NewImage) -> bool:
    """Whether the new image is there; fails when it is there in part."""
    layer = gate.open_layer(files, "new")
    layer.close()
    if layer.format != new.format or layer.size_bytes != new.size_bytes:
        return False
    if new.format == "qcow2":
        assert_sound(files, "new", is_done=True)
    assert guest_view(files, "new") == (BASE if new.backing_file else bytes(1 << 16))
    return True


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("old", [None, b"an old image"], ids=["new", "replaced"])
def test_a_stop_anywhere_leaves_the_old_file_or_the_new_one(kind: str, old: bytes | None):
    new = KINDS[kind]
    initial = {"base": BASE} | ({"new": old} if old else {})

    def check(files: MemoryFiles, is_done: bool) -> None:
        names = files.snapshot()
        assert names["base"] == BASE
        if is_done:
            assert set(names) == {"base", "new"} | ({"data"} if new.data_file else set())
        if is_done or names.get("new", old) != old:
            assert is_whole(files, new)

    stop_everywhere(Trial(initial, lambda files: create(files, new), check))


def test_a_failure_leaves_nothing_behind(tmp_path: Path):
    with pytest.raises(StorageFailed), new_file(LocalFiles(), str(tmp_path / "new"), 0o600) as file:
        file.pwrite(-1, b"x")
    assert os.listdir(tmp_path) == []


def test_a_leftover_is_taken_over(tmp_path: Path):
    path = str(tmp_path / "new")
    Path(temporary_name(path)).write_bytes(b"left by a run that was killed" * 10000)
    create(LocalFiles(), NEW._replace(path=path))
    assert os.listdir(tmp_path) == ["new"]
    assert_clean(tmp_path / "new")


def test_permissions_are_exactly_those_that_were_asked_for(tmp_path: Path):
    before = os.umask(0o077)
    try:
        for mode in (0o600, 0o644, 0o666):
            create(LocalFiles(), NEW._replace(path=str(tmp_path / "new")), mode)
            assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == mode
            assert kept_mode(str(tmp_path / "new")) == mode
        assert kept_mode(str(tmp_path / "other")) == 0o600
    finally:
        os.umask(before)


@pytest.mark.parametrize("access", [Access.READ, Access.WRITE])
def test_a_file_in_use_is_not_replaced(access: str):
    files = MemoryFiles({"new": b"old"})
    holder = files.open("new", access)
    with pytest.raises(ImageLocked):
        create(files, NEW)
    holder.close()
    assert files.snapshot() == {"new": b"old"}


def test_two_do_not_make_the_same_file_at_once(tmp_path: Path):
    files, path = LocalFiles(), str(tmp_path / "new")
    with new_file(files, path, 0o600), pytest.raises(ImageLocked):
        create(files, NEW._replace(path=path))
    assert (tmp_path / "new").read_bytes() == b""


def test_a_replaced_file_is_held_until_the_end(tmp_path: Path):
    files, path = LocalFiles(), str(tmp_path / "new")
    (tmp_path / "new").touch()
    with new_file(files, path, 0o600), pytest.raises(ImageLocked):
        files.open(path, Access.READ)
    files.open(path, Access.READ).close()


def test_only_files_are_replaced(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in (tmp_path / "folder", tmp_path / "pipe", Path("/dev/null")):
        before = name.stat().st_mode
        with pytest.raises((MissingImage, Refused)):
            create(LocalFiles(), NEW._replace(path=str(name)))
        assert name.stat().st_mode == before
    with pytest.raises(StorageFailed):
        create(LocalFiles(), NEW._replace(path=str(tmp_path / "nowhere/new")))
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe"]


def test_a_link_is_followed(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to("sub/disk")
    create(LocalFiles(), NEW._replace(path=str(tmp_path / "link")))
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "sub") == ["disk"]


def test_the_longest_name_is_not_too_long(tmp_path: Path):
    for name in ("n" * 255, "ü" * 127):
        create(LocalFiles(), NEW._replace(path=str(tmp_path / name)))
        assert os.listdir(tmp_path) == [name]
        (tmp_path / name).unlink()
