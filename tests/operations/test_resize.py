"""Resizing disks: what was there is there still, and nobody else sees another disk."""

import pytest

from cowtree.errors import Refused, WrongUse
from cowtree.operations.resize import blockresize
from tests.lab import DISK_BYTES, Lab, Stops
from tests.qemu import assert_clean


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path / "lab")


def run(lab, size_bytes, word="vda", files=None, *, shrinks=False):
    with lab.at_work(files) as (host, found):
        blockresize(host, found, word, size_bytes, shrinks=shrinks)


def test_a_disk_grows_to_whole_sectors_and_its_snapshots_stay_as_they_are(lab):
    lab.take("one")
    before = lab.view()
    run(lab, 2 * DISK_BYTES - 100)
    found = lab.view()
    assert found.disks["vda"] == before.disks["vda"] + bytes(DISK_BYTES)
    assert found.snapshots == before.snapshots
    assert_clean(lab.folder / "disk0.one")
    assert lab.settle() == []


def test_a_disk_shrinks_only_when_that_is_meant(lab):
    before = lab.view().disks["vda"]
    with pytest.raises(Refused, match="would be lost"):
        run(lab, DISK_BYTES // 2)
    assert lab.view().disks["vda"] == before
    run(lab, DISK_BYTES // 2, shrinks=True)
    assert lab.view().disks["vda"] == before[: DISK_BYTES // 2]


def test_what_others_rely_on_and_what_is_not_there_is_refused(lab):
    lab.take("one")
    before = lab.view()
    with pytest.raises(Refused, match="is not the active image"):
        run(lab, 2 * DISK_BYTES, "vda[2]")
    with pytest.raises(WrongUse, match="disk 'vdz' not found in domain"):
        run(lab, 2 * DISK_BYTES, "vdz")
    with pytest.raises(WrongUse, match="cannot have 0 bytes"):
        run(lab, 0)
    from tests.qemu import qemu_img  # noqa: PLC0415

    qemu_img(
        *("create", "-q", "-f", "qcow2", "-b", lab.folder / "disk0.one", "-F", "qcow2", lab.folder / "sibling.qcow2")
    )
    with pytest.raises(Refused, match="relies on"):
        run(lab, 2 * DISK_BYTES)
    assert lab.view() == before


@pytest.mark.slow
def test_stopped_anywhere_the_next_command_completes_it(lab, tmp_path, monkeypatch):
    before = lab.view().disks["vda"]
    stops = Stops(lab, tmp_path / "kept", lambda files: run(lab, 2 * DISK_BYTES, files=files), monkeypatch)
    for where in stops.everywhere():
        lab.settle()
        assert lab.settle() == [], where
        assert lab.view().disks["vda"] in (before, before + bytes(DISK_BYTES)), where
        assert_clean(lab.folder / "disk0.qcow2")
