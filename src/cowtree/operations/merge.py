"""Merges that are asked for by name: `blockcommit` and `blockpull`, and what is known of one that was cut short.

Who would see something else is asked first, and a merge that harms somebody is refused. What snapshots lose by it is
told before it begins, and noted with it.
"""

from typing import NamedTuple, NoReturn

from cowtree.catalog import domains, intents
from cowtree.catalog.intents import Intent
from cowtree.chain import gate
from cowtree.domain.definition import parse
from cowtree.errors import Refused, WrongUse
from cowtree.images.order import DELETE, KEEP, RENAME
from cowtree.images.wish import Planned, Wish, make_plan
from cowtree.monitor import Monitor
from cowtree.operations import jobs, needs, views
from cowtree.operations.delete import explained
from cowtree.operations.host import Host, Subject
from cowtree.operations.jobs import BLOCKCOMMIT, BLOCKPULL
from cowtree.operations.layers import Stack, find_disk, find_layer, refuse_unknown
from cowtree.operations.places import places
from cowtree.operations.work import at_work
from cowtree.storage.contract import Access


class Commit(NamedTuple):
    """What somebody wants to be merged down: from `top`, which is the active image if it is not given, into `base`,
    which is the bottom of the chain. With `is_active` the active image may be the top; it stays then if
    `keeps_overlay`, else the guest goes on in the base.
    """

    path: str
    base: str | None = None
    top: str | None = None
    is_shallow: bool = False
    is_active: bool = False
    keeps_overlay: bool = False
    deletes: bool = False
    keeps_relative: bool = False


class Pull(NamedTuple):
    """What somebody wants to be merged up into a layer: all below it, or what lies over `base`."""

    path: str
    base: str | None = None
    keeps_relative: bool = False


def plan_commit(host: Host, subject: Subject, wanted: Commit) -> jobs.Job:
    """What a blockcommit does. Raises: WrongUse as stock says it, Refused with the names of who would be harmed."""
    stack, _ = find_disk(host, subject, wanted.path)
    top, base = _ends(host, stack, wanted)
    if wanted.keeps_relative:
        _refuse_absolute(host, stack, top, base)
    paths = stack.paths[top : base + 1]
    wish = Wish(
        *("commit", stack.paths[top], stack.paths[base]),
        pools=places(host),
        ending=KEEP if wanted.keeps_overlay else DELETE if wanted.deletes else RENAME,
        kept=tuple(path for path in _active(host) if path != stack.disk.source),
        fixed=tuple(path for path in paths if not needs.is_ours(host, path)),
        is_plain=wanted.keeps_overlay,
    )
    planned = _plan(host, wish, paths)
    kind = jobs.COMMIT if top else jobs.ACTIVE_COMMIT
    renewed = paths[-2:-1] if wanted.keeps_overlay else ()
    words = _words(BLOCKCOMMIT, subject, (stack.target, "--top", paths[0], "--base", paths[-1]))
    return jobs.Job(BLOCKCOMMIT, words, stack.target, kind, planned, renewed, tuple(wanted))


def _ends(host: Host, stack: Stack, wanted: Commit) -> tuple[int, int]:
    """Where in the chain a commit begins and ends. Raises: WrongUse, as stock says it."""
    target, top, base = stack.target, 0, len(stack.paths) - 1
    if wanted.top is not None:
        found = find_layer(host, stack, wanted.top)
        top = refuse_unknown(stack, wanted.top) if found is None else found
    if not top and not wanted.is_active:
        reason = f"invalid argument: commit of '{target}' active layer requires active flag"
        raise WrongUse(reason=reason, hint="--active --pivot, or --top PATH for a layer below it")
    if top and wanted.is_active:
        reason = f"invalid argument: active commit requested but '{stack.paths[top]}' is not active"
        raise WrongUse(reason=reason, hint="the same without --active, --pivot and --keep-overlay")
    if top == len(stack.paths) - 1:
        reason = f"invalid argument: could not find base image in chain for '{target}'"
        raise WrongUse(reason=reason, hint=f"cowtree img info --backing-chain {stack.paths[0]}")
    if wanted.base is not None:
        found = find_layer(host, stack, wanted.base)
        if found is None or found <= top:
            refuse_unknown(stack, wanted.base, beneath=stack.paths[top])
        base = found
    if wanted.is_shallow:
        if wanted.base is not None and base != top + 1:
            where = f"'{stack.paths[top]}' in chain for '{stack.paths[0]}'"
            reason = f"invalid argument: base '{stack.paths[base]}' is not immediately below {where}"
            raise WrongUse(reason=reason, hint="the same without --shallow")
        base = top + 1
    return top, base


def _refuse_absolute(host: Host, stack: Stack, top: int, base: int) -> None:
    """Raises: Refused unless all links from above the top down to the base are relative."""
    for path in stack.paths[max(top - 1, 0) : base]:
        layer = gate.open_alone(host.files, path, None, Access.SHARED)
        name = layer.header.backing_file if layer.header else None
        layer.close()
        if name is None or name.startswith(("/", "file:")):
            reason = "Requested operation is not valid: can't keep relative backing relationship"
            raise Refused(reason=reason, hint=f"the same without --keep-relative: {path} names {name}")


