"""Copying disks: the copy shows what the disk shows, and a run that is stopped leaves all or nothing."""

from pathlib import Path

import pytest

from cowtree.catalog import snapshots
from cowtree.errors import Refused, WrongUse
from cowtree.operations import copy
from cowtree.operations.copy import Copy
from cowtree.storage.file import LocalFiles
from tests.crash import guest_view
from tests.lab import Lab, Stops, chain_names
from tests.qemu import assert_clean, qemu_img, qemu_io


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path / "lab")
    lab.take("one")
    lab.write("vda", {65536: b"later"})
    return lab


def run(lab, wanted, files=None):
    with lab.at_work(files) as (host, found):
        return copy.blockcopy(host, found, wanted)


def shown(path, image_format="qcow2"):
    return guest_view(LocalFiles(), str(path), image_format)


def chain_of(path):
    return [Path(each).name for each in chain_names(str(path))]


def made(lab, name):
    """Whether a file is known to be ours."""
    with lab.host() as host:
        return snapshots.made(host.catalog, str(lab.folder / name)) is not None


def test_a_copy_stands_alone_and_the_guest_stays_where_it_is(lab):
    before, sources = lab.view(), lab.sources()
    run(lab, Copy("vda", str(lab.folder / "copy.qcow2")))
    assert shown(lab.folder / "copy.qcow2") == before.disks["vda"]
    assert chain_of(lab.folder / "copy.qcow2") == ["copy.qcow2"]
    assert_clean(lab.folder / "copy.qcow2")
    run(lab, Copy("vda", str(lab.folder / "copy.raw"), "raw"))
    assert shown(lab.folder / "copy.raw", "raw") == before.disks["vda"]
    assert (lab.view(), lab.sources()) == (before, sources)
    assert not made(lab, "copy.qcow2")


def test_a_shallow_copy_lies_on_the_same_base_and_may_become_active(lab):
    before = lab.view()
    run(lab, Copy("vda", str(lab.folder / "copy.qcow2"), is_shallow=True, pivots=True))
    assert chain_of(lab.sources()["vda"]) == ["copy.qcow2", "disk0.qcow2"]
    assert lab.view() == before
    assert made(lab, "copy.qcow2")
    assert lab.settle() == []


def test_a_file_is_written_over_only_when_that_is_said_and_it_fits(lab):
    there, sources = lab.folder / "there.qcow2", lab.sources()
    qemu_img("create", "-q", "-f", "qcow2", there, "256k")
    qemu_io(there, "write -P 9 0 256k")
    content = there.read_bytes()
    with pytest.raises(Refused, match="already exists and is not a block device"):
        run(lab, Copy("vda", str(there)))
    with pytest.raises(Refused, match="lies on nothing, not on"):
        run(lab, Copy("vda", str(there), is_shallow=True, reuses=True))
    assert there.read_bytes() == content
    with pytest.raises(Refused, match="missing destination file"):
        run(lab, Copy("vda", str(lab.folder / "absent"), reuses=True))
    with pytest.raises(Refused, match="No such file or directory"):
        run(lab, Copy("vda", str(lab.folder / "absent" / "copy")))
    with pytest.raises(Refused, match="an image of disk vda itself"):
        run(lab, Copy("vda", str(lab.folder / "disk0.qcow2"), reuses=True))
    with pytest.raises(WrongUse, match="disk 'vdz' not found in domain"):
        run(lab, Copy("vdz", str(lab.folder / "absent")))
    run(lab, Copy("vda", str(there), reuses=True))
    assert shown(there) == lab.view().disks["vda"]
    assert lab.sources() == sources
    assert lab.settle() == []


@pytest.mark.slow
@pytest.mark.parametrize("pivots", [False, True])
def test_stopped_anywhere_it_is_whole_or_not_there(lab, tmp_path, monkeypatch, pivots):
    before, target = lab.view(), lab.folder / "copy.qcow2"
    wanted = Copy("vda", str(target), pivots=pivots)
    stops = Stops(lab, tmp_path / "kept", lambda files: run(lab, wanted, files=files), monkeypatch)
    for where in stops.everywhere():
        lab.settle()
        assert lab.settle() == [], where
        assert lab.view() == before, where
        if target.exists():
            assert shown(target) == before.disks["vda"], where
        active = target if pivots and target.exists() else lab.folder / "disk0.one"
        assert lab.sources() == {"vda": str(active)}, where
        assert lab.names() == {"disk0.qcow2", "disk0.one", *(["copy.qcow2"] if target.exists() else [])}, where
