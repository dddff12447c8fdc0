"""Taking snapshots: all disks or none, whatever happens; and what is refused."""

import os
from pathlib import Path

import pytest

from cowtree.catalog import snapshots
from cowtree.domain.moment import DiskRequest
from cowtree.errors import ImageLocked, Refused, WrongUse
from cowtree.images import snapshot as inside
from cowtree.storage.contract import Access
from cowtree.storage.file import LocalFiles
from tests.crash import snapshot_views, write_more
from tests.lab import Lab, Stops
from tests.qemu import qemu_img


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path / "lab", disk_count=3)


def test_an_external_snapshot_freezes_every_disk_and_goes_on_in_an_overlay(lab):
    before = lab.view().disks
    lab.take("first")
    assert [Path(path).name for path in lab.sources().values()] == ["disk0.first", "disk1.first", "disk2.first"]
    lab.write("vda", {0: b"later"})
    now = lab.view()
    assert now.snapshots == {"first": before}
    assert now.disks["vda"][:5] == b"later"
    for path in lab.sources().values():
        qemu_img("check", "-q", path)


def test_an_internal_snapshot_lies_in_every_disk(lab):
    lab.take("inner", is_disk_only=False)
    with lab.host() as host:
        held = snapshots.disks(host.catalog, 1)
    assert [(each.mode, each.internal_id) for each in held] == [("internal", "1")] * 3
    assert all("inner" in snapshot_views(LocalFiles(), path) for path in lab.sources().values())


def test_disks_may_take_part_differently(lab):
    chosen = DiskRequest("vda", "internal"), DiskRequest("vdb", "no"), DiskRequest("vdc", None, str(lab.folder / "new"))
    lab.take("mixed", *chosen)
    assert [Path(path).name for path in lab.sources().values()] == ["disk0.qcow2", "disk1.qcow2", "new"]


def test_what_is_there_is_never_replaced(lab):
    (lab.folder / "disk1.first").write_text("mine")
    with pytest.raises(Refused, match="already exists and is not a block device"):
        lab.take("first")
    assert (lab.folder / "disk1.first").read_text() == "mine"
    assert "disk0.first" not in lab.names()


@pytest.mark.parametrize(
    ("disks", "text"),
    [
        ([DiskRequest("vdz")], "no disk named 'vdz'"),
        ([DiskRequest("vda"), DiskRequest("vda")], "specified twice"),
        ([DiskRequest(f"vd{each}", "no") for each in "abc"], "no disk"),
    ],
)
def test_what_makes_no_sense_is_refused(lab, disks, text):
    with pytest.raises((Refused, WrongUse), match=text):
        lab.take("first", *disks)
    assert lab.names() == {"disk0.qcow2", "disk1.qcow2", "disk2.qcow2"}


def test_a_name_is_taken_once(lab):
    lab.take("first")
    with pytest.raises(Refused, match="domain moment first already exists"):
        lab.take("first")


def test_a_disk_that_somebody_writes_to_is_refused(lab):
    held = LocalFiles().open(lab.sources()["vdb"], Access.WRITE)
    try:
        with pytest.raises(ImageLocked):
            lab.take("first")
    finally:
        held.close()
    assert lab.names() == {"disk0.qcow2", "disk1.qcow2", "disk2.qcow2"}


def test_a_file_that_lies_on_something_else_is_not_reused(lab):
    wrong = str(lab.folder / "wrong.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-b", lab.sources()["vdb"], "-F", "qcow2", wrong)
    with pytest.raises(Refused, match=r"lies on .*disk1.qcow2, not on .*disk0.qcow2"):
        lab.take("first", DiskRequest("vda", None, wrong), is_disk_only=True, reuses_external=True)


def test_an_internal_snapshot_that_nobody_knows_of_is_not_touched(lab):
    inside.create(LocalFiles(), lab.sources()["vdc"], name="first")
    with pytest.raises(Refused, match="cowtree knows nothing of"):
        lab.take("first", is_disk_only=False)
    assert "first" in snapshot_views(LocalFiles(), lab.sources()["vdc"])


@pytest.mark.slow
@pytest.mark.parametrize("is_disk_only", [True, False], ids=["external", "internal"])
def test_a_snapshot_that_is_killed_anywhere_is_there_whole_or_not_at_all(lab, tmp_path, monkeypatch, is_disk_only):
    before, names = lab.view().disks, lab.names()
    for where in Stops(
        lab, tmp_path / "kept", lambda files: lab.take("first", files=files, is_disk_only=is_disk_only), monkeypatch
    ).everywhere():
        told = lab.settle()
        now = lab.view()
        assert now.disks == before, where
        if "first" in now.snapshots:
            assert len(now.snapshots["first"]) == 3 * is_disk_only, where
            assert not told, where
        else:
            assert lab.names() == names, where
            assert not any("first" in snapshot_views(LocalFiles(), path) for path in lab.sources().values()), where
            lab.take("first", is_disk_only=is_disk_only)
        assert lab.needed() == lab.names(), where
        assert lab.settle() == [], where


def test_a_half_made_snapshot_that_was_written_to_is_kept_and_explained(lab, tmp_path, monkeypatch):
    stops = Stops(lab, tmp_path / "kept", lambda files: lab.take("first", files=files), monkeypatch)
    where = next(where for where in stops.everywhere() if "disk2.first" in where)
    made = str(lab.folder / "disk0.first")
    assert os.path.exists(made), where
    write_more(LocalFiles(), made, {0: b"somebody's"})
    assert "somebody has written to it" in "".join(lab.settle())
    with pytest.raises(Refused, match="somebody has written to it"):
        lab.take("second")
    assert os.path.exists(made)
