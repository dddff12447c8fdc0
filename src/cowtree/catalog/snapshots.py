"""Snapshots as the catalogue keeps them: a tree for each domain, and what each snapshot holds of each disk."""

import os
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from cowtree.catalog.domains import Domain
from cowtree.catalog.store import Catalog, Identity
from cowtree.errors import NoSuchSnapshot, Refused

INTERNAL, EXTERNAL, MANUAL, NO = MODES = ("internal", "external", "manual", "no")
SHUTOFF: Final = "shutoff"


class Snapshot(NamedTuple):
    """One moment of a domain; `xml` is the domain's definition then. A tip was not asked for: it is what a branch was
    when its domain was reverted to something else. Units: nanoseconds since 1970.
    """

    id: int
    name: str
    parent: int | None
    description: str
    created_ns: int
    state: str
    memory: str
    memory_file: str | None
    xml: str
    is_tip: bool = False
    is_found: bool = False


class Row(NamedTuple):
    """What a list shows of a snapshot; `is_external` when any of its disks is."""

    id: int
    name: str
    parent: int | None
    created_ns: int
    state: str
    is_external: bool
    is_lost: bool


class Held(NamedTuple):
    """What a snapshot holds of one disk: `source` shows it, by itself or in its internal snapshot; `overlay` is what an
    external snapshot made; `lost` says why it is shown no more.
    """

    target: str
    mode: str
    source: str
    format: str
    overlay: str | None = None
    internal_id: str | None = None
    lost: str | None = None


def add(catalog: Catalog, domain: Domain, new: Snapshot, disks: Iterable[Held]) -> Snapshot:
    """Note a snapshot down; its number is given here. Raises: Refused when the name is taken."""
    refuse_taken(catalog, domain, new.name)
    columns = ("domain", *Snapshot._fields[1:])
    file = None if new.memory_file is None else os.fsencode(new.memory_file)
    words = f"INSERT INTO snapshot ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
    with catalog.together():
        number = catalog.add(words, domain.id, *new._replace(memory_file=file)[1:])  # type: ignore[arg-type]
        for each in disks:
            _add_disk(catalog, number, each)
    return new._replace(id=number)


def _add_disk(catalog: Catalog, number: int, held: Held) -> None:
    overlay = None if held.overlay is None else os.fsencode(held.overlay)
    row = held._replace(source=os.fsencode(held.source), overlay=overlay)  # type: ignore[arg-type]
    columns = ("snapshot", *Held._fields)
    marks = ", ".join("?" * len(columns))
    catalog.change(f"INSERT INTO snapshot_disk ({', '.join(columns)}) VALUES ({marks})", number, *row)


def refuse_taken(catalog: Catalog, domain: Domain, name: str) -> None:
    """Raises: Refused when a domain has a snapshot of this name."""
    if catalog.read("SELECT 1 FROM snapshot WHERE domain = ? AND name = ?", domain.id, name):
        raise Refused(reason=f"operation failed: domain moment {name} already exists")


def find(catalog: Catalog, domain: Domain, name: str) -> Snapshot:
    """The snapshot of this name. Raises: NoSuchSnapshot."""
    rows = catalog.read(f"{_SELECT} WHERE domain = ? AND name = ?", domain.id, name)
    if not rows:
        raise NoSuchSnapshot(name=name, domain=domain.name)
    return _snapshot(rows[0])


def get(catalog: Catalog, number: int) -> Snapshot:
    """The snapshot of this number, which is there."""
    return _snapshot(catalog.read(f"{_SELECT} WHERE id = ?", number)[0])


_SELECT = f"SELECT {', '.join(Snapshot._fields)} FROM snapshot"


def _snapshot(row: Sequence[object]) -> Snapshot:
    found = Snapshot(*row)  # type: ignore[arg-type]
    found = found._replace(is_tip=bool(found.is_tip), is_found=bool(found.is_found))
    return found if found.memory_file is None else found._replace(memory_file=os.fsdecode(found.memory_file))


def rows(catalog: Catalog, domain: Domain) -> list[Row]:
    """All snapshots of a domain, by name, as stock lists them. A parent may come behind its children."""
    words = (
        "SELECT snapshot.id, name, parent, created_ns, state, max(mode = 'external') IS 1, max(lost IS NOT NULL) IS 1 "
        "FROM snapshot LEFT JOIN snapshot_disk ON snapshot = snapshot.id WHERE domain = ? "
        "GROUP BY snapshot.id ORDER BY name COLLATE NOCASE, name"
    )
    found = (Row(*row) for row in catalog.read(words, domain.id))
    return [row._replace(is_external=bool(row.is_external), is_lost=bool(row.is_lost)) for row in found]


