"""Compare: whether two disks show the same, as `qemu-img compare` tells it.

What differs is named by its first offset only, so the disks are looked through from the start, and no further.
"""

from typing import Final, NamedTuple

import numpy as np

from cowtree import extents as ex
from cowtree.chain.view import Chain, layer_extents, windows
from cowtree.execute.compare import differences
from cowtree.extents import Offsets
from cowtree.images.map import hollow_layers, mark_hollow, states
from cowtree.monitor import Monitor, Silent
from cowtree.units import SECTOR_BYTES

IDENTICAL: Final = "identical"
CONTENT: Final = "content"
STATUS: Final = "status"
SIZE: Final = "size"
_TEXTS: Final = {
    IDENTICAL: "Images are identical.",
    CONTENT: "Content mismatch at offset {offset}!",
    STATUS: "Strict mode: Offset {offset} block status mismatch!",
    SIZE: "Strict mode: Image size mismatch!",
}
NO_CHAIN: Final = Chain((), ())
# A qcow2 image answers for at most so many bytes at once.
_ANSWER_BYTES_MAX: Final = (1 << 31) - 1
# What strict mode compares, by kind of extent: data, zero, has an offset, allocated.
_STATUS: Final = np.array([0b0100, 0b1011, 0b0101, 0b0111, 0b1001, 0b0101, 0b1001, 0b1111, 0b0110], np.uint8)


class Verdict(NamedTuple):
    """How two disks compare. `kind` is IDENTICAL, or what differs first; `offset` is where that is. `warns_of_size` is
    set when the sizes differ and all up to the end of the shorter disk is the same.
    """

    kind: str
    offset: int = 0
    warns_of_size: bool = False

    @property
    def exit_status(self) -> int:
        """0 when they are the same, else 1. Errors are raised, and have a status of their own."""
        return int(self.kind != IDENTICAL)

    @property
    def lines(self) -> list[str]:
        """What is said about it."""
        warning = ["Warning: Image size mismatch!"] if self.warns_of_size else []
        return [*warning, _TEXTS[self.kind].format(offset=self.offset)]


def compare(left: Chain, right: Chain, *, is_strict: bool = False, monitor: Monitor | None = None) -> Verdict:
    """Compare what two open chains show. Where one disk ends before the other, the rest of that must be zeroes.
    In strict mode the sizes must be equal too, and each byte must be allocated in the same way on both sides.
    Raises: StorageFailed, BrokenTable.
    """
    monitor = monitor or Silent()
    sizes = left.size_bytes, right.size_bytes
    if is_strict and sizes[0] != sizes[1]:
        return Verdict(SIZE)
    both = Chain(left.layers + right.layers, left.images + right.images)
    monitor.expect(max(sizes))
    strict = _Strict(left, right) if is_strict else None
    for start, stop in windows(both, min(sizes)):
        limit = strict.first_mismatch(start, stop) if strict else None
        offset = _first_difference(left, right, start, stop if limit is None else limit)
        if offset is not None:
            return Verdict(CONTENT, offset)
        if limit is not None:
            return Verdict(STATUS, limit)
        monitor.advance(stop - start)
    if sizes[0] == sizes[1]:
        return Verdict(IDENTICAL)
    longer = max(left, right, key=lambda chain: chain.size_bytes)
    for start, stop in windows(longer, max(sizes)):
        offset = _first_difference(longer, NO_CHAIN, max(start, min(sizes)), stop)
        if offset is not None:
            return Verdict(CONTENT, offset, warns_of_size=True)
    return Verdict(IDENTICAL, warns_of_size=True)


def _first_difference(left: Chain, right: Chain, start: int, stop: int) -> int | None:
    """Where the first sector that differs begins."""
    found = next(differences(left, right, ex.one_range(start, stop), SECTOR_BYTES), None)
    return None if found is None else int(found.start[0])


class _Strict:
    """Finds where two disks of one size are allocated in different ways."""

    def __init__(self, left: Chain, right: Chain) -> None:
        self._sides = [(chain, hollow_layers(chain)) for chain in (left, right)]
        # QEMU also marks the answer that reaches the end of the disk, so it matters where that begins.
        ends = {_last_answer(*side) for side in self._sides}
        self._end_mismatch = min(ends) if len(ends) > 1 else None

    def first_mismatch(self, start: int, stop: int) -> int | None:
        """The first offset in the window where the two differ."""
        one, other = (_statuses(chain, hollow, start, stop) for chain, hollow in self._sides)
        borders = ex.distinct(np.concatenate((one[0], other[0])))
        left, right = (status[np.searchsorted(begin, borders, "right") - 1] for begin, status in (one, other))
        found = borders[np.flatnonzero(left != right)[:1]].tolist()
        if self._end_mismatch is not None and start <= self._end_mismatch < stop:
            found.append(self._end_mismatch)
        return min(found, default=None)


def _statuses(chain: Chain, hollow: list[int], start: int, stop: int) -> tuple[Offsets, Offsets]:
    """Where ranges of one status begin, and the statuses."""
    seen = states(chain, start, stop, hollow)
    return seen.start, _STATUS[seen.kind].astype(np.int64)


def _last_answer(chain: Chain, hollow: list[int]) -> int:
    """From which offset on QEMU's answer for it reaches to the end of the disk.
    Source: QEMU answers for as much as one L2 table maps in one piece, in each layer that it has to ask.
    """
    start, stop = 0, chain.size_bytes
    for index, (layer, image) in enumerate(zip(chain.layers, chain.images, strict=True)):
        if layer.size_bytes < stop:
            return max(start, layer.size_bytes)
        if image is not None:
            span = image.geometry.l2_span_bytes
            start = max(start, (stop - 1) // span * span, stop - _ANSWER_BYTES_MAX)
        own = ex.coalesce(layer_extents(chain, index, start, stop))
        if index in hollow:
            own = mark_hollow(layer, index, own)
        if len(own.start) and own.stop[-1] == stop:
            return int(own.start[-1])
        start = max([start, *own.stop[-1:].tolist()])
    return start
