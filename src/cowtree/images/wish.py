"""A wish of the user's: found out what it means for the whole family, planned, and carried out as it was planned."""

import os
import secrets
import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final, NamedTuple

from cowtree.chain import gate
from cowtree.chain.aside import stamp_of
from cowtree.chain.forest import Forest
from cowtree.chain.gate import Layer
from cowtree.chain.view import Chain
from cowtree.errors import ProofFailed, Refused, StaleBase
from cowtree.images import halves, lineage, proof
from cowtree.images.act import Journal, carry_out
from cowtree.images.family import Kin, find
from cowtree.images.history import FORGETFUL, Keeper
from cowtree.images.order import RENAME, Order
from cowtree.images.price import Prices, pricer, survey_act
from cowtree.images.tally import Tally
from cowtree.monitor import Monitor
from cowtree.plan import strategy
from cowtree.plan.family import Family, Merge
from cowtree.plan.permit import objections
from cowtree.plan.put import Cost
from cowtree.plan.strategy import Plan, Terms, Way
from cowtree.storage.contract import Access, FileSystem, is_there

TOKEN_BYTES: Final = 16


class Wish(NamedTuple):
    """What somebody wants: a verb and the image that it is about; `base` for commit and pull, `max_depth` for shorten.
    `forced` names all images whose loss is accepted. `pools` are folders that are searched beside those of the family.
    When it `is_atomic` what is written to shows its old content or its new one at every moment. `kept` are images whose
    views must stay, though they are no leaves; `fixed` are files that neither get another name nor lose theirs.
    When it `is_plain` what the verb says is done, and nothing that is the same in the end.
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
    kept: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    is_plain: bool = False


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
    who watches. `stamp` is that of a merge that has one already, and `note` is called when all is done, before it is
    forgotten how that was begun; after a stop it may be called again.
    """

    verify: str | None = None
    history: Keeper = FORGETFUL
    monitor: Monitor | None = None
    stamp: str | None = None
    note: Callable[[], None] = lambda: None


NO_MANNER: Final = Manner()


def make_plan(files: FileSystem, wish: Wish) -> Planned:
    """Find the cheapest legal way. Nothing is changed.
    Raises: MissingImage, WrongUse, Refused with the names of who would be harmed, or when the disk is too full.
    """
    kin = find(files, wish.image, wish.pools)
    terms = Terms(
        [kin.find(files, name) for name in wish.forced], _members(files, kin, wish.kept), wish.with_dependants
    )
    with pricer(files, kin.family, is_atomic=wish.is_atomic) as prices:
        ways = _ways(files, wish, kin, prices)[: 1 if wish.is_plain else None]
        ways = _without_exchanges(ways, _members(files, kin, wish.fixed))
        plan = strategy.choose(kin.family, ways, prices, terms, prices.bound)
    for act in plan.acts:
        survey_act(files, Order(kin.family, (act,), is_atomic=wish.is_atomic), prices.known)
    _refuse_full_disk(kin.family, plan)
    return Planned(wish, kin.family, plan, kin.forest)


def _members(files: FileSystem, kin: Kin, names: Sequence[str]) -> set[int]:
    """Those of these images that belong to a family."""
    wanted = {_identity(files, name) for name in names} - {None}
    return {index for index, own in enumerate(kin.identities) if own in wanted}


def _without_exchanges(ways: Sequence[Way], fixed: set[int]) -> list[Way]:
    """The ways that give none of these images' names to another file, and none of them another name."""
    return [way for way in ways if all(act.name == act.target or not fixed & {act.name, act.target} for act in way)]


def _ways(files: FileSystem, wish: Wish, kin: Kin, prices: Prices) -> Sequence[Way]:
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
            is_short = len(family.line(image)) <= wish.max_depth
            bounds = None if is_short else prices.bounds(image)
            price = _keeping(family, prices, _members(files, kin, wish.kept))
            return list(strategy.shorten(family, image, wish.max_depth, price, bounds))


def _keeping(family: Family, prices: Prices, kept: set[int]) -> strategy.Price:
    """The prices of those merges that leave these views as they are; any other one is refused."""

    def price(act: Merge) -> Cost:
        for objection in objections(family, act, kept=kept):
            raise Refused(reason=objection.reason)
        return prices(act)

    return price


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
    stamp = manner.stamp or stamp_of(time.time_ns())
    order = Order(planned.family, planned.plan.acts, planned.wish.ending, stamp, tuple(words))
    identities = tuple(_identity(files, member.path) for member in planned.family.members)
    token = secrets.token_hex(TOKEN_BYTES)
    order = order._replace(is_atomic=planned.wish.is_atomic, token=token, identities=identities)
    data = tuple(_identity(files, each.data_file) if each.data_file else None for each in planned.family.members)
    order = order._replace(data_identities=data)
    halves.refuse_begun(order.family)
    if manner.verify:
        sights = proof.look(files, order.family, order.acts, manner.verify, manner.monitor)
        order = order._replace(sights=sights)
    manner.history.begin(files, order)
    return _carry_out(files, order, Journal(files, order), manner)


def _identity(files: FileSystem, path: str) -> tuple[int, int] | None:
    return files.identity(path) if is_there(files, path) else None


def resume(files: FileSystem, path: str, manner: Manner = NO_MANNER, *, is_trusted: bool = False) -> int:
    """Complete a merge that was begun and not ended, when whoever notes merges down knows it, or the user `is_trusted`
    to have begun it. Returns: how many bytes were moved.
    Raises: MissingImage, BrokenJournal, Refused when nobody answers for what is written there or it would harm images
    that it does not name, and what `grant` raises.
    """
    order, progress = halves.read(path)
    if not (is_trusted or manner.history.knows(order)):
        raise halves.unknown(path)
    halves.refuse_harm(files, path, order, progress)
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
        manner.note()

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
        for index in [*family.left_over(act), *([act.name] if act.name != act.target else [])]:
            path, data = order.aside(family.path(index)), order.data_of(files, index)
            gone = [path] if is_there(files, path) and order.owns(files, index, path) else []
            for each in [*gone, *([data] if data else [])]:
                files.unlink(each)
                folders.add(os.path.dirname(each) or ".")
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
    family, seen = planned.family, set[int]()
    for act in planned.plan.acts:
        for head in family.overlays(act.top) or (act.top,):
            member, line = family.members[head], family.line(head)
            # Down to the first one from which on all was looked at before.
            count = next((index for index, each in enumerate(line) if each in seen), len(line)) + 1
            seen.update(line)
            layers: list[Layer] = []
            try:
                layers += islice(gate.walk(files, member.path, member.format, Access.SHARED), count)
                for error in lineage.stale(files, Chain(tuple(layers), ())):
                    found.setdefault((error.facts["path"], error.facts["base"]), error)
            finally:
                gate.close_all(layers)
    return list(found.values())
