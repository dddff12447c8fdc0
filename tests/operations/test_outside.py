"""Merges by file are noted for guests, once."""

import pytest

from cowtree.catalog import domains, intents
from cowtree.catalog.store import open_catalog
from cowtree.images.order import Order
from cowtree.images.wish import Wish, make_plan
from cowtree.operations import outside
from cowtree.operations.host import Host
from cowtree.storage.file import LocalFiles
from tests.lab import Lab


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path / "lab")
    lab.take("first")
    lab.take("second")
    return lab


def planned(lab):
    return make_plan(LocalFiles(), Wish("commit", str(lab.folder / "disk0.first")))


def test_a_catalogue_without_guests_costs_nothing(lab, tmp_path):
    with open_catalog(str(tmp_path / "other.db")) as catalog:
        assert outside.foresee(Host(LocalFiles(), catalog, print), planned(lab), "commit") is None


def test_what_becomes_of_names_is_foreseen(lab):
    with lab.host() as host:
        foreseen = outside.foresee(host, planned(lab), "commit")
    assert foreseen is not None
    assert {fate.path for fate in foreseen.names.fates} == {
        str(lab.folder / "disk0.first"),
        str(lab.folder / "disk0.qcow2"),
    }
    assert foreseen.folders == (str(lab.folder),)


def test_what_a_guest_s_own_intent_will_note_is_not_noted_twice(lab):
    plan = planned(lab)
    order = Order(plan.family, plan.plan.acts, stamp="then")
    with lab.host() as host:
        assert outside.foresee_rest(host, order, "commit") is not None
        domain = domains.find(host.catalog, "guest")
        intents.begin(host.catalog, domain, "merge", {"stamp": "then"})
        assert outside.foresee_rest(host, order, "commit") is None
