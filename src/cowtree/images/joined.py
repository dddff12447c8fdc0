"""What is converted: disks one behind the other, read as one, and how finely it is looked through for zeroes."""

import math
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from cowtree import extents as ex
from cowtree.chain import gate
from cowtree.chain.view import ALIGNMENT_BYTES, Chain, layer_extents, windows
from cowtree.execute.read import Page, ahead, pages
from cowtree.extents import Extents, Mask, Ranges
from cowtree.images import map as mapping
from cowtree.qcow2.geometry import round_up

# Runs of zeroes are looked for in cells of this size, or of the sparse size when that is smaller.
CELL_BYTES_MAX: Final = 4096
NO_CHAIN: Final = Chain((), ())


class Joined:
    """Disks one behind the other, as one chain whose layers know where their disk begins; of each only its span.
    With `top_only` what backs them is read and not theirs: see `held`.
    """

    def __init__(self, chains: Sequence[Chain], span: tuple[int, int] | None = None, *, top_only: bool = False) -> None:
        self._top_only = top_only
        self._parts: list[tuple[Chain, int, int]] = []
        self._hollow = [[] if chain.top.salvage else mapping.hollow_layers(chain) for chain in chains]
        layers: list[gate.Layer] = []
        self.size_bytes = 0
        for chain in chains:
            start, stop = span or (0, chain.size_bytes)
            origin = self.size_bytes - start
            self._parts.append((chain, origin, len(layers)))
            layers += [layer._replace(origin=origin) for layer in chain.layers]
            self.size_bytes += stop - start
        self.chain = Chain(tuple(layers), tuple(image for chain in chains for image in chain.images))

    def data(self, start: int, stop: int) -> Extents:
        """Where the joined disk holds data, between two of its offsets."""
        found = []
        for (chain, origin, first_layer), hollow in zip(self._parts, self._hollow, strict=True):
            low, high = max(start - origin, 0), min(stop - origin, chain.size_bytes)
            if low < high:
                seen = mapping.data(chain, low, high, hollow)
                layer = (seen.layer + first_layer).astype(np.int16)
                found.append(seen._replace(start=seen.start + origin, layer=layer))
        return ex.concatenate(found)

    def held(self, start: int, stop: int) -> Ranges:
        """Where the joined disk says itself what it shows, between two of its offsets: everywhere, or with `top_only`
        where the top layers hold something, and where what backs them is shorter.
        """
        if not self._top_only:
            return ex.one_range(start, stop)
        found = ex.one_range(0, 0)
        for chain, origin, _ in self._parts:
            low, high = max(start - origin, 0), min(stop - origin, chain.size_bytes)
            end = chain.layers[1].size_bytes if len(chain.layers) > 1 else 0
            own = ex.union(layer_extents(chain, 0, low, high).ranges, ex.one_range(max(low, end), high))
            found = ex.union(found, Ranges(own.start + origin, own.stop + origin))
        return found

    def windows(self, beside: Chain = NO_CHAIN) -> Iterator[tuple[int, int]]:
        """Windows of the joined disk; `beside` is a chain that is looked at in the same windows."""
        borders = {round_up(stop, ALIGNMENT_BYTES) for _, stop in windows(beside, self.size_bytes)}
        for chain, origin, _ in self._parts:
            borders.update(round_up(origin + stop, ALIGNMENT_BYTES) for _, stop in windows(chain, chain.size_bytes))
        start = 0
        for border in sorted(borders):
            stop = max(min(border, self.size_bytes), 0)
            if start < stop:
                yield start, stop
            start = stop


class Grain(NamedTuple):
    """How finely zeroes are looked for: in cells, and a run of them becomes a hole when it is `hole_bytes` long."""

    cell_bytes: int
    hole_bytes: int

    def used(self, page: Page) -> Mask:
        """Which cells of a page must be written."""
        cells = np.frombuffer(page.data, np.uint64).reshape(-1, self.cell_bytes // 8)
        used: Mask = np.logical_or.reduce(cells, axis=1) if self.hole_bytes else np.ones(len(cells), np.bool_)
        return used

    def solid(self, page: Page, used: Mask) -> Ranges:
        """The guest ranges of a page that must be written, short runs of zeroes among them."""
        start = page.guest_offset(np.flatnonzero(used) * self.cell_bytes)
        reach = max(self.hole_bytes, 1) - 1
        close = ex.merge_ranges(Ranges(start, start + self.cell_bytes + reach))
        return ex.intersect(close._replace(stop=close.stop - reach), page.ranges)


def grain_of(sparse_bytes: int, unit_bytes: int) -> Grain:
    """The grain in which runs of `sparse_bytes` become holes, when units of `unit_bytes` are written."""
    return Grain(min(math.gcd(sparse_bytes, CELL_BYTES_MAX), unit_bytes), sparse_bytes)


def find_solid(source: Joined, seen: Extents, grain: Grain) -> Ranges:
    """The parts of the data that are more than zeroes; all of it is read."""
    if not grain.hole_bytes:
        return ex.merge_ranges(seen.ranges)
    cell = grain.cell_bytes
    where = ex.merge_ranges(Ranges(seen.start // cell * cell, -(-seen.stop // cell) * cell))
    found = [grain.solid(page, grain.used(page)) for page in ahead(pages(source.chain, seen, where))]
    if not found:
        return ex.one_range(0, 0)
    return ex.merge_ranges(Ranges._make(np.concatenate(column) for column in zip(*found, strict=True)))
