"""Checking one image: how often each host cluster is really used, and every entry that breaks a rule.

An L2 table that several L1 entries share is looked at once, and everything in it counts as often as it is shared; so
a check costs what the image holds, whatever its snapshots share. A sentence about a shared table is said once.
"""

from collections.abc import Iterator
from copy import deepcopy
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cowtree.extents import ALLOCATED, COMPRESSED, DATA, Mask, Offsets
from cowtree.qcow2 import findings, tables
from cowtree.qcow2.findings import Finding, at, in_order
from cowtree.qcow2.geometry import Geometry, ceil_div, round_up
from cowtree.qcow2.refcounts import TABLE_OFFSET
from cowtree.qcow2.sparse_counts import WINDOW, SparseCounts
from cowtree.qcow2.tables import COPIED, Entries, Tables
from cowtree.records import bits

SECTOR_BYTES: Final = 512
# Source: qcow2 specification, "L1 table entry", "Standard Cluster Descriptor", "Refcount table entry".
L1_RESERVED: Final = np.uint64(bits(0, 8) | bits(56, 62))
L2_RESERVED: Final = np.uint64(bits(1, 8) | bits(56, 61))
BLOCK_RESERVED: Final = np.uint64(bits(0, 8))
# Source: QEMU's limit for the length of a file.
OFFSET_MAX: Final = (1 << 63) - (1 << 30)
BITMAP_RESERVED: Final = np.uint64(bits(1, 8) | bits(56, 63))
ALLOCATION_BITS: Final = np.uint64(bits(0, 31))

_DRAWER: Final = (1 << 12) - 1


