"""Taking a snapshot of a guest: of all its disks at one moment, or of none.

An intent says which files are to be made before the first one is. A run that was cut short is taken back: the overlays
are removed as long as nobody has written to them, and internal snapshots are deleted.
"""

import os
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from cowtree.catalog import domains, intents, snapshots
from cowtree.catalog.intents import Intent
from cowtree.catalog.snapshots import EXTERNAL, INTERNAL, MANUAL, NO, SHUTOFF, Held, Snapshot
from cowtree.chain import gate
from cowtree.chain.view import open_chain
from cowtree.domain.definition import Definition, Disk
from cowtree.domain.moment import DiskRequest, Request, refuse_name
from cowtree.errors import CowtreeError, ImageLocked, Refused, WrongUse
from cowtree.guests.driver import Inside, Overlay
from cowtree.guests.offline import refuse_taken
from cowtree.images.snapshot import list_snapshots
from cowtree.operations.host import Host, Subject
from cowtree.storage.contract import Access, Use, is_there

VERB: Final = "snapshot-create"
NANOSECONDS: Final = 1_000_000_000
MICROSECOND_NS: Final = 1000
NAME_BYTES_MAX: Final = 200


class Manner(NamedTuple):
    """How a snapshot is taken: of the disks alone, in files that are there already, without being noted down."""

    is_disk_only: bool = False
    reuses_external: bool = False
    has_metadata: bool = True


class Taking(NamedTuple):
    """What there is to do: which files are made, which internal snapshots are taken, and what is noted down of it."""

    overlays: tuple[Overlay, ...]
    insides: tuple[Inside, ...]
    held: tuple[Held, ...]


