"""A wish of the user's: found out what it means for the whole family, planned, and carried out as it was planned."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from cowtree.chain import gate
from cowtree.chain.aside import stamp_of
from cowtree.chain.forest import Forest
from cowtree.chain.view import open_chain
from cowtree.errors import MissingImage, ProofFailed, Refused, StaleBase
from cowtree.monitor import Monitor
from cowtree.operations import halves, lineage, proof
from cowtree.operations.act import Journal, carry_out
from cowtree.operations.family import Kin, find
from cowtree.operations.history import FORGETFUL, Keeper
from cowtree.operations.order import RENAME, Order
from cowtree.operations.price import pricer, survey_act
from cowtree.operations.tally import Tally
from cowtree.plan import strategy
from cowtree.plan.family import Family
from cowtree.plan.strategy import Plan, Terms, Way
from cowtree.storage.contract import Access, FileSystem


class Wish(NamedTuple):
    """What somebody wants: a verb and the image that it is about; `base` for commit and pull, `max_depth` for shorten.
    `forced` names all images whose loss is accepted. `pools` are folders that are searched beside those of the family.
    When it `is_atomic` what is written to shows its old content or its new one at every moment.
    """

    verb: str
    image: str
    base: str | None = None
    max_depth: int = 0
    forced: tuple[str, ...] = ()
    with_dependants: bool = False
    pools: tuple[str, ...] = ()
    ending: str = RENAME
    is_atomic: bool = False


class Planned(NamedTuple):
    """What will be done: the family as it is, the plan, and how far was looked for whoever might be harmed."""

    wish: Wish
    family: Family
    plan: Plan
    forest: Forest

    @property
    def result(self) -> Family:
        """The family as it will be."""
        family = self.family
        for act in self.plan.acts:
            family = family.after(act)
        return family


class Manner(NamedTuple):
    """How it is done: whether what leaves show is proven, and how much of it (`proof.MODES`); who notes it down; and
    who watches.
    """

    verify: str | None = None
    history: Keeper = FORGETFUL
    monitor: Monitor | None = None


NO_MANNER: Final = Manner()


def make_plan(files: FileSystem, wish: Wish) -> Planned:
    """Find the cheapest legal way. Nothing is changed.
    Raises: MissingImage, WrongUse, Refused with the names of who would be harmed, or when the disk is too full.
    """
    kin = find(files, wish.image, wish.pools)
    price = pricer(files, kin.family, is_atomic=wish.is_atomic)
    ways = list(_ways(files, wish, kin, price))
    terms = Terms([kin.find(files, name) for name in wish.forced], (), wish.with_dependants)
    plan = strategy.choose(kin.family, ways, price, terms)
    for act in plan.acts:
        survey_act(files, Order(kin.family, (act,), is_atomic=wish.is_atomic))
    _refuse_full_disk(kin.family, plan)
    return Planned(wish, kin.family, plan, kin.forest)


def _ways(files: FileSystem, wish: Wish, kin: Kin, price: strategy.Price) -> Sequence[Way]:
    image = kin.find(files, wish.image)
    base = None if wish.base is None else kin.find(files, wish.base)
    family = kin.family
    match wish.verb:
        case "commit":
            return list(strategy.commit(family, image, base))
        case "pull" | "flatten":
            return list(strategy.pull(family, image, base))
        case "delete":
            return list(strategy.delete(family, image))
        case _:
            return list(strategy.shorten(family, image, wish.max_depth, price))


def _refuse_full_disk(family: Family, plan: Plan) -> None:
    """Refuse what would run out of space half-way."""
    needed: dict[int, int] = {}
    folders: dict[int, str] = {}
    for act, cost in zip(plan.acts, plan.costs, strict=True):
        target = family.members[act.target]
        needed[target.device] = needed.get(target.device, 0) + cost.new_bytes
        folders[target.device] = os.path.dirname(target.path) or "."
    for device, new_bytes in needed.items():
        status = os.statvfs(folders[device])
        free_bytes = status.f_bavail * status.f_frsize
        if new_bytes > free_bytes:
            reason = f"it needs {new_bytes} bytes of space in {folders[device]}, where {free_bytes} are free"
            raise Refused(reason=reason, hint="make room there, or merge fewer layers at a time")


def grant(files: FileSystem, planned: Planned, words: Sequence[str], manner: Manner = NO_MANNER) -> int:
    """Carry a plan out, exactly as it is. Returns: how many bytes were moved.
    Raises: what `carry_out` raises; then `resume` goes on. ProofFailed when all is done, and nothing is removed then.
    """
    if not planned.plan.acts:
        return 0
    # The permit was for the family as it was found; who has come in between is asked again by the locks.
    stamp = stamp_of(time.time_ns())
    order = Order(planned.family, planned.plan.acts, planned.wish.ending, stamp, tuple(words))
    order = order._replace(is_atomic=planned.wish.is_atomic)
    halves.refuse_begun(order.family)
    if manner.verify:
        sights = proof.look(files, order.family, order.acts, manner.verify, manner.monitor)
        order = order._replace(sights=sights)
    manner.history.begin(files, order)
    return _carry_out(files, order, Journal(files, order), manner)


def resume(files: FileSystem, path: str, manner: Manner = NO_MANNER) -> int:
    """Complete a merge that was begun and not ended. Returns: how many bytes were moved.
    Raises: MissingImage, BrokenJournal, and what `grant` raises.
    """
    order, progress = halves.read(path)
    manner.history.begin(files, order)
    return _carry_out(files, order, Journal(files, order, progress), manner)


def _carry_out(files: FileSystem, order: Order, journal: Journal, manner: Manner) -> int:
    tally, failed = Tally(manner.monitor), list[ProofFailed]()

    def finish() -> None:
        try:
            proof.prove(files, order, manner.monitor)
        except ProofFailed as error:
            failed.append(error)
        else:
            remove_aside(files, order)
        record_bases(files, order)

    carry_out(files, order, journal, tally, finish)
    manner.history.finish(files, order)
    if failed:
        raise failed[0]
    return tally.moved_bytes


def remove_aside(files: FileSystem, order: Order) -> None:
    """Remove what was only set aside until all was proven."""
    if order.leaving == order.ending:
        return
    family, folders = order.family, set[str]()
    for act in order.acts:
        paths = [*family.paths(family.left_over(act)), *([family.path(act.name)] if act.name != act.target else [])]
        for path in map(order.aside, paths):
            with suppress(MissingImage):
                files.identity(path)
                files.unlink(path)
            folders.add(os.path.dirname(path) or ".")
        family = family.after(act)
    for folder in sorted(folders):
        files.sync_folder(folder)


def record_bases(files: FileSystem, order: Order) -> None:
    """Let all whose base is another one now, or was changed, keep a record of it; bases first, for a record is a
    write. Raises: StorageFailed.
    """
    now, changed = order.result, set[int]()
    for act in order.acts:
        changed |= {act.target} if act.depth + 1 < len(act.group) else set()
        changed |= {*now.overlays(act.target)}
    for each in sorted(changed - now.gone, key=lambda index: len(now.line(index))):
        if now.members[each].parent is not None and now.members[each].format == gate.QCOW2:
            lineage.record_quietly(files, now.path(each), gate.QCOW2)


def stale_bases(files: FileSystem, planned: Planned) -> list[StaleBase]:
    """The bases below the merged images, and these themselves, that were changed after what lies on them was made."""
    found: dict[tuple[object, object], StaleBase] = {}
    for act in planned.plan.acts:
        for head in planned.family.overlays(act.top) or (act.top,):
            member = planned.family.members[head]
            chain = open_chain(files, member.path, member.format, Access.SHARED)
            try:
                for error in lineage.stale(files, chain):
                    found.setdefault((error.facts["path"], error.facts["base"]), error)
            finally:
                chain.close()
    return list(found.values())
