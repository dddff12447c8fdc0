"""What `qemu-img map` shows: which layer answers for each guest range, what it says, and where its bytes are.

    the layer that answers holds   present  zero   data   offset
    bytes                          yes      -      yes    yes
    a compressed cluster           yes      -      yes    -
    a zero cluster                 yes      yes    -      only when it keeps a host cluster
    a hole of a raw file           yes      yes    -      yes
    nothing, and nothing is below  -        yes    -      only in a cluster that has others with bytes

Where the formats of other hypervisors keep what they hold is not said: no offset. Depth counts from the top. Where a
backing file ends before its overlay, the overlay answers.
"""

import os
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cowtree import extents as ex
from cowtree.chain import load
from cowtree.chain.gate import Layer
from cowtree.chain.view import Chain, resolve, windows
from cowtree.extents import Extents, Mask, Offsets, Ranges
from cowtree.qcow2 import tables
from cowtree.qcow2.image import Image
from cowtree.storage import foreign
from cowtree.units import SECTOR_BYTES

PRESENT: Final = 1
ZERO: Final = 2
DATA: Final = 4
OFFSET: Final = 8
# More kinds of extent: no layer holds anything, data whose bytes are a hole of the image file, and subclusters that no
# layer holds, in a cluster that the one which answers for them has.
NOTHING: Final = 0
HOLLOW: Final = 7
SPARE: Final = 8
# By kind of extent.
_FLAGS: Final = np.array(
    [
        ZERO,
        PRESENT | DATA | OFFSET,
        PRESENT | ZERO,
        PRESENT | ZERO | OFFSET,
        PRESENT | DATA,
        ZERO,
        PRESENT | DATA,
        PRESENT | DATA | ZERO | OFFSET,
        ZERO | OFFSET,
    ],
    np.uint8,
)
_ENTRIES_AT_ONCE: Final = 1 << 14


class Entry(NamedTuple):
    """One line of the map. `offset` is inside the data file of layer `depth`, None where there is none."""

    start: int
    length: int
    depth: int
    present: bool
    zero: bool
    data: bool
    offset: int | None


class _Rows(NamedTuple):
    """Many entries. Shapes: (count,)."""

    start: Offsets
    length: Offsets
    depth: NDArray[np.int16]
    flags: NDArray[np.uint8]
    offset: Offsets

    def take(self, which: Mask | slice) -> "_Rows":
        return _Rows._make(column[which] for column in self)


def map_chain(chain: Chain, start: int = 0, max_length: int | None = None) -> Iterator[Entry]:
    """Yield the entries from `start` on, neighbours that say the same joined; a single empty one for an empty range.
    The name of an entry's file is `chain.layers[entry.depth].data_file.path`. In its human form `qemu-img map` prints
    the entries that are data and not zero, and fails at the first one that is data without an offset.
    Raises: StorageFailed, BrokenTable.
    """
    size_bytes = chain.size_bytes if max_length is None else min(start + max_length, chain.size_bytes)
    if start >= size_bytes:
        yield Entry(start, 0, 0, present=False, zero=False, data=False, offset=None)
        return
    hollow = hollow_layers(chain)
    has_place = np.array([layer.format not in foreign.FORMATS and not layer.is_encrypted for layer in chain.layers])
    waiting: _Rows | None = None
    for begin, end in windows(chain, size_bytes):
        if end <= start:
            continue
        rows = _rows(_with_spare_tails(chain, states(chain, max(begin, start), end, hollow)), has_place)
        if waiting is not None:
            rows = _Rows._make(np.concatenate(column) for column in zip(*[waiting, rows], strict=True))
        rows = _join(rows)
        yield from _entries(rows.take(slice(None, -1)))
        waiting = rows.take(slice(-1, None))
    if waiting is not None:
        yield from _entries(waiting)


def states(chain: Chain, start: int, stop: int, hollow: list[int]) -> Extents:
    """What each guest byte of the range is, without gaps: as `resolve` says it, and `NOTHING`, `HOLLOW` and `SPARE`.
    `hollow` is what `hollow_layers` found.
    """
    seen, bottom = _resolve(chain, start, stop, hollow), len(chain.layers) - 1
    spare = _spare(chain, bottom, ex.gaps(seen.ranges, start, stop))
    seen = ex.concatenate([seen, spare])
    return ex.concatenate([seen, ex.fill(ex.gaps(seen.ranges, start, stop), NOTHING, layer=bottom)])


def _with_spare_tails(chain: Chain, seen: Extents) -> Extents:
    """Mark where a layer has room past the end of a shorter one."""
    for index in range(len(chain.layers) - 1):
        tails = seen.take((seen.kind == ex.TAIL) & (seen.layer == index + 1))
        seen = ex.over(_spare(chain, index, tails.ranges), seen)
    return seen


def _spare(chain: Chain, index: int, holes: Ranges) -> Extents:
    """The parts of these holes that have room in a layer."""
    layer, image = chain.layers[index], chain.images[index]
    if image is None or not image.geometry.has_subclusters or not len(holes.start):
        return ex.empty()
    held = load.load_tables(layer.file, image, int(holes.start[0]), int(holes.stop[-1]))
    found = ex.cut(tables.clusters(image.geometry, held), holes)
    return found._replace(kind=np.full(len(found.start), SPARE, np.uint8)).on_layer(index)


