"""Numbers of host clusters, of which a huge file has billions: memory is taken only near those that are not 0.

A short row is one array. In a long one the clusters go by pages, and a page that holds something has its place in an
array of pages, first come, first served; so what lies scattered over a terabyte fits into a few megabytes. Memory that
nothing was written to is never taken, so both arrays are as long as they may ever have to be.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cowtree.extents import Offsets, distinct

Numbers = NDArray[np.unsignedinteger]

# Longer rows go by pages.
FLAT_LENGTH_MAX: Final = 1 << 25
PAGE_BITS: Final = 7
PAGE: Final = 1 << PAGE_BITS
# So many numbers are looked at together.
WINDOW: Final = 1 << 16
_KINDS: Final = (np.uint8, np.uint16, np.uint32, np.uint64)


class SparseCounts:
    """A number for each of `length` clusters, all 0 at first; one byte each while that is enough."""

    def __init__(self, length: int, flat_length_max: int = FLAT_LENGTH_MAX) -> None:
        self._length = length
        self._flat_length_max = flat_length_max
        self._page_of: NDArray[np.int32] | None = None
        # The first page stays empty: it stands for all that hold nothing.
        self._page_count = 1
        if length > flat_length_max:
            self._page_of = np.zeros(-(-length // PAGE), np.int32)
        self._numbers: Numbers = np.zeros(self._capacity, np.uint8)

    def __len__(self) -> int:
        return self._length

    @property
    def dtype(self) -> np.dtype[Any]:
        """The kind of the numbers."""
        return self._numbers.dtype

    @property
    def _capacity(self) -> int:
        return self._length if self._page_of is None else (len(self._page_of) + 1) * PAGE

    def get(self, clusters: Offsets) -> Numbers:
        """The numbers of some clusters."""
        return self._numbers[self._places(clusters)]

    def put(self, clusters: Offsets, numbers: Offsets) -> None:
        """Set the numbers of some clusters, which are named once each; the kind becomes one that holds them."""
        if len(numbers):
            self.widen(int(numbers.max()))
            self._numbers[self._new_places(clusters)] = numbers

    def add_each(self, clusters: Offsets) -> None:
        """Add 1 for each time that a cluster is named; the kind must hold it."""
        np.add.at(self._numbers, self._new_places(clusters), self.dtype.type(1))

    def take_each(self, clusters: Offsets) -> None:
        """Take 1 away for each time that a cluster is named; none gets below 0."""
        np.subtract.at(self._numbers, self._places(clusters), self.dtype.type(1))

    def window(self, start: int, stop: int) -> Numbers:
        """The numbers of the clusters from `start` up to `stop`, or to the end; not to be written to."""
        stop = min(stop, self._length)
        if self._page_of is None or start >= stop:
            return self._numbers[start:stop]
        first = start >> PAGE_BITS
        found: Numbers = self._numbers.reshape(-1, PAGE)[self._page_of[first : -(-stop // PAGE)]].ravel()
        return found[start - first * PAGE : stop - first * PAGE]

    def any_in(self, start: int, stop: int) -> bool:
        """Whether some number from `start` up to `stop` is not 0."""
        if self._page_of is not None and not self._page_of[start >> PAGE_BITS : -(-stop // PAGE)].any():
            return False
        return bool(self.window(start, stop).any())

    def widen(self, most: int) -> None:
        """Take a kind that holds a number so large."""
        if most > np.iinfo(self.dtype).max:
            self._move(next(np.dtype(each) for each in _KINDS if most <= np.iinfo(each).max))

    def reach(self, length: int) -> None:
        """Have as many clusters, if there are fewer."""
        if length <= self._length:
            return
        self._length = length
        if self._page_of is not None:
            self._page_of = np.concatenate((self._page_of, np.zeros(-(-length // PAGE) - len(self._page_of), np.int32)))
        self._move(self.dtype)

    def _move(self, kind: np.dtype[Any]) -> None:
        """Move the numbers into an array of this kind. Where nothing was counted no memory is touched."""
        numbers: Numbers = np.zeros(self._capacity, kind)
        used = len(self._numbers) if self._page_of is None else self._page_count * PAGE
        for start in range(0, used, WINDOW):
            part = self._numbers[start : min(start + WINDOW, used)]
            if part.any():
                numbers[start : start + len(part)] = part
        self._numbers = numbers

    def _places(self, clusters: Offsets) -> Offsets:
        """Where the numbers of these clusters are."""
        if self._page_of is None:
            return clusters
        places: Offsets = (self._page_of[clusters >> PAGE_BITS].astype(np.int64) << PAGE_BITS) + (clusters & (PAGE - 1))
        return places

    def _new_places(self, clusters: Offsets) -> Offsets:
        """The same, each in a page that may be written to."""
        if self._page_of is not None:
            page = clusters >> PAGE_BITS
            new = distinct(page[self._page_of[page] == 0])
            self._page_of[new] = np.arange(self._page_count, self._page_count + len(new), dtype=np.int32)
            self._page_count += len(new)
        return self._places(clusters)
