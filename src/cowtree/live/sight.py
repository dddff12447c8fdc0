"""What is seen through a disk now: the guest map, filled from the layers when somebody looks, and reading by it.

`lock` is held while the map is looked at or changed, and never while a file is read or written.
"""

import threading
from typing import Final, Protocol

import numpy as np

from cowtree import extents as ex
from cowtree.chain.gate import Layer
from cowtree.chain.view import Chain, resolve
from cowtree.extents import Extents, Known, Ranges
from cowtree.live import map as guest_map
from cowtree.live.layers import Layers
from cowtree.live.map import GuestMap, Piece, Window
from cowtree.qcow2.image import Image

UNITS_PER_WINDOW_BITS: Final = 13
RAW_UNIT_BITS: Final = 16


class Held(Protocol):
    """What the layer on top holds now, which may be more than its file says."""

    def prepare(self, start: int, stop: int) -> None:
        """Read what is needed to know what a range holds."""

    def held(self, start: int, stop: int) -> tuple[Extents, Ranges] | None:
        """The extents of a range, and where guests may write in place; None when it must be prepared again. The lock
        is held.
        """


class Fixed:
    """A layer on top that nobody writes."""

    def __init__(self, chain: Chain) -> None:
        self._top = Chain(chain.layers[:1], chain.images[:1])

    def prepare(self, start: int, stop: int) -> None:
        """Nothing changes, so nothing is kept."""

    def held(self, start: int, stop: int) -> tuple[Extents, Ranges]:
        """What its tables say."""
        return resolve(self._top, start, stop), ex.one_range(0, 0)


class Sight:
    """The map of one disk, and its layers."""

    def __init__(self, chain: Chain, top: Held | None = None) -> None:
        self.lock = threading.Lock()
        self.layers = Layers(_whole(chain))
        self.size_bytes = chain.size_bytes
        self.map = self._empty_map()
        self.top: Held = top or Fixed(self.layers.chain)

    def _empty_map(self) -> GuestMap:
        return GuestMap(self.size_bytes, _unit_bits(self.layers.chain) + UNITS_PER_WINDOW_BITS)

    def forget(self) -> None:
        """Know nothing of the layers any more, nor what somebody is finding out at this moment."""
        with self.lock:
            self.map = self._empty_map()

    def find(self, offset: int) -> Piece:
        """The piece that holds a guest byte. Raises: StorageFailed, BrokenTable."""
        index = offset >> self.map.window_bits
        with self.lock:
            window = self.map.windows.get(index)
            if window is not None:
                return window.find(offset)
        return self._load(index).find(offset)

    def pieces(self, offset: int, stop: int) -> list[Piece]:
        """The pieces that a range touches, in order; the first and the last may reach beyond it."""
        found: list[Piece] = []
        while offset < stop:
            found.append(self.find(offset))
            offset = found[-1][1]
        return found

    def read(self, offset: int, length: int) -> bytes | bytearray:
        """Read what is seen. Raises: StorageFailed, BrokenTable."""
        piece = self.find(offset)
        if offset + length <= piece[1]:
            file = self.layers.files.get(piece[2])
            if file is not None:
                return file.pread(piece[3] + offset - piece[0], length)
        data = bytearray(length)
        self.layers.read(offset, self.pieces(offset, offset + length), memoryview(data))
        return data

    def is_zero(self, offset: int, stop: int) -> bool:
        """Whether a range is known to read as zeroes."""
        return all(guest_map.is_zero(piece[2]) for piece in self.pieces(offset, stop))

    def _load(self, index: int) -> Window:
        start, stop = self.map.range_of(index)
        chain = self.layers.chain
        numbers = np.array(self.layers.numbers, np.int64)
        while True:
            known = self.map
            lower = resolve(chain, start, stop, first=1) if len(chain.layers) > 1 else ex.empty()
            self.top.prepare(start, stop)
            with self.lock:
                held = self.top.held(start, stop)
                if held is None or self.map is not known:
                    continue
                seen = ex.over(held[0], lower)
                window = guest_map.make_window(seen, held[1], numbers, (start, stop))
                known.add(index, window)
                return window


def _whole(chain: Chain) -> Chain:
    """The chain with raw layers of which nobody asks where they have holes: to read one is as quick as to know."""
    layers = [whole(*both) for both in zip(chain.layers, chain.images, strict=True)]
    return chain._replace(layers=tuple(layers))


def whole(layer: Layer, image: Image | None) -> Layer:
    """The same of one layer."""
    if image is not None:
        return layer
    return layer._replace(known=Known(ex.single(0, layer.size_bytes, ex.DATA), layer.size_bytes))


def _unit_bits(chain: Chain) -> int:
    """The smallest unit that a layer's tables speak of."""
    units = [image.geometry.subcluster_size_bytes.bit_length() - 1 for image in chain.images if image is not None]
    return min([RAW_UNIT_BITS, *units])
