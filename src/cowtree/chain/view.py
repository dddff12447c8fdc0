"""What is seen through a chain: which layer answers for each guest range, and where its bytes are.

Layer 0 is the top. A layer that is shorter than the one above it shows zeroes past its end: kind TAIL, held by the
short layer, for these zeroes hide what lies below it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np

from cowtree import extents as ex
from cowtree.chain import gate, load
from cowtree.chain.gate import Layer
from cowtree.errors import BrokenTable, ChainError, Refused, StorageFailed
from cowtree.extents import Extents, Known, Offsets, Ranges
from cowtree.qcow2 import tables
from cowtree.qcow2.geometry import SUBCLUSTER_COUNT, round_up
from cowtree.qcow2.image import Image
from cowtree.storage.contract import Access, FileSystem
from cowtree.units import SECTOR_BYTES

ENTRIES_PER_WINDOW: Final = 1 << 19
RAW_WINDOW_BYTES: Final = 64 << 30
ALIGNMENT_BYTES: Final = 2 << 20
# What stays in memory of all layers of a chain.
TABLE_BYTES_MAX: Final = 128 << 20


class Chain(NamedTuple):
    """An open chain with its images loaded; raw layers have None for an image."""

    layers: tuple[Layer, ...]
    images: tuple[Image | None, ...]

    @property
    def top(self) -> Layer:
        """The layer that the chain was opened by."""
        return self.layers[0]

    @property
    def size_bytes(self) -> int:
        """The size of the disk that is seen through the top."""
        return self.layers[0].size_bytes

    def below(self, count: int) -> "Chain":
        """The same chain without its first layers; may be empty."""
        return Chain(self.layers[count:], self.images[count:])

    def with_layer(self, index: int, layer: Layer) -> "Chain":
        """The same chain with one layer replaced."""
        return self._replace(layers=(*self.layers[:index], layer, *self.layers[index + 1 :]))

    def with_image(self, index: int, image: Image | None) -> "Chain":
        """The same chain with what is known of one layer's tables replaced."""
        return self._replace(images=(*self.images[:index], image, *self.images[index + 1 :]))

    def close(self) -> None:
        """Close every layer."""
        gate.close_all(self.layers)


def open_chain(
    files: FileSystem,
    path: str,
    image_format: str | None = None,
    access: str = Access.READ,
    salvage: Callable[[int, str], None] | None = None,
) -> Chain:
    """Open and load an image and all that backs it; `salvage` is what each layer gets.
    Raises: what `gate.open_chain` and `load.load_image` raise, ChainError when all tables together are too large.
    """
    layers = tuple(each._replace(salvage=salvage) for each in gate.open_chain(files, path, image_format, access))
    try:
        if sum(load.table_bytes(layer) for layer in layers) > TABLE_BYTES_MAX:
            reason = f"the tables of its {len(layers)} layers take more than {TABLE_BYTES_MAX} bytes"
            raise ChainError(path=path, reason=reason, hint="merge some of its layers first")
        return Chain(layers, tuple(load.load_image(layer) for layer in layers))
    except BaseException:
        gate.close_all(layers)
        raise


def through_snapshot(chain: Chain, wanted: Sequence[tuple[str | None, str | None]]) -> Chain:
    """What the guest saw when an internal snapshot of the top was taken; the size is that of then, too.
    `wanted` are pairs of (ID, name), None for any; the first pair that a snapshot fits counts.
    Raises: Refused when there is no such snapshot, BrokenTable.
    """
    image = chain.images[0]
    fitting = [
        snapshot
        for number, name in wanted
        for snapshot in (image.snapshots if image else ())
        if number in (None, snapshot.id) and name in (None, snapshot.name)
    ]
    if image is None or not fitting:
        hint = f"cowtree img info {chain.top.path}"
        raise Refused(reason="Failed to load snapshot: Can't find snapshot", hint=hint)
    snapshot = fitting[0]
    l1 = load.read_snapshot_l1(chain.top, snapshot)
    if chain.top.salvage is None:
        tables.check_l1(chain.top.path, image.geometry, l1, chain.top.file.size_bytes)
    size_bytes = snapshot.size_bytes // SECTOR_BYTES * SECTOR_BYTES
    return chain.with_layer(0, chain.top._replace(size_bytes=size_bytes)).with_image(0, image._replace(l1=l1))


def layer_extents(chain: Chain, index: int, start: int, stop: int) -> Extents:
    """What one layer itself holds between two guest offsets, not looking past its end; what cannot be known is LOST in
    a layer that is salvaged.
    Raises: BrokenTable when an entry breaks a rule.
    """
    layer, image = chain.layers[index], chain.images[index]
    stop = min(stop, layer.size_bytes)
    if stop <= start:
        return ex.empty()
    if layer.known is not None and stop <= layer.known.stop:
        return ex.clip(layer.known.extents, start, stop).on_layer(index)
    try:
        found = _raw_extents(layer, start, stop) if image is None else _table_extents(layer, image, start, stop)
    except (StorageFailed, BrokenTable):
        if layer.salvage is None:
            raise
        if image is None:
            return ex.single(start, stop, ex.DATA, layer=index, host_offset=start)
        found = _salvaged_extents(layer, image, start, stop)
    return ex.clip(found, start, stop).on_layer(index)


def read_known(layer: Layer, image: Image | None, count_max: int) -> Known | None:
    """Read all tables of a layer once, so that nobody has to again who asks what it holds; None when these are more
    extents than `count_max`.
    Raises: BrokenTable when an entry breaks a rule.
    """
    stop = layer.size_bytes if image is None else round_up(layer.size_bytes, ALIGNMENT_BYTES)
    step = RAW_WINDOW_BYTES if image is None else ENTRIES_PER_WINDOW << image.header.cluster_bits
    whole = Chain((layer._replace(size_bytes=stop),), (image,))
    borders = [*range(0, stop, step), stop]
    parts: list[Extents] = []
    for first, last in pairwise(borders):
        parts.append(ex.coalesce(layer_extents(whole, 0, first, last)))
        if sum(len(each.start) for each in parts) > count_max:
            return None
    return Known(ex.coalesce(ex.concatenate(parts)), stop)