class References:
    """How often each host cluster is used, as far as it was counted; one byte per cluster while that is enough."""

    def __init__(self, geometry: Geometry, file_size_bytes: int) -> None:
        self.geometry = geometry
        # The last cluster of a file may be cut, and so may its last sector.
        self.file_size_bytes = round_up(file_size_bytes, SECTOR_BYTES)
        self.cluster_count = geometry.cluster_count(self.file_size_bytes)
        # What starts inside the file may end in the cluster behind it.
        self.counts = SparseCounts(self.cluster_count + 1)

    def copy(self) -> "References":
        """Another one that has counted the same."""
        return deepcopy(self)

    def outside(self, offset: Offsets, length: Offsets | int) -> Mask:
        """Which regions end a cluster or more behind the end of the file."""
        past: Mask = offset + length - self.file_size_bytes >= self.geometry.cluster_size_bytes
        return past

    def use(self, offset: Offsets, length: Offsets | int, times: Offsets) -> None:
        """Count regions, each a few clusters long at most, in every cluster that they touch."""
        first, last = offset >> self.geometry.cluster_bits, (offset + length - 1) >> self.geometry.cluster_bits
        step = 0
        while len(first):
            self._add(first + step, times)
            step += 1
            more = first + step <= last
            first, last, times = first[more], last[more], times[more]

    def use_clusters(self, clusters: Offsets) -> None:
        """Count clusters inside the file, each as often as it is named."""
        if not len(clusters):
            return
        # Put into drawers by its last bits, no cluster is named more often than the fullest drawer holds.
        most = int(self.counts.get(clusters).max()) + int(np.bincount(clusters & _DRAWER).max())
        if most > np.iinfo(self.counts.dtype).max:
            self._add(clusters, np.ones(len(clusters), np.int64))
            return
        self.counts.add_each(clusters)
        self.cluster_count = max(self.cluster_count, int(clusters.max()) + 1)

    def use_as(self, other: "References") -> None:
        """Count all that another counted as well."""
        self._reach(other.cluster_count)
        for start in range(0, other.cluster_count, WINDOW):
            if other.counts.any_in(start, start + WINDOW):
                clusters = np.flatnonzero(other.counts.window(start, start + WINDOW)) + start
                self._add(clusters, other.counts.get(clusters).astype(np.int64))

    def use_region(self, offset: int, length: int) -> Finding | None:
        """Count one region of any length. Returns: what is wrong with it."""
        if length <= 0:
            return None
        if not self.holds(offset, length):
            where = np.array([[offset, length]], np.uint64)
            return Finding(findings.OUTSIDE, where, np.ones(1, np.int64))
        self.use_clusters(self._clusters(offset, length))
        return None

    def holds(self, offset: int, length: int) -> bool:
        """Whether a region ends in the file, or less than a cluster behind it; then it is counted."""
        return offset + length - self.file_size_bytes < self.geometry.cluster_size_bytes

    def give_back_region(self, offset: int, length: int) -> None:
        """Forget one use of a region, if it was counted."""
        if length > 0 and self.holds(offset, length):
            self.give_back(self._clusters(offset, length))

    def _clusters(self, offset: int, length: int) -> Offsets:
        bits_ = self.geometry.cluster_bits
        return np.arange(offset >> bits_, ((offset + length - 1) >> bits_) + 1)

    def give_back(self, clusters: Offsets) -> None:
        """Forget one use of each cluster."""
        self.counts.take_each(clusters)

    def uses(self, clusters: Offsets) -> NDArray[np.unsignedinteger]:
        """The uses of these clusters; none behind the end of the file."""
        return np.where(clusters < len(self.counts), self.counts.get(np.minimum(clusters, len(self.counts) - 1)), 0)

    def get(self, clusters: Offsets) -> NDArray[np.unsignedinteger]:
        """The counts that these clusters should have."""
        return self.limit(self.uses(clusters))

    def limit(self, uses: NDArray[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
        """The counts for so many uses: a count stops at the largest that fits."""
        most = min(self.geometry.refcount_max, int(np.iinfo(uses.dtype).max))
        limited: NDArray[np.unsignedinteger] = np.minimum(uses, uses.dtype.type(most))
        return limited

    def known(self, clusters: Offsets) -> Mask:
        """All of them are known."""
        return np.ones(clusters.shape, bool)

    def once(self, clusters: Offsets) -> Mask:
        """Which clusters should be counted once."""
        once: Mask = self.get(clusters) == 1
        return once

    def in_blocks(self, block_index: Offsets) -> NDArray[np.unsignedinteger]:
        """The uses of all clusters that these refcount blocks count. Shapes: (count, entries of a block)."""
        size = self.geometry.refcount_block_entry_count
        found = np.zeros((len(block_index), size), self.counts.dtype)
        for row, index in enumerate(block_index.tolist()):
            used = self.counts.window(index * size, min((index + 1) * size, self.cluster_count))
            found[row, : len(used)] = used
        return found

    def overflows(self) -> Finding:
        """The clusters that are used more often than a count can say."""
        most = min(self.geometry.refcount_max, int(np.iinfo(np.int64).max))
        where = np.concatenate([np.empty(0, np.int64), *self._above(most)])
        times = self.counts.get(where).astype(np.int64) - most
        return at(findings.OVERFLOW, np.arange(len(where)), where << self.geometry.cluster_bits, times=times)

    def first_above(self, most: int) -> int | None:
        """The first cluster that is used more often than that, if there is one."""
        return next((int(found[0]) for found in self._above(most) if len(found)), None)

    def _above(self, most: int) -> Iterator[Offsets]:
        for start in range(0, len(self.counts) if most < np.iinfo(self.counts.dtype).max else 0, WINDOW):
            if self.counts.any_in(start, start + WINDOW):
                yield np.flatnonzero(self.counts.window(start, start + WINDOW) > most) + start

    def take_free(self, count: int) -> Offsets:
        """Use the first clusters that nothing uses, behind the end of the file if there are not enough."""
        parts, found, step = [], 0, WINDOW
        for first in range(0, self.cluster_count, step):
            free = self.counts.window(first, min(first + step, self.cluster_count)) == 0
            parts.append(np.flatnonzero(free) + first)
            found += len(parts[-1])
            if found >= count:
                break
        parts.append(np.arange(self.cluster_count, self.cluster_count + max(count - found, 0)))
        clusters = np.concatenate(parts)[:count]
        self._reach(int(clusters[-1]) + 1 if count else 0)
        self._add(clusters, np.ones(count, np.int64))
        return clusters

    def take_end(self, count: int) -> int:
        """Use so many clusters behind the end of the file. Returns: the first of them."""
        first = self.cluster_count
        self._reach(first + count)
        self._add(np.arange(first, first + count), np.ones(count, np.int64))
        return first

    def take_run(self, count: int) -> int:
        """Use so many clusters that follow each other: one that nothing uses, or else clusters behind the end.
        Returns: the first of them.
        """
        return int(self.take_free(1)[0]) if count == 1 else self.take_end(count)

    def _reach(self, cluster_count: int) -> None:
        self.counts.reach(cluster_count + 1)
        self.cluster_count = max(self.cluster_count, cluster_count)

    def _add(self, clusters: Offsets, times: Offsets) -> None:
        if not len(clusters):
            return
        where = clusters
        if not (clusters[1:] > clusters[:-1]).all():
            order = np.argsort(clusters, kind="stable")
            clusters = clusters[order]
            first = np.flatnonzero(np.concatenate(([True], clusters[1:] != clusters[:-1])))
            where, times = clusters[first], np.add.reduceat(times[order], first)
        self.counts.put(where, self.counts.get(where).astype(np.int64) + times)
        self.cluster_count = max(self.cluster_count, int(where[-1]) + 1)


class TableUse(NamedTuple):
    """L2 tables, each once, in the order in which they were met.
    Shapes: int64 (count,): where each lies, how often L1 tables name it, and how often the active one does.
    """

    offset: Offsets
    times: Offsets
    active_times: Offsets

    def take(self, which: Mask | Offsets) -> "TableUse":
        """The tables that a mask or an index selects."""
        return TableUse._make(column[which] for column in self)


def no_tables() -> TableUse:
    """No L2 tables."""
    none = np.empty(0, np.int64)
    return TableUse(none, none, none)


def add_l1(use: TableUse, entries: Entries, *, is_active: bool) -> TableUse:
    """The same tables and those that the entries of an L1 table name; none of the entries is 0."""
    ones = np.ones(len(entries), np.int64)
    offset = np.concatenate((use.offset, tables.table_offsets(entries)))
    order = np.argsort(offset, kind="stable")
    starts = np.flatnonzero(np.diff(offset[order], prepend=-1))
    if not len(starts):
        return use
    # The sort is stable, so the first of equals is the one that was met first.
    met = np.argsort(order[starts])
    times = np.add.reduceat(np.concatenate((use.times, ones))[order], starts)
    active = np.add.reduceat(np.concatenate((use.active_times, ones * is_active))[order], starts)
    return TableUse(offset[order[starts]][met], times[met], active[met])


def check_l1(geometry: Geometry, entries: Entries, references: References) -> Iterator[Finding]:
    """What is wrong with the entries of an L1 table that are not 0."""
    offset = tables.table_offsets(entries)
    size = np.full(len(entries), geometry.cluster_size_bytes)
    position = np.arange(len(entries))
    wrong = (
        (findings.L1_RESERVED, (entries & L1_RESERVED) != 0, (entries,)),
        (findings.OUTSIDE, references.outside(offset, geometry.cluster_size_bytes), (offset, size)),
        (findings.L1_UNALIGNED, offset % geometry.cluster_size_bytes != 0, (offset,)),
    )
    return in_order([(position[where], at(kind, where, *columns)) for kind, where, columns in wrong])


class _Used(NamedTuple):
    """The L2 entries of some tables that are not 0, one after the other."""

    entry: Entries
    bitmap: Entries
    kind: NDArray[np.uint8]
    column: Offsets
    position: Offsets
    times: Offsets

    def is_plain(self) -> Mask:
        """Which have a host cluster of their own."""
        return np.isin(self.kind, (DATA, ALLOCATED))


def _used(geometry: Geometry, held: Tables, times: Offsets) -> _Used:
    entries = held.entries.ravel()
    maps = held.bitmaps.ravel() if geometry.has_subclusters else np.zeros(1, np.uint64)
    position = np.flatnonzero(entries | maps)
    row, column = np.divmod(position, geometry.l2_entry_count)
    entry = entries[position]
    bitmap = maps[position] if geometry.has_subclusters else np.broadcast_to(maps, entry.shape)
    return _Used(entry, bitmap, tables.classify(geometry, entry), column, position, times[row])


def unaligned_zeroes(geometry: Geometry, held: Tables) -> Mask:
    """Which L2 entries are zero clusters with a host cluster that is not aligned. Shapes: as the entries."""
    plain = np.isin(tables.classify(geometry, held.entries), (DATA, ALLOCATED))
    unaligned = (held.entries & tables.HOST_OFFSET) % np.uint64(geometry.cluster_size_bytes) != 0
    is_zero = (held.entries & np.uint64(1)) != 0
    if geometry.has_subclusters:
        is_zero = (held.bitmaps & ALLOCATION_BITS) == 0
    wrong: Mask = plain & unaligned & is_zero
    return wrong


def without_host(geometry: Geometry, held: Tables, which: Mask) -> Tables:
    """The tables with zero clusters that have no host cluster in the place of some entries."""
    if not geometry.has_subclusters:
        return held._replace(entries=np.where(which, np.uint64(1), held.entries))
    return held._replace(entries=np.where(which, np.uint64(0), held.entries))


def check_l2(
    geometry: Geometry, held: Tables, times: Offsets, references: References, *, mends: bool = False
) -> Iterator[Finding]:
    """Count what L2 tables use, each so many times. Returns: what is wrong with their entries.
    With `mends` zero clusters that are not aligned are not counted, for they are about to lose their host cluster.
    """
    used = _used(geometry, held, times)
    start, length = _regions(geometry, used)
    counts_here = (
        (used.kind == COMPRESSED) & (used.bitmap == 0) | used.is_plain()
        if not geometry.has_data_file
        else (np.zeros(len(start), bool))
    )
    wrong = [*_wrong_packed(geometry, used), *_wrong_plain(geometry, used)]
    if mends:
        wrong = [(findings.MENDED.get(kind, kind), where, columns) for kind, where, columns in wrong]
        counts_here &= ~next(where for kind, where, _ in wrong if kind is findings.ZERO_MENDED)
    outside = counts_here & references.outside(start, length)
    inside = counts_here & ~outside
    references.use(start[inside], length[inside], used.times[inside])
    wrong.append((findings.OUTSIDE, outside, (start, length)))
    parts = [(used.position[where], at(kind, where, *columns, times=used.times)) for kind, where, columns in wrong]
    return in_order(parts)


_Wrong = tuple[findings.Kind, Mask, tuple[NDArray[np.generic], ...]]


def _regions(geometry: Geometry, used: _Used) -> tuple[Offsets, Offsets]:
    """The host bytes of each entry; what it means for an entry that has none is of no use."""
    packed = used.kind == COMPRESSED
    descriptor = np.where(packed, used.entry & tables.DESCRIPTOR, 0).astype(np.int64)
    start, length = tables.compressed_location(geometry, descriptor)
    plain = (used.entry & tables.HOST_OFFSET).astype(np.int64)
    return np.where(packed, start, plain), np.where(packed, length, geometry.cluster_size_bytes)


def _wrong_packed(geometry: Geometry, used: _Used) -> list[_Wrong]:
    packed = used.kind == COMPRESSED
    offset = used.entry & np.uint64(bits(0, geometry.compressed_offset_bits - 1))
    entry = used.entry & ~COPIED
    return [
        (findings.L2_RESERVED, ~packed & ((used.entry & L2_RESERVED) != 0), (used.entry,)),
        (findings.PACKED_COPIED, packed & ((used.entry & COPIED) != 0), (offset,)),
        (findings.PACKED_OUTSIDE, packed & geometry.has_data_file, (used.column, entry)),
        (
            findings.PACKED_BITMAP,
            packed & (used.bitmap != 0) & (not geometry.has_data_file),
            (used.column, entry),
        ),
    ]


def _wrong_plain(geometry: Geometry, used: _Used) -> list[_Wrong]:
    plain = used.is_plain()
    offset = used.entry & tables.HOST_OFFSET
    unaligned = plain & (offset % np.uint64(geometry.cluster_size_bytes) != 0)
    holds_data = (used.bitmap & ALLOCATION_BITS) != 0 if geometry.has_subclusters else used.kind == DATA
    both = (used.bitmap >> np.uint64(32)) & used.bitmap & ALLOCATION_BITS
    return [
        (findings.BITMAP_BOTH, plain & (both != 0), (offset,)),
        (findings.ZERO_UNALIGNED, unaligned & ~holds_data, (offset,)),
        (findings.DATA_UNALIGNED, unaligned & holds_data, (offset,)),
        (findings.BITMAP_ALONE, (used.kind == 0) & ((used.bitmap & ALLOCATION_BITS) != 0), ()),
    ]


class Statistics(NamedTuple):
    """What the active L2 tables hold, in guest clusters."""

    allocated: int = 0
    fragmented: int = 0
    compressed: int = 0

    def plus(self, other: "Statistics") -> "Statistics":
        """Both together."""
        return Statistics(*(left + right for left, right in zip(self, other, strict=True)))


def statistics(geometry: Geometry, held: Tables, times: Offsets) -> Statistics:
    """Count the clusters of L2 tables, each so many times; one is fragmented when it does not follow the one before."""
    used = _used(geometry, held, times)
    packed = (used.kind == COMPRESSED) & (used.bitmap == 0) & (not geometry.has_data_file)
    plain = used.is_plain()
    offset = (used.entry[plain] & tables.HOST_OFFSET).astype(np.int64)
    row = used.position[plain] // geometry.l2_entry_count
    breaks = (row[1:] == row[:-1]) & (offset[1:] != offset[:-1] + geometry.cluster_size_bytes)
    packed_count = int(used.times[packed].sum())
    fragments = int(used.times[plain][1:][breaks].sum())
    return Statistics(int(used.times[plain].sum()) + packed_count, fragments + packed_count, packed_count)


def readable_blocks(geometry: Geometry, table: Entries, file_size_bytes: int) -> Entries:
    """The refcount table without the entries that name no cluster of the file: these count 0 for all their clusters."""
    offset = table & TABLE_OFFSET
    readable = (offset < np.uint64(file_size_bytes)) & (offset % np.uint64(geometry.cluster_size_bytes) == 0)
    return np.where(readable, table, np.uint64(0))


def unreadable_blocks(geometry: Geometry, table: Entries) -> Mask:
    """Which refcount table entries name a place that no file can have, or that is not aligned."""
    offset = table & TABLE_OFFSET
    unreadable: Mask = offset % np.uint64(geometry.cluster_size_bytes) != 0
    return unreadable | (offset >= np.uint64(OFFSET_MAX))


def is_sound_block(geometry: Geometry, table: Entries, references: References) -> Mask:
    """Which refcount table entries name a block that lies in one cluster of the file."""
    offset = table & TABLE_OFFSET
    sound: Mask = (
        (table != 0) & ((table & BLOCK_RESERVED) == 0) & (offset % np.uint64(geometry.cluster_size_bytes) == 0)
    )
    return sound & (offset >> np.uint64(geometry.cluster_bits) < np.uint64(references.cluster_count))


class BlockFindings(NamedTuple):
    """What is wrong with the refcount table; blocks that are shared or not sound must be made anew."""

    findings: tuple[Finding, ...]
    is_broken: bool


def check_refcount_table(geometry: Geometry, table: Entries, references: References) -> BlockFindings:
    """Count the refcount blocks, and find what is wrong with the refcount table."""
    offset = table & TABLE_OFFSET
    index = np.arange(len(table))
    sound = is_sound_block(geometry, table, references)
    reserved = (table & BLOCK_RESERVED) != 0
    unaligned = ~reserved & (offset % np.uint64(geometry.cluster_size_bytes) != 0)
    outside = ~(sound | reserved | unaligned) & (table != 0)
    block = offset[sound].astype(np.int64)
    before = references.uses(block >> geometry.cluster_bits).astype(np.int64)
    references.use(block, geometry.cluster_size_bytes, np.ones(len(block), np.int64))
    uses = before + _rank(block) + 1
    count = references.limit(uses.astype(np.uint64))
    shared = count != 1
    parts = [
        (index[reserved], at(findings.BLOCK_RESERVED, reserved, index)),
        (index[unaligned], at(findings.BLOCK_UNALIGNED, unaligned, index)),
        (index[outside], at(findings.BLOCK_OUTSIDE, outside, index)),
        (index[sound][shared], at(findings.BLOCK_SHARED, shared, index[sound], count)),
    ]
    return BlockFindings(tuple(in_order(parts)), bool(reserved.any() or unaligned.any() or (uses != 1).any()))


def _rank(values: Offsets) -> Offsets:
    """How many equal values stand before each one."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.concatenate(([True], ordered[1:] != ordered[:-1]))[: len(values)]
    rank = np.empty_like(values)
    rank[order] = np.arange(len(values)) - np.maximum.accumulate(np.where(first, np.arange(len(values)), 0))
    return rank


class Mismatch(NamedTuple):
    """Clusters whose count is not what their references are. Shapes: (count,)."""

    cluster: Offsets
    counted: NDArray[np.unsignedinteger]
    used: NDArray[np.unsignedinteger]

    def take(self, which: Mask) -> "Mismatch":
        """Some of them."""
        return Mismatch._make(column[which] for column in self)

    def findings(self, *, raises: bool = False, lowers: bool = False) -> Iterator[Finding]:
        """What to say about them; counts may be repaired by raising or lowering them."""
        low = self.counted < self.used
        parts = []
        for where, kind in (
            (low, findings.RAISED if raises else findings.TOO_LOW),
            (~low, findings.LOWERED if lowers else findings.TOO_HIGH),
        ):
            parts.append((self.cluster[where], at(kind, where, *self)))
        return in_order(parts)


def compare(first_cluster: int, counted: NDArray[np.unsignedinteger], references: References) -> Mismatch:
    """Compare counts from a host cluster on with what they should be."""
    used = references.limit(references.counts.window(first_cluster, first_cluster + len(counted)))
    where = np.flatnonzero(counted != used)
    return Mismatch(where + first_cluster, counted[where], used[where])


def data_in_tables(metadata: Offsets, use: TableUse, references: References) -> Offsets:
    """The clusters of tables that something else uses as well; `metadata` names each cluster of a table once."""
    bits_ = references.geometry.cluster_bits
    expected = np.ones(len(metadata), np.int64)
    expected[np.searchsorted(metadata, use.offset >> bits_)] = use.times
    shared: Offsets = metadata[references.uses(metadata).astype(np.int64) != expected]
    return shared


def blocks_in_use(references: References) -> Offsets:
    """The refcount blocks that the used clusters need, as places in the refcount table."""
    per_block, parts = references.geometry.refcount_block_entry_count, [np.empty(0, np.int64)]
    step = max(WINDOW // per_block, 1)
    for first in range(0, ceil_div(references.cluster_count, per_block), step):
        start, stop = first * per_block, min((first + step) * per_block, references.cluster_count)
        if references.counts.any_in(start, stop):
            used = references.counts.window(start, stop)
            parts.append(np.flatnonzero(np.maximum.reduceat(used, np.arange(0, len(used), per_block))) + first)
    return np.concatenate(parts)


def wrong_bitmap_entries(geometry: Geometry, entries: Entries) -> Mask:
    """Which entries of a bitmap table break a rule.
    Source: qcow2 specification, "Bitmap table".
    """
    offset = entries & tables.HOST_OFFSET
    wrong: Mask = (entries & BITMAP_RESERVED) != 0
    wrong |= (offset != 0) & ((entries & np.uint64(1)) != 0)
    wrong |= offset % np.uint64(geometry.cluster_size_bytes) != 0
    return wrong


class Counted(Protocol):
    """Something that knows reference counts."""

    def known(self, clusters: Offsets) -> Mask:
        """Which of these host clusters have a count that can be read."""

    def once(self, clusters: Offsets) -> Mask:
        """Which of them are counted once."""

    def get(self, clusters: Offsets) -> NDArray[np.unsignedinteger]:
        """Their counts; for a few clusters."""


def active_tables(geometry: Geometry, l1: Entries, counted: Counted, file_size_bytes: int) -> TableUse:
    """The L2 tables inside the file that an active L1 table names, each once, if they have a count that can be read."""
    use = add_l1(no_tables(), l1[tables.table_offsets(l1) != 0], is_active=True)
    return use.take((use.offset < file_size_bytes) & counted.known(use.offset >> geometry.cluster_bits))


def find_wrong_l1_flags(geometry: Geometry, l1: Entries, counted: Counted) -> Offsets:
    """The L1 entries whose COPIED flag contradicts the count of the table that they name."""
    index = np.flatnonzero(tables.table_offsets(l1))
    table = tables.table_offsets(l1[index]) >> geometry.cluster_bits
    wrong: Offsets = index[counted.known(table) & (((l1[index] & COPIED) != 0) != counted.once(table))]
    return wrong


def find_wrong_flags(geometry: Geometry, entries: Entries, counted: Counted) -> Mask:
    """Which L2 entries have a COPIED flag that contradicts the count of their cluster; compressed ones have none.
    With an external data file every cluster of data counts as used once.
    """
    plain = np.isin(tables.classify(geometry, entries), (DATA, ALLOCATED))
    has_flag = (entries & COPIED) != 0
    cluster = (entries & tables.HOST_OFFSET).astype(np.int64) >> geometry.cluster_bits
    wrong: Mask = plain & ~has_flag
    if not geometry.has_data_file:
        wrong = plain & counted.known(cluster) & (has_flag != counted.once(cluster))
    return wrong


def l1_flag_findings(geometry: Geometry, l1: Entries, wrong: Offsets, counted: Counted) -> Finding:
    """What to say about L1 entries with a wrong flag."""
    count = counted.get(tables.table_offsets(l1[wrong]) >> geometry.cluster_bits)
    return at(findings.TABLE_FLAG, np.arange(len(wrong)), wrong, l1[wrong], count)


def flag_findings(geometry: Geometry, entries: Entries, times: Offsets, counted: Counted) -> Finding:
    """What to say about L2 entries with a wrong flag, each said of so many tables."""
    count = np.ones(len(entries), np.uint64)
    if not geometry.has_data_file:
        cluster = (entries & tables.HOST_OFFSET).astype(np.int64) >> geometry.cluster_bits
        count = counted.get(cluster).astype(np.uint64)
    return at(findings.DATA_FLAG, np.arange(len(entries)), entries, count, times=times)
