"""Deleting snapshots: what they hold is not needed any more, and everybody else sees what they saw.

    internal    is deleted in its file
    external    its file's own view may go: the file is merged into what lies on it, or what lies on it into the file,
                whichever is the cheapest of the legal ways; unless another snapshot or a guest needs that view

A file that we did not make keeps its name and is never removed: the one overlay on it is merged into it, or several
take over what they need of it. A file of ours that nothing lies on goes when nobody needs it.

Of several disks one is done after the other. What a snapshot holds of a disk that is done counts as lost, so after a
stop the rest can be told from what is done; the next command completes it.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Final, NamedTuple

from cowtree.catalog import domains, intents, snapshots
from cowtree.catalog.intents import Intent
from cowtree.catalog.snapshots import INTERNAL, MANUAL, NO, Held, Snapshot
from cowtree.domain.definition import parse
from cowtree.errors import CowtreeError, Refused
from cowtree.guests.driver import Inside
from cowtree.images.family import find
from cowtree.images.order import DELETE, KEEP, RENAME
from cowtree.images.wish import Planned, Wish, make_plan
from cowtree.monitor import Monitor
from cowtree.operations import jobs, needs
from cowtree.operations.host import Host, Subject
from cowtree.operations.host import subject as subject_of
from cowtree.operations.places import places
from cowtree.storage.contract import is_there

VERB: Final = "snapshot-delete"
# How the document calls them: Method (1) and Method (2).
COMMIT, PULL = METHODS = ("commit", "pull")


class Deleting(NamedTuple):
    """What there is to do: which snapshots go, in this order, and by which method if one is wanted."""

    snapshots: tuple[int, ...]
    method: str | None = None


class Reading(NamedTuple):
    """A file whose own view is not needed any more: those that lie on it, and all files of its family that we did not
    make.
    """

    path: str
    overlays: tuple[str, ...]
    foreign: tuple[str, ...]


def chosen(
    host: Host, subject: Subject, snapshot: Snapshot, *, with_children: bool = False, only_children: bool = False
) -> list[Snapshot]:
    """The snapshots that go with one, each before what it hangs on."""
    if not (with_children or only_children):
        return [snapshot]
    children: dict[int | None, list[int]] = {}
    for row in snapshots.rows(host.catalog, subject.domain):
        children.setdefault(row.parent, []).append(row.id)
    found = [snapshot.id]
    for each in found:
        found += children.get(each, [])
    return [snapshots.get(host.catalog, each) for each in reversed(found[1 if only_children else 0 :])]


def forget(host: Host, chosen: Sequence[Snapshot]) -> None:
    """Forget snapshots, and leave all files as they are."""
    with host.catalog.together():
        for each in chosen:
            snapshots.remove(host.catalog, each)


def delete(
    host: Host, subject: Subject, chosen: Sequence[Snapshot], method: str | None = None, monitor: Monitor | None = None
) -> None:
    """Delete snapshots, in this order.
    Raises: Refused when there is no legal way, and what merging raises; those before it are deleted then.
    """
    if not chosen:
        return
    deleting = Deleting(tuple(each.id for each in chosen), method)
    intent = intents.begin(host.catalog, subject.domain, VERB, deleting._asdict())
    _complete(host, subject, intent, monitor)


def _complete(host: Host, subject: Subject, intent: Intent, monitor: Monitor | None = None) -> None:
    deleting = Deleting(tuple(intent.content["snapshots"]), intent.content["method"])
    try:
        for number in deleting.snapshots:
            if number in {row.id for row in snapshots.rows(host.catalog, subject.domain)}:
                _delete_one(host, _now(host, subject), snapshots.get(host.catalog, number), deleting, monitor)
    except CowtreeError:
        if jobs.find(host, subject, lambda content: content["verb"] == VERB) is None:
            intents.end(host.catalog, intent)
        raise
    intents.end(host.catalog, intent)


def _now(host: Host, subject: Subject) -> Subject:
    return subject_of(host, domains.find(host.catalog, subject.domain.uuid))


def _delete_one(host: Host, subject: Subject, snapshot: Snapshot, deleting: Deleting, monitor: Monitor | None) -> None:
    plans = list(_plans(host, snapshot, deleting))
    for held in snapshots.disks(host.catalog, snapshot.id):
        if held.mode == INTERNAL and is_there(host.files, held.source):
            inside = Inside(held.target, held.source, held.format, snapshot.name, 0, held.internal_id)
            subject.guest.forget([inside])
    while plans:
        held, planned = plans[0]
        words = (VERB, subject.domain.name, snapshot.name)
        jobs.carry_out(host, subject, jobs.Job(VERB, words, held.target, jobs.COMMIT, planned), monitor)
        # Two disks may be of one family, which is another one now.
        plans = [] if len(plans) == 1 else list(_plans(host, snapshot, deleting))
    bare = [reading.path for _, reading in _readings(host, snapshot, deleting) if not reading.overlays]
    bare += [held.source for held in snapshots.disks(host.catalog, snapshot.id) if held.mode == INTERNAL]
    with host.catalog.together():
        snapshots.remove(host.catalog, snapshot)
        removal = needs.begin_removal(host, subject, needs.with_ours_below(host, bare))
    needs.remove(host, removal)


def _plans(host: Host, snapshot: Snapshot, deleting: Deleting) -> Iterator[tuple[Held, Planned]]:
    """What is merged for a snapshot, as the files are now. Raises: Refused."""
    for held, reading in _readings(host, snapshot, deleting):
        if reading.overlays:
            yield held, _plan(host, reading, deleting)


def _readings(host: Host, snapshot: Snapshot, deleting: Deleting) -> Iterator[tuple[Held, Reading]]:
    """The files whose own views nobody needs when a snapshot is gone, each once."""
    seen = {host.files.identity(path) for path in needed(host, {snapshot.id}) if is_there(host.files, path)}
    for held in snapshots.disks(host.catalog, snapshot.id):
        if held.mode in (INTERNAL, NO, MANUAL) or held.lost is not None or not is_there(host.files, held.source):
            continue
        identity = host.files.identity(held.source)
        if identity in seen:
            continue
        seen.add(identity)
        kin = find(host.files, held.source, places(host))
        overlays = kin.family.paths(kin.family.overlays(kin.find(host.files, held.source)))
        foreign = tuple(each.path for each in kin.family.members if not needs.is_ours(host, each.path))
        yield held, Reading(held.source, overlays, foreign)


def needed(host: Host, deleted: Collection[int] = ()) -> list[str]:
    """The files whose own views somebody needs when these snapshots are gone: guests, and all other snapshots."""
    found = []
    for domain in domains.everyone(host.catalog):
        found += [disk.source for disk in parse(domain.xml).disks if disk.source is not None]
        for number, disks in snapshots.all_disks(host.catalog, domain).items():
            if number not in deleted:
                found += [each.source for each in disks if each.mode != INTERNAL and each.lost is None]
    return found


def foresee(host: Host, snapshot: Snapshot) -> None:
    """Look whether a snapshot could be deleted. Raises: as `delete`."""
    list(_plans(host, snapshot, Deleting((snapshot.id,))))


def _plan(host: Host, reading: Reading, deleting: Deleting) -> Planned:
    """How a file is done without. Raises: Refused."""
    wish = _wish(reading, deleting.method)._replace(
        kept=tuple(needed(host, deleting.snapshots)), fixed=reading.foreign, pools=places(host)
    )
    try:
        planned = make_plan(host.files, wish)
    except Refused as error:
        raise explained(host, error, (reading.path, *reading.overlays)) from error
    gone = {planned.family.path(each) for each in planned.result.gone - planned.family.gone}
    ending = DELETE if not gone & {*reading.foreign} else KEEP if reading.path in gone else RENAME
    return planned._replace(wish=wish._replace(ending=ending))


def _wish(reading: Reading, method: str | None) -> Wish:
    is_foreign, count = reading.path in reading.foreign, len(reading.overlays)
    if method == COMMIT and count > 1:
        reason = f"{', '.join(reading.overlays)} lie on {reading.path}: only one overlay can be merged into it"
        raise Refused(reason=reason, hint="--method pull")
    if method == COMMIT or (method is None and is_foreign and count == 1):
        return Wish("commit", reading.overlays[0], reading.path, is_plain=method is not None)
    return Wish("delete", reading.path, is_plain=method is not None or is_foreign)


def explained(host: Host, error: Refused, paths: Sequence[str]) -> Refused:
    """A refusal in the words of whoever thinks in guests: which snapshots would be lost, what helps."""
    inside = [
        (name, each.name, held.source)
        for name, each, held in _insides(host)
        if held.source in paths and f"{held.source} has internal snapshots" in error.reason
    ]
    if inside:
        domain, name, path = inside[0]
        named = ", ".join(f"'{each}' of domain '{owner}'" for owner, each, _ in inside)
        hint = f"cowtree snapshot-delete {domain} {name}, if it may go"
        return Refused(reason=f"{error.reason}: {named} in {path}", hint=hint)
    harmed = error.facts.get("harmed")
    if harmed:
        hint = f"cowtree flatten {harmed[0]}, which lets it do without; then the same again"
        return Refused(reason=error.reason, hint=hint, harmed=harmed)
    return error


def _insides(host: Host) -> Iterator[tuple[str, Snapshot, Held]]:
    for domain in domains.everyone(host.catalog):
        for number, disks in snapshots.all_disks(host.catalog, domain).items():
            for held in disks:
                if held.mode == INTERNAL and held.lost is None:
                    yield domain.name, snapshots.get(host.catalog, number), held


def settle(host: Host, subject: Subject, intent: Intent) -> None:
    """Complete a deletion that was cut short."""
    for each in intents.found(host.catalog, subject.domain):
        if each.verb == jobs.VERB:
            jobs.settle(host, subject, each)
        elif each.verb == jobs.DONE:
            jobs.settle_done(host, subject, each)
        elif each.verb == needs.VERB:
            needs.settle(host, subject, each)
    _complete(host, _now(host, subject), intent)
    host.tell("deleting a snapshot was cut short: it was completed")
