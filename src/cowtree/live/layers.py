"""The layers below a disk, each with a number that stays its own, and reading the pieces that they hold."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import numpy as np

from cowtree import extents as ex
from cowtree.chain.gate import Layer
from cowtree.chain.view import Chain
from cowtree.execute.read import fetch
from cowtree.live import map as guest_map
from cowtree.live.map import Piece
from cowtree.qcow2.image import Image
from cowtree.storage.contract import Storage

INFLATED_BYTES_MAX: Final = 16 << 20


class Layers:
    """The layers of one disk by their numbers."""

    def __init__(self, chain: Chain) -> None:
        self.numbers: list[int] = []
        self.held: dict[int, Chain] = {}
        # Where guest data of each piece is read as it is, by its code; others take the long way.
        self.files: dict[int, Storage] = {}
        for number, layer, image in zip(range(len(chain.layers)), chain.layers, chain.images, strict=True):
            self.numbers.append(number)
            self._hold(number, layer, image)
        self._next = len(self.numbers)
        self._inflated: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._inflated_bytes = 0
        self._lock = threading.Lock()

    def add(self, layer: Layer, image: Image | None) -> int:
        """Put a layer on top. No request is under way while layers change. Returns: its number."""
        number, self._next = self._next, self._next + 1
        self.numbers.insert(0, number)
        self._hold(number, layer, image)
        return number

    def _hold(self, number: int, layer: Layer, image: Image | None) -> None:
        self.held[number] = Chain((layer,), (image,))
        if layer.guest_cipher is None:
            for is_own in (False, True):
                self.files[guest_map.code_of(number, ex.DATA, is_own=is_own)] = layer.data_file

    def renew(self, number: int, layer: Layer, image: Image | None) -> None:
        """Know something else of a layer, whose files stay the same ones."""
        self.held[number] = Chain((layer,), (image,))

    def drop(self, number: int) -> Layer:
        """Take a layer out. Returns: it, still open."""
        self.numbers.remove(number)
        for is_own in (False, True):
            self.files.pop(guest_map.code_of(number, ex.DATA, is_own=is_own), None)
        return self.held.pop(number).top

    @property
    def chain(self) -> Chain:
        """All layers, the top first."""
        parts = [self.held[number] for number in self.numbers]
        return Chain(tuple(each.layers[0] for each in parts), tuple(each.images[0] for each in parts))

    def is_flat(self, number: int) -> bool:
        """Whether a layer has no tables, so that only its file knows of holes."""
        return self.held[number].images[0] is None

    def file_of(self, number: int) -> Storage:
        """The file that holds a layer's guest data."""
        return self.held[number].layers[0].data_file

    def read(self, offset: int, pieces: Sequence[Piece], into: memoryview) -> None:
        """Read what the pieces hold from a guest offset on, into a buffer of zeroes. Raises: StorageFailed,
        BrokenTable when a compressed cluster is damaged.
        """
        stop = offset + len(into)
        for begin, end, code, host in pieces:
            low, high = max(begin, offset), min(end, stop)
            if guest_map.is_zero(code):
                continue
            view = into[low - offset : high - offset]
            file = self.files.get(code)
            if file is not None:
                file.preadv(host + low - begin, [view])
            elif guest_map.kind_of(code) == ex.COMPRESSED:
                self._read_packed(guest_map.layer_of(code), host, low, view)
            else:
                part = ex.single(low, high, guest_map.kind_of(code), host_offset=host + low - begin)
                fetch(self.held[guest_map.layer_of(code)], part, np.zeros(1, np.int64), view)

    def _read_packed(self, number: int, descriptor: int, offset: int, into: memoryview) -> None:
        """Read a part of a compressed cluster; it is kept for a while, for the next part is read soon."""
        header = self.held[number].layers[0].header
        size = 1 << header.cluster_bits if header is not None else 1
        start, key = offset // size * size, (number, descriptor)
        with self._lock:
            plain = self._inflated.get(key)
            if plain is not None:
                self._inflated.move_to_end(key)
        if plain is None:
            buffer = bytearray(size)
            part = ex.single(start, start + size, ex.COMPRESSED, host_offset=descriptor)
            fetch(self.held[number], part, np.zeros(1, np.int64), memoryview(buffer))
            plain = bytes(buffer)
            self._keep(key, plain)
        into[:] = plain[offset - start : offset - start + len(into)]

    def _keep(self, key: tuple[int, int], plain: bytes) -> None:
        with self._lock:
            if key not in self._inflated:
                self._inflated[key] = plain
                self._inflated_bytes += len(plain)
            while self._inflated_bytes > INFLATED_BYTES_MAX:
                self._inflated_bytes -= len(self._inflated.popitem(last=False)[1])

    def close(self) -> None:
        """Close every file."""
        self.chain.close()
