"""Journals of relocations: known as long as what they tell of is not done, and only word for word."""

from pathlib import Path

from cowtree.catalog import journals
from cowtree.catalog.store import open_catalog

PLACE, DIGEST = "/new/\udcff/.cowtree-relocate", b"\1" * 32


def test_a_journal_is_known_by_its_place_and_its_content_until_it_is_forgotten(tmp_path: Path):
    with open_catalog(str(tmp_path / "catalog.db")) as catalog:
        assert not journals.knows(catalog, PLACE, DIGEST)
        journals.note(catalog, PLACE, DIGEST)
        assert journals.knows(catalog, PLACE, DIGEST)
        assert not journals.knows(catalog, PLACE, b"\2" * 32)
        assert not journals.knows(catalog, "/elsewhere", DIGEST)
        journals.forget(catalog, PLACE)
        assert not journals.knows(catalog, PLACE, DIGEST)


def test_a_place_has_one_journal_at_a_time(tmp_path: Path):
    with open_catalog(str(tmp_path / "catalog.db")) as catalog:
        journals.note(catalog, PLACE, DIGEST)
        journals.note(catalog, PLACE, b"\2" * 32)
        assert not journals.knows(catalog, PLACE, DIGEST)
        assert journals.knows(catalog, PLACE, b"\2" * 32)
