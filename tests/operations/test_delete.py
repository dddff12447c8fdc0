"""Deleting snapshots: whatever else is there shows what it showed, and no file is there without a reason."""

from pathlib import Path

import pytest

from cowtree.catalog import domains, intents, snapshots
from cowtree.chain.view import open_chain
from cowtree.domain.moment import DiskRequest
from cowtree.errors import Refused
from cowtree.images import lineage
from cowtree.operations import delete
from cowtree.storage.file import LocalFiles
from tests.crash import guest_view
from tests.lab import NAME, Lab, Stops, chain_names
from tests.qemu import assert_clean, qemu_img


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path / "lab", disk_count=2)


def delete_one(lab, name, method=None, files=None, **how):
    with lab.at_work(files) as (host, found):
        snapshot = snapshots.find(host.catalog, found.domain, name)
        delete.delete(host, found, delete.chosen(host, found, snapshot, **how), method)


def take_three(lab):
    """Three snapshots of both disks, each with content of its own."""
    for number, name in enumerate(("one", "two", "three")):
        lab.take(name)
        lab.write("vda", {number * 4096: name.encode()})
        lab.write("vdb", {number * 4096: name.upper().encode()})


def tree_of(lab):
    with lab.host() as host:
        domain = domains.find(host.catalog, NAME)
        rows = snapshots.rows(host.catalog, domain)
        names = {row.id: row.name for row in rows}
        return {row.name: names.get(row.parent or 0) for row in rows}, names.get(domain.current or 0)


def without(view, *names):
    return view.disks, {name: shown for name, shown in view.snapshots.items() if name not in names}


def chain_of(lab, target="vda"):
    return [Path(each).name for each in chain_names(lab.sources()[target])]


def assert_sound(lab):
    assert lab.names() == lab.needed()
    for name in lab.names():
        assert_clean(lab.folder / name)
    with lab.host() as host:
        assert intents.found(host.catalog, domains.find(host.catalog, NAME)) == []


@pytest.mark.parametrize("name", ["one", "two", "three"])
@pytest.mark.parametrize("method", [None, "commit", "pull"])
def test_without_one_snapshot_all_else_shows_what_it_showed(lab, name, method):
    take_three(lab)
    before = lab.view()
    delete_one(lab, name, method)
    assert (*without(lab.view()),) == without(before, name)
    assert name not in tree_of(lab)[0]
    assert len(chain_of(lab)) == 3
    if (name, method) == ("one", "pull"):
        # What the user has made stays, though nothing lies on it any more.
        assert lab.names() - lab.needed() == {"disk0.qcow2", "disk1.qcow2"}
    else:
        assert_sound(lab)


def test_the_document_s_methods_leave_the_chains_that_it_draws(lab):
    take_three(lab)
    delete_one(lab, "two", "commit")
    assert chain_of(lab) == ["disk0.three", "disk0.one", "disk0.qcow2"]
    delete_one(lab, "three", "pull")
    assert chain_of(lab) == ["disk0.three", "disk0.qcow2"]
    assert tree_of(lab) == ({"one": None}, "one")


def test_the_user_s_file_keeps_its_name_and_becomes_active_when_all_is_merged_into_it(lab):
    lab.take("only")
    lab.write("vda", {0: b"later"})
    before, identity = lab.view(), LocalFiles().identity(str(lab.folder / "disk0.qcow2"))
    delete_one(lab, "only")
    assert lab.view().disks == before.disks
    assert [Path(path).name for path in lab.sources().values()] == ["disk0.qcow2", "disk1.qcow2"]
    assert LocalFiles().identity(str(lab.folder / "disk0.qcow2")) == identity
    assert lab.names() == {"disk0.qcow2", "disk1.qcow2"}
    assert tree_of(lab) == ({}, None)


def test_what_several_branches_lie_on_is_taken_over_by_each(lab):
    lab.take("one")
    lab.take("two")
    lab.write("vda", {0: b"left"})
    lab.revert("two")
    lab.write("vda", {0: b"right"})
    before = lab.view()
    delete_one(lab, "two")
    assert without(lab.view()) == without(before, "two")
    assert tree_of(lab) == ({"one": None, "two-tip": "one"}, "one")
    assert_sound(lab)
    with pytest.raises(Refused, match="only one overlay can be merged into it"):
        delete_one(lab, "one", "commit")
    delete_one(lab, "one")
    assert without(lab.view()) == without(before, "one", "two")
    # The user's files stay, though nobody needs them.
    assert lab.names() - lab.needed() == {"disk0.qcow2", "disk1.qcow2"}


def test_a_branch_that_is_left_goes_with_all_files_that_nobody_needs(lab):
    lab.take("one")
    lab.write("vda", {0: b"left"})
    lab.take("two")
    lab.write("vda", {0: b"more"})
    lab.revert("one")
    lab.write("vda", {0: b"right"})
    before = lab.view()
    delete_one(lab, "two", with_children=True)
    assert tree_of(lab) == ({"one": None}, "one")
    assert without(lab.view()) == without(before, "two", "two-tip")
    assert_sound(lab)


