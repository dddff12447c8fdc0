"""Trim: a layer lets go what it need not hold itself, and nobody who reads the disk sees a difference.

What the backing chain shows as well goes whole; what reads as zeroes over something else keeps a flag and no space. A
cluster goes when each of its units, that are its subclusters or else itself, may go. Nothing is ever allocated: a table
that a snapshot has too stays as it is, for what it points at would stay in use.
"""

from typing import Final, NamedTuple

import numpy as np

from cowtree import extents as ex
from cowtree.extents import Extents, Mask, Offsets, Ranges
from cowtree.plan.put import count_down, entry_users
from cowtree.qcow2 import tables, writes
from cowtree.qcow2.geometry import SUBCLUSTER_COUNT, Geometry
from cowtree.qcow2.image import Image, Slice
from cowtree.qcow2.tables import COPIED, Entries, Tables
from cowtree.steps import Flush, Step, Zero

# In which units space of files comes and goes; so a raw layer is looked at in these.
BLOCK_BYTES: Final = 4096


class Loose(NamedTuple):
    """What a layer need not hold, in whole units but at the end of the disk. Without the units in `same` the disk shows
    the same; those in `zero` read as zeroes.
    """

    same: Ranges
    zero: Ranges


class Lost(NamedTuple):
    """Host clusters that lose users: sorted runs, and how many users each cluster of a run loses."""

    runs: Ranges
    times: Offsets


def loose(own: Extents, below: Extents, found: tuple[Ranges, Ranges], unit: int) -> Loose:
    """What a layer need not hold over what is seen `below` it. `own` is what it holds, each kind that is not zeroes
    taken for bytes; `found` are the units of these that differ from those below, and those that are not zero.
    """
    is_zero = np.isin(own.kind, ex.ZEROES)
    plain, data = (ex.merge_ranges(own.take(which).ranges) for which in (is_zero, ~is_zero))
    hiding = ex.widen(below.of_kind(*ex.BYTES).ranges, unit)
    differing, solid = found
    same = ex.union(ex.subtract(plain, hiding), ex.subtract(data, differing))
    return Loose(same, ex.union(plain, ex.subtract(data, solid)))


def hidden(own: Extents, hiding: Ranges, window: tuple[int, int], unit: int) -> Loose:
    """What of a layer nobody sees whose only reader holds something in the ranges `hiding`."""
    seen = ex.widen(ex.gaps(hiding, *window), unit)
    return Loose(ex.subtract(ex.merge_ranges(own.ranges), seen), ex.one_range(0, 0))


def join(parts: list[Loose]) -> Loose:
    """What several windows found, in their order."""
    none = ex.one_range(0, 0)
    columns = zip(Loose(none, none), *parts, strict=True)
    return Loose(*(_concatenate(list(column)) for column in columns))


def _concatenate(parts: list[Ranges]) -> Ranges:
    return Ranges._make(np.concatenate(column) for column in zip(*parts, strict=True))


def after(image: Image, held: Tables, loose: Loose) -> Tables:
    """The same tables without what is loose."""
    is_own = (image.l1[held.l1_index] & COPIED) != 0
    row, column = np.nonzero(_used(held) & is_own[:, None])
    cluster = held.l1_index[row] * image.geometry.l2_entry_count + column
    entries, bitmaps = held.entries.copy(), held.bitmaps.copy()
    if image.geometry.has_subclusters:
        changed = _without_subclusters(image.geometry, cluster, (entries[row, column], bitmaps[row, column]), loose)
        entries[row, column], bitmaps[row, column] = changed
    else:
        entries[row, column] = _without(image.geometry, cluster, entries[row, column], loose)
    return held._replace(entries=entries, bitmaps=bitmaps)


def _used(held: Tables) -> Mask:
    """Which entries say something."""
    used: Mask = held.entries != 0
    return used | (held.bitmaps != 0) if held.bitmaps.shape[1] else used


def _without(geometry: Geometry, cluster: Offsets, entry: Entries, loose: Loose) -> Entries:
    """What the entries of these clusters become. Version 2 knows no zero clusters."""
    same, zero = (_is_inside(cluster << geometry.cluster_bits, each, geometry) for each in loose)
    flag = tables.ZERO_FLAG if geometry.version >= 3 else entry
    return np.where(same, tables.NONE, np.where(zero, flag, entry))


def _is_inside(start: Offsets, ranges: Ranges, geometry: Geometry) -> Mask:
    """Which of the clusters that begin there the ranges cover."""
    whole = ex.widen(ranges, geometry.cluster_size_bytes)
    row = np.searchsorted(whole.start, start, "right") - 1
    inside: Mask = row >= 0
    inside[inside] = start[inside] < whole.stop[row[inside]]
    return inside


