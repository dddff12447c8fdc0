"""Reverting a guest to a snapshot.

    external    its file stays as it is: a new overlay on it becomes active
    internal    is applied to the file in which it lies; when others rely on that file as it is, or it belongs to a tip
                with other disks, the snapshot is copied into a new file, which becomes active
    a tip       what a branch was when it was left: its files become active again, and the tip goes away

What is active before stays as a tip, unless nobody has written to it since the snapshot below. The state that an
internal snapshot is applied over is gone, as with every other tool.

A run that was cut short is taken back as long as it has only made overlays; else it is completed.
"""

import os
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, Final, NamedTuple

from cowtree.catalog import domains, intents, snapshots
from cowtree.catalog.intents import Intent
from cowtree.catalog.snapshots import EXTERNAL, INTERNAL, NO, SHUTOFF, Held, Snapshot
from cowtree.chain import gate
from cowtree.domain.definition import Definition, parse
from cowtree.errors import CowtreeError, MissingImage, Refused
from cowtree.guests.driver import Copy, Inside, Overlay
from cowtree.guests.offline import is_empty_overlay
from cowtree.images.family import find
from cowtree.operations import drift, needs
from cowtree.operations.create import note_made, refuse_use, with_moments
from cowtree.operations.host import Host, Subject
from cowtree.operations.host import subject as subject_of
from cowtree.operations.places import places
from cowtree.storage.contract import is_there

VERB: Final = "snapshot-revert"


class Reverting(NamedTuple):
    """What there is to do. `sources` says which file, of which format, each disk goes on in; `left` what the tip holds
    that stays behind, and `dropped` what goes when nobody needs it.
    """

    snapshot: int
    overlays: tuple[Overlay, ...]
    copies: tuple[Copy, ...]
    insides: tuple[Inside, ...]
    sources: tuple[tuple[str, str, str], ...]
    left: tuple[Held, ...]
    dropped: tuple[str, ...]

    @property
    def has_point_of_no_return(self) -> bool:
        """Whether it does what cannot be taken back."""
        return bool(self.insides or self.copies)


class Manner(NamedTuple):
    """How a guest is reverted: what is active is dropped unless others need it; what was changed is taken as it is."""

    discards: bool = False
    is_forced: bool = False


NO_MANNER: Final = Manner()


def revert(host: Host, subject: Subject, snapshot: Snapshot, manner: Manner = NO_MANNER) -> None:
    """Let a guest's disks, and its definition, be what they were when a snapshot was taken.
    Raises: Refused when the snapshot's content is gone, ChangedBehind, ImageLocked, and what making files raises.
    """
    reverting = plan(host, subject, snapshot, manner)
    intent = intents.begin(host.catalog, subject.domain, VERB, reverting._asdict())
    try:
        subject.guest.go_on(reverting.overlays)
        subject.guest.copy_out(reverting.copies)
    except CowtreeError:
        if not reverting.has_point_of_no_return:
            _take_back(host, subject, intent, reverting)
        raise
    _complete(host, subject, intent, reverting)


def plan(host: Host, subject: Subject, snapshot: Snapshot, manner: Manner = NO_MANNER) -> Reverting:
    """What there is to do for it. Raises: as `revert`."""
    overlays, copies, insides, sources = [], [], [], []
    now_ns = host.catalog.now_ns()
    all_held = snapshots.disks(host.catalog, snapshot.id)
    for held in all_held:
        _refuse(host, snapshot, held, _active(subject, held.target))
        if held.mode == EXTERNAL and not manner.is_forced:
            drift.refuse_changed(host, held)
    # Either all disks stay where they are or none does, for what is left behind must be of one moment too.
    stays = all(_is_unwritten(host, held, _active(subject, held.target)) for held in all_held)
    in_place = _in_place(host, subject, all_held, manner)
    for held in all_held:
        active, path = _active(subject, held.target), held.source
        if held.mode == INTERNAL:
            inside = Inside(held.target, held.source, held.format, snapshot.name, 0, held.internal_id)
            if held.target in in_place:
                insides.append(inside)
            else:
                path = free_name(host, held.source, snapshot.name)
                told = {"domain": subject.domain.name, "uuid": subject.domain.uuid, "target": held.target}
                copies.append(Copy(inside, path, {**told, "made_ns": now_ns}))
        elif active is not None and stays:
            path = active
        elif not (snapshot.is_tip and not _overlays(host, held.source)):
            path = free_name(host, held.source, snapshot.name)
            overlays.append(Overlay(held.target, held.source, held.format, path))
        sources.append((held.target, path, held.format if path == held.source else gate.QCOW2))
    left, dropped = _left_behind(host, subject, sources, discards=manner.discards)
    made = (with_moments(host, subject, overlays, snapshot, now_ns), tuple(copies), tuple(insides))
    return Reverting(snapshot.id, *made, tuple(sources), tuple(left), tuple(dropped))


