"""The guest map: for each guest byte which layer holds it, how, and where in its file.

Layers have numbers that stay theirs. A piece is (start, stop, code, host offset); its code is the layer's number, the
kind of the extent, and whether guests may write to it in place. The map is resolved in windows, so a read through a
hundred layers looks up as much as a read through one. Windows are dropped, the oldest first, when there are many.

    a window   start [0, 64K, 192K | 512M]   code [7, 0, 7]   host [...]     the last start is where it ends
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Final

import numpy as np

from cowtree import extents as ex
from cowtree.extents import Extents, Offsets, Ranges

NOTHING: Final = 0
OWN: Final = 1
KIND_MASK: Final = 7
PIECE_COUNT_MAX: Final = 1 << 20
WINDOW_WEIGHT: Final = 16

Piece = tuple[int, int, int, int]


def code_of(layer: int, kind: int, *, is_own: bool = False) -> int:
    """The code of a piece."""
    return layer << 4 | kind << 1 | is_own


def kind_of(code: int) -> int:
    """The kind of extent; 0 where no layer holds anything."""
    return code >> 1 & KIND_MASK


def layer_of(code: int) -> int:
    """The number of the layer."""
    return code >> 4


def is_zero(code: int) -> bool:
    """Whether it reads as zeroes without a look at any file."""
    return kind_of(code) not in ex.BYTES


def _moves(code: int) -> bool:
    return kind_of(code) in ex.MOVING


class Window:
    """The pieces of one part of the disk, without gaps."""

    __slots__ = ("code", "host", "start")

    def __init__(self, start: "array[int]", code: "array[int]", host: "array[int]") -> None:
        self.start, self.code, self.host = start, code, host

    def find(self, offset: int) -> Piece:
        """The piece that holds a byte."""
        index = bisect_right(self.start, offset) - 1
        return self.start[index], self.start[index + 1], self.code[index], self.host[index]

    def put(self, piece: Piece) -> None:
        """Let a range be held otherwise. Neighbours that go on in the same place are joined."""
        begin, end, *_ = piece
        first = bisect_right(self.start, begin) - 1
        last = bisect_left(self.start, end) - 1
        held = [self._part(first, self.start[first], begin), piece, self._part(last, end, self.start[last + 1])]
        if self.start[first] == begin and first > 0:
            first -= 1
            held[0] = self._part(first, self.start[first], begin)
        if self.start[last + 1] == end and last + 2 < len(self.start):
            last += 1
            held[2] = self._part(last, end, self.start[last + 1])
        joined = _join([each for each in held if each[0] < each[1]])
        self.start[first : last + 1] = array("q", [each[0] for each in joined])
        self.code[first : last + 1] = array("q", [each[2] for each in joined])
        self.host[first : last + 1] = array("q", [each[3] for each in joined])

    def _part(self, index: int, begin: int, end: int) -> Piece:
        """A part of a piece."""
        code, host = self.code[index], self.host[index]
        return begin, end, code, host + (begin - self.start[index] if _moves(code) else 0)


def _join(pieces: list[Piece]) -> list[Piece]:
    joined = pieces[:1]
    for start, stop, code, host in pieces[1:]:
        begin, end, before, place = joined[-1]
        goes_on = place + end - begin == host if _moves(code) else kind_of(code) != ex.COMPRESSED
        if code == before and goes_on:
            joined[-1] = (begin, stop, code, place)
        else:
            joined.append((start, stop, code, host))
    return joined


def make_window(seen: Extents, own: Ranges, numbers: Offsets, place: tuple[int, int]) -> Window:
    """The window of a range; `seen` says what is seen there, `own` where guests may write in place, `numbers` which
    number each layer of `seen` has.
    """
    start, stop = place
    is_top = (seen.layer == 0) & (seen.kind == ex.DATA)
    top = seen.take(is_top)
    mine = ex.cut(top, own)
    others = ex.cut(top, ex.gaps(own, start, stop))
    parts = ex.concatenate([seen.take(~is_top), mine, others])
    is_own = np.zeros(len(parts.start), np.int64)
    is_own[np.searchsorted(parts.start, mine.start)] = OWN
    code = numbers[parts.layer] << 4 | parts.kind.astype(np.int64) << 1 | is_own
    holes = ex.gaps(parts.ranges, start, stop)
    starts = np.concatenate((parts.start, holes.start))
    order = np.argsort(starts, kind="stable")
    none = np.zeros(len(holes.start), np.int64)
    columns = np.append(starts[order], stop), np.append(code, none)[order], np.append(parts.host_offset, none)[order]
    return Window(*(array("q", column.astype(np.int64).tobytes()) for column in columns))


def _weight(window: Window) -> int:
    """How much memory a window takes, counted in pieces."""
    return WINDOW_WEIGHT + len(window.code)


class GuestMap:
    """The windows that are known. The caller holds a lock around every call."""

    def __init__(self, size_bytes: int, window_bits: int, piece_count_max: int = PIECE_COUNT_MAX) -> None:
        self.size_bytes = size_bytes
        self.window_bits = window_bits
        self.windows: dict[int, Window] = {}
        self._count = 0
        self._count_max = piece_count_max

    def range_of(self, index: int) -> tuple[int, int]:
        """Where a window begins and ends."""
        start = index << self.window_bits
        return start, min(start + (1 << self.window_bits), self.size_bytes)

    def add(self, index: int, window: Window) -> None:
        """Know one more window; the oldest ones go when there are too many pieces."""
        self.windows[index] = window
        self._count += _weight(window)
        if self._count <= self._count_max:
            return
        # Windows have changed since they were weighed.
        self._count = sum(map(_weight, self.windows.values()))
        while self._count > self._count_max // 2 and len(self.windows) > 1:
            self._count -= _weight(self.windows.pop(next(iter(self.windows))))

    def put(self, start: int, stop: int, code: int, host: int) -> None:
        """Let a range be held otherwise, as far as it is known."""
        for index in range(start >> self.window_bits, ((stop - 1) >> self.window_bits) + 1):
            window = self.windows.get(index)
            if window is not None:
                low, high = self.range_of(index)
                begin, end = max(start, low), min(stop, high)
                window.put((begin, end, code, host + (begin - start if _moves(code) else 0)))

    def forget(self) -> None:
        """Know nothing any more."""
        self.windows.clear()
        self._count = 0

    def known(self) -> Iterator[Piece]:
        """All pieces that are known."""
        for window in self.windows.values():
            for index, code in enumerate(window.code):
                yield window.start[index], window.start[index + 1], code, window.host[index]