def test_children_go_without_their_parent_and_what_is_current_moves_up(lab):
    take_three(lab)
    before = lab.view()
    delete_one(lab, "one", only_children=True)
    assert tree_of(lab) == ({"one": None}, "one")
    assert without(lab.view()) == without(before, "two", "three")
    assert_sound(lab)
    delete_one(lab, "one", with_children=True)
    assert tree_of(lab) == ({}, None)
    assert lab.view().disks == before.disks


def test_a_view_that_another_snapshot_needs_stays(lab):
    lab.take("one")
    lab.revert("one")
    with lab.at_work() as (host, found):
        # A second snapshot of the very same files.
        row = snapshots.find(host.catalog, found.domain, "one")
        held = snapshots.disks(host.catalog, row.id)
        snapshots.add(host.catalog, found.domain, row._replace(name="same"), held)
    lab.write("vda", {0: b"later"})
    before = lab.view()
    names = lab.names()
    delete_one(lab, "one")
    assert without(lab.view()) == without(before, "one")
    assert lab.names() == names


def test_internal_snapshots_go_and_their_file_and_its_overlays_stay(lab):
    lab.take("inside", DiskRequest("vda", "internal"), DiskRequest("vdb", "internal"))
    lab.write("vda", {0: b"later"})
    lab.take("over")
    before = lab.view()
    delete_one(lab, "inside")
    assert without(lab.view()) == without(before, "inside")
    assert qemu_img("snapshot", "-l", lab.folder / "disk0.qcow2") == ""
    chain = open_chain(LocalFiles(), lab.sources()["vda"])
    assert list(lineage.stale(LocalFiles(), chain)) == []
    chain.close()
    assert lab.settle() == []
    assert_sound(lab)


def test_a_merge_that_would_lose_an_internal_snapshot_is_refused_and_names_it(lab):
    lab.take("one")
    lab.take("inside", DiskRequest("vda", "internal"), DiskRequest("vdb", "internal"))
    names, tree = lab.names(), tree_of(lab)
    with pytest.raises(Refused, match=r"'inside' of domain 'guest' in .*disk0\.one"):
        delete_one(lab, "one")
    assert (lab.names(), tree_of(lab)) == (names, tree)
    assert lab.settle() == []
    delete_one(lab, "inside")
    delete_one(lab, "one")
    assert_sound(lab)


def test_an_image_of_somebody_else_is_harmed_by_no_deletion(lab):
    lab.take("one")
    sibling = lab.folder / "sibling.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", lab.folder / "disk0.qcow2", "-F", "qcow2", sibling)
    before, shown = lab.view(), guest_view(LocalFiles(), str(sibling))
    delete_one(lab, "one")
    assert lab.view().disks == before.disks
    assert guest_view(LocalFiles(), str(sibling)) == shown
    assert chain_of(lab) == ["disk0.one"]
    assert chain_of(lab, "vdb") == ["disk1.qcow2"]


def test_what_is_lost_or_not_there_is_forgotten_and_no_file_is_touched(lab):
    take_three(lab)
    with lab.at_work() as (host, found):
        row = snapshots.find(host.catalog, found.domain, "two")
        lost = [each._replace(lost="merged") for each in snapshots.disks(host.catalog, row.id)]
        snapshots.replace_disks(host.catalog, row.id, lost)
    before, names = lab.view(), lab.names()
    delete_one(lab, "two")
    assert (without(lab.view(), "two"), lab.names()) == (without(before, "two"), names)
    assert tree_of(lab)[0] == {"one": None, "three": "one"}


def test_forgetting_leaves_all_files(lab):
    take_three(lab)
    names = lab.names()
    with lab.at_work() as (host, found):
        snapshot = snapshots.find(host.catalog, found.domain, "two")
        delete.forget(host, delete.chosen(host, found, snapshot, with_children=True))
    assert (lab.names(), tree_of(lab)) == (names, ({"one": None}, "one"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "disk_count"), [("one", 3), ("two", 1)])
def test_stopped_anywhere_the_next_command_completes_it(tmp_path, monkeypatch, name, disk_count):
    lab = Lab(tmp_path / "lab", disk_count=disk_count)
    for each in ("one", "two", "three"):
        lab.take(each)
        lab.write("vda", {0: each.encode()})
    before = lab.view()
    stops = Stops(lab, tmp_path / "kept", lambda files: delete_one(lab, name, files=files), monkeypatch)
    count = 0
    for where in stops.everywhere():
        lab.settle()
        assert lab.settle() == [], where
        found = lab.view()
        assert found.disks == before.disks, where
        if name in tree_of(lab)[0]:
            assert without(found) == without(before), where
        else:
            assert without(found) == without(before, name), where
        assert_sound(lab)
        count += 1
    assert count > 50
