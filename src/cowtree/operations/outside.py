"""Merges that were asked for by file, not by a guest: what becomes of guests' disks and snapshots is noted too."""

import os
from collections.abc import Sequence
from typing import NamedTuple

from cowtree.catalog import domains, intents
from cowtree.images.order import KEEP, Order
from cowtree.images.wish import Planned
from cowtree.operations import jobs, views
from cowtree.operations.host import Host
from cowtree.operations.views import Names
from cowtree.plan.family import Family, Merge


class Foreseen(NamedTuple):
    """What there will be to note: what becomes of names, and the folders in which it happens."""

    names: Names
    folders: tuple[str, ...]


def foresee(host: Host, planned: Planned, verb: str) -> Foreseen | None:
    """What a merge will make of all that the catalogue knows; None when it knows no guest."""
    return _foresee(host, planned.family, planned.plan.acts, verb, keeps=planned.wish.ending == KEEP)


def foresee_rest(host: Host, order: Order, verb: str) -> Foreseen | None:
    """The same for a merge that was begun and not ended; None also when a guest's own intent will note it."""
    for domain in domains.everyone(host.catalog):
        if any(each.content.get("stamp") == order.stamp for each in intents.found(host.catalog, domain)):
            return None
    return _foresee(host, order.family, order.acts, verb, keeps=order.ending == KEEP)


def _foresee(host: Host, family: Family, acts: Sequence[Merge], verb: str, *, keeps: bool) -> Foreseen | None:
    if not domains.everyone(host.catalog):
        return None
    folders = sorted({os.path.dirname(member.path) for member in family.members})
    return Foreseen(views.after_acts(host, family, acts, verb, keeps=keeps), tuple(folders))


def note(host: Host, foreseen: Foreseen) -> None:
    """Note it; the merge is done."""
    with host.catalog.together():
        views.apply(host, foreseen.names)
    jobs.note_chains(host, foreseen.folders)
