"""Tidying a guest up: snapshots that its policy does not keep go, and chains that are too deep become shorter.

Only snapshots that cowtree made ever go, never the current one, and none whose deletion others would notice. What goes
is deleted as `snapshot-delete` does it, one after the other, the oldest first.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Final, NamedTuple

from cowtree.catalog import domains, keep, snapshots
from cowtree.catalog.keep import Stamp
from cowtree.catalog.policies import Policy
from cowtree.catalog.snapshots import EXTERNAL, INTERNAL, MANUAL, Held, Snapshot
from cowtree.chain import gate
from cowtree.errors import CowtreeError, Refused
from cowtree.images.family import find
from cowtree.images.order import DELETE
from cowtree.images.wish import Wish, make_plan
from cowtree.operations import delete, drift, jobs, needs
from cowtree.operations.host import Host, Subject
from cowtree.operations.host import subject as subject_of
from cowtree.operations.places import places
from cowtree.storage.contract import is_there

VERB: Final = "tidy"


class Verdict(NamedTuple):
    """What becomes of one snapshot, and why."""

    snapshot: str
    goes: bool
    reason: str


class Chain(NamedTuple):
    """What becomes of the chain of one disk: how many images it consists of, and of how many then."""

    target: str
    depth: int
    depth_after: int
    reason: str


class Tidied(NamedTuple):
    """What was done for one guest, or would be."""

    domain: str
    verdicts: tuple[Verdict, ...]
    chains: tuple[Chain, ...]


def tidy(host: Host, subject: Subject, policy: Policy, *, is_trial: bool = False) -> Tidied:
    """Do what a policy says; in a trial, say only what would be done, as far as that can be told beforehand.
    Raises: what merging raises; what was done before it is done then.
    """
    verdicts, going = [], list[int]()
    for snapshot, verdict in _judged(host, subject, policy):
        verdicts.append(verdict)
        if not verdict.goes:
            continue
        try:
            if is_trial:
                delete.foresee(host, snapshot)
                going.append(snapshot.id)
            else:
                delete.delete(host, _now(host, subject), [snapshot])
        except Refused as error:
            verdicts[-1] = Verdict(verdict.snapshot, goes=False, reason=error.message)
    chains = []
    for disk in _now(host, subject).definition.disks:
        if policy.max_depth is not None and disk.source is not None:
            short = _Short(disk.target, disk.source, disk.format or gate.RAW, policy.max_depth, tuple(going))
            chains.append(_shorten(host, _now(host, subject), short, is_trial=is_trial))
    return Tidied(subject.domain.name, tuple(verdicts), tuple(chains))


class _Short(NamedTuple):
    """A chain that shall not be deeper than that; `going` are the numbers of snapshots that would be gone by then."""

    target: str
    source: str
    format: str
    max_depth: int
    going: tuple[int, ...]


def _now(host: Host, subject: Subject) -> Subject:
    return subject_of(host, domains.find(host.catalog, subject.domain.uuid))


def _judged(host: Host, subject: Subject, policy: Policy) -> Iterator[tuple[Snapshot, Verdict]]:
    """What becomes of each snapshot by the policy, the oldest first."""
    rule = keep.parse(policy.keep) if policy.keep else ()
    rows = sorted(snapshots.rows(host.catalog, subject.domain), key=lambda row: (row.created_ns, row.id))
    kept = keep.choose([Stamp(row.id, row.created_ns) for row in rows], rule, _local)
    for row in rows:
        snapshot = snapshots.get(host.catalog, row.id)
        reason = _why_not(host, subject, snapshot)
        if not rule:
            reason = "no rule says which snapshots go"
        elif row.id in kept:
            reason = f"kept by {keep.spell(tuple(kept[row.id]))}"
        goes = reason is None
        yield snapshot, Verdict(row.name, goes=goes, reason=reason or f"no part of {policy.keep} keeps it")


def _local(seconds: float) -> datetime:
    """Local time, which knows how far it is from that of Greenwich."""
    return datetime.fromtimestamp(seconds).astimezone()


def _why_not(host: Host, subject: Subject, snapshot: Snapshot) -> str | None:
    """Why a snapshot stays whatever the rule; None when nothing speaks for it."""
    if snapshot.id == subject.domain.current:
        return "it is current: the disks lie on it"
    if snapshot.is_found:
        return "it was found in an image, and nobody knows who took it"
    for held in snapshots.disks(host.catalog, snapshot.id):
        try:
            if not _is_ours(host, held):
                return f"cowtree did not make the files of disk {held.target}"
        except CowtreeError as error:
            return f"disk {held.target} cannot be looked at: {error.message}"
    return None


def _is_ours(host: Host, held: Held) -> bool:
    """Whether what a snapshot holds of a disk was made by us. Raises: MissingImage when that cannot be told."""
    if held.mode == EXTERNAL and held.lost is None:
        return any(needs.is_ours(host, path) for path in (held.source, held.overlay) if path is not None)
    return held.mode == INTERNAL or (held.lost is not None and held.mode != MANUAL)


def _shorten(host: Host, subject: Subject, short: _Short, *, is_trial: bool) -> Chain:
    """Let a chain have no more images than that, as far as nobody needs them."""
    before = len(drift.layers(host, short.source, short.format))
    depth = before - _going_count(host, short)
    fits = f"no deeper than {short.max_depth}"
    if depth <= short.max_depth:
        return Chain(short.target, before, depth, fits)
    reason = f"all its images are needed, or were not made by cowtree: it cannot be {short.max_depth} deep"
    for wish in _wishes(host, short):
        try:
            planned = make_plan(host.files, wish)
        except Refused as error:
            reason = error.message
            continue
        if is_trial:
            depth = before - len(planned.result.gone - planned.family.gone)
        else:
            words = (VERB, subject.domain.name)
            jobs.carry_out(host, subject, jobs.Job(VERB, words, short.target, jobs.COMMIT, planned))
            depth = len(drift.layers(host, short.source, short.format))
        return Chain(short.target, before, depth, fits if depth <= short.max_depth else reason)
    return Chain(short.target, before, depth, reason)


def _line(host: Host, short: _Short) -> list[tuple[str, tuple[int, int] | None]]:
    """The images of a chain, the top first, and their identities."""
    kin = find(host.files, short.source, places(host))
    return [
        (kin.family.path(each), kin.identities[each]) for each in kin.family.line(kin.find(host.files, short.source))
    ]


def _identities(host: Host, paths: Iterable[str]) -> set[tuple[int, int] | None]:
    return {host.files.identity(path) for path in paths if is_there(host.files, path)}


def _going_count(host: Host, short: _Short) -> int:
    """How many images of a chain go with the snapshots that would be gone."""
    if not short.going:
        return 0
    needed, left = (_identities(host, delete.needed(host, deleted)) for deleted in ((), short.going))
    return sum(identity in needed - left for _, identity in _line(host, short))


def _wishes(host: Host, short: _Short) -> Iterator[Wish]:
    """What may be wished for a chain that is too deep, the best first: that it be as deep as is wanted, or deeper by as
    little as can be.
    """
    line = _line(host, short)
    foreign = tuple(path for path, _ in line if not needs.is_ours(host, path))
    kept = (*delete.needed(host, short.going), *foreign)
    identities = _identities(host, kept)
    spare = sum(identity not in identities for _, identity in line)
    for depth in range(max(short.max_depth, len(line) - spare), len(line)):
        yield Wish(
            *("shorten", short.source),
            max_depth=depth,
            pools=places(host),
            ending=DELETE,
            kept=kept,
            fixed=foreign,
        )
