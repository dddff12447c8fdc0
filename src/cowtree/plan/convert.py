"""Convert: a new qcow2 image that is written once, from its first byte to its last.

    header | L1 table | guest data and L2 tables, as they come | refcount blocks | refcount table

Guest data comes in guest order, so one L2 table at a time is being filled; when the next one begins, it gets the next
cluster. The header of an encryption, if there is one, stands behind the L1 table. Nothing in the file is free, so
every cluster counts 1, and one more for each further compressed cluster that lies in it. The file has no name before
it is whole and durable: the order of the writes means nothing.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from cowtree.errors import Refused
from cowtree.extents import Offsets, distinct
from cowtree.plan.create import NewImage, create_steps, encryption_extension
from cowtree.qcow2 import header as qcow2
from cowtree.qcow2 import refcounts, tables
from cowtree.qcow2.geometry import L1_ENTRY_BYTES, REFCOUNT_TABLE_BYTES_MAX, Geometry, ceil_div
from cowtree.qcow2.header import Header
from cowtree.qcow2.header_writes import with_extension
from cowtree.qcow2.tables import Entries
from cowtree.steps import Step, Truncate, Write

COUNTS_PER_WRITE: Final = 1 << 20
NO_TABLE: Final = -1
# With subclusters a second word says which of 32 are allocated (low half) and which read as zeroes (high half).
ALL_ALLOCATED: Final = np.uint64(0xFFFF_FFFF)
ALL_ZERO: Final = np.uint64(0xFFFF_FFFF << 32)


class Layout(NamedTuple):
    """How far the file is laid out: all before `next_cluster` is taken.

    `table` is the L2 table that is being filled, `table_index` its place in the L1 table. `packed_end` is the byte
    behind the last compressed cluster, and `packed_count` says how many of them lie in the host cluster of that byte.
    """

    geometry: Geometry
    next_cluster: int
    table_index: int
    table: Entries
    packed_end: int
    packed_count: int


class Filled(NamedTuple):
    """L2 tables that are complete, and lie side by side. Shapes: words (count, words of a table)."""

    l1_index: Offsets
    first_cluster: int
    words: Entries


def begin(new: NewImage) -> tuple[Header, Layout]:
    """The header of the new image, but for the refcount table, and the layout of its first clusters.
    Raises: WrongUse when the image or its backing file name would be too large.
    """
    first = next(step for step in create_steps(new) if isinstance(step, Write))
    header = qcow2.parse(new.path, first.data, 1 << 62)
    geometry = header.geometry
    l1_cluster_count = geometry.cluster_count(header.l1_entry_count * L1_ENTRY_BYTES)
    used = 1 + l1_cluster_count
    header = header._replace(l1_table_offset=geometry.cluster_size_bytes)
    if header.encryption_header is not None:
        _, length = header.encryption_header
        place = encryption_extension(used << header.cluster_bits, length)
        header = header._replace(extensions=with_extension(header.extensions, place))
        used += geometry.cluster_count(length)
    return header, Layout(geometry, used, NO_TABLE, _empty_tables(geometry, 1)[0], 0, 0)


def _empty_tables(geometry: Geometry, count: int) -> Entries:
    return np.zeros((count, geometry.cluster_size_bytes // 8), np.uint64)


def take(layout: Layout, count: int) -> tuple[Offsets, Layout]:
    """Take whole clusters for guest data. Returns: where they lie in the file, and the layout."""
    first = layout.next_cluster
    clusters = np.arange(first, first + count, dtype=np.int64)
    return clusters << layout.geometry.cluster_bits, layout._replace(next_cluster=first + count)


def pack(layout: Layout, lengths: list[int]) -> tuple[Offsets, Offsets, Layout]:
    """Find room for compressed clusters, one close behind the other; what is as long as a cluster gets one of its own.
    Returns: where they lie in the file, the host clusters that count one more for each of them, and the layout.
    Source: QEMU lets one go on into the next host cluster only when that lies right behind.
    """
    size, bits = layout.geometry.cluster_size_bytes, layout.geometry.cluster_bits
    following, end, count = layout.next_cluster, layout.packed_end, layout.packed_count
    offsets, shared = [], []
    # Each place depends on the one before it.
    for length in lengths:
        room = -end % size if count < layout.geometry.refcount_max else 0
        goes_on = room and length <= room + (size if (end + room) >> bits == following else 0)
        if length == size or not goes_on:
            offset, following = following << bits, following + 1
        else:
            offset, following = end, following + int(length > room)
            shared.append(end >> bits)
        offsets.append(offset)
        if length < size:
            count = count + 1 if goes_on and length <= room else 1
            end = offset + length
    layout = layout._replace(next_cluster=following, packed_end=end, packed_count=count)
    return np.array(offsets, np.int64), np.array(shared, np.int64), layout


def data_words(geometry: Geometry, host_offset: Offsets) -> Entries:
    """The L2 entries of plain clusters that lie there. Shapes: (count, words of an entry)."""
    return _words(geometry, host_offset.astype(np.uint64) | tables.COPIED, ALL_ALLOCATED)


def zero_words(geometry: Geometry, count: int) -> Entries:
    """The L2 entries of clusters that read as zeroes whatever a backing file holds."""
    flag = tables.NONE if geometry.has_subclusters else tables.ZERO_FLAG
    return _words(geometry, np.full(count, flag, np.uint64), ALL_ZERO)


def packed_words(geometry: Geometry, offset: Offsets, length: Offsets) -> Entries:
    """The L2 entries of compressed clusters; those as long as a cluster are plain.
    Source: qcow2 specification, "Compressed Clusters Descriptor".
    """
    further_sectors = ((offset + length - 1) >> 9) - (offset >> 9)
    descriptor = (offset | further_sectors << geometry.compressed_offset_bits).astype(np.uint64)
    packed = _words(geometry, descriptor | tables.COMPRESSED_FLAG, tables.NONE)
    return np.where(length[:, None] < geometry.cluster_size_bytes, packed, data_words(geometry, offset))


def _words(geometry: Geometry, entry: Entries, bitmap: np.uint64) -> Entries:
    columns = [entry, np.full(len(entry), bitmap)] if geometry.has_subclusters else [entry]
    return np.stack(columns, axis=1)


def enter(layout: Layout, cluster: Offsets, words: Entries) -> tuple[Filled, Layout]:
    """Put the entries of guest clusters into L2 tables; clusters ascend from call to call.
    Returns: the tables that are complete by that, and the layout.
    """
    geometry = layout.geometry
    index, column = np.divmod(cluster, geometry.l2_entry_count)
    known = distinct(np.append(index, layout.table_index))
    held = _empty_tables(geometry, len(known))
    held[0] = layout.table
    held.reshape(len(known), geometry.l2_entry_count, -1)[np.searchsorted(known, index), column] = words
    first = int(layout.table_index == NO_TABLE)
    filled = Filled(known[first:-1], layout.next_cluster, held[first:-1])
    following = layout.next_cluster + len(filled.l1_index)
    return filled, layout._replace(next_cluster=following, table_index=int(known[-1]), table=held[-1])


def close(layout: Layout) -> tuple[Filled, Layout]:
    """Complete the last table, if there is one."""
    count = int(layout.table_index != NO_TABLE)
    filled = Filled(np.array([layout.table_index][:count], np.int64), layout.next_cluster, layout.table[None][:count])
    return filled, layout._replace(next_cluster=layout.next_cluster + count, table_index=NO_TABLE)


def finish(layout: Layout, header: Header, l1: Entries, shared: Offsets) -> Iterator[Step]:
    """The steps that count all clusters, and write L1 table and header. `shared` is what `pack` returned, in order.
    Raises: Refused when the refcount table would be longer than any reader accepts.
    """
    geometry, bits = layout.geometry, header.cluster_bits
    first = layout.next_cluster
    block_count, table_cluster_count = _count_blocks(geometry, first)
    table = first + block_count
    if table_cluster_count << bits > REFCOUNT_TABLE_BYTES_MAX:
        raise Refused(reason="the image would be too large for its cluster size", hint="-o cluster_size=64k")
    end = table + table_cluster_count
    per_block = geometry.refcount_block_entry_count
    step = max(COUNTS_PER_WRITE // per_block, 1)
    for block in range(0, block_count, step):
        low, high = block * per_block, min(block + step, block_count) * per_block
        mine = shared[np.searchsorted(shared, low) : np.searchsorted(shared, high)]
        counts = (np.arange(low, high) < end) + np.bincount(mine - low, minlength=high - low)
        yield Write((first + block) << bits, refcounts.encode(geometry, counts.astype(refcounts.count_type(geometry))))
    blocks = np.arange(first, table, dtype=np.uint64) << np.uint64(bits)
    yield Write(table << bits, tables.encode_words(blocks))
    if len(l1):
        yield Write(header.l1_table_offset, tables.encode_words(l1))
    placed = header._replace(refcount_table_offset=table << bits, refcount_table_cluster_count=table_cluster_count)
    yield Write(0, qcow2.pack(placed))
    yield Truncate(end << bits)


def _count_blocks(geometry: Geometry, used: int) -> tuple[int, int]:
    """How many refcount blocks, and clusters of the refcount table, count so many clusters and themselves."""
    blocks = table = 0
    while True:
        needed = ceil_div(used + blocks + table, geometry.refcount_block_entry_count)
        if needed <= blocks:
            return blocks, table
        blocks, table = needed, geometry.cluster_count(needed * 8)
