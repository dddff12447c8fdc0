"""Putting guest content into one layer: the heart of commit, pull, rebase and convert.

`wanted` says what the layer shall show itself; `shown` is what is seen through it now, for the rest of a cluster that
is only partly wanted; `after` is what would be seen through it in the end if nothing were put, so that zeroes are
written only where they make a difference. For a qcow2 layer each cluster that is touched meets one of these fates:

    IN_PLACE   it has a host cluster of its own: the wanted bytes are written there
    REUSE      it has one that reads as zeroes: all of the cluster is written there, then the flag goes
    FRESH      it gets a new host cluster, which is written whole; what it had is counted down
    CLEARED    it shall read as zeroes: only its entry changes
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cowtree import extents as ex
from cowtree.errors import BrokenTable
from cowtree.extents import Extents, Mask, Offsets, Ranges
from cowtree.qcow2 import tables, writes
from cowtree.qcow2.allocate import allocate
from cowtree.qcow2.geometry import Geometry
from cowtree.qcow2.image import Image, Slice, lookup
from cowtree.qcow2.refcounts import Counts
from cowtree.qcow2.tables import COPIED, Entries, Tables
from cowtree.steps import Flush, Move, Step, Zero, by_target

IN_PLACE, REUSE, FRESH, CLEARED = range(1, 5)


class Wish(NamedTuple):
    """What shall be put into a layer, within one window. `shown` reaches to the end of each cluster that is touched."""

    wanted: Extents
    shown: Extents
    after: Extents
    has_backing_after: bool


class Fates(NamedTuple):
    """What happens to each touched guest cluster. Shapes: (count,), sorted by cluster."""

    cluster: Offsets
    fate: NDArray[np.uint8]
    entry: Entries
    wanted: Extents

    def of(self, *fates: int) -> Mask:
        """Which clusters meet one of these fates."""
        return np.isin(self.fate, fates)


class Demand(NamedTuple):
    """What must be known of the reference counts: those of some host clusters, and where so many are free."""

    clusters: Offsets
    free_count: int


def needed(wish: Wish) -> Extents:
    """What really has to be put: data, and zeroes where something else would be seen in the end."""
    data = wish.wanted.of_kind(*ex.BYTES)
    hiding = wish.after.of_kind(*ex.BYTES).ranges
    return ex.concatenate([data, ex.cut(wish.wanted.of_kind(*ex.ZEROES), ex.merge_ranges(hiding))])


def into_raw(wish: Wish) -> list[Step]:
    """The steps that put it into a raw layer."""
    wanted = needed(wish)
    data = wanted.of_kind(*ex.BYTES)
    zero = ex.merge_ranges(wanted.of_kind(*ex.ZEROES).ranges)
    steps: list[Step] = [Zero(start, stop - start) for start, stop in zip(*map(np.ndarray.tolist, zero), strict=True)]
    if len(data.start):
        steps.append(Move(data, data.start))
    return [*steps, Flush()] if steps else []


def decide(image: Image, held: Tables, wish: Wish) -> Fates:
    """Choose each cluster's fate; `held` are the layer's L2 tables of this window."""
    geometry = image.geometry
    wanted = needed(wish)
    cluster = _touched(geometry, wanted.ranges)
    entry = lookup(held, geometry, cluster)
    kind = tables.classify(geometry, entry)
    own = ((entry & COPIED) != 0) & ((image.l1[cluster // geometry.l2_entry_count] & COPIED) != 0)
    fate = np.full(len(cluster), FRESH, np.uint8)
    fate[own & (kind == ex.DATA)] = IN_PLACE
    fate[own & (kind == ex.ALLOCATED)] = REUSE
    if geometry.version >= 3 or not wish.has_backing_after:
        fate[_all_zero(geometry, cluster, wanted, wish)] = CLEARED
    return Fates(cluster, fate, entry, wanted)


def _touched(geometry: Geometry, ranges: Ranges) -> Offsets:
    """The guest clusters that some range touches, sorted."""
    first, last = ranges.start >> geometry.cluster_bits, (ranges.stop - 1) >> geometry.cluster_bits
    return ex.integers(ex.merge_ranges(Ranges(first, last + 1)))


def _per_cluster(geometry: Geometry, cluster: Offsets, ranges: Ranges) -> Offsets:
    """How many bytes of each cluster the ranges cover."""
    bits = geometry.cluster_bits
    parts = ex.intersect(Ranges(cluster << bits, (cluster + 1) << bits), ranges)
    index = np.searchsorted(cluster, parts.start >> bits)
    weight = np.bincount(index, parts.stop - parts.start, len(cluster))
    return weight.astype(np.int64)


def _all_zero(geometry: Geometry, cluster: Offsets, wanted: Extents, wish: Wish) -> Mask:
    """Which clusters shall read as zeroes from end to end."""
    data = _per_cluster(geometry, cluster, wanted.of_kind(*ex.BYTES).ranges)
    zero = ex.merge_ranges(wanted.of_kind(*ex.ZEROES).ranges)
    seen = ex.subtract(ex.merge_ranges(wish.shown.of_kind(*ex.BYTES).ranges), zero)
    hiding = ex.subtract(ex.merge_ranges(wish.after.of_kind(*ex.BYTES).ranges), zero)
    left = _per_cluster(geometry, cluster, seen) + _per_cluster(geometry, cluster, hiding)
    all_zero: Mask = (data == 0) & (left == 0)
    return all_zero


def demand(image: Image, held: Tables, fates: Fates) -> Demand:
    """Say which counts `place` needs."""
    new_tables, shared = _table_changes(image, fates)
    clusters = [_released(image, held, fates), _kept(image, fates), refcount_table_clusters(image)]
    return Demand(np.concatenate(clusters), int(fates.of(FRESH).sum()) + len(new_tables) + len(shared))


def _kept(image: Image, fates: Fates) -> Offsets:
    """The host clusters that are written where they are."""
    entry = fates.entry[fates.of(IN_PLACE, REUSE)]
    return (entry & tables.HOST_OFFSET).astype(np.int64) >> image.header.cluster_bits


def refcount_table_clusters(image: Image) -> Offsets:
    """The host clusters of the refcount table."""
    first = image.header.refcount_table_offset >> image.header.cluster_bits
    return np.arange(first, first + image.header.refcount_table_cluster_count)


def _released(image: Image, held: Tables, fates: Fates) -> Offsets:
    """The host clusters that lose users, each as often: those of guest clusters, and shared tables that are copied."""
    _, shared = _table_changes(image, fates)
    copied = held.host_offset[held.rows_of(shared)] >> image.header.cluster_bits
    return np.concatenate((entry_users(image.geometry, fates.entry[fates.of(FRESH, CLEARED)]), copied))


def entry_users(geometry: Geometry, entry: Entries) -> Offsets:
    """The host clusters that L2 entries use, each as often as it is used."""
    kind = tables.classify(geometry, entry)
    plain = (entry[np.isin(kind, ex.MOVING)] & tables.HOST_OFFSET).astype(np.int64) >> geometry.cluster_bits
    descriptor = (entry[kind == ex.COMPRESSED] & tables.DESCRIPTOR).astype(np.int64)
    start, length = tables.compressed_location(geometry, descriptor)
    first, last = start >> geometry.cluster_bits, (start + length - 1) >> geometry.cluster_bits
    return np.concatenate((plain, ex.integers(Ranges(first, last + 1))))


def _table_changes(image: Image, fates: Fates) -> tuple[Offsets, Offsets]:
    """L1 indices that need a first table, and those whose table is shared with a snapshot and must be copied."""
    index = np.unique(fates.cluster[~fates.of(IN_PLACE)] // image.geometry.l2_entry_count)
    entry = image.l1[index]
    missing = (entry & tables.HOST_OFFSET) == 0
    return index[missing], index[~missing & ((entry & COPIED) == 0)]


def review(piece: Slice, fates: Fates) -> int:
    """Check what `place` relies on, while nothing is written yet; the slice needs to hold no free clusters.
    Returns: the bytes that will be moved.
    Raises: BrokenTable.
    """
    image = piece.image
    kept = _kept(image, fates)
    _check_kept(piece, kept)
    _refuse_tables(image, kept)
    count_down(image.path, piece.counts, _released(image, piece.tables, fates))
    in_place = _per_cluster(image.geometry, fates.cluster, fates.wanted.ranges)[fates.of(IN_PLACE)]
    return (int(fates.of(FRESH, REUSE).sum()) << image.header.cluster_bits) + int(in_place.sum())


def place(piece: Slice, fates: Fates, wish: Wish) -> tuple[list[Step], Image]:
    """Give every cluster its place and order the writes. Returns: the steps, and the image after them.
    Raises: BrokenTable when a count or a pointer says that a write would hit something else.
    """
    if not len(fates.cluster):
        return [], piece.image
    image, geometry = piece.image, piece.image.geometry
    missing, shared = _table_changes(image, fates)
    fresh = fates.of(FRESH)
    table_count = len(missing) + len(shared)
    kept = _kept(image, fates)
    _check_kept(piece, kept)
    taken, counted = allocate(piece, table_count + int(fresh.sum()))
    _refuse_tables(counted.image, np.concatenate((kept, taken)))
    table_hosts, hosts = taken[:table_count], taken[table_count:]
    host = (fates.entry & tables.HOST_OFFSET).astype(np.int64)
    host[fresh] = hosts << geometry.cluster_bits
    counts = count_down(image.path, counted.counts, _released(image, piece.tables, fates))
    moved = _move_tables(counted._replace(counts=counts), np.concatenate((missing, shared)), table_hosts)
    new = moved._replace(tables=_set_entries(moved.tables, geometry, fates, (host, wish.has_backing_after)))
    return writes.order(piece, new, _moves(geometry, fates, host, wish)), new.image


def _check_kept(piece: Slice, clusters: Offsets) -> None:
    """Refuse to write to clusters that are in use unless each belongs to one guest cluster."""
    counts = piece.counts.get(clusters)
    wrong = np.flatnonzero(counts != 1)
    if len(wrong):
        reason = f"host cluster {clusters[wrong[0]]} is marked as used once, but counted {counts[wrong[0]]} times"
        raise BrokenTable(path=piece.image.path, reason=reason, hint="cowtree img check -r all {path}")
    ordered = np.sort(clusters)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        reason = f"host cluster {twice[0]} belongs to two guest clusters"
        raise BrokenTable(path=piece.image.path, reason=reason)


def _refuse_tables(image: Image, targets: Offsets) -> None:
    hit = image.tables_among(targets)
    if len(hit):
        reason = f"guest data would be written to host cluster {hit[0]}, which holds a table"
        raise BrokenTable(path=image.path, reason=reason)


def count_down(path: str, counts: Counts, clusters: Offsets) -> Counts:
    """Take one user away from each cluster, as often as it is named.
    Raises: BrokenTable when one is counted less often than that.
    """
    unique, users = np.unique(clusters, return_counts=True)
    now = counts.get(unique).astype(np.uint64)
    wrong = np.flatnonzero(now < users.astype(np.uint64))
    if len(wrong):
        reason = f"host cluster {unique[wrong[0]]} is in use but counted {now[wrong[0]]} times"
        raise BrokenTable(path=path, reason=reason, hint="cowtree img check -r all {path}")
    return counts.put(unique, (now - users.astype(np.uint64)).astype(counts.counts.dtype))


def _move_tables(piece: Slice, l1_index: Offsets, hosts: Offsets) -> Slice:
    """Give L1 entries a table of their own: a copy of the one they had, or an empty one."""
    image, held = piece.image, piece.tables
    bits = image.header.cluster_bits
    l1 = image.l1.copy()
    l1[l1_index] = (hosts << bits).astype(np.uint64) | COPIED
    index = np.union1d(held.l1_index, l1_index)
    rows = np.searchsorted(index, held.l1_index)
    entries = np.zeros((len(index), image.geometry.l2_entry_count), np.uint64)
    entries[rows] = held.entries
    host_offset = np.zeros(len(index), np.int64)
    host_offset[rows] = held.host_offset
    host_offset[np.searchsorted(index, l1_index)] = hosts << bits
    bitmaps = np.empty((len(index), 0), np.uint64)
    return piece._replace(image=image._replace(l1=l1), tables=Tables(index, host_offset, entries, bitmaps))


def _set_entries(held: Tables, geometry: Geometry, fates: Fates, how: tuple[Offsets, bool]) -> Tables:
    host, has_backing_after = how
    cleared = tables.ZERO_FLAG if has_backing_after else tables.NONE
    value = np.where(fates.of(CLEARED), cleared, host.astype(np.uint64) | COPIED)
    changes = ~fates.of(IN_PLACE)
    index, column = np.divmod(fates.cluster[changes], geometry.l2_entry_count)
    entries = held.entries.copy()
    entries[held.rows_of(index), column] = value[changes]
    return held._replace(entries=entries)


def _moves(geometry: Geometry, fates: Fates, host: Offsets, wish: Wish) -> Move:
    """Which bytes go where: whole clusters for fresh and reused ones, only what is wanted for those in place."""
    whole, partly = (_clusters(geometry, fates, host, mask) for mask in (fates.of(FRESH, REUSE), fates.of(IN_PLACE)))
    content = ex.over(ex.cut(fates.wanted, whole.ranges), ex.cut(wish.shown, whole.ranges))
    rest = ex.fill(ex.subtract(whole.ranges, content.ranges), ex.ZERO)
    parts = ex.concatenate([content, rest, ex.cut(fates.wanted, partly.ranges)])
    return _aim(parts, ex.coalesce(ex.concatenate([whole, partly])))


def _clusters(geometry: Geometry, fates: Fates, host: Offsets, mask: Mask) -> Extents:
    """The host clusters of some guest clusters, as coalesced extents of data."""
    start = fates.cluster[mask] << geometry.cluster_bits
    length = np.full(len(start), geometry.cluster_size_bytes, np.int64)
    kind = np.full(len(start), ex.DATA, np.uint8)
    return ex.coalesce(Extents(start, length, kind, np.zeros(len(start), np.int16), host[mask]))


def _aim(parts: Extents, target: Extents) -> Move:
    """Cut the parts where the target's extents end, and say to which host byte each goes."""
    pieces = ex.cut(parts, target.ranges)
    row = np.searchsorted(target.start, pieces.start, "right") - 1
    return by_target(pieces, target.host_offset[row] + pieces.start - target.start[row])
