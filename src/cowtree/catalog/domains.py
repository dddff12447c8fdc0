"""Guests as the catalogue keeps them: names, definitions, and how their chains were left."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cowtree.catalog.store import Catalog, Identity
from cowtree.errors import NoSuchDomain, Refused


class Domain(NamedTuple):
    """One guest. `xml` is its definition with the disks of now; these lie on the snapshot `current`."""

    id: int
    name: str
    uuid: str
    xml: str
    current: int | None = None


class Layer(NamedTuple):
    """One image of a chain as it was left. Units: bytes, nanoseconds since 1970."""

    path: str
    identity: Identity
    size_bytes: int
    mtime_ns: int


_COLUMNS = ", ".join(Domain._fields)


def add(catalog: Catalog, name: str, uuid: str, xml: str) -> Domain:
    """Note a guest down. Raises: Refused when there is one of this name or uuid."""
    for column, value in (("name", name), ("uuid", uuid)):
        if catalog.read(f"SELECT 1 FROM domain WHERE {column} = ?", value):
            raise Refused(reason=f"domain with {column} '{value}' already exists", hint="cowtree list --all")
    number = catalog.add("INSERT INTO domain (name, uuid, xml) VALUES (?, ?, ?)", name, uuid, xml)
    return Domain(number, name, uuid, xml)


def redefine(catalog: Catalog, domain: Domain, xml: str) -> Domain:
    """Give a guest another definition; its name and uuid stay."""
    catalog.change("UPDATE domain SET xml = ? WHERE id = ?", xml, domain.id)
    return domain._replace(xml=xml)


def set_current(catalog: Catalog, domain: Domain, snapshot: int | None) -> None:
    """Note on which snapshot a guest's disks lie now."""
    catalog.change("UPDATE domain SET current = ? WHERE id = ?", snapshot, domain.id)


def remove(catalog: Catalog, domain: Domain) -> None:
    """Forget a guest and all that is known of it; no file is touched."""
    catalog.change("DELETE FROM domain WHERE id = ?", domain.id)


def find(catalog: Catalog, name: str) -> Domain:
    """The guest of this name, or uuid. Raises: NoSuchDomain."""
    rows = catalog.read(f"SELECT {_COLUMNS} FROM domain WHERE name = ?", name) or catalog.read(
        f"SELECT {_COLUMNS} FROM domain WHERE uuid = ?", name.lower()
    )
    if not rows:
        raise NoSuchDomain(name=name)
    return Domain(*rows[0])


def everyone(catalog: Catalog) -> list[Domain]:
    """All guests, by name."""
    return [Domain(*row) for row in catalog.read(f"SELECT {_COLUMNS} FROM domain ORDER BY name")]


def leave(catalog: Catalog, domain: Domain, chains: Mapping[str, Sequence[Layer]]) -> None:
    """Note how the chains of a guest's disks are, by target, the active image first."""
    with catalog.together():
        catalog.change("DELETE FROM layer WHERE domain = ?", domain.id)
        for target, layers in chains.items():
            for depth, each in enumerate(layers):
                values = (each.path.encode(errors="surrogateescape"), "{}:{}".format(*each.identity))
                catalog.change(
                    "INSERT INTO layer VALUES (?, ?, ?, ?, ?, ?, ?)",
                    *(domain.id, target, depth, *values, each.size_bytes, each.mtime_ns),
                )


def left(catalog: Catalog, domain: Domain) -> dict[str, list[Layer]]:
    """How they were, by target."""
    words = "SELECT target, path, identity, size_bytes, mtime_ns FROM layer WHERE domain = ? ORDER BY target, depth"
    found: dict[str, list[Layer]] = {}
    for target, path, identity, size_bytes, mtime_ns in catalog.read(words, domain.id):
        device, inode = identity.split(":")
        layer = Layer(path.decode(errors="surrogateescape"), (int(device), int(inode)), size_bytes, mtime_ns)
        found.setdefault(target, []).append(layer)
    return found
