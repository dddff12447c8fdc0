"""How the catalogue differs from the disk: found, in one sentence each. Nothing is changed, and nothing is settled.

A snapshot whose content is known to be gone is no difference: the catalogue says so itself.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from cowtree.catalog import domains, intents, snapshots
from cowtree.catalog.domains import Domain
from cowtree.catalog.snapshots import INTERNAL, MANUAL, NO, Held, Row
from cowtree.catalog.store import Identity
from cowtree.chain import gate
from cowtree.chain.aside import is_aside
from cowtree.chain.forest import survey
from cowtree.chain.lists import read_snapshots
from cowtree.domain.definition import Definition, parse
from cowtree.errors import BrokenXml, ChangedBehind, CowtreeError
from cowtree.operations import drift
from cowtree.operations.host import Host
from cowtree.operations.places import places
from cowtree.qcow2.snapshots import Snapshot as Entry
from cowtree.storage.contract import Access, is_there

SECOND_NS: Final = 1_000_000_000
DEFINITION, CHAIN, SNAPSHOT, UNKNOWN, STRANGER, MADE, INTENT, LOST = (
    *("definition", "chain", "snapshot", "unknown-snapshot", "stranger", "made", "intent", "lost"),
)


class Difference(NamedTuple):
    """One difference, in a sentence: of which kind, and of which domain, if it is one domain's."""

    kind: str
    domain: str | None
    sentence: str


class Findings(NamedTuple):
    """What was found: all differences, and what is known to be lost."""

    differences: tuple[Difference, ...]
    lost: tuple[Difference, ...]


def check(host: Host, name: str | None = None) -> Findings:
    """Find every difference, of all domains or of one. Raises: NoSuchDomain."""
    everyone = domains.everyone(host.catalog)
    chosen = everyone if name is None else [domains.find(host.catalog, name)]
    known = _Known({each.id: own_files(host, each) for each in everyone}, {*_insides(host, everyone)})
    found = [each for domain in chosen for each in _domain(host, domain, known)]
    found += _made(host, None if name is None else _paths(host, chosen[0]))
    differences = dict.fromkeys(each for each in found if each.kind != LOST)
    return Findings(tuple(differences), tuple(each for each in found if each.kind == LOST))


class _Known(NamedTuple):
    """What the catalogue knows: the files of each domain, and which internal snapshots lie in which files."""

    files: dict[int, dict[Identity, str]]
    insides: set[tuple[Identity | None, str | None]]


def _insides(host: Host, chosen: Sequence[Domain]) -> Iterator[tuple[Identity | None, str | None]]:
    for domain in chosen:
        for disks in snapshots.all_disks(host.catalog, domain).values():
            yield from ((_identity(host, held.source), held.internal_id) for held in disks if held.mode == INTERNAL)


