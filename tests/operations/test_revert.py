"""Reverting: to external snapshots, to internal ones, and between branches for ever."""

from pathlib import Path

import pytest

from cowtree.catalog import domains, snapshots
from cowtree.errors import MissingImage, Refused
from cowtree.storage.file import LocalFiles
from tests.crash import guest_view, snapshot_views
from tests.lab import Lab, Stops, chain_names
from tests.qemu import assert_clean, qemu_img


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path / "lab", disk_count=2)


def names_of(lab):
    with lab.host() as host:
        domain = domains.find(host.catalog, "guest")
        rows = snapshots.rows(host.catalog, domain)
        names = {row.id: row.name for row in rows}
        return {row.name: names.get(row.parent or 0) for row in rows}, names.get(domain.current or 0)


def test_an_external_snapshot_stays_as_it_is_and_an_overlay_on_it_becomes_active(lab):
    lab.write("vda", {0: b"first"})
    before = lab.view().disks
    lab.take("first")
    lab.write("vda", {0: b"later"})
    lab.revert("first")
    assert lab.view().disks == before
    assert [Path(each).name for each in chain_names(lab.sources()["vda"])] == ["disk0.first-1", "disk0.qcow2"]
    for path in lab.sources().values():
        assert_clean(Path(path))


def test_what_was_active_stays_as_a_tip_and_can_be_gone_back_to(lab):
    lab.take("first")
    lab.write("vda", {0: b"later"})
    later, files = lab.view().disks, lab.sources()
    lab.revert("first")
    assert lab.told == ["what was active is kept as snapshot 'first-tip'"]
    assert names_of(lab) == ({"first": None, "first-tip": "first"}, "first")
    lab.revert("first-tip")
    assert lab.view().disks == later
    assert lab.sources() == files
    assert names_of(lab) == ({"first": None}, "first")


def test_reverting_back_and_forth_leaves_no_more_than_the_branches(lab):
    lab.take("first")
    lab.write("vda", {0: b"one"})
    lab.revert("first")
    lab.write("vda", {0: b"two"})
    names = None
    for _ in range(6):
        lab.revert("first-tip")
        assert lab.view().disks["vda"][:3] == b"one"
        (other,) = (name for name in names_of(lab)[0] if name.startswith("first-tip"))
        lab.revert(other)
        assert lab.view().disks["vda"][:3] == b"two"
        assert names in (None, lab.names())
        names = lab.names()


def test_what_nobody_has_written_to_is_not_kept(lab):
    lab.take("first")
    lab.take("second")
    lab.revert("first")
    assert names_of(lab)[0] == {"first": None, "second": "first"}
    assert lab.names() == {"disk0.qcow2", "disk1.qcow2", "disk0.first", "disk1.first", "disk0.first-1", "disk1.first-1"}
    files = lab.sources()
    lab.revert("first")
    assert lab.sources() == files


def test_discarding_drops_what_nobody_else_needs(lab):
    lab.take("first")
    lab.write("vda", {0: b"later"})
    lab.revert("first", discards=True)
    assert lab.names() == {"disk0.qcow2", "disk1.qcow2", "disk0.first-1", "disk1.first-1"}


def test_discarding_spares_what_others_lie_on(lab):
    lab.take("first")
    lab.write("vda", {0: b"later"})
    mine = lab.folder / "mine.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", lab.sources()["vda"], "-F", "qcow2", mine)
    shown = guest_view(LocalFiles(), str(mine))
    lab.revert("first", discards=True)
    assert guest_view(LocalFiles(), str(mine)) == shown


def test_an_internal_snapshot_is_applied_in_its_file(lab):
    before, files = lab.view().disks, lab.sources()
    lab.take("inner", is_disk_only=False)
    lab.write("vda", {0: b"later"})
    lab.revert("inner")
    assert lab.view().disks == before
    assert lab.sources() == files


def test_an_internal_snapshot_in_a_file_that_others_rely_on_is_copied_out(lab):
    before = lab.view().disks
    lab.take("inner", is_disk_only=False)
    lab.write("vda", {0: b"later"})
    lab.take("outer")
    frozen = lab.view().snapshots["outer"]
    lab.write("vda", {512: b"latest"})
    active = lab.view().disks
    lab.revert("inner")
    assert lab.view().disks == before
    assert lab.view().snapshots["outer"] == frozen
    assert lab.view().snapshots["outer-tip"] == active
    assert snapshot_views(LocalFiles(), str(lab.folder / "disk0.qcow2"))["inner"] == before["vda"]
    for path in lab.sources().values():
        assert_clean(Path(path))


def test_the_definition_is_that_of_the_moment(lab):
    lab.take("first")
    with lab.at_work() as (host, found):
        domains.redefine(host.catalog, found.domain, found.definition.text.replace("<vcpu>1<", "<vcpu>4<"))
    lab.revert("first")
    with lab.host() as host:
        assert "<vcpu>1<" in domains.find(host.catalog, "guest").xml


def test_what_is_gone_is_not_guessed(lab):
    lab.take("first")
    (lab.folder / "disk1.qcow2").rename(lab.folder / "away.qcow2")
    with pytest.raises(MissingImage, match="holds disk vdb in it"):
        lab.revert("first")
    with lab.host() as host:
        (held, other) = snapshots.disks(host.catalog, 1)
        snapshots.replace_disks(host.catalog, 1, [held._replace(lost="merged away"), other])
    with pytest.raises(Refused, match="what it held of disk vda is gone: merged away"):
        lab.revert("first")


@pytest.mark.slow
@pytest.mark.parametrize("to", ["first", "first-tip", "inner", "copied"])
def test_reverting_that_is_killed_anywhere_is_done_or_not(tmp_path, monkeypatch, to):
    lab = Lab(tmp_path / "lab", disk_count=3)
    begin = {"first": start_first, "first-tip": start_tip, "inner": start_inner, "copied": start_copied}[to]
    name = begin(lab)
    before = lab.view()
    lab.copy(tmp_path / "start")
    lab.revert(name)
    after, needed = lab.view(), lab.needed()
    lab.restore(tmp_path / "start")
    for where in Stops(lab, tmp_path / "kept", lambda files: lab.revert(name, files=files), monkeypatch).everywhere():
        lab.settle()
        now = lab.view()
        assert now in (before, after), where
        assert lab.names() == lab.needed(), where
        if now == before != after:
            lab.revert(name)
            assert lab.view() == after, where
            assert lab.names() == needed, where
        assert lab.settle() == [], where


def start_first(lab):
    lab.take("first")
    lab.write("vda", {0: b"later"})
    return "first"


def start_tip(lab):
    start_first(lab)
    lab.revert("first")
    lab.write("vdb", {0: b"other"})
    return "first-tip"


def start_inner(lab):
    lab.take("inner", is_disk_only=False)
    lab.write("vda", {0: b"later"})
    return "inner"


def start_copied(lab):
    start_inner(lab)
    lab.take("outer")
    lab.write("vdb", {0: b"latest"})
    return "inner"