def data(chain: Chain, start: int, stop: int, hollow: list[int]) -> Extents:
    """What has to be read to know the range: its data, but for that which is known to be zeroes."""
    return _resolve(chain, start, stop, hollow).of_kind(*ex.BYTES)


def _resolve(chain: Chain, start: int, stop: int, hollow: list[int]) -> Extents:
    seen = resolve(chain, start, stop)
    for index in hollow:
        seen = mark_hollow(chain.layers[index], index, seen)
    return seen


def _rows(seen: Extents, has_place: Mask) -> _Rows:
    """`has_place` says of which layers it is known where in their files the data is. Shapes: (layer_count,)."""
    flags = _FLAGS[seen.kind] & np.where(has_place[seen.layer], 0xFF, 0xFF ^ OFFSET).astype(np.uint8)
    # Past the end of a short layer the one above it answers.
    depth = seen.layer - (seen.kind == ex.TAIL)
    return _Rows(seen.start, seen.length, depth, flags, np.where(flags & OFFSET, seen.host_offset, 0))


def _join(rows: _Rows) -> _Rows:
    """Join neighbours that say the same of one piece of the file."""
    goes_on = (
        (rows.flags[1:] == rows.flags[:-1])
        & (rows.depth[1:] == rows.depth[:-1])
        & (((rows.flags[1:] & OFFSET) == 0) | (rows.offset[1:] == rows.offset[:-1] + rows.length[:-1]))
    )
    first = np.concatenate(([True], ~goes_on))
    stop = np.append(rows.start[first][1:], rows.start[-1] + rows.length[-1])
    joined = rows.take(first)
    return joined._replace(length=stop - joined.start)


def _entries(rows: _Rows) -> Iterator[Entry]:
    for first in range(0, len(rows.start), _ENTRIES_AT_ONCE):
        part = rows.take(slice(first, first + _ENTRIES_AT_ONCE))
        flags = [(part.flags & flag != 0).tolist() for flag in (PRESENT, ZERO, DATA, OFFSET)]
        offset = [at if has_one else None for at, has_one in zip(part.offset.tolist(), flags.pop(), strict=True)]
        columns = part.start.tolist(), part.length.tolist(), part.depth.tolist(), *flags, offset
        yield from map(Entry._make, zip(*columns, strict=True))


def hollow_layers(chain: Chain) -> list[int]:
    """The layers whose data clusters may be holes of their file."""
    pairs = zip(chain.layers, chain.images, strict=True)
    return [index for index, (layer, image) in enumerate(pairs) if _is_mostly_hollow(layer, image)]


def _is_mostly_hollow(layer: Layer, image: Image | None) -> bool:
    """Whether a qcow2 file counts so many more clusters than it takes room on disk that its data clusters may be holes.
    Source: QEMU looks into the file only for images that seem to have preallocated metadata.
    """
    if image is None:
        return False
    try:
        taken_bytes = os.stat(layer.file.path).st_blocks * SECTOR_BYTES
    except OSError:
        return False
    taken = taken_bytes >> image.header.cluster_bits
    threshold = max(taken * 10 // 9, taken + 2)
    per_block = image.geometry.refcount_block_entry_count
    step = max(load.COUNTS_PER_WINDOW // per_block, 1)
    counted = 0
    for first in range(0, min(len(image.refcount_table), -(-image.host_cluster_count // per_block)), step):
        blocks = load.load_blocks(layer.file, image, first, first + step)
        row, column = np.nonzero(blocks.counts)
        counted += int((blocks.block_index[row] * per_block + column < image.host_cluster_count).sum())
        if counted >= threshold:
            return True
    return False


def mark_hollow(layer: Layer, index: int, seen: Extents) -> Extents:
    """Mark the data of one layer where its file has holes."""
    data = seen.take((seen.layer == index) & (seen.kind == ex.DATA))
    if not len(data.start):
        return seen
    in_file = _swap(data)
    hosts = ex.merge_ranges(in_file.ranges)
    hollow = _swap(ex.cut(in_file, ex.subtract(hosts, _file_data(layer, hosts))))
    return ex.over(hollow._replace(kind=np.full(len(hollow.start), HOLLOW, np.uint8)), seen)


def _swap(data: Extents) -> Extents:
    """Let guest and host offsets change places."""
    order = np.argsort(data.host_offset, kind="stable")
    swapped = data.take(order)
    return swapped._replace(start=swapped.host_offset, host_offset=swapped.start)


def _file_data(layer: Layer, hosts: Ranges) -> Ranges:
    """Where the layer's file may hold data, within some ranges of it."""
    spans = [
        (span.start, span.start + span.length)
        for start, length in zip(hosts.start.tolist(), (hosts.stop - hosts.start).tolist(), strict=True)
        for span in layer.data_file.extents(start, length)
        if span.is_data
    ]
    flat = np.array(spans, np.int64).reshape(-1, 2)
    return Ranges(flat[:, 0], flat[:, 1])
