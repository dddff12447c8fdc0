"""Merges as the catalogue keeps them: what was done, and how the files were that it left.

No merge fails because it cannot be noted down; that costs `cowtree undo`, and somebody is told.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol

from cowtree.catalog import journals
from cowtree.catalog.store import Merge, open_catalog
from cowtree.chain import gate
from cowtree.errors import CatalogError, CowtreeError, MissingImage
from cowtree.images.order import Order, from_json, to_json
from cowtree.storage.contract import Access, FileSystem


class Past(NamedTuple):
    """A merge of the history: `links` are the backing files that members named before, `results` length and time of
    change of those that were left.
    """

    number: int
    order: Order
    is_finished: bool
    links: dict[int, str]
    results: dict[int, tuple[int, int]]


class Keeper(Protocol):
    """Whoever notes merges down."""

    def knows(self, order: Order) -> bool:
        """Whether this very merge is noted as begun and not done."""

    def begin(self, files: FileSystem, order: Order) -> None:
        """Note that a merge begins, or goes on."""

    def finish(self, files: FileSystem, order: Order) -> None:
        """Note that it is done."""


class Forgetful:
    """Notes nothing down."""

    def knows(self, order: Order) -> bool:
        """No."""
        return False

    def begin(self, files: FileSystem, order: Order) -> None:
        """Ignore it."""

    def finish(self, files: FileSystem, order: Order) -> None:
        """Ignore it."""


FORGETFUL: Final = Forgetful()


class Notebook(Protocol):
    """Whoever knows the journals of relocations."""

    def note(self, path: str, data: bytes) -> None:
        """Note that this is about to be written."""

    def knows(self, path: str, data: bytes) -> bool:
        """Whether this was noted."""

    def forget(self, path: str) -> None:
        """It is done."""


class Blank:
    """Knows none."""

    def note(self, path: str, data: bytes) -> None:
        """Ignore it."""

    def knows(self, path: str, data: bytes) -> bool:
        """No."""
        return False

    def forget(self, path: str) -> None:
        """Ignore it."""


BLANK: Final = Blank()


class Journals:
    """Notes journals of relocations down in the catalogue at a path; `tell` hears why that was not possible."""

    def __init__(self, path: str | None, tell: Callable[[CatalogError], None]) -> None:
        self._path = path
        self._tell = tell

    def note(self, path: str, data: bytes) -> None:
        """Note that this is about to be written."""
        try:
            with open_catalog(self._path) as catalog:
                journals.note(catalog, path, hashlib.sha256(data).digest())
        except CatalogError as error:
            self._tell(error)

    def knows(self, path: str, data: bytes) -> bool:
        """Whether this was noted."""
        try:
            with open_catalog(self._path, creates=False) as catalog:
                return journals.knows(catalog, path, hashlib.sha256(data).digest())
        except CatalogError as error:
            self._tell(error)
            return False

    def forget(self, path: str) -> None:
        """It is done."""
        with suppress(CatalogError), open_catalog(self._path, creates=False) as catalog:
            journals.forget(catalog, path)


class History:
    """Notes merges down in the catalogue at a path; `tell` hears why that was not possible."""

    def __init__(self, path: str | None, tell: Callable[[CatalogError], None]) -> None:
        self._path = path
        self._tell = tell
        self._number: int | None = None
        self._content: dict[str, Any] = {}

    def knows(self, order: Order) -> bool:
        """Whether this very merge, word for word, was noted by `begin`, and no `finish`."""
        if not order.token:
            return False
        try:
            with open_catalog(self._path, creates=False) as catalog:
                open_ones = [found for each in catalog.merges() if (found := past(each)) and not found.is_finished]
        except CatalogError as error:
            self._tell(error)
            return False
        return any(found.order == order for found in open_ones)

    def begin(self, files: FileSystem, order: Order) -> None:
        """Note that a merge begins; one that goes on is found again."""
        try:
            with open_catalog(self._path) as catalog:
                same = next((each for each in catalog.merges() if _is_same(each, order)), None)
                if same is None:
                    self._content = {**to_json(order), "links": _links(files, order)}
                    self._number = catalog.begin_merge(json.dumps(self._content))
                else:
                    self._content, self._number = json.loads(same.plan), same.id
        except CatalogError as error:
            self._tell(error)

    def finish(self, files: FileSystem, order: Order) -> None:
        """Note that it is done, and how the files are now."""
        if self._number is None:
            return
        self._content["results"] = _results(files, order)
        try:
            with open_catalog(self._path) as catalog:
                catalog.finish_merge(self._number, json.dumps(self._content))
        except CatalogError as error:
            self._tell(error)


def past(merge: Merge) -> Past | None:
    """A merge as the catalogue keeps it; None when nobody here wrote it so."""
    try:
        content = json.loads(merge.plan)
        links = {int(index): str(name) for index, name in content["links"].items()}
        results = {int(index): (int(size), int(time)) for index, (size, time) in content.get("results", {}).items()}
        return Past(merge.id, from_json(content), merge.finished_ns is not None, links, results)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None


def _is_same(merge: Merge, order: Order) -> bool:
    """Whether a merge of the history is this very one: no two have the same stamp and target."""
    found = past(merge)
    return found is not None and (found.order.stamp, found.order.journal_path) == (order.stamp, order.journal_path)


def _links(files: FileSystem, order: Order) -> dict[int, str]:
    """The names by which members find what they lie on."""
    found = dict[int, str]()
    for index, member in enumerate(order.family.members):
        with suppress(CowtreeError):
            layer = gate.open_alone(files, member.path, member.format, Access.SHARED)
            try:
                if layer.header and layer.header.backing_file is not None:
                    found[index] = layer.header.backing_file
            finally:
                layer.close()
    return found


def _results(files: FileSystem, order: Order) -> dict[int, tuple[int, int]]:
    now, found = order.result, dict[int, tuple[int, int]]()
    for index in {act.target for act in order.acts}:
        with suppress(MissingImage):
            times = files.times(now.path(index))
            found[index] = (times.size_bytes, times.mtime_ns)
    return found
