"""Reading what extents point at, into one buffer.

Pieces that lie side by side in a file are read by one call, wherever they belong in the buffer.
"""

import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple, TypeVar

import numpy as np

from cowtree import extents as ex
from cowtree.chain.gate import Layer
from cowtree.chain.view import Chain
from cowtree.errors import BrokenTable, StorageFailed
from cowtree.extents import Extents, Offsets, Ranges
from cowtree.qcow2 import tables
from cowtree.qcow2.compression import inflate
from cowtree.qcow2.geometry import round_up
from cowtree.units import SECTOR_BYTES

PAGE_BYTES: Final = 4 << 20
# What a reader is told of bytes that are somewhere, and nobody knows where or how.
UNREADABLE: Final = os.strerror(errno.EIO)

Item = TypeVar("Item")


def fetch(chain: Chain, parts: Extents, position: Offsets, buffer: memoryview) -> None:
    """Read each extent's bytes to its position in the buffer; extents that are zeroes clear theirs, and so do sectors
    that cannot be read of a layer that is salvaged.
    Raises: StorageFailed, BrokenTable when a compressed cluster is damaged.
    """
    try:
        _fetch(chain, parts, position, buffer)
    except (StorageFailed, BrokenTable):
        if not any(layer.salvage for layer in chain.layers):
            raise
        for index, at in enumerate(position.tolist()):
            _salvage(chain, parts.take(slice(index, index + 1)), at, buffer)


