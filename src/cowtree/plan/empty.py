"""Emptying a layer after its content was committed: its pointers go first; then its space can be counted anew."""

import numpy as np

from cowtree.extents import Offsets, Ranges, gaps, merge_ranges, subtract
from cowtree.plan.put import count_down
from cowtree.qcow2 import tables, writes
from cowtree.qcow2.image import Image, Slice
from cowtree.qcow2.refcounts import Counts, block_offsets
from cowtree.steps import Flush, Step, Write, Zero


def forget(image: Image) -> tuple[list[Step], Image]:
    """Steps after which the layer holds nothing: its L1 table is zero, durably. Of an external data file nothing is
    counted, so what it holds goes at once.
    """
    changed = image._replace(l1=np.zeros_like(image.l1))
    steps: list[Step] = [Write(image.header.l1_table_offset, tables.encode_words(changed.l1)), Flush()]
    if image.geometry.has_data_file:
        steps.append(Zero(0, image.header.size_bytes, is_data=True))
    return steps, changed


def used_runs(counts: Counts) -> Ranges:
    """Half-open runs of host clusters that these blocks count."""
    row, column = np.nonzero(counts.counts)
    cluster = counts.block_index[row] * counts.counts.shape[1] + column
    return merge_ranges(Ranges(cluster, cluster + 1))


def spare_blocks(image: Image, used: Ranges) -> Offsets:
    """The last refcount blocks, by their place in the refcount table, that count nothing but each other; `used` are all
    runs of clusters that are counted.
    """
    hosts = block_offsets(image.refcount_table) >> image.header.cluster_bits
    existing = np.flatnonzero(hosts)
    per_block, where = image.geometry.refcount_block_entry_count, np.sort(hosts[existing])
    others = subtract(used, merge_ranges(Ranges(where, where + 1)))
    # The last block that is of use; what counts its cluster is of use as well, and so on.
    last, reached = -1, int((others.stop[-1] - 1) // per_block)
    while reached > last:
        last = reached
        reached = int((hosts[existing[existing <= last]] // per_block).max())
    return existing[existing > last]


def drop_blocks(piece: Slice, spare: Offsets) -> tuple[list[Step], Image]:
    """Steps that let refcount blocks go; the slice holds the blocks that count them, but for the spare ones.
    The refcount table forgets them first, durably; then their clusters are free.
    """
    image, bits = piece.image, piece.image.header.cluster_bits
    hosts = block_offsets(image.refcount_table)[spare] >> bits
    table = image.refcount_table.copy()
    table[spare] = 0
    held = hosts[np.isin(hosts // image.geometry.refcount_block_entry_count, piece.counts.block_index)]
    new = piece._replace(image=image._replace(refcount_table=table), counts=count_down(image.path, piece.counts, held))
    return writes.order(piece, new), new.image


def give_back(image: Image, used: Ranges) -> list[Step]:
    """Steps that cut off the free end of the file and make holes of the other free clusters; `used` are all runs."""
    bits, end = image.header.cluster_bits, int(used.stop[-1])
    free = gaps(used, 0, min(end, image.host_cluster_count))
    holes = [
        Zero(start << bits, (stop - start) << bits) for start, stop in zip(*map(np.ndarray.tolist, free), strict=True)
    ]
    return [Flush(), *holes, *writes.shrink(image, end)]
