"""Guests become known and are forgotten."""

from pathlib import Path

import pytest

from cowtree.catalog import domains as rows
from cowtree.catalog import intents, snapshots
from cowtree.chain.gate import QCOW2
from cowtree.domain import definition
from cowtree.errors import NoSuchDomain, Refused
from cowtree.images.create import create as create_image
from cowtree.operations import domains
from cowtree.operations.work import look_at
from cowtree.plan.create import NewImage
from cowtree.storage.file import LocalFiles
from tests.lab import DISK_BYTES, NAME, Lab


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "lab")


def known(lab: Lab) -> definition.Definition:
    with lab.host() as host:
        return look_at(host, NAME).definition


def test_a_new_guest_is_noted_down_with_its_chains(lab: Lab):
    other = str(lab.folder / "other.qcow2")
    create_image(LocalFiles(), NewImage(other, QCOW2, DISK_BYTES))
    with lab.host() as host:
        made = domains.define(host, definition.make("new", "0" * 32, [(other, QCOW2)]).text)
        left = rows.left(host.catalog, rows.find(host.catalog, "new"))
    assert made.uuid == "00000000-0000-0000-0000-000000000000"
    assert [layer.path for layer in left["vda"]] == [other]


def test_another_definition_takes_the_place_of_the_old_one_and_snapshots_stay(lab: Lab):
    lab.take("one")
    changed = known(lab).with_source("vda", str(lab.folder / "disk0.qcow2"))
    with lab.host() as host:
        domains.define(host, changed.text)
        found = look_at(host, NAME)
        assert [row.name for row in snapshots.rows(host.catalog, found.domain)] == ["one"]
    assert lab.sources() == {"vda": str(lab.folder / "disk0.qcow2")}


def test_what_was_cut_short_is_settled_before_a_redefinition(lab: Lab):
    with lab.host() as host:
        found = look_at(host, NAME)
        intents.begin(host.catalog, found.domain, "snapshot-create", {"name": "s", "overlays": [], "insides": []})
        domains.define(host, found.definition.text)
        assert intents.found(host.catalog, found.domain) == []


def test_a_guest_is_forgotten_with_its_snapshots_only_when_that_is_asked_for(lab: Lab):
    lab.take("one")
    names = lab.names()
    with lab.host() as host:
        with pytest.raises(Refused, match="cannot delete inactive domain with 1 snapshots"):
            domains.undefine(host, NAME, drops_metadata=False)
        assert domains.undefine(host, known(lab).uuid or "", drops_metadata=True) == NAME
        with pytest.raises(NoSuchDomain):
            look_at(host, NAME)
        assert host.catalog.read("SELECT * FROM snapshot_disk") == []
    assert lab.names() == names


def test_an_adopted_guest_is_like_any_other(lab: Lab):
    path = str(lab.folder / "adopted.qcow2")
    create_image(LocalFiles(), NewImage(path, QCOW2, DISK_BYTES))
    with lab.host() as host:
        assert domains.adopt(host, "adopted", [path]) == [domains.Adopted("vda", path, QCOW2, is_guessed=False)]
        assert look_at(host, "adopted").source("vda") == path
        with pytest.raises(Refused, match="is disk vda of domain 'guest' already"):
            domains.adopt(host, "thief", list(lab.sources().values()))