def create(host: Host, subject: Subject, request: Request, manner: Manner) -> str:
    """Take a snapshot. Returns: its name.
    Raises: Refused, ImageLocked, and what making files raises; then nothing was done.
    """
    now_ns = host.catalog.now_ns() // MICROSECOND_NS * MICROSECOND_NS
    name = request.name or str(now_ns // NANOSECONDS)
    refuse_name(name)
    if len(os.fsencode(name)) > NAME_BYTES_MAX:
        raise WrongUse(reason=f"the snapshot's name is longer than {NAME_BYTES_MAX} bytes")
    if request.memory is not None and request.memory.mode not in (None, NO):
        reason = "XML error: memory state cannot be saved with offline or disk-only snapshot"
        raise Refused(reason=reason, hint="the same without --memspec")
    if manner.has_metadata:
        snapshots.refuse_taken(host.catalog, subject.domain, name)
    taking = plan(subject.definition, request._replace(name=name), manner, now_ns)
    _refuse(host, taking)
    parent = subject.domain.current
    new = Snapshot(0, name, parent, request.description or "", now_ns, SHUTOFF, NO, None, subject.definition.text)
    told = new if manner.has_metadata else new._replace(name="")
    taking = taking._replace(overlays=with_moments(host, subject, taking.overlays, told, now_ns))
    intent = intents.begin(host.catalog, subject.domain, VERB, _content(name, taking))
    try:
        subject.guest.go_on(taking.overlays)
        taken = subject.guest.keep(taking.insides)
    except CowtreeError:
        _take_back(host, subject, intent, taking)
        raise
    held = with_ids(taking.held, taken)
    with host.catalog.together():
        if manner.has_metadata:
            made = snapshots.add(host.catalog, subject.domain, new, held)
            domains.set_current(host.catalog, subject.domain, made.id)
        domains.redefine(host.catalog, subject.domain, moved(subject.definition, taking.overlays).text)
        note_made(host, taking.overlays)
        intents.end(host.catalog, intent)
    return name


def plan(definition: Definition, request: Request, manner: Manner, now_ns: int) -> Taking:
    """Which disk gets what. Raises: Refused for what cannot be, WrongUse for a disk that is not there."""
    wanted = _by_target(definition, request.disks)
    overlays, insides, held = [], [], []
    for disk in definition.disks:
        asked = wanted.get(disk.target, DiskRequest(disk.target))
        mode = _mode(disk, asked, manner)
        if mode in (NO, MANUAL) or disk.source is None:
            continue
        source, image_format = disk.source, disk.format or gate.RAW
        if mode == INTERNAL:
            if image_format != gate.QCOW2:
                reason = (
                    f"unsupported configuration: internal snapshot for disk {disk.target} unsupported for storage "
                    f"type {image_format}"
                )
                raise Refused(reason=reason, hint=f"--diskspec {disk.target},snapshot=external")
            insides.append(Inside(disk.target, source, image_format, request.name or "", now_ns))
            held.append(Held(disk.target, INTERNAL, source, image_format))
        else:
            path = os.path.abspath(asked.file or _overlay_name(disk, source, request.name or ""))
            overlays.append(Overlay(disk.target, source, image_format, path, manner.reuses_external))
            held.append(Held(disk.target, EXTERNAL, source, image_format, path))
    if not held:
        raise Refused(reason="invalid argument: there is no disk of which a snapshot could be taken")
    return Taking(tuple(overlays), tuple(insides), tuple(held))


def _by_target(definition: Definition, asked: Sequence[DiskRequest]) -> dict[str, DiskRequest]:
    found: dict[str, DiskRequest] = {}
    for each in asked:
        target = definition.disk(each.name).target
        if target in found:
            raise WrongUse(reason=f"unsupported configuration: disk '{each.name}' specified twice")
        found[target] = each
    return found


def _mode(disk: Disk, asked: DiskRequest, manner: Manner) -> str:
    """How a disk takes part: as it is asked for, else as its definition says, else as all others."""
    if disk.source is None or (asked.mode is None and disk.is_readonly):
        return NO
    if asked.mode is not None:
        return asked.mode
    if asked.file is not None:
        return EXTERNAL
    return disk.snapshot or (EXTERNAL if manner.is_disk_only else INTERNAL)


def _overlay_name(disk: Disk, source: str, name: str) -> str:
    """The name of an overlay that nobody has named: the source's, with the snapshot's in place of its ending."""
    if disk.type != "file":
        reason = (
            f"unsupported configuration: cannot generate external snapshot name for disk '{disk.target}' on a "
            f"'{disk.type}' device"
        )
        raise Refused(reason=reason, hint=f"--diskspec {disk.target},file=PATH")
    folder, last = os.path.split(source)
    stem = last.rsplit(".", 1)[0] if "." in last[1:] else last
    return os.path.join(folder, f"{stem}.{name}")


def _refuse(host: Host, taking: Taking) -> None:
    """Look at all that is relied on, before anything is begun."""
    paths = [each.path for each in taking.overlays]
    if len({*paths}) < len(paths):
        raise Refused(reason="unsupported configuration: two disks cannot go on in the same file")
    for each in taking.overlays:
        refuse_use(host, each.source, each.format)
        if each.is_reused:
            refuse_other_base(host, each)
        else:
            refuse_taken(host.files, each)
            refuse_nowhere(host, each.path)
    for inside in taking.insides:
        refuse_use(host, inside.source, inside.format)
        if any(entry.name == inside.name for entry in list_snapshots(host.files, inside.source, inside.format)):
            reason = f"{inside.source} has an internal snapshot '{inside.name}' already, which cowtree knows nothing of"
            raise Refused(reason=reason, hint="another name; or cowtree catalog rebuild")


def refuse_use(host: Host, path: str, image_format: str | None) -> None:
    """Raises: ImageLocked when somebody writes to a disk, and whatever stands against reading its chain."""
    chain = open_chain(host.files, path, image_format, Access.PROBE)
    try:
        if chain.top.file.use() == Use.WRITTEN:
            raise ImageLocked(path=path, what='shared "write"')
    finally:
        chain.close()


def refuse_nowhere(host: Host, path: str) -> None:
    """Raises: Refused when there is no folder in which a file could be made."""
    folder = os.path.dirname(path)
    if not is_there(host.files, folder):
        reason = f"failed to create image file '{path}': No such file or directory"
        raise Refused(reason=reason, hint=f"mkdir {folder}")


def refuse_other_base(host: Host, overlay: Overlay) -> None:
    """Raises: Refused when a file that is to be reused does not lie on what it shall lie on."""
    if not is_there(host.files, overlay.path):
        raise Refused(reason=f"{overlay.path} is not there, and was to be reused", hint="without --reuse-external")
    layer = gate.open_alone(host.files, overlay.path, gate.QCOW2, Access.SHARED)
    base = layer.header.backing_file if layer.header else None
    layer.close()
    place = None if base is None else gate.locate(overlay.path, base)
    if place is None or host.files.identity(place) != host.files.identity(overlay.source):
        lies = "on nothing" if place is None else f"on {place}"
        reason = f"{overlay.path} lies {lies}, not on {overlay.source}, which disk {overlay.target} uses now"
        hint = f"cowtree img rebase -u -b {overlay.source} -F {overlay.format} {overlay.path}, if it is empty"
        raise Refused(reason=reason, hint=hint)


def with_moments(
    host: Host, subject: Subject, overlays: Sequence[Overlay], snapshot: Snapshot, made_ns: int
) -> tuple[Overlay, ...]:
    """The overlays, which shall tell of the snapshot that lies below them: one without a name is not to be noted."""
    parent = "" if snapshot.parent is None else snapshots.get(host.catalog, snapshot.parent).name
    moment = {
        **{"domain": subject.domain.name, "uuid": subject.domain.uuid, "name": snapshot.name, "parent": parent},
        **{"description": snapshot.description, "created_ns": snapshot.created_ns, "made_ns": made_ns},
        "is_tip": snapshot.is_tip,
    }
    return tuple(each._replace(moment={**moment, "target": each.target}) for each in overlays)


def with_ids(held: Sequence[Held], taken: Sequence[Inside]) -> list[Held]:
    """What is held, with the IDs of the internal snapshots that were taken."""
    ids = {each.target: each.id for each in taken}
    return [each._replace(internal_id=ids.get(each.target)) for each in held]


def moved(definition: Definition, overlays: Sequence[Overlay]) -> Definition:
    """A definition whose disks go on in overlays."""
    for each in overlays:
        definition = definition.with_source(each.target, each.path, gate.QCOW2)
    return definition


def note_made(host: Host, overlays: Sequence[Overlay]) -> None:
    """Note which files are ours."""
    for each in overlays:
        if not each.is_reused:
            snapshots.note_made(host.catalog, each.path, host.files.identity(each.path))


def _content(name: str, taking: Taking) -> dict[str, Any]:
    return {"name": name, "overlays": taking.overlays, "insides": taking.insides}


def settle(host: Host, subject: Subject, intent: Intent) -> None:
    """Take back a snapshot whose taking was cut short. Raises: Refused when somebody has written to its files since."""
    content = intent.content
    taking = Taking(
        tuple(Overlay(*each) for each in content["overlays"]), tuple(Inside(*each) for each in content["insides"]), ()
    )
    _take_back(host, subject, intent, taking)
    host.tell(f"snapshot '{content['name']}' was cut short while it was taken: all of it was taken back")


def _take_back(host: Host, subject: Subject, intent: Intent, taking: Taking) -> None:
    subject.guest.take_back(taking.overlays)
    subject.guest.forget(taking.insides)
    intents.end(host.catalog, intent)
