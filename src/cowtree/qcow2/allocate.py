"""Finding room: free clusters first, then new refcount blocks at the end, then a longer refcount table.

A region that is added at the end looks like this; all of it is counted by the blocks that lie in it:

    | refcount table, if it must grow | new refcount blocks ... | free clusters ... |
"""

import numpy as np

from cowtree.errors import Refused
from cowtree.extents import Offsets, Ranges
from cowtree.qcow2.geometry import REFCOUNT_TABLE_BYTES_MAX, ceil_div
from cowtree.qcow2.image import Slice
from cowtree.qcow2.refcounts import TABLE_OFFSET


def allocate(piece: Slice, count: int) -> tuple[Offsets, Slice]:
    """Take `count` free clusters, lowest first; the slice must hold every refcount block that has some of them free.
    Returns: sorted host clusters, and the slice in which they count 1.
    """
    free = piece.counts.free(count)
    if len(free) < count:
        piece = _grow(piece, count - len(free))
        free = piece.counts.free(count)
    return free, _count_once(piece, free)


def allocate_run(piece: Slice, count: int) -> tuple[int, Slice]:
    """Take `count` clusters that lie side by side. Returns: the first host cluster, and the slice with them counted."""
    first = _find_run(piece.counts.free_runs(), count)
    if first is None:
        piece = _grow(piece, count)
        first = _find_run(piece.counts.free_runs(), count)
    if first is None:
        raise AssertionError("the region that was added holds the run")
    return first, _count_once(piece, np.arange(first, first + count))


def _find_run(free: Ranges, count: int) -> int | None:
    long_enough = np.flatnonzero(free.stop - free.start >= count)
    return int(free.start[long_enough[0]]) if len(long_enough) else None


def _count_once(piece: Slice, clusters: Offsets) -> Slice:
    return piece._replace(counts=piece.counts.put(clusters, np.ones(len(clusters), piece.counts.counts.dtype)))


def _grow(piece: Slice, count: int) -> Slice:
    """Add refcount blocks behind the last one, so that `count` more clusters lie free side by side."""
    image, geometry = piece.image, piece.image.geometry
    per_block = geometry.refcount_block_entry_count
    used = np.flatnonzero(image.refcount_table)
    first_block = int(used[-1]) + 1 if len(used) else 0
    block_count, table_cluster_count = _grown(piece, first_block, count)
    start = first_block * per_block
    clusters = np.arange(start + table_cluster_count, start + table_cluster_count + block_count)
    if table_cluster_count:
        piece = _move_table(piece, start, table_cluster_count)
    return _add_blocks(piece, np.arange(first_block, first_block + block_count), clusters, start)


def _grown(piece: Slice, first_block: int, count: int) -> tuple[int, int]:
    """How many refcount blocks a region of `count` free clusters needs, and how many clusters a longer table takes.
    Raises: Refused when the table would be longer than any reader accepts.
    """
    geometry = piece.image.geometry
    capacity, table_cluster_count = len(piece.image.refcount_table), 0
    block_count = ceil_div(count, geometry.refcount_block_entry_count - 1)
    while True:
        if first_block + block_count > capacity:
            # Half as much again, so that a growing image seldom moves its table.
            capacity = (first_block + block_count) * 3 // 2
            table_cluster_count = ceil_div(capacity * 8, geometry.cluster_size_bytes)
        if table_cluster_count << geometry.cluster_bits > REFCOUNT_TABLE_BYTES_MAX:
            raise Refused(reason=f"{piece.image.path}: the image would be too large for its cluster size")
        if block_count * geometry.refcount_block_entry_count >= count + block_count + table_cluster_count:
            return block_count, table_cluster_count
        block_count += 1


def _move_table(piece: Slice, cluster: int, cluster_count: int) -> Slice:
    image = piece.image
    header, bits = image.header, image.header.cluster_bits
    table = np.zeros((cluster_count << bits) // 8, np.uint64)
    table[: len(image.refcount_table)] = image.refcount_table
    old = np.arange(header.refcount_table_cluster_count) + (header.refcount_table_offset >> bits)
    counts = piece.counts.put(old, np.zeros(len(old), piece.counts.counts.dtype))
    header = header._replace(refcount_table_offset=cluster << bits, refcount_table_cluster_count=cluster_count)
    return piece._replace(image=image._replace(header=header, refcount_table=table), counts=counts)


def _add_blocks(piece: Slice, block_index: Offsets, clusters: Offsets, start: int) -> Slice:
    image = piece.image
    offsets = clusters << image.header.cluster_bits
    table = image.refcount_table.copy()
    table[block_index] = offsets.astype(np.uint64) & TABLE_OFFSET
    piece = piece._replace(
        image=image._replace(refcount_table=table), counts=piece.counts.with_blocks(block_index, offsets)
    )
    return _count_once(piece, np.arange(start, int(clusters[-1]) + 1))
