"""Owns the proof that merges are noted down, found again when they go on, and never fail because of that."""

import json
from pathlib import Path

import pytest

from cowtree.catalog.store import open_catalog
from cowtree.errors import CatalogError
from cowtree.images.history import FORGETFUL, History, past
from cowtree.images.order import Order
from cowtree.plan.family import Family, Member, Merge
from cowtree.storage.memory import MemoryFiles
from tests.pictures import family


def begun() -> tuple[MemoryFiles, Order]:
    made = family("A---", "BBBB")
    members = (Member(made.names[0], "qcow2", 2048, 1), Member(made.names[1], "qcow2", 2048))
    return made.files, Order(Family(members), (Merge((0, 1), 0, 0),), stamp="then", words=("pull", "top"))


def unheard(error: CatalogError) -> None:
    raise error


def test_a_merge_is_noted_with_the_names_of_bases_and_what_it_left(tmp_path: Path):
    files, order = begun()
    path = str(tmp_path / "catalog.db")
    history = History(path, unheard)
    history.begin(files, order)
    with open_catalog(path) as catalog:
        (merge,) = catalog.merges()
    found = past(merge)
    assert found is not None
    assert (found.order, found.is_finished, found.links, found.results) == (order, False, {0: "layer-1"}, {})
    history.finish(files, order)
    with open_catalog(path) as catalog:
        (merge,) = catalog.merges()
    found = past(merge)
    assert found is not None
    times = files.times("layer-0")
    assert (found.is_finished, found.results) == (True, {0: (times.size_bytes, times.mtime_ns)})


def test_a_merge_that_goes_on_is_the_same_one(tmp_path: Path):
    files, order = begun()
    path = str(tmp_path / "catalog.db")
    History(path, unheard).begin(files, order)
    again = History(path, unheard)
    again.begin(files, order)
    again.finish(files, order)
    History(path, unheard).begin(files, order._replace(stamp="later"))
    with open_catalog(path) as catalog:
        assert [merge.finished_ns is not None for merge in catalog.merges()] == [False, True]


def test_a_catalogue_that_cannot_be_written_is_told_and_no_reason_to_fail(tmp_path: Path):
    files, order = begun()
    path = tmp_path / "catalog.db"
    path.write_bytes(b"something else altogether")
    told: list[CatalogError] = []
    history = History(str(path), told.append)
    history.begin(files, order)
    history.finish(files, order)
    assert [error.facts["path"] for error in told] == [str(path)]


@pytest.mark.parametrize("plan", ["", "{}", "null", "[]", '{"links": 1}', json.dumps({"links": {"x": "y"}})])
def test_what_nobody_here_wrote_is_no_merge(tmp_path: Path, plan: str):
    with open_catalog(str(tmp_path / "catalog.db")) as catalog:
        catalog.begin_merge(plan)
        assert [past(merge) for merge in catalog.merges()] == [None]


def test_whoever_forgets_notes_nothing():
    files, order = begun()
    before = files.snapshot()
    FORGETFUL.begin(files, order)
    FORGETFUL.finish(files, order)
    assert files.snapshot() == before


def test_a_merge_is_known_word_for_word_from_its_beginning_to_its_end(tmp_path: Path):
    files, order = begun()
    history = History(str(tmp_path / "catalog.db"), unheard)
    order = order._replace(token="secret", identities=((1, 2), (3, 4)))
    assert not history.knows(order)
    history.begin(files, order)
    assert History(str(tmp_path / "catalog.db"), unheard).knows(order)
    for other in ({"token": "other"}, {"words": ("pull",)}, {"identities": ((1, 2), None)}, {"ending": "delete"}):
        assert not history.knows(order._replace(**other))
    history.finish(files, order)
    assert not history.knows(order)
    assert not FORGETFUL.knows(order)


def test_a_merge_without_a_token_is_nobodys(tmp_path: Path):
    files, order = begun()
    history = History(str(tmp_path / "catalog.db"), unheard)
    history.begin(files, order)
    assert not history.knows(order)