def _active(host: Host) -> list[str]:
    """The active files of all guests."""
    found = (parse(domain.xml).disks for domain in domains.everyone(host.catalog))
    return [disk.source for disks in found for disk in disks if disk.source is not None]


def _plan(host: Host, wish: Wish, paths: tuple[str, ...]) -> Planned:
    try:
        return make_plan(host.files, wish)
    except Refused as error:
        raise explained(host, error, paths) from error


def _words(verb: str, subject: Subject, words: tuple[str, ...]) -> tuple[str, ...]:
    return (verb, subject.domain.name, *words)


def plan_pull(host: Host, subject: Subject, wanted: Pull) -> jobs.Job:
    """What a blockpull does; all below stays as it is. Raises: WrongUse as stock says it, Refused."""
    stack, layer = find_disk(host, subject, wanted.path)
    base = len(stack.paths)
    if wanted.base is not None:
        found = find_layer(host, stack, wanted.base)
        if found is None or found <= layer:
            refuse_unknown(stack, wanted.base, beneath=stack.paths[layer])
        base = found
        if wanted.keeps_relative:
            _refuse_absolute(host, stack, layer + 1, base)
    paths = stack.paths[layer : base + 1]
    wish = Wish(
        *("pull", paths[0], None if wanted.base is None else paths[-1]),
        pools=places(host),
        ending=KEEP,
        is_plain=True,
    )
    planned = _plan(host, wish, paths)
    words = (stack.target, "--path", paths[0], *(() if wanted.base is None else ("--base", paths[-1])))
    words = _words(BLOCKPULL, subject, words)
    return jobs.Job(BLOCKPULL, words, stack.target, jobs.PULL, planned, request=tuple(wanted))


def merge(host: Host, name: str, wanted: Commit | Pull, monitor: Monitor | None = None) -> int:
    """Do what is wanted; or go on with it, when the same was begun and cut short. What snapshots will lose is told
    before. Returns: how many bytes were moved. Raises: as `plan_commit`, `plan_pull` and `jobs.carry_out`.
    """

    def is_same(intent: Intent) -> bool:
        verb = BLOCKCOMMIT if isinstance(wanted, Commit) else BLOCKPULL
        return jobs.is_named(intent) and (intent.content["verb"], intent.content["request"]) == (verb, [*wanted])

    with at_work(host, name, is_same) as subject:
        begun = next(filter(is_same, intents.found(host.catalog, subject.domain)), None)
        if begun is not None:
            host.tell(f"it was begun and cut short at {jobs.percent(jobs.state(begun))} %: it goes on")
            if jobs.complete(host, subject, begun, monitor):
                return int(begun.content["bytes"])
        job = plan_commit(host, subject, wanted) if isinstance(wanted, Commit) else plan_pull(host, subject, wanted)
        for warning in views.warnings(host, views.after(host, job.planned, job.verb)):
            host.tell(warning)
        return jobs.carry_out(host, subject, job, monitor)


def begun(host: Host, subject: Subject, path: str) -> tuple[Stack, Intent | None]:
    """The disk that is meant, and the merge of it that was cut short, if there is one. Raises: WrongUse."""
    stack, _ = find_disk(host, subject, path)
    found = (each for each in intents.found(host.catalog, subject.domain) if jobs.is_named(each))
    return stack, next((each for each in found if each.content["target"] == stack.target), None)


def refuse_no_job(stack: Stack) -> NoReturn:
    """Raises: WrongUse, as stock says that nothing is being done with a disk."""
    reason = f"invalid argument: disk {stack.target} does not have an active block job"
    raise WrongUse(reason=reason, hint="cowtree blockcommit, blockpull and blockcopy end before they return")


def abort(host: Host, name: str, path: str) -> None:
    """Give a merge up that was cut short. A pull may end anywhere; a commit has changed what lies below it.
    Raises: Refused for a commit, WrongUse when there is none.
    """
    with at_work(host, name, jobs.is_patient) as subject:
        stack, intent = begun(host, subject, path)
        if intent is None:
            refuse_no_job(stack)
        state = jobs.state(intent)
        if state.type != jobs.PULL:
            reason = (
                f"{state.type} of disk {stack.target} has changed its base already; every disk shows what it should"
            )
            raise Refused(reason=reason, hint=f"let it be completed: cowtree {' '.join(state.words[:2])} ... once more")
        jobs.give_up(host, intent)
        host.tell(f"what was pulled so far stays in {stack.paths[0]}, and harms nobody")


def pivot(host: Host, name: str, path: str) -> None:
    """Complete an active commit that was cut short. Raises: WrongUse when there is none."""
    with at_work(host, name, jobs.is_patient) as subject:
        stack, intent = begun(host, subject, path)
        if intent is None or jobs.state(intent).type != jobs.ACTIVE_COMMIT:
            refuse_no_job(stack)
        jobs.complete(host, subject, intent)
