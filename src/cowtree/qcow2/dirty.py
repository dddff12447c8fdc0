"""The bits of a dirty bitmap: packed as its clusters hold them, and as ranges. A bit stands for a granule of the disk,
the lowest bit of the first byte for the first one.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cowtree import extents as ex
from cowtree.extents import Offsets, Ranges
from cowtree.qcow2 import tables
from cowtree.qcow2.bitmaps import Bitmap
from cowtree.qcow2.geometry import Geometry
from cowtree.qcow2.tables import Entries

Packed = NDArray[np.uint8]
# A table entry without a cluster stands for bits that are all 0, or all 1.
ALL_ONES: Final = np.uint64(1)


def users(geometry: Geometry, bitmap: Bitmap, entries: Entries) -> Offsets:
    """The host clusters that a bitmap uses: those of its table and of its bits, each as often as it is used."""
    offset = tables.table_offsets(entries)
    first = bitmap.table_offset >> geometry.cluster_bits
    own = np.arange(first, first + geometry.cluster_count(bitmap.table_entry_count * 8))
    return np.concatenate((own, offset[offset != 0] >> geometry.cluster_bits))


def unpack(packed: Packed) -> Ranges:
    """Which bits are set, numbered from the first one."""
    edges = np.flatnonzero(np.diff(np.unpackbits(packed, bitorder="little"), prepend=0, append=0))
    return Ranges(edges[0::2], edges[1::2])


def pack(wanted: Ranges, first: int, count: int) -> Packed:
    """The bits [first, first + count), set where the sorted and joined ranges say so; whole bytes."""
    inside = ex.intersect(wanted, ex.one_range(first, first + count))
    change = np.zeros(count + 1, np.int8)
    change[inside.start - first] = 1
    change[inside.stop - first] = -1
    return np.packbits(np.cumsum(change[:-1], dtype=np.int8), bitorder="little")


def to_bits(ranges: Ranges, granularity_bits: int) -> Ranges:
    """The bits that stand for all that sorted ranges of the disk touch."""
    wide = ex.widen(ranges, 1 << granularity_bits)
    return Ranges(wide.start >> granularity_bits, wide.stop >> granularity_bits)


def rescale(found: Ranges, old_bits: int, new_bits: int) -> Ranges:
    """The bits of another granularity that stand for all that these do."""
    return to_bits(Ranges(found.start << old_bits, found.stop << old_bits), new_bits)
