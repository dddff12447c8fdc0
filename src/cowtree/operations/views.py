"""What a merge makes of names: which file shows afterwards what a file showed before, and what is shown no more.

All guests' disks and all that their snapshots hold are mapped by it, in the transaction that notes that the merge is
done. It is found out before the merge begins, for afterwards no file tells what it was.
"""

import os
import stat
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from cowtree.catalog import domains, snapshots
from cowtree.catalog.snapshots import INTERNAL, Held
from cowtree.chain import gate
from cowtree.domain.definition import BLOCK, FILE, Definition, parse
from cowtree.images.order import KEEP
from cowtree.images.wish import Planned
from cowtree.operations import needs
from cowtree.operations.host import Host
from cowtree.plan.family import Family, Merge
from cowtree.storage.contract import is_there

SECOND_NS: Final = 1_000_000_000


class Fate(NamedTuple):
    """What becomes of a file that the catalogue knows as `path`: what it showed is shown by `view`, in a format, or is
    shown no more when that is None. What it held, and its internal snapshots, is in `file` then.
    """

    path: str
    view: str | None
    format: str
    file: str


class Names(NamedTuple):
    """What becomes of all files that do not simply stay as they are; of which of them it is said that they are ours,
    or are not; and when what verb did it.
    """

    fates: tuple[Fate, ...]
    made: tuple[tuple[str, bool], ...]
    verb: str
    now_ns: int

    def lost_of(self, fate: Fate) -> str:
        """Why a view is gone, in words."""
        date = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.now_ns // SECOND_NS))
        what = "what lay over it was merged" if fate.file == fate.path else "merged"
        return f"{what} into {fate.file} by {self.verb} on {date}"


class Loss(NamedTuple):
    """What a snapshot will not hold any more."""

    domain: str
    snapshot: str
    held: Held
    file: str


def read(content: dict[str, Any]) -> Names:
    """What an intent says."""
    fates = tuple(Fate(*each) for each in content["fates"])
    return Names(fates, tuple((path, is_ours) for path, is_ours in content["made"]), content["verb"], content["now_ns"])


def after(host: Host, planned: Planned, verb: str) -> Names:
    """What a plan makes of the names that the catalogue knows."""
    return after_acts(host, planned.family, planned.plan.acts, verb, keeps=planned.wish.ending == KEEP)


def after_acts(host: Host, family: Family, acts: Sequence[Merge], verb: str, *, keeps: bool) -> Names:
    """The same for acts on a family as it was before them."""
    views, places, now = follow(family, acts, keeps=keeps)
    fates = []
    for path, index in sorted(_known(host, family).items()):
        view = views[index]
        fate = Fate(
            path,
            None if view is None else now.path(view),
            "" if view is None else now.members[view].format,
            now.path(places[index]),
        )
        is_same = view == places[index] == index and now.path(index) == family.path(index)
        if not is_same:
            fates.append(fate)
    made = tuple(_made(host, family, acts, keeps=keeps).items())
    return Names(tuple(fates), made, verb, host.catalog.now_ns())


def follow(
    family: Family, acts: Sequence[Merge], *, keeps: bool = False
) -> tuple[dict[int, int | None], dict[int, int], Family]:
    """Follow what each member shows, and where what it holds is, through acts; `keeps` says that who is not needed any
    more stays where it is. Returns: by member, the one that shows the same in the end, or None, and the one that holds
    the same; and the family as it is then.
    """
    views: dict[int, int | None] = {index: index for index in range(len(family.members)) if index not in family.gone}
    places = {index: index for index in views}
    for act in acts:
        for index, view in views.items():
            if view is not None:
                views[index] = _view_after(family, act, view, keeps=keeps)
        left = {*family.left_over(act), act.name} - {act.target}
        if keeps:
            left &= {act.name}
        places = {index: act.target if place in left else place for index, place in places.items()}
        family = family.after(act)
    return views, places, family


def _view_after(family: Family, act: Merge, view: int, *, keeps: bool) -> int | None:
    """The member that shows after an act what one shows before it."""
    is_left = view in family.left_over(act)
    if view == act.top:
        return view if is_left and keeps else act.target
    line = family.line(view)
    # Whoever lies on the top sees what the top showed.
    if act.top not in line and set(act.changed) & {*line}:
        return None
    return None if is_left and not keeps else view


