"""A wish of the user's: found out what it means for the whole family, planned, and carried out as it was planned."""

import os
import time
from collections.abc import Sequence
from typing import NamedTuple

from cowtree.chain.aside import stamp_of
from cowtree.chain.forest import Forest
from cowtree.errors import Refused
from cowtree.monitor import Monitor
from cowtree.operations.act import Journal, carry_out
from cowtree.operations.family import Kin, find
from cowtree.operations.order import RENAME, Order, load
from cowtree.operations.price import pricer, survey_act
from cowtree.operations.tally import Tally
from cowtree.plan import strategy
from cowtree.plan.family import Family
from cowtree.plan.strategy import Plan, Terms, Way
from cowtree.storage.contract import FileSystem


class Wish(NamedTuple):
    """What somebody wants: a verb and the image that it is about; `base` for commit and pull, `max_depth` for shorten.
    `forced` names all images whose loss is accepted. `pools` are folders that are searched beside those of the family.
    """

    verb: str
    image: str
    base: str | None = None
    max_depth: int = 0
    forced: tuple[str, ...] = ()
    with_dependants: bool = False
    pools: tuple[str, ...] = ()
    ending: str = RENAME


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


class Half(NamedTuple):
    """A merge that was begun and not ended, and where that is written down."""

    path: str
    order: Order


def make_plan(files: FileSystem, wish: Wish) -> Planned:
    """Find the cheapest legal way. Nothing is changed.
    Raises: MissingImage, WrongUse, Refused with the names of who would be harmed, or when the disk is too full.
    """
    kin = find(files, wish.image, wish.pools)
    price = pricer(files, kin.family)
    ways = list(_ways(files, wish, kin, price))
    terms = Terms([kin.find(files, name) for name in wish.forced], (), wish.with_dependants)
    plan = strategy.choose(kin.family, ways, price, terms)
    for act in plan.acts:
        survey_act(files, kin.family, act)
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


def grant(files: FileSystem, planned: Planned, words: Sequence[str], monitor: Monitor | None = None) -> int:
    """Carry a plan out, exactly as it is. Returns: how many bytes were moved.
    Raises: what `carry_out` raises; then `resume` goes on.
    """
    tally = Tally(monitor)
    if planned.plan.acts:
        # The permit was for the family as it was found; who has come in between is asked again by the locks.
        stamp = stamp_of(time.time_ns())
        order = Order(planned.family, planned.plan.acts, planned.wish.ending, stamp, tuple(words))
        _refuse_begun(files, order)
        carry_out(files, order, Journal(files, order), tally)
    return tally.moved_bytes


def _refuse_begun(files: FileSystem, order: Order) -> None:
    for half in find_halves(files, [os.path.dirname(member.path) for member in order.family.members]):
        if {member.path for member in half.order.family.members} & {member.path for member in order.family.members}:
            reason = f"a merge of this family was begun and is not done: cowtree {' '.join(half.order.words)}"
            raise Refused(reason=reason, hint=f"cowtree recover {half.path}")


def find_halves(files: FileSystem, folders: Sequence[str]) -> list[Half]:
    """All merges that were begun and not ended, as written down in these folders. Raises: BrokenJournal."""
    found = []
    for folder in dict.fromkeys(folders):
        try:
            names = sorted(os.listdir(folder or "."))
        except OSError:
            continue
        for name in names:
            path = os.path.join(folder, name)
            if name.startswith(".") and name.endswith(".cowtree-merge"):
                found.append(Half(path, load(files, path)[0]))
    return found


def resume(files: FileSystem, path: str, monitor: Monitor | None = None) -> int:
    """Complete a merge that was begun and not ended. Returns: how many bytes were moved.
    Raises: MissingImage, BrokenJournal, and what `carry_out` raises.
    """
    order, progress = load(files, path)
    tally = Tally(monitor)
    carry_out(files, order, Journal(files, order, progress), tally)
    return tally.moved_bytes
