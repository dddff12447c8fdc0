"""Merges that verbs of a guest make: noted as intents, carried out, completed after a stop, and noted in all names.

An intent is noted before the first file is touched. The transaction that maps the names puts another one in its place,
for the merge's journal still lies beside the images and has to go. So a merge whose journal is there goes on; one
without a journal was never begun, unless the history says that `cowtree recover` has done it meanwhile.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from cowtree.catalog import domains, intents
from cowtree.catalog.domains import Domain
from cowtree.catalog.intents import Intent
from cowtree.chain import gate
from cowtree.chain.aside import stamp_of
from cowtree.errors import CowtreeError, MissingImage
from cowtree.images import halves, lineage, proof
from cowtree.images.history import History, past
from cowtree.images.order import DELETE, MOVE, Order, Progress, forget, journal_path
from cowtree.images.wish import Manner, Planned, resume
from cowtree.monitor import Monitor
from cowtree.operations import drift, tell, views
from cowtree.operations.host import Host, Subject
from cowtree.operations.host import subject as subject_of
from cowtree.storage.contract import is_there

VERB: Final = "merge"
# All is done and noted; what is left is the journal.
DONE: Final = "merge-done"
# The verbs that somebody calls to merge.
BLOCKCOMMIT, BLOCKPULL = NAMED = ("blockcommit", "blockpull")
COMMIT, ACTIVE_COMMIT, PULL = "Block Commit", "Active Block Commit", "Block Pull"


class Job(NamedTuple):
    """A merge of one disk: the verb that it is for, the words of the command, and what stock calls such a job.
    `renewed` are overlays that stay on a base which it changes, `request` what was asked for, in its own words.
    """

    verb: str
    words: tuple[str, ...]
    target: str
    type: str
    planned: Planned
    renewed: tuple[str, ...] = ()
    request: tuple[object, ...] = ()


class State(NamedTuple):
    """How far a merge is that was cut short. Units: bytes that the plan moves."""

    verb: str
    words: tuple[str, ...]
    target: str
    type: str
    done_bytes: int
    total_bytes: int
    is_moved: bool


def carry_out(host: Host, subject: Subject, job: Job, monitor: Monitor | None = None) -> int:
    """Merge. Returns: how many bytes were moved.
    Raises: what `grant` raises; when something was begun then, the intent stays, and the merge goes on later.
    """
    planned = job.planned
    if not planned.plan.acts:
        return 0
    names = views.after(host, planned, job.verb)
    members = planned.family.members
    content = {
        **names._asdict(),
        **{"words": job.words, "target": job.target, "type": job.type, "stamp": stamp_of(time.time_ns())},
        "journal": journal_path(members[planned.plan.acts[0].target].path),
        "bytes": planned.plan.cost.moved_bytes,
        "before": [(path, *host.files.identity(path)) for path in _merged(planned)],
        "folders": sorted({os.path.dirname(member.path) for member in members}),
        "renewed": job.renewed,
        "request": list(job.request),
    }
    intent = intents.begin(host.catalog, subject.domain, VERB, content)
    verify = proof.CHANGED if planned.wish.ending == DELETE else None
    manner = _manner(host, subject, intent, monitor)._replace(verify=verify, stamp=content["stamp"])
    try:
        moved_bytes = subject.guest.merge(planned, list(job.words), manner)
        _end_done(host, subject)
        return moved_bytes
    except (CowtreeError, KeyboardInterrupt):
        _end_done(host, subject)
        if is_open(host, subject, intent) and _half(intent) is None:
            intents.end(host.catalog, intent)
        raise


def _merged(planned: Planned) -> list[str]:
    return [planned.family.path(each) for each in sorted({each for act in planned.plan.acts for each in act.group})]


def _manner(host: Host, subject: Subject, intent: Intent, monitor: Monitor | None) -> Manner:
    history = History(host.catalog.path, lambda error: host.tell(f"this merge is not kept for cowtree undo: {error}"))
    return Manner(history=history, monitor=monitor, note=lambda: _note(host, subject, intent))


def _note(host: Host, subject: Subject, intent: Intent) -> None:
    """Note in all names that a merge is done."""
    for path in intent.content["renewed"]:
        lineage.record_quietly(host.files, path, gate.QCOW2)
    with host.catalog.together():
        if is_open(host, subject, intent):
            views.apply(host, views.read(intent.content))
            intents.end(host.catalog, intent)
            content = {name: intent.content[name] for name in ("journal", "stamp", "folders")}
            intents.begin(host.catalog, subject.domain, DONE, content)
    _renew_moments(host, intent.content["folders"])


def _renew_moments(host: Host, folders: Sequence[str]) -> None:
    """Let overlays tell of what lies below them now; the history remembers later what a merge has left, for undo."""
    for domain in _domains_in(host, folders):
        tell.renew(host, domain)


def _end_done(host: Host, subject: Subject) -> None:
    for each in intents.found(host.catalog, subject.domain):
        if each.verb == DONE:
            settle_done(host, subject, each)


def settle_done(host: Host, subject: Subject, intent: Intent) -> None:
    """Remove the journal of a merge that is done, if it is still there, and note how the chains are."""
    half = _half(intent)
    if half is not None:
        order = half[0]
        _renew_moments(host, intent.content["folders"])
        history = History(host.catalog.path, lambda error: host.tell(str(error)))
        history.begin(host.files, order)
        forget(host.files, order)
        history.finish(host.files, order)
    note_chains(host, intent.content["folders"])
    intents.end(host.catalog, intent)


def note_chains(host: Host, folders: Sequence[str]) -> None:
    """Note anew how the chains are of all guests that have images in one of these folders."""
    for domain in _domains_in(host, folders):
        drift.note(host, subject_of(host, domain))


def _domains_in(host: Host, folders: Sequence[str]) -> Iterator[Domain]:
    for domain in domains.everyone(host.catalog):
        left = domains.left(host.catalog, domain)
        if any(os.path.dirname(layer.path) in folders for layers in left.values() for layer in layers):
            yield domain


def is_open(host: Host, subject: Subject, intent: Intent) -> bool:
    """Whether an intent was not ended yet."""
    return any(each.id == intent.id for each in intents.found(host.catalog, subject.domain))


def _half(intent: Intent) -> tuple[Order, Progress] | None:
    """The journal of a merge. Raises: BrokenJournal."""
    try:
        order, progress = halves.read(intent.content["journal"])
    except MissingImage:
        return None
    return (order, progress) if order.stamp == intent.content["stamp"] else None


def complete(host: Host, subject: Subject, intent: Intent, monitor: Monitor | None = None) -> bool:
    """Complete a merge that was cut short. Returns: whether it is done; it is not when it had not been begun yet.
    Raises: what `resume` raises.
    """
    if not is_open(host, subject, intent):
        return True
    if _half(intent) is not None:
        # Our own intent answers for the journal.
        resume(host.files, intent.content["journal"], _manner(host, subject, intent, monitor), is_trusted=True)
        _end_done(host, subject)
        return True
    if _was_done(host, intent):
        _note(host, subject, intent)
        _end_done(host, subject)
        return True
    intents.end(host.catalog, intent)
    return False


def _was_done(host: Host, intent: Intent) -> bool:
    """Whether somebody else has completed a merge, so that there is no journal any more."""
    pasts = (past(merge) for merge in host.catalog.merges())
    same = next((each for each in pasts if each and each.order.stamp == intent.content["stamp"]), None)
    if same is not None and same.is_finished:
        return True
    return any(
        not is_there(host.files, path) or host.files.identity(path) != (device, inode)
        for path, device, inode in intent.content["before"]
    )


def settle(host: Host, subject: Subject, intent: Intent) -> None:
    """Complete a merge that was cut short, if anything was begun."""
    if not is_open(host, subject, intent):
        return
    content = intent.content
    if complete(host, subject, intent):
        host.tell(f"{content['verb']} of disk {content['target']} was cut short: it was completed")
    else:
        host.tell(f"{content['verb']} of disk {content['target']} was cut short before it changed anything")


def is_named(intent: Intent) -> bool:
    """Whether it is a merge that was asked for by name."""
    return intent.verb == VERB and intent.content["verb"] in NAMED


def is_patient(intent: Intent) -> bool:
    """Whether it is such a merge that still moves data: that may take long, and all files have their names."""
    return is_named(intent) and _half(intent) is not None and not state(intent).is_moved


def sentence(intent: Intent) -> str:
    """What is told of a merge that was cut short."""
    now = state(intent)
    return (
        f"{now.verb} of disk {now.target} was cut short at {percent(now)} %: every disk shows what it should, and the "
        f"same command goes on, as does any that changes the domain"
    )


def percent(now: State) -> int:
    """How much of it is done."""
    return now.done_bytes * 100 // max(now.total_bytes, 1)


def find(host: Host, subject: Subject, is_meant: Callable[[dict[str, Any]], bool]) -> Intent | None:
    """A merge of a guest that was cut short, if there is such a one."""
    found = intents.found(host.catalog, subject.domain)
    return next((each for each in found if each.verb == VERB and is_meant(each.content)), None)


def state(intent: Intent) -> State:
    """How far a merge is that was cut short."""
    content, total_bytes = intent.content, intent.content["bytes"]
    part, is_moved = 0.0, False
    with suppress(CowtreeError):
        half = _half(intent)
        if half is not None:
            order, progress = half
            size_bytes = max((member.size_bytes for member in order.family.members), default=0)
            is_moved = progress.act >= len(order.acts) or progress.phase > MOVE
            own = 1.0 if progress.phase > MOVE else progress.begin / max(size_bytes, 1)
            part = min((progress.act + own) / len(order.acts), 1.0)
    return State(
        *(content["verb"], tuple(content["words"]), content["target"], content["type"]),
        *(int(part * total_bytes), total_bytes, is_moved),
    )


def give_up(host: Host, intent: Intent) -> None:
    """Leave a merge as it is for ever: it will not go on. Belongs to pulls, which harm nobody at any moment."""
    half = _half(intent)
    if half is not None:
        forget(host.files, half[0])
    intents.end(host.catalog, intent)