def _known(host: Host, family: Family) -> dict[str, int]:
    """The members that the catalogue knows, by the names by which it does."""
    members = {member.path: index for index, member in enumerate(family.members)}
    identities = {host.files.identity(path): index for path, index in members.items() if is_there(host.files, path)}
    found = dict[str, int]()
    for path in dict.fromkeys(_paths(host)):
        if path in members:
            found[path] = members[path]
        elif is_there(host.files, path) and host.files.identity(path) in identities:
            found[path] = identities[host.files.identity(path)]
    return found


def _paths(host: Host) -> Iterator[str]:
    for domain in domains.everyone(host.catalog):
        yield from (disk.source for disk in parse(domain.xml).disks if disk.source is not None)
        for disks in snapshots.all_disks(host.catalog, domain).values():
            for held in disks:
                yield held.source
                if held.overlay is not None:
                    yield held.overlay


def _made(host: Host, family: Family, acts: Sequence[Merge], *, keeps: bool) -> dict[str, bool]:
    """Of which names it must be noted anew whether the file there is ours."""
    ours = [needs.is_ours(host, member.path) for member in family.members]
    found = dict[str, bool]()
    for act in acts:
        if not keeps:
            found |= dict.fromkeys(family.paths(family.left_over(act)), False)
        if act.name != act.target:
            found[family.path(act.target)] = False
            ours[act.target] = ours[act.target] and ours[act.name]
            found[family.path(act.name)] = ours[act.target]
        family = family.after(act)
    return found


def warnings(host: Host, names: Names) -> Iterator[str]:
    """What is to be said of that, in sentences."""
    for loss in losses(host, names):
        source = loss.held.source
        why = f"what lies over {source} is" if loss.file == source else f"{source} is"
        yield (
            f"snapshot '{loss.snapshot}' of domain '{loss.domain}' will not hold disk {loss.held.target} any more: "
            f"{why} merged into {loss.file}"
        )


def losses(host: Host, names: Names) -> list[Loss]:
    """All that snapshots will not hold any more."""
    lost = {fate.path: fate for fate in names.fates if fate.view is None}
    return [
        Loss(domain.name, snapshots.get(host.catalog, number).name, held, lost[held.source].file)
        for domain in domains.everyone(host.catalog)
        for number, disks in snapshots.all_disks(host.catalog, domain).items()
        for held in disks
        if held.mode != INTERNAL and held.lost is None and held.source in lost
    ]


def apply(host: Host, names: Names) -> None:
    """Map all names; belongs into the transaction that notes that the merge is done."""
    fates = {fate.path: fate for fate in names.fates}
    for domain in domains.everyone(host.catalog) if fates else ():
        definition = parse(domain.xml)
        moved = _moved(definition, fates)
        if moved is not definition:
            domains.redefine(host.catalog, domain, moved.text)
        for number, disks in snapshots.all_disks(host.catalog, domain).items():
            mapped = [_mapped(held, fates, names) for held in disks]
            if mapped != disks:
                snapshots.replace_disks(host.catalog, number, mapped)
    for path, is_ours in names.made:
        if is_ours:
            snapshots.note_made(host.catalog, path, host.files.identity(path))
        else:
            snapshots.forget_made(host.catalog, path)


def _moved(definition: Definition, fates: dict[str, Fate]) -> Definition:
    for disk in definition.disks:
        fate = fates.get(disk.source or "")
        if fate is not None and fate.view is not None and (fate.view, fate.format) != (disk.source, disk.format):
            kind = BLOCK if stat.S_ISBLK(os.stat(fate.view).st_mode) else FILE
            definition = definition.with_source(disk.target, fate.view, fate.format, type=kind)
    return definition


def _mapped(held: Held, fates: dict[str, Fate], names: Names) -> Held:
    """What a snapshot holds, by the names of now."""
    fate, over = fates.get(held.source), fates.get(held.overlay or "")
    if over is not None:
        held = held._replace(overlay=over.file)
    if fate is None or held.lost is not None:
        return held
    if held.mode == INTERNAL:
        return held._replace(source=fate.file, format=gate.QCOW2)
    if fate.view is None:
        return held._replace(lost=names.lost_of(fate))
    return held._replace(source=fate.view, format=fate.format)
