"""What is noted down of snapshots is changed, and no more than that."""

from pathlib import Path

import pytest

from cowtree.catalog import snapshots
from cowtree.domain import moment
from cowtree.errors import BrokenXml, Refused
from cowtree.operations import edit
from cowtree.operations.edit import Manner
from cowtree.operations.lists import described
from tests.lab import Lab

PLAIN = Manner()


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    lab = Lab(tmp_path / "lab", 2)
    lab.take("one")
    lab.take("two")
    return lab


def request(lab: Lab, name: str) -> moment.Request:
    """What `snapshot-dumpxml` prints, read again."""
    with lab.at_work() as (host, found):
        return moment.parse(moment.dump(described(host, snapshots.find(host.catalog, found.domain, name))))


def change(lab: Lab, name: str, edited: moment.Request, manner: Manner = PLAIN) -> None:
    with lab.at_work() as (host, found):
        edit.change(host, found, snapshots.find(host.catalog, found.domain, name), edited, manner)


def names(lab: Lab) -> dict[str, str | None]:
    """All snapshots, and their parents."""
    with lab.at_work() as (host, found):
        rows = snapshots.rows(host.catalog, found.domain)
    of = {row.id: row.name for row in rows}
    return {row.name: of.get(row.parent or 0) for row in rows}


def test_a_new_name_is_that_of_the_parent_too(lab: Lab):
    before = lab.view()
    change(lab, "one", request(lab, "one")._replace(name="first"), Manner(renames=True))
    assert names(lab) == {"first": None, "two": "first"}
    assert lab.view().snapshots["first"] == before.snapshots["one"]


def test_a_clone_holds_the_same(lab: Lab):
    change(lab, "two", request(lab, "two")._replace(name="copy", description="x"), Manner(clones=True))
    assert names(lab) == {"one": None, "two": "one", "copy": "one"}
    assert lab.view().snapshots["copy"] == lab.view().snapshots["two"]


def test_nothing_else_is_changed(lab: Lab):
    now = request(lab, "two")
    for edited in (
        now._replace(parent=None),
        now._replace(created_s=1),
        now._replace(state="running"),
        now._replace(disks=now.disks[:1]),
        now._replace(name="new"),
    ):
        with pytest.raises(Refused):
            change(lab, "two", edited)
    with pytest.raises(BrokenXml):
        change(lab, "two", now._replace(name=None))
    assert request(lab, "two") == now


def test_a_snapshot_is_current_only_when_the_disks_lie_on_it(lab: Lab):
    lab.revert("one")
    with lab.at_work() as (host, found):
        for name in ("two", "one"):
            snapshot = snapshots.find(host.catalog, found.domain, name)
            if name == "one":
                edit.make_current(host, found, snapshot)
            else:
                with pytest.raises(Refused, match="does not lie on snapshot 'two'"):
                    edit.make_current(host, found, snapshot)


def test_what_was_forgotten_is_noted_down_again(lab: Lab):
    wanted, before = request(lab, "one"), lab.view()
    with lab.at_work() as (host, found):
        snapshots.remove(host.catalog, snapshots.find(host.catalog, found.domain, "one"))
        assert edit.redefine(host, found, wanted, is_current=False) == "one"
    assert names(lab) == {"one": None, "two": None}
    assert lab.view() == before
    assert request(lab, "one") == wanted


def test_what_is_known_gets_a_description_and_nothing_else(lab: Lab):
    wanted = request(lab, "two")._replace(description="new")
    with lab.at_work() as (host, found):
        edit.redefine(host, found, wanted, is_current=True)
    assert request(lab, "two") == wanted
    with lab.at_work() as (host, found), pytest.raises(Refused, match="already exists, and is another one"):
        edit.redefine(host, found, wanted._replace(parent=None), is_current=False)


def test_an_internal_snapshot_that_no_image_holds_is_not_noted_down(lab: Lab):
    lab.take("inside", is_disk_only=False)
    wanted = request(lab, "inside")
    with lab.at_work() as (host, found):
        inside = snapshots.find(host.catalog, found.domain, "inside")
        held = snapshots.disks(host.catalog, inside.id)
        snapshots.remove(host.catalog, inside)
        edit.redefine(host, found, wanted, is_current=False)
        again = snapshots.find(host.catalog, found.domain, "inside")
        assert snapshots.disks(host.catalog, again.id) == held
        with pytest.raises(Refused, match="has no internal snapshot 'other'"):
            edit.redefine(host, found, wanted._replace(name="other"), is_current=False)
