"""Dirty bitmaps of the image that is served: what was written since it was opened, and what they say of a range.

As in QEMU a bitmap that records is marked as in use when the first write comes; when the disk is closed it is written
down and is right again. After a stop it stays in use, and nobody relies on it.
"""

import threading
from itertools import pairwise
from typing import Final

import numpy as np

from cowtree import extents as ex
from cowtree.chain.gate import Layer
from cowtree.execute.bitmaps import BitmapWriter, Recorder, Stored, mark, try_stored
from cowtree.extents import Ranges
from cowtree.qcow2 import dirty
from cowtree.qcow2.geometry import ceil_div, round_up
from cowtree.qcow2.image import Image

DIRTY_BITMAP: Final = "qemu:dirty-bitmap:"
DIRTY: Final = 1
NOTES_PER_JOIN: Final = 1 << 12
# So many bits are looked at for one answer.
BITS_MAX: Final = 1 << 20


class Bitmaps:
    """The bitmaps of the top, by their names."""

    def __init__(self, layer: Layer, image: Image) -> None:
        self._layer = layer
        self._recorder = Recorder(image)
        sound = [each for each in image.bitmaps if not each.is_in_use and not each.has_foreign_data]
        found = {each.name: try_stored(layer, image, each) for each in sound}
        self._stored: dict[str, Stored] = {name: stored for name, stored in found.items() if stored is not None}
        recording = [each.bitmap.granularity_bits for each in self._stored.values() if each.bitmap.is_auto]
        self.are_recording = bool(recording)
        self._unit = 1 << min(recording, default=0)
        self._written = ex.one_range(0, 0)
        self._notes: list[tuple[int, int]] = []
        self._lock = threading.Lock()

    @property
    def contexts(self) -> list[str]:
        """The names by which block status is asked for them."""
        return [DIRTY_BITMAP + name for name in self._stored]

    def note(self, start: int, stop: int) -> None:
        """Remember a range as written."""
        with self._lock:
            self._notes.append((start, stop))
            if len(self._notes) > NOTES_PER_JOIN:
                self._join()

    def _known(self) -> Ranges:
        with self._lock:
            self._join()
            return self._written

    def _join(self) -> None:
        if self._notes:
            start, stop = (np.array(column, np.int64) for column in zip(*self._notes, strict=True))
            order = np.argsort(start, kind="stable")
            self._written = ex.union(self._written, ex.widen(Ranges(start[order], stop[order]), self._unit))
            self._notes = []

    def status(self, context: str, offset: int, stop: int) -> list[tuple[int, int]]:
        """What a bitmap says of a range: lengths, and whether it is dirty; the answer may end early."""
        stored = self._stored[context.removeprefix(DIRTY_BITMAP)]
        bits = stored.bitmap.granularity_bits
        first = (offset >> bits) // 8 * 8
        stop = min(stop, (first + BITS_MAX) << bits)
        window = np.zeros(round_up(ceil_div(stop, 1 << bits) - first, 8) // 8, np.uint8)
        stored.paint(window, first, bits)
        if stored.bitmap.is_auto:
            mark(window, first, dirty.to_bits(self._known(), bits))
        found = dirty.unpack(window)
        touched = Ranges((found.start + first) << bits, (found.stop + first) << bits)
        inside = ex.intersect(touched, ex.one_range(offset, stop))
        edges = [offset, *np.stack(inside, axis=1).ravel().tolist(), stop]
        parts = [(end - begin, index % 2 * DIRTY) for index, (begin, end) in enumerate(pairwise(edges))]
        return [part for part in parts if part[0]]

    def settle(self, image: Image) -> Image:
        """Write down what was written. Returns: the image after that. Raises: StorageFailed."""
        self._recorder.note(self._known())
        writer = BitmapWriter(self._layer, image)
        writer.settle(self._recorder)
        return writer.image
