"""What there is to see of a guest: its snapshots, chosen and in order, one of them in full, and its disks' sizes."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from cowtree.catalog import snapshots
from cowtree.catalog.snapshots import EXTERNAL, NO, Row, Snapshot
from cowtree.chain import gate
from cowtree.domain.definition import Disk, parse
from cowtree.domain.moment import DiskRequest, Memory, Request
from cowtree.errors import Refused
from cowtree.images.info import image_info
from cowtree.operations.host import Host, Subject
from cowtree.storage.contract import Access

NANOSECONDS = 1_000_000_000


class Choice(NamedTuple):
    """Which snapshots are listed: those for which everything that is not None is true. `below` is the number of one
    whose children, or with `is_deep` descendants, are listed.
    """

    is_root: bool | None = None
    is_leaf: bool | None = None
    states: frozenset[str] | None = None
    is_external: frozenset[bool] | None = None
    below: int | None = None
    is_deep: bool = False
    is_topological: bool = False


class Place(NamedTuple):
    """Where a snapshot stands among the others."""

    parent: str | None
    child_count: int
    descendant_count: int


class Sizes(NamedTuple):
    """How large a disk is for the guest, what its file takes on disk, and how long that is. Units: bytes."""

    capacity_bytes: int
    allocation_bytes: int
    physical_bytes: int


def chosen(rows: Sequence[Row], choice: Choice) -> list[Row]:
    """The snapshots that are wanted, by name as stock sorts them, or each behind its parent."""
    rows = sorted(rows, key=lambda row: (row.name.lower(), row.name))
    children = children_of(rows)
    if choice.below is not None:
        picked = children.get(choice.below, []) if not choice.is_deep else list(_below(children, choice.below))
        numbers = {row.id for row in picked}
    else:
        numbers = {row.id for row in rows}
    if choice.is_topological:
        rows = list(_below(children, None))
    return [row for row in rows if row.id in numbers and _fits(row, choice, children)]


def _fits(row: Row, choice: Choice, children: dict[int | None, list[Row]]) -> bool:
    return (
        choice.is_root in (None, row.parent is None)
        and choice.is_leaf in (None, row.id not in children)
        and (choice.states is None or row.state in choice.states)
        and (choice.is_external is None or row.is_external in choice.is_external)
    )


def children_of(rows: Iterable[Row]) -> dict[int | None, list[Row]]:
    """The children of each snapshot, and under None the roots, in the order in which they are given."""
    children: dict[int | None, list[Row]] = {}
    for row in rows:
        children.setdefault(row.parent, []).append(row)
    return children


def _below(children: dict[int | None, list[Row]], number: int | None) -> Iterator[Row]:
    """All descendants, each behind its parent."""
    pending = list(reversed(children.get(number, [])))
    while pending:
        row = pending.pop()
        yield row
        pending += reversed(children.get(row.id, []))


def place(host: Host, subject: Subject, snapshot: Snapshot) -> Place:
    """Where a snapshot stands."""
    rows = snapshots.rows(host.catalog, subject.domain)
    children = children_of(rows)
    parent = next((row.name for row in rows if row.id == snapshot.parent), None)
    return Place(parent, len(children.get(snapshot.id, [])), sum(1 for _ in _below(children, snapshot.id)))


def is_external(host: Host, snapshot: Snapshot) -> bool:
    """Whether a part of a snapshot is held in a file of its own."""
    return snapshot.memory == EXTERNAL or any(
        held.mode == EXTERNAL for held in snapshots.disks(host.catalog, snapshot.id)
    )


def described(host: Host, snapshot: Snapshot) -> Request:
    """A snapshot that was made, as its XML describes it."""
    parent = None if snapshot.parent is None else snapshots.get(host.catalog, snapshot.parent).name
    held = {each.target: each for each in snapshots.disks(host.catalog, snapshot.id)}
    disks = [
        DiskRequest(each.target, each.mode)
        if each.mode != EXTERNAL
        else DiskRequest(each.target, EXTERNAL, each.overlay, None if each.overlay is None else gate.QCOW2)
        for each in held.values()
    ]
    disks += [DiskRequest(disk.target, NO) for disk in parse(snapshot.xml).disks if disk.target not in held]
    return Request(
        snapshot.name,
        snapshot.description or None,
        memory=Memory(snapshot.memory, snapshot.memory_file),
        disks=tuple(sorted(disks, key=lambda disk: disk.name)),
        state=snapshot.state,
        parent=parent,
        created_s=snapshot.created_ns // NANOSECONDS,
        domain=snapshot.xml,
    )


def sizes(host: Host, disk: Disk) -> Sizes:
    """How large a disk is. Raises: Refused when it has no file here, and what opening raises."""
    if disk.source is None:
        raise Refused(reason=f"invalid argument: disk '{disk.target}' does not currently have a source assigned")
    info = image_info(host.files, disk.source, disk.format or gate.RAW, Access.PROBE)
    physical_bytes = info.size_bytes if disk.type == "block" else host.files.times(disk.source).size_bytes
    return Sizes(info.size_bytes, min(info.own_size_bytes or 0, physical_bytes), physical_bytes)
