"""Proof that a merge changes nothing that is seen: a digest of each leaf before it, and the same one after it.

Only what has another owner afterwards has to be looked at: what a leaf sees in an image that is merged into another
one, and where it sees nothing. That is widened to whole chunks of the digest, and to larger pieces when it is in many.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from cowtree import extents as ex
from cowtree.chain.view import Chain, open_chain, resolve, windows
from cowtree.errors import CowtreeError, ProofFailed
from cowtree.extents import Ranges
from cowtree.images.digest import CHUNK_BYTES, chain_digest
from cowtree.images.order import Order, Sight
from cowtree.monitor import Monitor
from cowtree.plan.family import Family, Merge
from cowtree.storage.contract import FileSystem

CHANGED, FULL = MODES = ("changed", "full")
RANGE_COUNT_MAX: Final = 1 << 12


def look(
    files: FileSystem, family: Family, acts: Sequence[Merge], mode: str, monitor: Monitor | None = None
) -> tuple[Sight, ...]:
    """Digest what each leaf shows that some act may touch. Raises: what opening and reading raise."""
    found = []
    for leaf in affected_leaves(family, acts):
        member = family.members[leaf]
        chain = open_chain(files, member.path, member.format)
        try:
            ranges = None if mode == FULL else owned(chain, moving_layers(family, acts, leaf))
            digest = chain_digest(chain, monitor, ranges)
        finally:
            chain.close()
        found.append(Sight(leaf, place_of(leaf, acts), digest, None if ranges is None else _pairs(ranges)))
    return tuple(found)


def prove(files: FileSystem, order: Order, monitor: Monitor | None = None) -> None:
    """Digest the same again when all is done. Raises: ProofFailed for the first leaf that shows something else."""
    now = order.result
    for sight in order.sights:
        path, image_format = now.path(sight.place), now.members[sight.place].format
        try:
            chain = open_chain(files, path, image_format)
            try:
                is_same = chain_digest(chain, monitor, ranges_of(sight)) == sight.digest
            finally:
                chain.close()
        except CowtreeError as error:
            raise ProofFailed(path=path, reason=error.reason) from error
        if not is_same:
            raise ProofFailed(path=path, reason=f"its digest is not what that of {order.family.path(sight.leaf)} was")


def affected_leaves(family: Family, acts: Sequence[Merge]) -> list[int]:
    """The leaves that see something through an image of an act, but for those that were given up."""
    given_up: set[int] = set()
    now = family
    for act in acts:
        for each in now.in_the_way(act):
            given_up |= {each, *now.readers(each)}
        now = now.after(act)
    merged = {each for act in acts for each in act.group}
    return [leaf for leaf in family.leaves if leaf not in given_up and merged & set(family.line(leaf))]


def place_of(leaf: int, acts: Sequence[Merge]) -> int:
    """The member through which is seen afterwards what a leaf shows now."""
    for act in acts:
        if act.top == leaf:
            leaf = act.target
    return leaf


def moving_layers(family: Family, acts: Sequence[Merge], leaf: int) -> list[int]:
    """The layers of a leaf's chain whose content somebody else may hold afterwards."""
    line = family.line(leaf)
    moving = {each for act in acts for each in act.group if each != act.target}
    return [index for index, each in enumerate(line) if each in moving]


def owned(chain: Chain, layers: Sequence[int]) -> Ranges:
    """The guest ranges that these layers of a chain show, and those that none shows; whole chunks, in not too many
    pieces.
    """
    found, unit = Ranges(np.empty(0, np.int64), np.empty(0, np.int64)), CHUNK_BYTES
    for start, stop in windows(chain, chain.size_bytes):
        seen = resolve(chain, start, stop)
        others = seen.take(~np.isin(seen.layer, list(layers)) & (seen.kind != ex.TAIL))
        found = ex.union(found, ex.widen(ex.gaps(others.ranges, start, stop), unit))
        while len(found.start) > RANGE_COUNT_MAX:
            unit *= 2
            found = ex.widen(found, unit)
    return found


def ranges_of(sight: Sight) -> Ranges | None:
    """The ranges of a sight as arrays."""
    if sight.ranges is None:
        return None
    pairs = np.array(sight.ranges, np.int64).reshape(-1, 2)
    return Ranges(pairs[:, 0].copy(), pairs[:, 1].copy())


def _pairs(ranges: Ranges) -> tuple[tuple[int, int], ...]:
    return tuple(zip(ranges.start.tolist(), ranges.stop.tolist(), strict=True))
