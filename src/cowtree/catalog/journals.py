"""Journals of relocations that were begun: a file of this place and content was written by us, not by a stranger."""

import os

from cowtree.catalog.store import Catalog


def note(catalog: Catalog, path: str, digest: bytes) -> None:
    """Note that a journal is about to be written."""
    catalog.change("INSERT OR REPLACE INTO journal VALUES (?, ?)", os.fsencode(path), digest)


def knows(catalog: Catalog, path: str, digest: bytes) -> bool:
    """Whether this very journal was noted and not forgotten."""
    return catalog.read("SELECT digest FROM journal WHERE path = ?", os.fsencode(path)) == [(digest,)]


def forget(catalog: Catalog, path: str) -> None:
    """What a journal told of is done."""
    catalog.change("DELETE FROM journal WHERE path = ?", os.fsencode(path))