def _in_place(host: Host, subject: Subject, all_held: Sequence[Held], manner: Manner) -> set[str]:
    """The disks whose internal snapshot is applied where it lies. That loses what they show now: with other disks in
    other files they would leave half a tip.
    """
    found = {
        held.target
        for held in all_held
        if held.mode == INTERNAL and _active(subject, held.target) == held.source and not relies_on(host, held.source)
    }
    return found if manner.discards or len(found) == len(all_held) else set()


def _active(subject: Subject, target: str) -> str | None:
    return next((disk.source for disk in subject.definition.disks if disk.target == target), None)


def _refuse(host: Host, snapshot: Snapshot, held: Held, active: str | None) -> None:
    """Look at all that is relied on. Raises: Refused, MissingImage, ImageLocked."""
    name = f"snapshot '{snapshot.name}'"
    if held.lost is not None:
        reason = f"{name} cannot be reverted to: what it held of disk {held.target} is gone: {held.lost}"
        raise Refused(reason=reason, hint="cowtree snapshot-delete DOMAIN NAME --metadata forgets it")
    if not is_there(host.files, held.source):
        raise MissingImage(path=held.source, reason=f"{name} holds disk {held.target} in it, and it is not there")
    refuse_use(host, held.source, held.format)
    if active is not None and active != held.source and is_there(host.files, active):
        refuse_use(host, active, None)


def relies_on(host: Host, path: str) -> bool:
    """Whether anybody relies on what a file shows by itself: an image that lies on it, or an external snapshot."""
    return bool(_overlays(host, path)) or any(
        each.mode == EXTERNAL and each.source == path and each.lost is None
        for domain in domains.everyone(host.catalog)
        for disks in snapshots.all_disks(host.catalog, domain).values()
        for each in disks
    )


def _overlays(host: Host, path: str) -> tuple[str, ...]:
    kin = find(host.files, path, places(host))
    return kin.family.paths(kin.family.overlays(kin.find(host.files, path)))


def _is_unwritten(host: Host, held: Held, active: str | None) -> bool:
    """Whether a disk shows what the snapshot holds of it already."""
    if held.mode == INTERNAL or active is None or not is_there(host.files, active):
        return False
    return is_empty_overlay(host.files, Overlay(held.target, held.source, held.format, active))


def free_name(host: Host, source: str, name: str) -> str:
    """A name for a new file beside a source that is no file's, and no snapshot's either."""
    folder, last = os.path.split(source)
    stem = last.rsplit(".", 1)[0] if "." in last[1:] else last
    names = (os.path.join(folder, f"{stem}.{name}-{number}") for number in count(1))
    return next(path for path in names if not is_there(host.files, path))


def _left_behind(
    host: Host, subject: Subject, sources: Sequence[tuple[str, str, str]], *, discards: bool
) -> tuple[list[Held], list[str]]:
    """What a tip shall hold of the disks that go on in another file; and which files go instead."""
    now = dict[str, str]()
    for target, path, _ in sources:
        active = _active(subject, target)
        if active is not None and active != path and is_there(host.files, active):
            now[target] = active
    formats = {disk.target: disk.format or gate.RAW for disk in subject.definition.disks}
    if discards or not any(_has_content(host, path) for path in now.values()):
        return [], needs.with_ours_below(host, now.values())
    return [Held(target, EXTERNAL, path, formats[target]) for target, path in now.items()], []


