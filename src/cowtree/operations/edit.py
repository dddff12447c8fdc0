"""What is noted down of snapshots is changed: their names and descriptions, which one is current, and one that was
taken is noted down once more. No image is touched.
"""

from collections.abc import Iterator
from typing import NamedTuple

from cowtree.catalog import domains, snapshots
from cowtree.catalog.snapshots import EXTERNAL, INTERNAL, MANUAL, NO, Held, Snapshot
from cowtree.chain import gate
from cowtree.domain import definition, moment
from cowtree.domain.definition import Definition
from cowtree.domain.moment import DiskRequest, Request
from cowtree.errors import BrokenXml, MissingImage, NoSuchSnapshot, Refused
from cowtree.images.snapshot import list_snapshots
from cowtree.operations import drift, tell
from cowtree.operations.host import Host, Subject
from cowtree.operations.lists import NANOSECONDS, described
from cowtree.storage.contract import is_there


class Manner(NamedTuple):
    """What may become of the name: it is changed, or a copy gets another one."""

    renames: bool = False
    clones: bool = False


def change(host: Host, subject: Subject, snapshot: Snapshot, edited: Request, manner: Manner) -> None:
    """Give a snapshot the name and the description that its edited XML has.
    Raises: Refused when anything else was changed, or the name and that was not asked for.
    """
    now = moment.parse(moment.dump(described(host, snapshot)))
    if edited.name is None:
        raise BrokenXml(reason="a redefined snapshot must have a name")
    changed = [
        field
        for field, old, new in zip(Request._fields, now, edited, strict=True)
        if old != new and field not in ("name", "description")
    ]
    if changed:
        reason = f"snapshot '{snapshot.name}' was taken as it is: {', '.join(changed)} cannot be changed"
        raise Refused(reason=reason, hint="change the name and the description alone")
    description = edited.description or ""
    if edited.name == snapshot.name:
        snapshots.describe(host.catalog, snapshot, name=snapshot.name, description=description)
        tell.renew(host, subject.domain)
        return
    _refuse_name(host, subject, snapshot, edited.name, manner)
    if manner.clones:
        copy = snapshot._replace(name=edited.name, description=description)
        snapshots.add(host.catalog, subject.domain, copy, snapshots.disks(host.catalog, snapshot.id))
    else:
        snapshots.describe(host.catalog, snapshot, name=edited.name, description=description)
        tell.renew(host, subject.domain)


def _refuse_name(host: Host, subject: Subject, snapshot: Snapshot, name: str, manner: Manner) -> None:
    """Raises: Refused when a snapshot cannot have this name."""
    if not (manner.renames or manner.clones):
        raise Refused(reason=f"must use --rename or --clone to change {snapshot.name} to {name}")
    if any(held.mode == INTERNAL for held in snapshots.disks(host.catalog, snapshot.id)):
        reason = f"snapshot '{snapshot.name}' lies in an image under this name; another one would not lead there"
        raise Refused(reason=reason, hint="change its description alone")
    snapshots.refuse_taken(host.catalog, subject.domain, name)


def make_current(host: Host, subject: Subject, snapshot: Snapshot) -> None:
    """Note that a guest's disks lie on a snapshot. Raises: Refused when they do not."""
    for held in snapshots.disks(host.catalog, snapshot.id):
        if held.lost is None and not _lies_on(host, subject, held):
            reason = f"disk {held.target} does not lie on snapshot '{snapshot.name}', which {held.source} holds"
            hint = f"cowtree snapshot-revert {subject.domain.name} {snapshot.name}"
            raise Refused(reason=reason, hint=hint)
    domains.set_current(host.catalog, subject.domain, snapshot.id)


def _lies_on(host: Host, subject: Subject, held: Held) -> bool:
    disk = next((disk for disk in subject.definition.disks if disk.target == held.target), None)
    if disk is None or disk.source is None:
        return False
    layers = drift.layers(host, disk.source, disk.format or gate.RAW)
    # An external one is changed by whoever writes to its own file.
    below = layers[1:] if held.mode == EXTERNAL else layers
    return any(layer.path == held.source for layer in below)