def _without_subclusters(
    geometry: Geometry, cluster: Offsets, found: tuple[Entries, Entries], loose: Loose
) -> tuple[Entries, Entries]:
    """What entries and their bitmaps become; a cluster stays as it is when one subcluster of data must stay, or when
    nothing of it may go.
    """
    entry, bitmap = found
    unit = geometry.subcluster_size_bytes
    same, zero = (tables.to_bits(geometry, cluster, ex.widen(each, unit)) for each in loose)
    packed = tables.classify(geometry, entry) == ex.COMPRESSED
    data = np.where(packed, tables.ALL_ALLOCATED, bitmap & tables.ALL_ALLOCATED)
    flags = np.where(packed, tables.NONE, bitmap >> np.uint64(SUBCLUSTER_COUNT))
    loose_bits = same | zero
    stays = (loose_bits == 0) | ((data & ~loose_bits) != 0)
    flags = (flags | data) & ~same
    return np.where(stays, entry, tables.NONE), np.where(stays, bitmap, flags << np.uint64(SUBCLUSTER_COUNT))


def is_changed(held: Tables, new: Tables) -> Mask:
    """Which entries are not the same. Shapes: as the entries."""
    changed: Mask = held.entries != new.entries
    return changed | (held.bitmaps != new.bitmaps) if held.bitmaps.shape[1] else changed


def _gone(image: Image, new: Tables) -> Mask:
    """Which tables hold nothing any more, and belong to nobody else."""
    is_own = (image.l1[new.l1_index] & COPIED) != 0
    gone: Mask = is_own & ~_used(new).any(axis=1)
    return gone


def released(image: Image, held: Tables, new: Tables) -> Offsets:
    """The host clusters that lose users on the way to the new tables, each as often."""
    users = entry_users(image.geometry, held.entries[is_changed(held, new)])
    return np.concatenate((users, held.host_offset[_gone(image, new)] >> image.header.cluster_bits))


def forget(image: Image, new: Tables) -> Image:
    """The image without the tables that hold nothing any more."""
    l1 = image.l1.copy()
    l1[new.l1_index[_gone(image, new)]] = 0
    return image._replace(l1=l1)


def drop(piece: Slice, loose: Loose) -> tuple[list[Step], Image]:
    """Let go what is loose; the slice holds the counts of what `released` names. Returns: the steps, and the image
    after them.
    Raises: BrokenTable.
    """
    image, held = piece.image, piece.tables
    new = after(image, held, loose)
    counts = count_down(image.path, piece.counts, released(image, held, new))
    gone = _gone(image, new)[:, None]
    kept = new._replace(entries=np.where(gone, held.entries, new.entries))
    if new.bitmaps.shape[1]:
        kept = kept._replace(bitmaps=np.where(gone, held.bitmaps, new.bitmaps))
    changed = piece._replace(image=forget(image, new), tables=kept, counts=counts)
    steps = writes.order(piece, changed)
    outside = data_ranges(image, held, new)
    if len(outside.start):
        steps += [Flush(), *zeroes(outside)]
    return steps, changed.image


def data_ranges(image: Image, held: Tables, new: Tables) -> Ranges:
    """The ranges of an external data file that nobody needs any more."""
    if not image.geometry.has_data_file:
        return ex.one_range(0, 0)
    row, column = np.nonzero(is_changed(held, new) & np.isin(tables.classify(image.geometry, held.entries), ex.MOVING))
    start = (held.l1_index[row] * image.geometry.l2_entry_count + column) << image.header.cluster_bits
    stop = np.minimum(start + image.geometry.cluster_size_bytes, image.header.size_bytes)
    return ex.merge_ranges(Ranges(start, stop))


def zeroes(ranges: Ranges) -> list[Step]:
    """Steps that make holes where guest data lies."""
    columns = map(np.ndarray.tolist, ranges)
    return [Zero(start, stop - start, is_data=True) for start, stop in zip(*columns, strict=True)]


def count_lost(clusters: Offsets) -> Lost:
    """Host clusters that lose users, each as often as it is named, as runs."""
    ordered = np.sort(clusters)
    first = np.flatnonzero(np.diff(ordered, prepend=-1))
    cluster, times = ordered[first], np.diff(first, append=len(ordered))
    breaks = np.flatnonzero((np.diff(cluster, prepend=-2) != 1) | (np.diff(times, prepend=-1) != 0))
    last = np.append(breaks[1:], len(cluster))[: len(breaks)] - 1
    return Lost(Ranges(cluster[breaks], cluster[last] + 1), times[breaks])


def whole_blocks(ranges: Ranges, end_bytes: int | None = None) -> Ranges:
    """The blocks that lie in joined ranges; where a file shall be cut off up to its end, that may be within a block."""
    start, stop = -(-ranges.start // BLOCK_BYTES) * BLOCK_BYTES, ranges.stop // BLOCK_BYTES * BLOCK_BYTES
    if end_bytes is not None:
        stop = np.where(ranges.stop >= end_bytes, ranges.stop, stop)
    return Ranges(start[stop > start], stop[stop > start])
