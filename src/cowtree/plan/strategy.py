"""From a wish to all the ways of granting it, and to the cheapest one of those that are legal.

A way is a sequence of merges. Two merges of one way never write to the same file, and of those along one line the upper
one comes first, so that what each of them moves does not depend on the others.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from typing import Final, NamedTuple

from cowtree.errors import CowtreeError, Refused, WrongUse
from cowtree.plan.bound import Bounds, nothing_known
from cowtree.plan.family import Family, Merge
from cowtree.plan.permit import Permit, permit
from cowtree.plan.put import Cost
from cowtree.plan.shorten import Groups, cheapest_cut


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
        return _total(self.costs)


Way = tuple[Merge, ...]
Price = Callable[[Merge], Cost]
# The rank of a way, and its number among the others.
_Place = tuple[tuple[int, ...], int]


def _total(costs: Iterable[Cost]) -> Cost:
    total = Cost()
    for each in costs:
        total = total.plus(each)
    return total


def _nothing_known(_: Merge) -> Cost:
    return Cost()


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
            changed = (act.group[act.reach], now.members[act.target].data)
            lowest = next((layer for layer in changed if layer in line), None)
            if lowest is None or lowest == each:
                # It is its own file that changes: nothing saves it, and it will be named.
                continue
            group = line[: line.index(lowest) + 1]
            first.append(Merge(group, each, each))
            now = now.after(first[-1])
        now = now.after(act)
    return (*first, *way)


def shorten(family: Family, leaf: int, max_depth: int, price: Price, bounds: Bounds | None = None) -> Iterator[Way]:
    """The cheapest way to leave at most so many layers; `bounds` are those of the line below `leaf`.
    Raises: WrongUse when that is not at least one.
    """
    if max_depth < 1:
        raise WrongUse(reason=f"a chain cannot have {max_depth} layers", hint="--max-depth 1")
    line = family.line(leaf)
    if len(line) <= max_depth:
        yield ()
        return
    bounds = nothing_known(len(line)) if bounds is None else bounds
    groups = Groups(family, line, bounds, lambda act: _rank(price(act), (act,)))
    spans = cheapest_cut(groups, max_depth)
    if spans is None:
        # When nothing is legal, what speaks against the plainest way is said.
        yield (Merge(line[: len(line) - max_depth + 1], leaf, leaf),)
        return
    yield tuple(groups.act(start, stop) for start, stop in spans if stop - start > 1)


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


def choose(
    family: Family, ways: Sequence[Way], price: Price, terms: Terms = NO_TERMS, bound: Price = _nothing_known
) -> Plan:
    """The cheapest of the legal ways; of equals the first. `bound` tells the lowest price that an act may have: of a
    way that cannot be the cheapest nothing else is asked.
    Raises: Refused for what speaks against the first way when none is legal.
    """
    if terms.with_dependants:
        ways = [with_dependants(family, way) for way in ways]
    best: tuple[_Place, Plan] | None = None
    refusals: dict[int, CowtreeError] = {}
    pending = [(_lowest(way, bound), number) for number, way in enumerate(ways)]
    heapify(pending)
    while pending and (best is None or pending[0] < best[0]):
        _, number = heappop(pending)
        way = ways[number]
        now = _lowest(way, bound), number
        if pending and pending[0] < now:
            # More is known by now: another one comes first.
            heappush(pending, now)
            continue
        try:
            plan = _price(permit(family, way, forced=terms.forced, kept=terms.kept), price)
        except CowtreeError as error:
            refusals[number] = error
            continue
        found = (_rank(plan.cost, way), number), plan
        best = found if best is None or found[0] < best[0] else best
    if best is None:
        raise refusals[min(refusals)] if refusals else Refused(reason="there is no way to do that")
    return best[1]


def _lowest(way: Way, bound: Price) -> tuple[int, ...]:
    """The lowest rank that a way may have."""
    return _rank(_total(map(bound, way)), way)


def _price(allowed: Permit, price: Price) -> Plan:
    return Plan(allowed, tuple(price(act) for act in allowed.acts))