def _table_extents(layer: Layer, image: Image, start: int, stop: int) -> Extents:
    if layer.salvage is not None:
        first, last = tables.l1_range(image.geometry, start, stop)
        tables.check_l1(layer.path, image.geometry, image.l1[first:last], layer.file.size_bytes)
    found = load.load_tables(layer.file, image, start, stop)
    if image.geometry.has_subclusters:
        found = tables.within(image.geometry, found, start, stop)
    return tables.to_extents(layer.path, image.geometry, found, layer.data_file.size_bytes)


def _salvaged_extents(layer: Layer, image: Image, start: int, stop: int) -> Extents:
    """The same, where each entry that breaks a rule, and each table that cannot be read, says LOST."""
    geometry, span = image.geometry, image.geometry.l2_span_bytes
    first, last = tables.l1_range(geometry, start, stop)
    broken = tables.broken_l1(geometry, image.l1[first:last], layer.file.size_bytes)
    parts = []
    # Table by table, for each may fail on its own.
    for index in np.flatnonzero(tables.table_offsets(image.l1[first:last])).tolist():
        low = (first + index) * span
        lost = ex.one_range(low, low + span)
        if not broken[index]:
            with suppress(StorageFailed):
                held = load.load_tables(layer.file, image, low, low + span)
                sound, cluster = tables.without_broken(geometry, held, layer.data_file.size_bytes)
                parts.append(tables.to_extents(layer.path, geometry, sound, layer.data_file.size_bytes))
                lost = Ranges(cluster << geometry.cluster_bits, (cluster + 1) << geometry.cluster_bits)
        parts.append(ex.fill(lost, ex.LOST))
    return ex.concatenate(parts)


def _raw_extents(layer: Layer, start: int, stop: int) -> Extents:
    flat = np.fromiter(
        (number for span in layer.file.extents(start, stop - start) for number in span), np.int64, count=-1
    ).reshape(-1, 3)
    kind = np.where(flat[:, 2] != 0, ex.DATA, ex.ALLOCATED).astype(np.uint8)
    found = Extents(flat[:, 0], flat[:, 1], kind, np.zeros(len(flat), np.int16), flat[:, 0].copy())
    # The last sector of an odd-sized file reads as zeroes past the file's end.
    end = int(flat[-1, 0] + flat[-1, 1]) if len(flat) else start
    return ex.concatenate([found, ex.single(end, stop, ex.ALLOCATED, host_offset=end)])


def resolve(chain: Chain, start: int, stop: int, *, first: int = 0, last: int | None = None) -> Extents:
    """What is seen between two guest offsets through the layers [first, last), coalesced.
    Shapes: ranges that none of them holds are left out; they read as zeroes when `last` is the end of the chain.
    """
    seen, limit = ex.empty(), stop
    for index in range(first, len(chain.layers) if last is None else last):
        size_bytes = chain.layers[index].size_bytes
        if size_bytes < limit and index > 0:
            tail = ex.single(max(size_bytes, start), limit, ex.TAIL, layer=index)
            seen = ex.over(seen, tail)
        limit = min(limit, size_bytes)
        if limit <= start:
            break
        seen = ex.over(seen, layer_extents(chain, index, start, limit))
    return ex.coalesce(seen)


def windows(chain: Chain, stop: int) -> Iterator[tuple[int, int]]:
    """Split the guest range [0, stop) so that each part touches about half a million L2 entries over all layers, or as
    many subclusters, and would touch no more entries in any one layer that was full; of layers that are known, as many
    extents. Borders lie on cluster borders of every layer.
    """
    starts, weights, fixed = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for layer, image in zip(chain.layers, chain.images, strict=True):
        step = RAW_WINDOW_BYTES if image is None else ENTRIES_PER_WINDOW << image.header.cluster_bits
        fixed.append(np.arange(step, min(stop, layer.size_bytes), step))
        if layer.known is not None:
            starts.append(layer.known.extents.start)
            weights.append(np.ones(len(starts[-1]), np.int64))
        elif image is not None:
            start, weight = _weigh(image)
            starts.append(start)
            weights.append(np.full(len(start), weight))
    where = np.concatenate(starts)
    order = np.argsort(where, kind="stable")
    filled = np.cumsum(np.concatenate(weights)[order]) // ENTRIES_PER_WINDOW
    borders = np.concatenate((where[order][1:][np.diff(filled) > 0], *fixed)) // ALIGNMENT_BYTES * ALIGNMENT_BYTES
    inside = ex.distinct(borders[(borders > 0) & (borders < stop)]).tolist()
    if stop:
        yield from zip([0, *inside], [*inside, stop], strict=True)


def _weigh(image: Image) -> tuple[Offsets, int]:
    """Where the pieces of guest data begin that the L2 tables map, and how many extents each may consist of.
    A table with subclusters may say so much that it is more than one piece.
    """
    geometry = image.geometry
    weight = geometry.l2_entry_count * (SUBCLUSTER_COUNT if geometry.has_subclusters else 1)
    piece_count = max(weight // ENTRIES_PER_WINDOW, 1)
    table = np.flatnonzero(tables.table_offsets(image.l1)) * geometry.l2_span_bytes
    start = table[:, None] + np.arange(piece_count) * (geometry.l2_span_bytes // piece_count)
    return start.ravel(), weight // piece_count