def redefine(host: Host, subject: Subject, request: Request, *, is_current: bool) -> str:
    """Note a snapshot down that was taken before, as `snapshot-dumpxml` has printed it; of one that is known the
    description is replaced. Returns: its name.
    Raises: BrokenXml when something is missing, Refused and MissingImage when the images do not hold it.
    """
    name, then = _refuse_incomplete(subject, request)
    parent = None if request.parent is None else _parent(host, subject, name, request.parent)
    held = list(_held(host, subject, request, then))
    try:
        known = snapshots.find(host.catalog, subject.domain, name)
    except NoSuchSnapshot:
        known = None
    description = request.description or ""
    with host.catalog.together():
        if known is None:
            memory = request.memory or moment.Memory(NO)
            new = Snapshot(
                *(0, name, parent, description, (request.created_s or 0) * NANOSECONDS, request.state or ""),
                *(memory.mode or NO, memory.file, then.text),
            )
            known = snapshots.add(host.catalog, subject.domain, new, held)
        else:
            _refuse_other(host, known, parent, held)
            snapshots.describe(host.catalog, known, name=name, description=description)
        if is_current:
            make_current(host, subject, known)
    return name


def _refuse_incomplete(subject: Subject, request: Request) -> tuple[str, Definition]:
    """The name of a snapshot that was taken, and the guest as it was then. Raises: BrokenXml."""
    if request.name is None:
        raise BrokenXml(reason="a redefined snapshot must have a name")
    for field, value in (("creationTime", request.created_s), ("state", request.state), ("domain", request.domain)):
        if value is None:
            raise BrokenXml(reason=f"missing {field} from existing snapshot", hint="cowtree snapshot-dumpxml")
    then = definition.parse(request.domain or "")
    if then.uuid != subject.domain.uuid:
        raise BrokenXml(reason=f"definition for snapshot {request.name} must use uuid {subject.domain.uuid}")
    return request.name, then


def _parent(host: Host, subject: Subject, name: str, parent: str) -> int:
    if parent == name:
        raise BrokenXml(reason=f"cannot set snapshot {name} as its own parent")
    try:
        return snapshots.find(host.catalog, subject.domain, parent).id
    except NoSuchSnapshot:
        raise BrokenXml(reason=f"parent {parent} for snapshot {name} not found", hint="that one first") from None


def _held(host: Host, subject: Subject, request: Request, then: Definition) -> Iterator[Held]:
    """What the images hold of what the XML says. Raises: Refused, MissingImage."""
    for asked in request.disks:
        if asked.mode in (None, NO, MANUAL):
            continue
        disk = then.disk(asked.name)
        if disk.source is None:
            raise BrokenXml(reason=f"disk '{asked.name}' had no source when snapshot {request.name} was taken")
        image_format = disk.format or gate.RAW
        if not is_there(host.files, disk.source):
            raise MissingImage(path=disk.source, reason=f"snapshot '{request.name}' held disk {disk.target} in it")
        if asked.mode == INTERNAL:
            found = _entry(host, request.name or "", disk.source, image_format)
            yield Held(disk.target, INTERNAL, disk.source, image_format, internal_id=found)
        else:
            _refuse_active(subject, disk.target, disk.source, asked)
            yield Held(disk.target, EXTERNAL, disk.source, image_format, asked.file)


def _entry(host: Host, name: str, path: str, image_format: str) -> str:
    """The ID of the one internal snapshot of this name. Raises: Refused."""
    ids = [entry.id for entry in list_snapshots(host.files, path, image_format) if entry.name == name]
    if len(ids) != 1:
        reason = f"{path} has {'no' if not ids else len(ids)} internal snapshot{'s' * (len(ids) > 1)} '{name}'"
        raise Refused(reason=reason, hint=f"cowtree img snapshot -l {path}")
    return ids[0]


def _refuse_active(subject: Subject, target: str, source: str, asked: DiskRequest) -> None:
    if any(disk.source == source for disk in subject.definition.disks):
        reason = f"{source} is active: what it held of disk {target} when {asked.file} was made may be gone"
        raise Refused(reason=reason, hint="an external snapshot lies below the active image")


def _refuse_other(host: Host, known: Snapshot, parent: int | None, held: list[Held]) -> None:
    """Raises: Refused when what is described is not what is known."""
    old = {each.target: (each.mode, each.source) for each in snapshots.disks(host.catalog, known.id)}
    if known.parent != parent or old != {each.target: (each.mode, each.source) for each in held}:
        reason = f"operation failed: domain moment {known.name} already exists, and is another one"
        raise Refused(reason=reason, hint="cowtree snapshot-delete DOMAIN NAME --metadata, to forget it first")
