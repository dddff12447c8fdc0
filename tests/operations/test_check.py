"""The catalogue held against the disk: silence where they agree, one sentence for each difference, and no change."""

import shutil
from pathlib import Path

import pytest

from cowtree.catalog import domains, intents, snapshots
from cowtree.images import snapshot as inside
from cowtree.operations.check import check
from cowtree.operations.domains import adopt
from cowtree.storage.file import LocalFiles
from tests.crash import write_more
from tests.lab import NAME, Lab
from tests.qemu import qemu_img


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path / "lab", disk_count=2)
    lab.take("first")
    lab.take("inner", is_disk_only=False)
    return lab


def found(lab, name=None):
    with lab.host() as host:
        findings = check(host, name)
    return [each.sentence.replace(f"{lab.folder}/", "") for each in findings.differences]


def test_after_our_own_verbs_there_is_no_difference(lab):
    assert found(lab) == []
    lab.write("vda", {0: b"later"})
    lab.take("second")
    lab.revert("first")
    lab.write("vda", {0: b"branch"})
    assert found(lab) == []
    lab.revert("second", discards=True)
    lab.revert("inner")
    assert found(lab) == []
    assert found(lab, NAME) == []


def test_a_frozen_file_that_was_written_to_is_told_for_disk_and_snapshot(lab):
    write_more(LocalFiles(), str(lab.folder / "disk0.qcow2"), {0: b"changed"})
    assert found(lab) == [
        "disk vda: disk0.qcow2 was written to, although disk0.first lies on it and relies on it",
        "snapshot 'first', disk vda: disk0.qcow2 was written to since the snapshot of disk vda was taken",
    ]


def test_files_that_are_gone_are_told_once_for_each_who_misses_them(lab):
    (lab.folder / "disk0.qcow2").unlink()
    (lab.folder / "disk1.first").unlink()
    told = found(lab)
    assert "snapshot 'first', disk vda: disk0.qcow2 is gone, which holds it" in told
    assert "snapshot 'first', disk vdb: disk1.first is gone, which was made with it" in told
    assert "snapshot 'inner', disk vdb: disk1.first is gone, which holds it" in told
    assert "disk1.first is gone, which cowtree made" in told
    assert sum(each.startswith("disk vda: its chain cannot be read any more") for each in told) == 1
    assert sum(each.startswith("disk vdb: its chain cannot be read any more") for each in told) == 1
    assert len(told) == 6


def test_internal_snapshots_that_went_and_came_are_told(lab):
    qemu_img("snapshot", "-d", "inner", lab.folder / "disk0.first")
    inside.create(LocalFiles(), str(lab.folder / "disk1.first"), name="strange")
    assert found(lab) == [
        "snapshot 'inner', disk vda: disk0.first has no such internal snapshot any more",
        "disk1.first has an internal snapshot 'strange' of which the catalogue knows nothing",
    ]


def test_a_stranger_on_our_files_is_told_and_another_domain_is_none(lab):
    qemu_img("create", "-q", "-f", "qcow2", "-b", lab.folder / "disk0.qcow2", "-F", "qcow2", lab.folder / "clone")
    assert found(lab) == ["clone lies on disk0.qcow2, and belongs to nobody"]
    with lab.host() as host:
        adopt(host, "other", [str(lab.folder / "clone")])
    assert found(lab) == []


def test_a_file_of_ours_that_was_replaced_is_told(lab):
    shutil.copy(lab.folder / "disk0.first", lab.folder / "copy")
    (lab.folder / "copy").rename(lab.folder / "disk0.first")
    assert found(lab) == [
        "disk vda: disk0.first was replaced by another file of the same name",
        "disk0.first is another file than the one that cowtree made",
    ]


def test_an_open_intent_is_told_and_not_settled(lab):
    with lab.host() as host:
        domain = domains.find(host.catalog, NAME)
        intents.begin(host.catalog, domain, "remove", {"paths": []})
        state = list(host.catalog.read("SELECT * FROM intent"))
    (told,) = found(lab)
    assert told.startswith("remove was begun on ")
    with lab.host() as host:
        assert host.catalog.read("SELECT * FROM intent") == state


def test_a_definition_that_cannot_be_read_is_told(lab):
    with lab.host() as host:
        host.catalog.change("UPDATE domain SET xml = '<domain/>'")
    (told,) = found(lab)
    assert told.startswith("its definition cannot be read: ")


def test_what_is_known_to_be_lost_is_counted_apart(lab):
    with lab.host() as host:
        number = next(row.id for row in snapshots.rows(host.catalog, domains.find(host.catalog, NAME)))
        held = snapshots.disks(host.catalog, number)
        snapshots.replace_disks(host.catalog, number, [each._replace(lost="merged away") for each in held])
        findings = check(host)
    assert findings.differences == ()
    assert [each.sentence for each in findings.lost] == [
        f"snapshot 'first', disk {target}: merged away" for target in ("vda", "vdb")
    ]


def test_a_disk_that_was_redefined_is_looked_at_as_it_is(lab):
    with lab.host() as host:
        domain = domains.find(host.catalog, NAME)
        text = domain.xml.replace("disk0.first", "elsewhere")
        domains.redefine(host.catalog, domain, text)
    (told,) = (each for each in found(lab) if "vda" in each)
    assert told.startswith("disk vda: its chain cannot be read: ")
    assert Path(lab.folder / "disk0.first").exists()
