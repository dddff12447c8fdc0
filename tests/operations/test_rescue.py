"""A damaged catalogue is moved aside with all that SQLite keeps beside it; what only cannot be opened stays."""

import sqlite3

import pytest

from cowtree.catalog.store import open_catalog
from cowtree.errors import CatalogError, WrongUse
from cowtree.operations.rescue import open_sound


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "catalog.db"
    with open_catalog(str(path)) as catalog:
        catalog.add_pool("/pool")
    return path


def test_a_sound_catalogue_is_opened_as_it_is(path):
    catalog, aside = open_sound(str(path), [], is_trial=False)
    with catalog:
        assert (catalog.pools(), aside) == (["/pool"], None)


def test_one_that_is_not_there_is_made_but_not_in_a_trial(tmp_path):
    path = tmp_path / "new" / "catalog.db"
    open_sound(str(path), [], is_trial=True)[0].close()
    assert not path.exists()
    open_sound(str(path), [], is_trial=False)[0].close()
    assert path.exists()


def test_what_sqlite_keeps_beside_it_goes_with_it(path):
    path.write_bytes(b"damaged")
    for ending in ("-wal", "-shm"):
        path.with_name(f"{path.name}{ending}").write_bytes(b"beside")
    catalog, told = open_sound(str(path), ["folder"], is_trial=False)
    with catalog:
        assert catalog.pools() == []
    assert told is not None
    aside = sorted(each for each in path.parent.iterdir() if ".invalid-" in each.name)
    assert [each.read_bytes() for each in aside] == [b"damaged", b"beside", b"beside"]
    assert str(aside[0]) in told


def test_without_a_folder_nothing_is_moved(path):
    path.write_bytes(b"damaged")
    with pytest.raises(WrongUse, match="is damaged"):
        open_sound(str(path), [], is_trial=False)
    assert path.read_bytes() == b"damaged"


@pytest.mark.parametrize("pragma", ["user_version = 99", "application_id = 5"])
def test_what_a_newer_cowtree_or_another_program_wrote_stays(path, pragma):
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA {pragma}")
    connection.close()
    with pytest.raises(CatalogError):
        open_sound(str(path), ["folder"], is_trial=False)
    assert [each.name for each in path.parent.iterdir() if "invalid" in each.name] == []


def test_a_catalogue_that_cannot_be_moved_is_told(path, monkeypatch):
    path.write_bytes(b"damaged")

    def refuse(*names):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.rename", refuse)
    with pytest.raises(CatalogError, match="it cannot be moved aside: Permission denied"):
        open_sound(str(path), ["folder"], is_trial=False)
