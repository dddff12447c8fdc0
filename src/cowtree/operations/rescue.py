"""A catalogue that is damaged is moved aside, never removed: whoever knows SQLite may find more in it than we do."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from cowtree.catalog.store import HINT_DAMAGED, Catalog, default_path, open_catalog
from cowtree.chain.aside import set_aside, stamp_of
from cowtree.errors import CatalogError, WrongUse

ENDING: Final = ".db"
_SQLITE: Final = b"SQLite format 3\0"
# What SQLite keeps beside a database.
_BESIDE: Final = ("-wal", "-shm")


def open_sound(path: str | None, folders: Sequence[str], *, is_trial: bool) -> tuple[Catalog, str | None]:
    """Open the catalogue, in place of one that is damaged a new one: in a trial it is empty and forgets all.
    Returns: the catalogue, and what was done with the damaged one, in a sentence.
    Raises: CatalogError, WrongUse when it is damaged and no folder says where to look instead.
    """
    path = os.path.abspath(path or default_path())
    try:
        catalog = open_catalog(path, creates=not is_trial)
        reason = _damage(catalog)
        if reason is None:
            return catalog, None
        catalog.close()
    except CatalogError as error:
        if error.facts.get("hint") != HINT_DAMAGED:
            raise
        reason = error.reason
    _refuse_others(path)
    if not folders:
        hint = "cowtree catalog rebuild FOLDER"
        raise WrongUse(reason=f"{path} is damaged ({reason}), so nobody knows the pools: name folders", hint=hint)
    aside = set_aside(path, stamp_of(time.time_ns()))
    lost = "the pools that it named have to be added again: cowtree pool add FOLDER"
    if is_trial:
        return open_catalog(aside, creates=False), f"{path} is damaged ({reason}): it would be moved aside; {lost}"
    _move(path, aside)
    return open_catalog(path), f"{path} is damaged ({reason}): it was moved to {aside}; {lost}"


def _damage(catalog: Catalog) -> str | None:
    """What is wrong with the database. Raises: CatalogError when it cannot be looked at."""
    ((found, *_), *_) = catalog.read("PRAGMA integrity_check(1)")
    if found != "ok":
        return str(found).splitlines()[-1]
    tables = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
    with open_catalog(os.path.join(catalog.path, "none"), creates=False) as empty:
        missing = [name for (name,) in empty.read(tables) if (name,) not in catalog.read(tables)]
    return f"it has no table {missing[0]}" if missing else None


def _refuse_others(path: str) -> None:
    """Raises: CatalogError for a file that was named by mistake: it may be an image."""
    with suppress(OSError), open(path, "rb") as file:
        if file.read(len(_SQLITE)) == _SQLITE or path.endswith(ENDING):
            return
    raise CatalogError(path=path, reason="it is no catalogue, and it is not called like one", hint="name another file")


def _move(path: str, aside: str) -> None:
    """Raises: CatalogError."""
    try:
        for ending in _BESIDE:
            if os.path.exists(path + ending):
                os.rename(path + ending, aside + ending)
        os.rename(path, aside)
    except OSError as error:
        raise CatalogError(path=path, reason=f"it cannot be moved aside: {error.strerror}") from error
