"""Snapshots in the catalogue: a tree for each guest."""

import pytest

from cowtree.catalog import domains, snapshots
from cowtree.catalog.snapshots import EXTERNAL, INTERNAL, Held, Snapshot
from cowtree.errors import NoSuchSnapshot, Refused


def new(name, parent=None, **fields):
    return Snapshot(0, name, parent, "text", 5, "shutoff", "no", None, "<domain/>")._replace(**fields)


@pytest.fixture
def tree(catalog, domain):
    """first <- second <- third"""
    found, parent = [], None
    for name in ("first", "second", "third"):
        found.append(snapshots.add(catalog, domain, new(name, parent), [Held("vda", EXTERNAL, f"/{name}", "qcow2")]))
        parent = found[-1].id
    domains.set_current(catalog, domain, parent)
    return found


def test_several_that_were_looked_up_together_can_be_removed(catalog, domain, tree):
    first, second, third = tree
    for each in (first, second):
        snapshots.remove(catalog, each)
    assert parents(catalog, domain) == {"third": None}
    assert domains.find(catalog, "guest").current == third.id


def parents(catalog, domain):
    rows = snapshots.rows(catalog, domain)
    names = {row.id: row.name for row in rows}
    return {row.name: names.get(row.parent or 0) for row in rows}


def test_what_is_added_is_found(catalog, domain):
    held = [
        Held("vda", EXTERNAL, "/a\udcff", "raw", "/b\udcff"),
        Held("vdb", INTERNAL, "/c", "qcow2", internal_id="3", lost="gone"),
    ]
    added = snapshots.add(catalog, domain, new("one", memory_file="/m\udcff", is_tip=True), held)
    assert snapshots.find(catalog, domain, "one") == snapshots.get(catalog, added.id) == added
    assert snapshots.disks(catalog, added.id) == held
    assert snapshots.all_disks(catalog, domain) == {added.id: held}
    (row,) = snapshots.rows(catalog, domain)
    assert (row.is_external, row.is_lost) == (True, True)


def test_a_name_is_taken_once_in_each_guest(catalog, domain, tree):
    with pytest.raises(Refused, match="domain moment second already exists"):
        snapshots.add(catalog, domain, new("second"), [])
    snapshots.add(catalog, domains.add(catalog, "other", "0-2", ""), new("second"), [])
    with pytest.raises(NoSuchSnapshot, match="no domain snapshot with matching name 'fourth'"):
        snapshots.find(catalog, domain, "fourth")


def test_children_of_what_is_removed_hang_on_its_parent(catalog, domain, tree):
    snapshots.remove(catalog, tree[1])
    assert parents(catalog, domain) == {"first": None, "third": "first"}


def test_a_guest_lies_on_the_parent_of_what_is_removed(catalog, domain, tree):
    snapshots.remove(catalog, tree[2])
    assert domains.find(catalog, "guest").current == tree[1].id


def test_names_are_listed_without_regard_to_case(catalog, domain):
    for name in ("b", "A", "a", "B"):
        snapshots.add(catalog, domain, new(name), [])
    assert [row.name for row in snapshots.rows(catalog, domain)] == ["A", "a", "B", "b"]


def test_what_is_held_is_replaced(catalog, domain, tree):
    held = [Held("vda", EXTERNAL, "/other", "qcow2")]
    snapshots.replace_disks(catalog, tree[0].id, held)
    assert snapshots.disks(catalog, tree[0].id) == held


def test_a_snapshot_is_described_anew(catalog, domain, tree):
    snapshots.describe(catalog, tree[0], name="zero", description="other")
    assert snapshots.find(catalog, domain, "zero").description == "other"


def test_who_is_shown_by_a_file_is_known(catalog, domain, tree):
    assert snapshots.holders(catalog, "/second") == [("guest", "second")]
    domains.leave(catalog, domain, {"vda": [domains.Layer("/top", (1, 2), 3, 4), domains.Layer("/low", (1, 3), 3, 4)]})
    assert snapshots.users(catalog, "/top") == ["guest"]
    assert snapshots.users(catalog, "/low") == []


def test_files_that_we_made_are_known_until_they_are_gone(catalog):
    snapshots.note_made(catalog, "/a", (2**63 + 1, 2))
    assert snapshots.made(catalog, "/a") == (2**63 + 1, 2)
    snapshots.forget_made(catalog, "/a")
    assert snapshots.made(catalog, "/a") is None
