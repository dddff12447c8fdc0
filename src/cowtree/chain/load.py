"""Loading an open qcow2 layer: bytes of its file into the values of `qcow2/`."""

from collections.abc import Iterator
from typing import Final

import numpy as np

from cowtree.chain.gate import Layer
from cowtree.chain.lists import read_bitmaps, read_snapshots
from cowtree.errors import BrokenTable, TruncatedImage
from cowtree.extents import Offsets, distinct
from cowtree.qcow2 import refcounts, tables
from cowtree.qcow2.geometry import Geometry, round_up
from cowtree.qcow2.image import Image
from cowtree.qcow2.refcounts import Counts
from cowtree.qcow2.snapshots import Snapshot
from cowtree.qcow2.tables import Entries, Tables
from cowtree.storage.contract import Storage

# Reference counts are looked through so many at a time for free clusters.
COUNTS_PER_WINDOW: Final = 1 << 20
SNAPSHOT_L1_BYTES_MAX: Final = 64 << 20


def load_image(layer: Layer) -> Image | None:
    """Read the header's tables of a qcow2 layer; None for raw. The L1 tables of snapshots, which no reader of the disk
    needs, are left out when they would take too much memory.
    Raises: TruncatedImage, BrokenTable.
    """
    header = layer.header
    if header is None:
        return None
    l1 = read_table(layer, "the active L1 table", header.l1_table_offset, header.l1_entry_count)
    if layer.salvage is None:
        tables.check_l1(layer.path, header.geometry, l1, layer.file.size_bytes)
    refcount_entry_count = (header.refcount_table_cluster_count << header.cluster_bits) // 8
    refcount_table = tables.decode_words(_read(layer.file, header.refcount_table_offset, refcount_entry_count * 8))
    found, length = read_snapshots(layer, header)
    l1s: tuple[Entries, ...] = ()
    if sum(each.l1_bytes for each in found) <= SNAPSHOT_L1_BYTES_MAX:
        l1s = tuple(read_snapshot_l1(layer, each) for each in found)
    directory, named = read_bitmaps(layer, header)
    return Image(
        path=layer.path,
        header=header,
        l1=l1,
        refcount_table=refcount_table,
        snapshots=found,
        snapshot_table_bytes=length,
        snapshot_l1s=l1s,
        directory=directory,
        bitmaps=named,
        file_size_bytes=layer.file.size_bytes,
    )


def table_bytes(layer: Layer) -> int:
    """How much of a layer's tables is kept in memory, apart from those of snapshots."""
    header = layer.header
    if header is None:
        return 0
    return header.l1_entry_count * 8 + (header.refcount_table_cluster_count << header.cluster_bits)


def _check_inside(layer: Layer, what: str, offset: int, length: int) -> None:
    size_bytes = layer.file.size_bytes
    cluster_size = 1 << layer.header.cluster_bits if layer.header else 1
    if offset + length > round_up(size_bytes, cluster_size):
        raise TruncatedImage(path=layer.path, what=what, offset=offset, length=length, size_bytes=size_bytes)


def read_table(layer: Layer, what: str, offset: int, entry_count: int) -> Entries:
    """Read a table of 64-bit entries that must lie inside the file."""
    _check_inside(layer, what, offset, entry_count * 8)
    return tables.decode_words(_read(layer.file, offset, entry_count * 8))


def read_snapshot_l1(layer: Layer, snapshot: Snapshot) -> Entries:
    """Read the L1 table of an internal snapshot. Raises: TruncatedImage."""
    return read_table(layer, "a snapshot's L1 table", snapshot.l1_table_offset, snapshot.l1_entry_count)


def _read(file: Storage, offset: int, length: int) -> bytes:
    return file.pread(offset, length) if length else b""


def read_clusters(file: Storage, geometry: Geometry, host_offset: Offsets) -> memoryview:
    """Read whole clusters, one behind the other; neighbours in the file are read at once."""
    size = geometry.cluster_size_bytes
    # Nobody sees what is in that memory before all of it is read.
    view = np.empty(len(host_offset) * size, np.uint8).data
    if len(host_offset):
        first = np.flatnonzero(np.append(True, np.diff(host_offset) != size)).tolist()
        for begin, end in zip(first, [*first[1:], len(host_offset)], strict=True):
            file.preadv(int(host_offset[begin]), [view[begin * size : end * size]])
    return view


def load_tables(file: Storage, image: Image, start: int, stop: int) -> Tables:
    """Read the L2 tables that map guest bytes of the range."""
    first, last = tables.l1_range(image.geometry, start, stop)
    offsets = tables.table_offsets(image.l1[first:last])
    here = np.flatnonzero(offsets)
    data = read_clusters(file, image.geometry, offsets[here])
    return tables.decode(image.geometry, here + first, offsets[here], data)


def load_counts(file: Storage, image: Image, clusters: Offsets, free_count: int) -> Counts:
    """Read the refcount blocks of these host clusters, and more of them until so many free clusters are found.
    Raises: BrokenTable when the refcount table breaks a rule.
    """
    geometry = image.geometry
    refcounts.check_table(image.path, geometry, image.refcount_table, image.file_size_bytes)
    offsets = refcounts.block_offsets(image.refcount_table)
    wanted = distinct(clusters // geometry.refcount_block_entry_count)
    if len(wanted) and wanted[-1] >= len(offsets):
        raise BrokenTable(path=image.path, reason=f"cluster {clusters.max()} is in use but has no reference count")
    is_left = offsets != 0
    needed = wanted[is_left[wanted]]
    is_left[needed] = False
    counts = read_blocks(file, image, needed)
    free = int((counts.counts == 0).sum())
    step = max(COUNTS_PER_WINDOW // geometry.refcount_block_entry_count, 1)
    rest, parts = np.flatnonzero(is_left), [counts]
    for first in range(0, len(rest), step):
        if free >= free_count:
            break
        parts.append(read_blocks(file, image, rest[first : first + step]))
        found = (parts[-1].counts == 0).sum(axis=1)
        # Full blocks are of no use here, and a large image has many.
        parts[-1] = Counts._make(column[found > 0] for column in parts[-1])
        free += int(found.sum())
    return _join(parts)


def block_windows(image: Image, count: int = COUNTS_PER_WINDOW) -> Iterator[Offsets]:
    """The places of all refcount blocks in the refcount table, about `count` counts at a time."""
    existing = np.flatnonzero(refcounts.block_offsets(image.refcount_table))
    step = max(count // image.geometry.refcount_block_entry_count, 1)
    for first in range(0, len(existing), step):
        yield existing[first : first + step]


def read_blocks(file: Storage, image: Image, block_index: Offsets) -> Counts:
    """Read the refcount blocks at these places of the refcount table; all of them must be there."""
    offsets = refcounts.block_offsets(image.refcount_table)[block_index]
    data = read_clusters(file, image.geometry, offsets)
    return refcounts.decode(image.geometry, block_index, offsets, data)


def load_blocks(file: Storage, image: Image, first: int, last: int) -> Counts:
    """Read the refcount blocks whose place in the refcount table is in [first, last); missing ones are left out."""
    offsets = refcounts.block_offsets(image.refcount_table[first:last])
    return read_blocks(file, image, np.flatnonzero(offsets) + first)


def _join(parts: list[Counts]) -> Counts:
    index = np.concatenate([part.block_index for part in parts])
    order = np.argsort(index)
    return Counts(
        index[order],
        np.concatenate([part.host_offset for part in parts])[order],
        np.concatenate([part.counts for part in parts])[order],
    )
