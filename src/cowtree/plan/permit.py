"""The permit: a proof that nobody outside a merge reads a file that the merge changes.

No plan that changes a file can be built without one, and only `permit` makes it.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from cowtree.errors import Refused
from cowtree.plan.family import Family, Merge


class Permit(NamedTuple):
    """The acts that are permitted, in this order, and those who will see something else because the user said so."""

    family: Family
    acts: tuple[Merge, ...]
    forced: tuple[int, ...] = ()


class Objection(NamedTuple):
    """Why an act may not be: `harmed` are the images that would see something else, `hint` says what else helps."""

    reason: str
    harmed: tuple[int, ...] = ()
    hint: str | None = None


def permit(
    family: Family, acts: Sequence[Merge], *, forced: Collection[int] = (), kept: Collection[int] = ()
) -> Permit:
    """Prove that acts, one after the other, change what nobody else sees. `forced` are images whose loss the user has
    spelled out; `kept` are images whose view must stay although they are no leaves.
    Raises: Refused, which names all images that would see something else, and what can be done instead.
    """
    found, now = [], family
    for act in acts:
        found += list(objections(now, act, forced=forced, kept=kept))
        now = now.after(act)
    if found:
        raise _refusal(family, acts, found)
    return Permit(family, tuple(acts), tuple(sorted(forced)))


def objections(
    family: Family, act: Merge, *, forced: Collection[int] = (), kept: Collection[int] = ()
) -> Iterator[Objection]:
    """All that speaks against an act."""
    harmed = {each for beside in family.in_the_way(act) for each in (beside, *family.readers(beside))}
    spared = harmed - set(forced)
    if spared:
        names = ", ".join(family.path(each) for each in act.changed)
        verb = "read" if len(spared) > 1 else "reads"
        listed = ", ".join(family.paths(tuple(sorted(spared))))
        yield Objection(f"{names} would change, and {listed} {verb} it", tuple(sorted(spared)))
    lost = [each for each in (*act.changed, *family.left_over(act)) if each in kept and each != act.top]
    for each in lost:
        yield Objection(f"{family.path(each)} is to be kept as it is", (each,))
    for each in _lost_snapshots(family, act):
        if each not in forced:
            path = family.path(each)
            hint = f"cowtree img snapshot -d NAME {path}, for those that may go; or give all of them up: --force {path}"
            yield Objection(f"{path} has internal snapshots, which would not show what they show now", hint=hint)
    yield from _unfit(family, act)
    target, name = family.members[act.target], family.members[act.name]
    if target.format != name.format:
        yield Objection(f"{target.path} is {target.format} and cannot take the place of {name.path}, which is not")
    if target.device != name.device:
        yield Objection(f"{target.path} lies on another file system than {name.path}, whose place it would take")
    if target.format == "raw" and family.members[act.group[-1]].parent is not None:
        yield Objection(f"{target.path} is raw and cannot have a backing file")


def _unfit(family: Family, act: Merge) -> Iterator[Objection]:
    """The images that cannot be opened as the act must open them: the overlays of the top get another link."""
    overlays = family.overlays(act.top)
    written = {act.top, act.target, *overlays}
    for each in (*act.group, *overlays):
        member = family.members[each]
        if member.why_not is not None:
            yield Objection(f"{member.path}: {member.why_not}")
        if member.use is not None and (each in written or member.use != "read"):
            verb = "reads" if member.use == "read" else "writes to"
            yield Objection(f"{member.path} is in use: another process {verb} it", hint=f"stop what uses {member.path}")


def _lost_snapshots(family: Family, act: Merge) -> Iterator[int]:
    """The images whose internal snapshots are left behind with them, or get another base than they rely on."""
    lost = {*family.left_over(act)}
    if act.name != act.target:
        lost.add(act.name)
    if act.target != act.group[-1]:
        lost.add(act.target)
    return (each for each in sorted(lost) if family.members[each].has_snapshots)


def _refusal(family: Family, acts: Sequence[Merge], found: Sequence[Objection]) -> Refused:
    harmed = tuple(sorted({each for objection in found for each in objection.harmed}))
    reason = "; ".join(dict.fromkeys(objection.reason for objection in found))
    ways = [objection.hint for objection in found if objection.hint]
    if harmed:
        heads = [each for each in harmed if family.members[each].parent not in harmed]
        first = family.path(heads[0])
        ways.append(
            f"the same with --with-dependants, which pulls into {'each of them' if len(heads) > 1 else first} first; "
            f"or give {first} a copy of its own base: cowtree img rebase -b COPY -F FORMAT {first}; "
            f"or give it up: {' '.join(f'--force {family.path(each)}' for each in harmed)}"
        )
    return Refused(
        reason=reason, hint="; ".join(dict.fromkeys(ways)) or None, harmed=family.paths(harmed), acts=len(acts)
    )