def _has_content(host: Host, path: str) -> bool:
    """Whether a file that is left holds anything that is nowhere else."""
    if not needs.is_ours(host, path):
        return True
    below = needs.below(host, path)
    return below is None or not is_empty_overlay(host.files, Overlay("", below, "", path))


def _complete(host: Host, subject: Subject, intent: Intent, reverting: Reverting) -> None:
    subject.guest.return_to(reverting.insides)
    snapshot = snapshots.get(host.catalog, reverting.snapshot)
    definition = _restored(subject.definition, parse(snapshot.xml), reverting.sources)
    with host.catalog.together():
        if reverting.left:
            _keep_tip(host, subject, reverting.left)
        if snapshot.is_tip and not reverting.overlays:
            snapshots.remove(host.catalog, snapshot)
        current = snapshot.parent if snapshot.is_tip and not reverting.overlays else snapshot.id
        domains.set_current(host.catalog, subject.domain, current)
        domains.redefine(host.catalog, subject.domain, definition.text)
        note_made(host, [*reverting.overlays, *(Overlay("", "", "", copy.path) for copy in reverting.copies)])
        removal = needs.begin_removal(host, subject, list(reverting.dropped))
        intents.end(host.catalog, intent)
    drift.note(host, subject_of(host, domains.find(host.catalog, subject.domain.uuid)))
    needs.remove(host, removal)


def _restored(now: Definition, then: Definition, sources: Sequence[tuple[str, str, str]]) -> Definition:
    """The definition of then, whose disks go on in `sources`; those that took no part stay where they are."""
    for disk in now.disks:
        if disk.source is not None and any(each.target == disk.target for each in then.disks):
            then = then.with_source(disk.target, disk.source, disk.format)
    for target, path, image_format in sources:
        then = then.with_source(target, path, image_format)
    return then


def _keep_tip(host: Host, subject: Subject, left: Sequence[Held]) -> None:
    """Note what a branch is that is left."""
    current = subject.domain.current
    parent = None if current is None else snapshots.get(host.catalog, current).name
    taken = {row.name for row in snapshots.rows(host.catalog, subject.domain)}
    name = next(name for name in _tip_names(parent) if name not in taken)
    new = Snapshot(
        *(0, name, current, "what the domain was when it was reverted to something else", host.catalog.now_ns()),
        *(SHUTOFF, NO, None, subject.definition.text),
        is_tip=True,
    )
    snapshots.add(host.catalog, subject.domain, new, left)
    host.tell(f"what was active is kept as snapshot '{name}'")


def _tip_names(parent: str | None) -> Iterator[str]:
    stem = "tip" if parent is None else f"{parent}-tip"
    yield stem
    yield from (f"{stem}-{number}" for number in count(2))


def _read(content: dict[str, Any]) -> Reverting:
    return Reverting(
        content["snapshot"],
        tuple(Overlay(*each) for each in content["overlays"]),
        tuple(Copy(Inside(*inside), path, moment) for inside, path, moment in content["copies"]),
        tuple(Inside(*each) for each in content["insides"]),
        tuple((target, path, image_format) for target, path, image_format in content["sources"]),
        tuple(Held(*each) for each in content["left"]),
        tuple(content["dropped"]),
    )


def settle(host: Host, subject: Subject, intent: Intent) -> None:
    """Take back, or complete, what was cut short. Raises: Refused when somebody has written to its files since."""
    reverting = _read(intent.content)
    name = snapshots.get(host.catalog, reverting.snapshot).name
    if reverting.has_point_of_no_return:
        subject.guest.go_on(reverting.overlays)
        subject.guest.copy_out(reverting.copies)
        _complete(host, subject, intent, reverting)
        host.tell(f"reverting to snapshot '{name}' was cut short: it was completed")
    else:
        _take_back(host, subject, intent, reverting)
        host.tell(f"reverting to snapshot '{name}' was cut short: it was taken back")


def _take_back(host: Host, subject: Subject, intent: Intent, reverting: Reverting) -> None:
    subject.guest.take_back(reverting.overlays)
    intents.end(host.catalog, intent)
