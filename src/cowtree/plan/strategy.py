"""From a wish to all the ways of granting it, and to the cheapest one of those that are legal.

A way is a sequence of merges. Two merges of one way never write to the same file, and of those along one line the upper
one comes first, so that what each of them moves does not depend on the others.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import product
from typing import Final, NamedTuple

from cowtree.errors import CowtreeError, Refused, WrongUse
from cowtree.plan.family import Family, Merge
from cowtree.plan.permit import Permit, objections, permit
from cowtree.plan.put import Cost


class Plan(NamedTuple):
    """What will be done: the permitted acts, and what each of them costs."""

    permit: Permit
    costs: tuple[Cost, ...]

    @property
    def acts(self) -> tuple[Merge, ...]:
        """The acts in their order."""
        return self.permit.acts

    @property
    def cost(self) -> Cost:
        """All acts together."""
        total = Cost()
        for each in self.costs:
            total = total.plus(each)
        return total


Way = tuple[Merge, ...]
Price = Callable[[Merge], Cost]


def commit(family: Family, top: int, base: int | None = None) -> Iterator[Way]:
    """The ways to let `base` show what `top` shows, with nothing left between them.
    Raises: WrongUse when `top` does not lie on `base`.
    """
    line = family.line(top)
    if len(line) < 2:
        raise Refused(reason=f"{family.path(top)} has no base that it could be committed into")
    base = line[1] if base is None else base
    if base not in line[1:]:
        raise WrongUse(reason=f"{family.path(top)} does not lie on {family.path(base)}")
    group = line[: line.index(base) + 1]
    # The plain commit comes first: it is refused when nothing is legal, and done when nothing is cheaper.
    for target in (base, *group[:-1]):
        yield (Merge(group, target, base),)


def pull(family: Family, layer: int, base: int | None = None) -> Iterator[Way]:
    """The ways to let `layer` lie directly on `base`, or stand alone, and show what it shows.
    Raises: WrongUse when it does not lie on `base`.
    """
    line = family.line(layer)
    if base is not None and base not in line[1:]:
        raise WrongUse(reason=f"{family.path(layer)} does not lie on {family.path(base)}")
    group = line if base is None else line[: line.index(base)]
    if len(group) == 1:
        yield ()
        return
    for target in group:
        yield (Merge(group, target, layer),)


def delete(family: Family, image: int) -> Iterator[Way]:
    """The ways to do without an image on which others lie.
    Raises: Refused when none does: what a guest sees would be gone.
    """
    overlays = family.overlays(image)
    if not overlays:
        path = family.path(image)
        raise Refused(
            reason=f"{path} is what a guest sees, and nothing lies on it", hint=f"rm {path}, if that is meant"
        )
    pulls = [Merge((each, image), each, each) for each in overlays]
    yield tuple(pulls)
    # The last one may take the image's file over instead; so each is the last one once.
    for index, each in enumerate(overlays):
        yield (*pulls[:index], *pulls[index + 1 :], Merge((each, image), image, each))
    parent = family.members[image].parent
    if parent is not None:
        yield from ((Merge((image, parent), target, parent),) for target in (parent, image))


def with_dependants(family: Family, way: Way) -> Way:
    """The same way, but whoever would see something else takes over beforehand what it reads of that."""
    first: list[Merge] = []
    now = family
    for act in way:
        for each in now.in_the_way(act):
            line = now.line(each)
            group = line[: line.index(act.group[act.reach]) + 1]
            first.append(Merge(group, each, each))
            now = now.after(first[-1])
        now = now.after(act)
    return (*first, *way)


def shorten(family: Family, leaf: int, max_depth: int, price: Price) -> Iterator[Way]:
    """The cheapest way to leave at most so many layers, for each number of merges that does it.
    Raises: WrongUse when that is not at least one.
    """
    if max_depth < 1:
        raise WrongUse(reason=f"a chain cannot have {max_depth} layers", hint="--max-depth 1")
    line = family.line(leaf)
    if len(line) <= max_depth:
        yield ()
        return
    best = {span: _cheapest_act(family, line[span[0] : span[1]], leaf, price) for span in _spans(len(line))}
    # ways[stop] is the cheapest way for the layers before `stop`, for each number of layers that they leave.
    ways: list[dict[int, tuple[Cost, Way]]] = [{0: (Cost(), ())}]
    for stop in range(1, len(line) + 1):
        found: dict[int, tuple[Cost, Way]] = {}
        for start in range(stop):
            if (choice := best[start, stop]) is None:
                continue
            added, act = choice
            for count, (cost, way) in ways[start].items():
                total = (cost.plus(added), (*way, *act))
                if count < max_depth and (count + 1 not in found or _rank(*total) < _rank(*found[count + 1])):
                    found[count + 1] = total
        ways.append(found)
    # When nothing is legal, what speaks against the plainest way is said.
    plainest = Merge(line[: len(line) - max_depth + 1], leaf, leaf)
    yield from [way for _, way in ways[-1].values()] or [(plainest,)]


def _spans(count: int) -> Iterator[tuple[int, int]]:
    return ((start, stop) for start, stop in product(range(count), range(count + 1)) if start < stop)


def _cheapest_act(family: Family, group: tuple[int, ...], leaf: int, price: Price) -> tuple[Cost, Way] | None:
    """The cheapest legal merge of one group, nothing for a single layer; None when there is none."""
    if len(group) == 1:
        return Cost(), ()
    acts = [Merge(group, target, leaf if leaf in group else target) for target in group]
    found: list[tuple[Cost, Way]] = []
    for act in acts:
        if any(objections(family, act)):
            continue
        try:
            found.append((price(act), (act,)))
        except CowtreeError:
            continue
    return min(found, key=lambda each: _rank(*each), default=None)


def _rank(cost: Cost, way: Way) -> tuple[int, ...]:
    """Less is better: bytes first, then tables, then names that must change, then merges."""
    renames = sum(act.name != act.target for act in way)
    return (cost.traffic_bytes, cost.table_count, renames, len(way))


class Terms(NamedTuple):
    """What a user says beside the wish: whose loss is accepted, which views must stay, whether those who stand in the
    way are served first.
    """

    forced: Collection[int] = ()
    kept: Collection[int] = ()
    with_dependants: bool = False


NO_TERMS: Final = Terms()


def choose(family: Family, ways: Sequence[Way], price: Price, terms: Terms = NO_TERMS) -> Plan:
    """The cheapest of the legal ways; of equals the first.
    Raises: Refused for what speaks against the first way when none is legal.
    """
    if terms.with_dependants:
        ways = [with_dependants(family, way) for way in ways]
    plans, refusals = [], []
    for way in ways:
        try:
            plans.append(_price(permit(family, way, forced=terms.forced, kept=terms.kept), price))
        except CowtreeError as error:
            refusals.append(error)
    if not plans:
        raise refusals[0] if refusals else Refused(reason="there is no way to do that")
    return min(plans, key=lambda plan: _rank(plan.cost, plan.acts))


def _price(allowed: Permit, price: Price) -> Plan:
    return Plan(allowed, tuple(price(act) for act in allowed.acts))