def disks(catalog: Catalog, snapshot: int) -> list[Held]:
    """What a snapshot holds, by target."""
    words = f"SELECT {', '.join(Held._fields)} FROM snapshot_disk WHERE snapshot = ? ORDER BY target"
    return [_held(row) for row in catalog.read(words, snapshot)]


def _held(row: Sequence[object]) -> Held:
    found = Held(*row)  # type: ignore[arg-type]
    overlay = None if found.overlay is None else os.fsdecode(found.overlay)
    return found._replace(source=os.fsdecode(found.source), overlay=overlay)


def all_disks(catalog: Catalog, domain: Domain) -> dict[int, list[Held]]:
    """What all snapshots of a domain hold, by the number of the snapshot."""
    words = (
        f"SELECT snapshot, {', '.join('snapshot_disk.' + name for name in Held._fields)} FROM snapshot_disk "
        "JOIN snapshot ON snapshot.id = snapshot WHERE domain = ? ORDER BY snapshot, target"
    )
    found: dict[int, list[Held]] = {}
    for number, *row in catalog.read(words, domain.id):
        found.setdefault(number, []).append(_held(row))
    return found


def replace_disks(catalog: Catalog, snapshot: int, disks: Iterable[Held]) -> None:
    """Note what a snapshot holds now, in place of what was noted."""
    with catalog.together():
        catalog.change("DELETE FROM snapshot_disk WHERE snapshot = ?", snapshot)
        for each in disks:
            _add_disk(catalog, snapshot, each)


def describe(catalog: Catalog, snapshot: Snapshot, *, name: str, description: str) -> None:
    """Give a snapshot another name and description."""
    words = "UPDATE snapshot SET name = ?, description = ? WHERE id = ?"
    catalog.change(words, name, description, snapshot.id)


def remove(catalog: Catalog, snapshot: Snapshot) -> None:
    """Forget a snapshot; its children hang on its parent then, and so does the domain if it lay on it."""
    with catalog.together():
        # Its parent may have gone since it was looked up.
        parent = "(SELECT parent FROM snapshot WHERE id = ?)"
        catalog.change(f"UPDATE domain SET current = {parent} WHERE current = ?", snapshot.id, snapshot.id)
        catalog.change(f"UPDATE snapshot SET parent = {parent} WHERE parent = ?", snapshot.id, snapshot.id)
        catalog.change("DELETE FROM snapshot WHERE id = ?", snapshot.id)


def note_made(catalog: Catalog, path: str, identity: Identity) -> None:
    """Note that a file is one that we made."""
    catalog.change("INSERT OR REPLACE INTO made VALUES (?, ?)", os.fsencode(path), "{}:{}".format(*identity))


def forget_made(catalog: Catalog, path: str) -> None:
    """Note that a file is gone."""
    catalog.change("DELETE FROM made WHERE path = ?", os.fsencode(path))


def made(catalog: Catalog, path: str) -> Identity | None:
    """What the file was that we made under this name; None when we made none."""
    found = catalog.read("SELECT identity FROM made WHERE path = ?", os.fsencode(path))
    if not found:
        return None
    return _read_identity(found[0][0])


def all_made(catalog: Catalog) -> dict[str, Identity]:
    """What all files were that we made, by name."""
    rows = catalog.read("SELECT path, identity FROM made")
    return {os.fsdecode(path): _read_identity(identity) for path, identity in rows}


def _read_identity(text: str) -> Identity:
    device, inode = text.split(":")
    return int(device), int(inode)


def holders(catalog: Catalog, path: str) -> list[tuple[str, str]]:
    """The domains and names of all snapshots that are shown by a file."""
    words = (
        "SELECT domain.name, snapshot.name FROM snapshot_disk JOIN snapshot ON snapshot.id = snapshot "
        "JOIN domain ON domain.id = domain WHERE source = ? AND lost IS NULL"
    )
    return [(domain, name) for domain, name in catalog.read(words, os.fsencode(path))]


def users(catalog: Catalog, path: str) -> list[str]:
    """The names of all domains that had a disk in a file when a command of ours ended."""
    words = "SELECT name FROM layer JOIN domain ON domain.id = domain WHERE path = ? AND depth = 0"
    return [name for (name,) in catalog.read(words, os.fsencode(path))]


def paths(catalog: Catalog) -> list[str]:
    """All files of all guests that are known, each once, sorted: those of snapshots, and chains as they were left."""
    words = (
        "SELECT source FROM snapshot_disk UNION SELECT overlay FROM snapshot_disk WHERE overlay IS NOT NULL "
        "UNION SELECT path FROM layer ORDER BY 1"
    )
    return [os.fsdecode(path) for (path,) in catalog.read(words)]