def _salvage(chain: Chain, part: Extents, at: int, buffer: memoryview) -> None:
    """Read one extent, or what can be read of it. Raises: StorageFailed, BrokenTable when its layer is not salvaged."""
    start, length, layer = int(part.start[0]), int(part.length[0]), chain.layers[int(part.layer[0])]
    try:
        _fetch(chain, part, np.array([at]), buffer)
    except (StorageFailed, BrokenTable) as error:
        if layer.salvage is None:
            raise
        if part.kind[0] == ex.COMPRESSED or length <= SECTOR_BYTES:
            reason = error.facts["reason"] if isinstance(error, StorageFailed) else UNREADABLE
            _lose(layer, layer.salvage, (start, length), reason)
            buffer[at : at + length] = bytes(length)
            return
        middle = max((start + length // 2) // SECTOR_BYTES, start // SECTOR_BYTES + 1) * SECTOR_BYTES
        for half in (ex.clip(part, start, middle), ex.clip(part, middle, start + length)):
            _salvage(chain, half, at + int(half.start[0]) - start, buffer)


def _lose(layer: Layer, tell: Callable[[int, str], None], where: tuple[int, int], reason: str) -> None:
    """Tell of each sector of a range that it cannot be read."""
    start, length = where
    first = (start - layer.origin) // SECTOR_BYTES * SECTOR_BYTES
    for offset in range(first, start - layer.origin + length, SECTOR_BYTES):
        tell(offset, reason)


def _fetch(chain: Chain, parts: Extents, position: Offsets, buffer: memoryview) -> None:
    plain = parts.kind == ex.DATA
    _fetch_plain(chain, parts.take(plain), position[plain], buffer)
    packed = parts.kind == ex.COMPRESSED
    for index in np.flatnonzero(packed).tolist():
        layer = chain.layers[int(parts.layer[index])]
        start, length, at = int(parts.start[index]), int(parts.length[index]), int(position[index])
        buffer[at : at + length] = _inflate_part(layer, int(parts.host_offset[index]), start, length)
    lost = parts.take(parts.kind == ex.LOST)
    for index, where in zip(
        lost.layer.tolist(), zip(lost.start.tolist(), lost.length.tolist(), strict=True), strict=True
    ):
        layer = chain.layers[index]
        if layer.salvage is not None:
            _lose(layer, layer.salvage, where, UNREADABLE)
    zero = ~plain & ~packed
    _clear(buffer, position[zero], parts.length[zero])


def prefetch(chain: Chain, parts: Extents) -> None:
    """Ask the system to read what these extents point at before it is fetched, in the order of each file."""
    plain = parts.take(parts.kind == ex.DATA)
    plain = plain.take(np.lexsort((plain.host_offset, plain.layer)))
    columns = [each.tolist() for each in (plain.layer, plain.host_offset, plain.length)]
    for layer, offset, length in zip(*columns, strict=True):
        chain.layers[layer].data_file.prefetch(offset, length)


def _clear(buffer: memoryview, position: Offsets, length: Offsets) -> None:
    for at, count in zip(position.tolist(), length.tolist(), strict=True):
        buffer[at : at + count] = bytes(count)


class Page(NamedTuple):
    """The bytes of some guest ranges, one behind the other. The buffer is used again for the page after the next."""

    ranges: Ranges
    position: Offsets
    data: memoryview

    def position_of(self, guest_offset: Offsets) -> Offsets:
        """Where in `data` the byte at each guest offset is."""
        row = np.searchsorted(self.ranges.start, guest_offset, "right") - 1
        positions: Offsets = self.position[row] + guest_offset - self.ranges.start[row]
        return positions

    def guest_offset(self, position: Offsets) -> Offsets:
        """Where the byte at each position of `data` lies in the guest's disk."""
        row = np.searchsorted(self.position, position, "right") - 1
        offsets: Offsets = self.ranges.start[row] + position - self.position[row]
        return offsets


def pages(chain: Chain, seen: Extents, ranges: Ranges) -> Iterator[Page]:
    """Read all bytes of sorted guest ranges, `PAGE_BYTES` at a time; what `seen` does not hold reads as zeroes."""
    buffers = [memoryview(bytearray(PAGE_BYTES)) for _ in range(2)]
    for number, part in enumerate(portions(ranges, PAGE_BYTES)):
        length = part.stop - part.start
        page = Page(part, np.cumsum(length) - length, buffers[number % 2][: int(length.sum())])
        near = ex.clip(seen, int(part.start[0]), int(part.stop[-1]))
        holes = ex.subtract(part, near.ranges)
        _clear(page.data, page.position_of(holes.start), holes.stop - holes.start)
        parts = ex.cut(near, part)
        fetch(chain, parts, page.position_of(parts.start), page.data)
        yield page


def portions(ranges: Ranges, size_bytes: int) -> Iterator[Ranges]:
    """Cut sorted ranges into portions that add up to `size_bytes` each; the last one may be smaller."""
    length = ranges.stop - ranges.start
    stop = np.cumsum(length)
    side_by_side = Ranges(stop - length, stop)
    for first in range(0, ranges.total_bytes, size_bytes):
        parts = ex.intersect(ex.one_range(first, first + size_bytes), side_by_side)
        row = np.searchsorted(side_by_side.start, parts.start, "right") - 1
        moved = ranges.start[row] - side_by_side.start[row]
        yield Ranges(parts.start + moved, parts.stop + moved)


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yield the same items, each made by a thread while the one before it is in use."""
    with ThreadPoolExecutor(1) as thread:
        coming: Future[Item | None] = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def _fetch_plain(chain: Chain, parts: Extents, position: Offsets, buffer: memoryview) -> None:
    if not len(parts.start):
        return
    by_guest = np.isin(parts.layer, [index for index, layer in enumerate(chain.layers) if layer.guest_cipher])
    if by_guest.any():
        _fetch_by_guest(chain, parts.take(by_guest), position[by_guest], buffer)
        _fetch_plain(chain, parts.take(~by_guest), position[~by_guest], buffer)
        return
    order = np.lexsort((parts.host_offset, parts.layer))
    parts, position = parts.take(order), position[order]
    stop = parts.host_offset + parts.length
    goes_on = (parts.layer[1:] == parts.layer[:-1]) & (parts.host_offset[1:] == stop[:-1])
    views = [
        buffer[begin:end] for begin, end in zip(position.tolist(), (position + parts.length).tolist(), strict=True)
    ]
    first = np.flatnonzero(np.concatenate(([True], ~goes_on)))
    runs = zip(first.tolist(), [*first[1:].tolist(), len(views)], strict=True)
    places = zip(parts.layer[first].tolist(), parts.host_offset[first].tolist(), strict=True)
    for (begin, end), (layer, host) in zip(runs, places, strict=True):
        chain.layers[layer].data_file.preadv(host, views[begin:end])


def _fetch_by_guest(chain: Chain, parts: Extents, position: Offsets, buffer: memoryview) -> None:
    """Read and decrypt what is encrypted by the guest's sectors: all of each sector that is touched."""
    columns = [each.tolist() for each in (parts.layer, parts.start, parts.length, parts.host_offset, position)]
    for index, start, length, host_offset, at in zip(*columns, strict=True):
        layer = chain.layers[index]
        if layer.guest_cipher:
            sector, skip = divmod(start - layer.origin, SECTOR_BYTES)
            stored = layer.data_file.pread(host_offset - skip, round_up(skip + length, SECTOR_BYTES))
            buffer[at : at + length] = layer.guest_cipher.decrypt(sector, stored)[skip : skip + length]


def _inflate_part(layer: Layer, descriptor: int, start: int, length: int) -> bytes:
    header = layer.header
    if header is None:
        raise BrokenTable(path=layer.path, reason="a raw image cannot hold compressed clusters")
    location = tables.compressed_location(header.geometry, np.array([descriptor], np.int64))
    offset, stored = int(location[0][0]), int(location[1][0])
    size = header.geometry.cluster_size_bytes
    plain = inflate(
        layer.path,
        layer.file.pread(offset, stored),
        compression_type=header.compression_type,
        cluster_size_bytes=size,
    )
    skip = (start - layer.origin) % size
    return plain[skip : skip + length]