def _domain(host: Host, domain: Domain, known: _Known) -> Iterator[Difference]:
    for intent in intents.found(host.catalog, domain):
        date = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(intent.started_ns // SECOND_NS))
        sentence = f"{intent.verb} was begun on {date} and did not end; the next command for the domain settles it"
        yield Difference(INTENT, domain.name, sentence)
    try:
        definition = parse(domain.xml)
    except BrokenXml as error:
        yield Difference(DEFINITION, domain.name, f"its definition cannot be read: {error.reason}")
    else:
        yield from (Difference(CHAIN, domain.name, each) for each in _chains(host, domain, definition))
        yield from (Difference(STRANGER, domain.name, each) for each in _strangers(host, domain, definition, known))
    yield from _snapshots(host, domain)
    yield from (Difference(UNKNOWN, domain.name, each) for each in _unknown(host, domain, known))


def _chains(host: Host, domain: Domain, definition: Definition) -> Iterator[str]:
    left = domains.left(host.catalog, domain)
    for disk in definition.disks:
        if disk.source is None:
            continue
        then = left.get(disk.target)
        if then and then[0].path == disk.source:
            yield from (f"disk {disk.target}: {each}" for each in drift.differences(host, disk, then))
            continue
        try:
            drift.layers(host, disk.source, disk.format or gate.RAW)
        except CowtreeError as error:
            yield f"disk {disk.target}: its chain cannot be read: {error.message}"


def _snapshots(host: Host, domain: Domain) -> Iterator[Difference]:
    rows = {row.id: row for row in snapshots.rows(host.catalog, domain)}
    for number, disks in snapshots.all_disks(host.catalog, domain).items():
        for held in disks:
            of = f"snapshot '{rows[number].name}', disk {held.target}"
            if held.lost is not None:
                yield Difference(LOST, domain.name, f"{of}: {held.lost}")
            elif held.mode not in (NO, MANUAL):
                for each in _held(host, held, rows[number]):
                    yield Difference(SNAPSHOT, domain.name, f"{of}: {each}")


def _held(host: Host, held: Held, row: Row) -> Iterator[str]:
    """What is wrong with what a snapshot holds of one disk."""
    try:
        if not is_there(host.files, held.source):
            yield f"{held.source} is gone, which holds it"
        elif held.mode == INTERNAL:
            if not any(_is_same(each, held, row) for each in entries(host, held.source)):
                yield f"{held.source} has no such internal snapshot any more"
        else:
            drift.refuse_changed(host, held)
    except ChangedBehind as error:
        yield error.reason
    except CowtreeError as error:
        yield f"it cannot be looked at: {error.message}"
    # One that we did away with ourselves is noted as ours no more.
    if held.overlay is not None and _is_gone(host, held.overlay) and snapshots.made(host.catalog, held.overlay):
        yield f"{held.overlay} is gone, which was made with it"


def _is_same(entry: Entry, held: Held, row: Row) -> bool:
    """Whether an internal snapshot of a file is the one that is meant; it may have been given another name here."""
    return entry.id == held.internal_id and (entry.name == row.name or created_ns(entry) == row.created_ns)


def created_ns(entry: Entry) -> int:
    """When an internal snapshot was taken. Units: nanoseconds since 1970."""
    return entry.time_s * SECOND_NS + entry.time_ns


def _is_gone(host: Host, path: str) -> bool:
    """Whether a file is not there, as far as that can be told."""
    with suppress(CowtreeError):
        return not is_there(host.files, path)
    return False


def entries(host: Host, path: str) -> tuple[Entry, ...]:
    """The internal snapshots that lie in a qcow2 image; it may be in use. Raises: what opening and reading raise."""
    layer = gate.open_alone(host.files, path, gate.QCOW2, Access.PROBE)
    try:
        return read_snapshots(layer, layer.header)[0] if layer.header else ()
    finally:
        layer.close()


def _unknown(host: Host, domain: Domain, known: _Known) -> Iterator[str]:
    """Internal snapshots in a domain's files of which no domain's snapshot knows."""
    for identity, path in known.files[domain.id].items():
        with suppress(CowtreeError):
            for entry in entries(host, path):
                if (identity, entry.id) not in known.insides:
                    yield f"{path} has an internal snapshot '{entry.name}' of which the catalogue knows nothing"


def own_files(host: Host, domain: Domain) -> dict[Identity, str]:
    """The files that a domain and its snapshots consist of, as far as they can be read."""
    found = dict[Identity, str]()
    for path, image_format in _heads(host, domain):
        with suppress(CowtreeError):
            for layer in gate.walk(host.files, path, image_format, Access.PROBE):
                layer.close()
                identity = host.files.identity(layer.path)
                if identity in found:
                    break
                found[identity] = layer.path
    return found


def _heads(host: Host, domain: Domain) -> Iterator[tuple[str, str]]:
    with suppress(BrokenXml):
        for disk in parse(domain.xml).disks:
            if disk.source is not None:
                yield disk.source, disk.format or gate.RAW
    for disks in snapshots.all_disks(host.catalog, domain).values():
        yield from ((held.source, held.format) for held in disks if held.lost is None and held.mode not in (NO, MANUAL))


def _strangers(host: Host, domain: Domain, definition: Definition, known: _Known) -> Iterator[str]:
    """Images that lie on a domain's files, and are no domain's."""
    own, everyone = known.files[domain.id], {each for files in known.files.values() for each in files}
    sources = [disk.source for disk in definition.disks if disk.source and not _is_gone(host, disk.source)]
    forest = survey(host.files, [*sources, *places(host)])
    identities = [_identity(host, node.path) for node in forest.nodes]
    for node, identity in zip(forest.nodes, identities, strict=True):
        base = None if node.parent is None else identities[node.parent]
        if base in own and identity not in everyone and not is_aside(node.path):
            yield f"{node.path} lies on {own[base]}, and belongs to nobody"


def _identity(host: Host, path: str) -> Identity | None:
    with suppress(CowtreeError):
        return host.files.identity(path)
    return None


def _paths(host: Host, domain: Domain) -> set[str]:
    """The names of all files of which a domain's rows tell."""
    found = {layer.path for layers in domains.left(host.catalog, domain).values() for layer in layers}
    for disks in snapshots.all_disks(host.catalog, domain).values():
        found |= {path for held in disks for path in (held.source, held.overlay) if path is not None}
    return found


def _made(host: Host, wanted: set[str] | None) -> Iterator[Difference]:
    """Files of ours that are gone, or are other ones now."""
    for path, identity in sorted(snapshots.all_made(host.catalog).items()):
        if wanted is not None and path not in wanted:
            continue
        if _is_gone(host, path):
            yield Difference(MADE, None, f"{path} is gone, which cowtree made")
        elif _identity(host, path) not in (identity, None):
            yield Difference(MADE, None, f"{path} is another file than the one that cowtree made")
