"""L1 and L2 tables: entries into extents, and every rule about one entry.

A `Tables` holds only the L2 tables that exist, so a sparse image costs what it holds. Entries are native uint64 in
memory and big-endian on disk. With subclusters an entry is a pair: the entry itself and its bitmap.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cowtree.errors import BrokenTable
from cowtree.extents import (
    ALLOCATED,
    COMPRESSED,
    DATA,
    MOVING,
    ZERO,
    Extents,
    Mask,
    Offsets,
    Ranges,
    coalesce,
    concatenate,
    empty,
    intersect,
    merge_ranges,
)
from cowtree.qcow2.geometry import L1_ENTRY_BYTES, SUBCLUSTER_COUNT, Geometry, round_up
from cowtree.records import bits

Entries = NDArray[np.uint64]

# Source: qcow2 specification, "Cluster mapping".
COPIED: Final = np.uint64(1 << 63)
COMPRESSED_FLAG: Final = np.uint64(1 << 62)
HOST_OFFSET: Final = np.uint64(bits(9, 55))
ZERO_FLAG: Final = np.uint64(1)
DESCRIPTOR: Final = np.uint64(bits(0, 61))
NONE: Final = np.uint64(0)
# Source: qcow2 specification, "Extended L2 Entries".
ALL_ALLOCATED: Final = np.uint64(bits(0, 31))
ALL_ZERO: Final = np.uint64(bits(32, 63))
MIXED: Final = 255


class Tables(NamedTuple):
    """Some L2 tables of one image, sorted by their place in the L1 table.
    Shapes: l1_index and host_offset int64 (count,); entries uint64 (count, l2_entry_count) and, with subclusters,
    bitmaps of the same shape, else (count, 0).
    """

    l1_index: Offsets
    host_offset: Offsets
    entries: Entries
    bitmaps: Entries

    def rows_of(self, l1_index: Offsets) -> Offsets:
        """The row of each L1 index; all of them must be here."""
        return np.searchsorted(self.l1_index, l1_index)


def decode(geometry: Geometry, l1_index: Offsets, host_offset: Offsets, data: bytes | memoryview) -> Tables:
    """Turn the bytes of L2 tables, one behind the other, into a value."""
    words = np.frombuffer(data, ">u8").astype(np.uint64)
    count = geometry.l2_entry_count
    if geometry.has_subclusters:
        pairs = words.reshape(len(l1_index), count, 2)
        return Tables(l1_index, host_offset, pairs[:, :, 0].copy(), pairs[:, :, 1].copy())
    entries = words.reshape(len(l1_index), count)
    return Tables(l1_index, host_offset, entries, np.empty((len(l1_index), 0), np.uint64))


def encode_words(words: Entries) -> bytes:
    """Entries as they stand on disk."""
    return words.astype(">u8").tobytes()


def decode_words(data: bytes) -> Entries:
    """A table of 64-bit entries, such as an L1 table or a refcount table."""
    return np.frombuffer(data, ">u8").astype(np.uint64)


def table_offsets(l1: Entries) -> Offsets:
    """Where each L1 entry says its L2 table is; 0 when there is none."""
    return (l1 & HOST_OFFSET).astype(np.int64)


def check_l1(path: str, geometry: Geometry, l1: Entries, size_bytes: int) -> None:
    """Refuse an L1 table with an entry that no reader may follow.
    Raises: BrokenTable when one is not aligned, or points past the end of the file.
    """
    for bad, what in _l1_faults(geometry, l1, size_bytes):
        wrong = np.flatnonzero(bad)
        if len(wrong):
            where = f"L1 entry {wrong[0]} points at byte {table_offsets(l1)[wrong[0]]}, which {what}"
            raise BrokenTable(path=path, reason=where)


def broken_l1(geometry: Geometry, l1: Entries, size_bytes: int) -> Mask:
    """Which L1 entries `check_l1` would refuse."""
    (unaligned, _), (outside, _) = _l1_faults(geometry, l1, size_bytes)
    return unaligned | outside


def _l1_faults(geometry: Geometry, l1: Entries, size_bytes: int) -> tuple[tuple[Mask, str], tuple[Mask, str]]:
    offsets = table_offsets(l1)
    used, end = offsets != 0, round_up(size_bytes, geometry.cluster_size_bytes)
    return (
        (used & (offsets % geometry.cluster_size_bytes != 0), "is not aligned to a cluster"),
        (used & (offsets + geometry.cluster_size_bytes > end), f"is past the end of the file ({size_bytes})"),
    )


def compressed_location(geometry: Geometry, descriptor: Offsets) -> tuple[Offsets, Offsets]:
    """Where compressed clusters lie: byte offsets, and lengths up to the end of the last sector.
    Source: qcow2 specification, "Compressed Clusters Descriptor".
    """
    offset_bits = geometry.compressed_offset_bits
    offset = descriptor & ((1 << offset_bits) - 1)
    sector_count = ((descriptor >> offset_bits) & ((1 << (62 - offset_bits)) - 1)) + 1
    return offset, sector_count * 512 - (offset & 511)


def classify(geometry: Geometry, entries: Entries) -> NDArray[np.uint8]:
    """The extent kind of each entry, whatever its subclusters say; 0 where nothing is allocated."""
    has_offset = (entries & HOST_OFFSET) != 0
    if geometry.has_data_file:
        # Byte 0 of an external data file is guest data; only the flag tells it from no data.
        has_offset |= (entries & (COPIED | ZERO_FLAG)) == COPIED
    zero = (entries & ZERO_FLAG) != 0 if not geometry.has_subclusters else np.zeros(entries.shape, bool)
    kind = np.where(has_offset, np.where(zero, ALLOCATED, DATA), np.where(zero, ZERO, 0))
    return np.where((entries & COMPRESSED_FLAG) != 0, COMPRESSED, kind).astype(np.uint8)


def host_offsets(entries: Entries, kind: NDArray[np.uint8]) -> Offsets:
    """The `host_offset` column of an extent for each entry."""
    plain = np.where(kind == COMPRESSED, entries & DESCRIPTOR, entries & HOST_OFFSET)
    return plain.astype(np.int64)


def to_extents(path: str, geometry: Geometry, tables: Tables, size_bytes: int) -> Extents:
    """What these tables allocate, as extents of layer 0, in guest order, not clipped to the disk's size.
    `size_bytes` is the length of the image file.
    Raises: BrokenTable when an entry breaks a rule.
    """
    used, found = _used(geometry, tables)
    if not len(used):
        return empty()
    _check_entries(path, geometry, found, size_bytes)
    if geometry.has_subclusters:
        columns = found.start, found.kind, found.host_offset
        found = _split_subclusters(path, geometry, columns, tables.bitmaps.ravel()[used])
    return coalesce(found.take(found.kind != 0))


def without_broken(geometry: Geometry, tables: Tables, size_bytes: int) -> tuple[Tables, Offsets]:
    """The tables without the entries that `to_extents` would refuse, and the guest clusters of these, sorted."""
    used, found = _used(geometry, tables)
    bad = np.zeros(len(used), np.bool_)
    for wrong, _ in _faults(geometry, found, size_bytes):
        bad |= wrong
    if geometry.has_subclusters:
        bad |= (found.kind != COMPRESSED) & _is_impossible(found.kind, tables.bitmaps.ravel()[used])
    kept = np.ones(tables.entries.shape, np.bool_)
    kept.flat[used[bad]] = False
    bitmaps = np.where(kept, tables.bitmaps, NONE) if geometry.has_subclusters else tables.bitmaps
    sound = tables._replace(entries=np.where(kept, tables.entries, NONE), bitmaps=bitmaps)
    return sound, found.start[bad] >> geometry.cluster_bits


def _used(geometry: Geometry, tables: Tables) -> tuple[Offsets, Extents]:
    """Where an entry says something, and these clusters as extents, whatever their subclusters say."""
    flat = tables.entries.ravel()
    used = np.flatnonzero(flat) if not geometry.has_subclusters else np.flatnonzero(flat | tables.bitmaps.ravel())
    entries = flat[used]
    row, column = np.divmod(used, geometry.l2_entry_count)
    guest = (tables.l1_index[row] * geometry.l2_entry_count + column) << geometry.cluster_bits
    kind = classify(geometry, entries)
    length = np.full(len(used), geometry.cluster_size_bytes, np.int64)
    return used, Extents(guest, length, kind, np.zeros(len(used), np.int16), host_offsets(entries, kind))


def within(geometry: Geometry, tables: Tables, start: int, stop: int) -> Tables:
    """The tables with nothing in the clusters that lie outside of the guest range."""
    first, last = start >> geometry.cluster_bits, -(-stop // geometry.cluster_size_bytes)
    cluster = tables.l1_index[:, None] * geometry.l2_entry_count + np.arange(geometry.l2_entry_count)
    inside = (cluster >= first) & (cluster < last)
    entries, bitmaps = (np.where(inside, each, NONE) for each in (tables.entries, tables.bitmaps))
    return tables._replace(entries=entries, bitmaps=bitmaps)


def clusters(geometry: Geometry, tables: Tables) -> Extents:
    """The clusters that have a host cluster of their own, whatever their subclusters say, as DATA of layer 0."""
    row, column = np.nonzero(np.isin(classify(geometry, tables.entries), MOVING))
    guest = (tables.l1_index[row] * geometry.l2_entry_count + column) << geometry.cluster_bits
    length, kind = np.full(len(guest), geometry.cluster_size_bytes), np.full(len(guest), DATA, np.uint8)
    host = host_offsets(tables.entries[row, column], kind)
    return Extents(guest, length, kind, np.zeros(len(guest), np.int16), host)


def _faults(geometry: Geometry, found: Extents, size_bytes: int) -> Iterator[tuple[Mask, str]]:
    """Which entries break each rule, and what they do."""
    cluster_size = geometry.cluster_size_bytes
    end = round_up(size_bytes, cluster_size)
    packed = found.kind == COMPRESSED
    # Most images hold nothing compressed, and this is asked of each of their entries.
    start, length = compressed_location(geometry, found.host_offset) if packed.any() else (found.host_offset,) * 2
    stop = np.where(packed, start + length - 511, found.host_offset + cluster_size)
    in_header = np.where(packed, start < cluster_size, (found.host_offset < cluster_size) & (found.host_offset > 0))
    yield from (
        (~packed & (found.host_offset % cluster_size != 0), "is not aligned to a cluster"),
        (stop > np.where(found.host_offset != 0, end, stop), f"is past the end of the file ({size_bytes})"),
        (in_header, "is inside the header"),
        (_is_foreign(geometry, found), "is not where an external data file holds it"),
        ((found.kind == ZERO) | (found.kind == ALLOCATED) if geometry.version < 3 else packed & False, "a zero flag"),
    )


def _check_entries(path: str, geometry: Geometry, found: Extents, size_bytes: int) -> None:
    for bad, what in _faults(geometry, found, size_bytes):
        wrong = np.flatnonzero(bad)
        if len(wrong):
            index = wrong[0]
            place = int(found.host_offset[index])
            if found.kind[index] == COMPRESSED:
                place = int(compressed_location(geometry, found.host_offset[wrong[:1]])[0][0])
            where = f"the L2 entry of guest byte {found.start[index]} points at byte {place}, which {what}"
            if what == "a zero flag":
                where = f"Zero cluster entry found in pre-v3 image (guest byte {found.start[index]})"
            raise BrokenTable(path=path, reason=where)


def _is_foreign(geometry: Geometry, found: Extents) -> Mask:
    """Which entries no image with an external data file may have: in that a guest's byte lies at its own offset.
    Source: QEMU refuses them when it reads.
    """
    moved = (found.kind == COMPRESSED) | (np.isin(found.kind, MOVING) & (found.host_offset != found.start))
    foreign: Mask = moved & geometry.has_data_file
    return foreign


def _split_subclusters(
    path: str, geometry: Geometry, columns: tuple[Offsets, NDArray[np.uint8], Offsets], bitmaps: Entries
) -> Extents:
    """One extent per cluster whose subclusters are all alike, and 32 for any other.
    Source: qcow2 specification, "Extended L2 Entries".
    """
    guest, kind, host = columns
    whole_kind = _kind_of_whole(kind, bitmaps)
    mixed = whole_kind == MIXED
    length = np.full(len(guest), geometry.cluster_size_bytes)
    whole = Extents(guest, length, whole_kind, np.zeros(len(guest), np.int16), host).take(~mixed)
    return concatenate([whole, _split_mixed(path, geometry, (guest[mixed], kind[mixed], host[mixed]), bitmaps[mixed])])


def _kind_of_whole(kind: NDArray[np.uint8], bitmaps: Entries) -> NDArray[np.uint8]:
    """The extent kind of clusters whose subclusters are all alike, MIXED of others."""
    zero = np.where(kind == DATA, ALLOCATED, ZERO)
    choices = (
        (kind == COMPRESSED, COMPRESSED),
        ((kind == DATA) & (bitmaps == ALL_ALLOCATED), DATA),
        (bitmaps == ALL_ZERO, zero),
        (bitmaps == 0, 0),
    )
    return np.select([where for where, _ in choices], [value for _, value in choices], MIXED).astype(np.uint8)


def _split_mixed(
    path: str, geometry: Geometry, columns: tuple[Offsets, NDArray[np.uint8], Offsets], bitmaps: Entries
) -> Extents:
    """One extent per subcluster; 32 of them make a cluster."""
    guest, kind, host = columns
    index = np.arange(SUBCLUSTER_COUNT, dtype=np.uint64)
    allocated = (bitmaps[:, None] >> index & np.uint64(1)).astype(bool)
    zero = (bitmaps[:, None] >> (index + np.uint64(32)) & np.uint64(1)).astype(bool)
    has_host = (kind == DATA)[:, None]
    if _is_impossible(kind, bitmaps).any():
        raise BrokenTable(path=path, reason="an extended L2 entry has an impossible subcluster bitmap")
    size = geometry.cluster_size_bytes // SUBCLUSTER_COUNT
    step = index.astype(np.int64) * size
    kinds = np.where(allocated, DATA, np.where(zero, np.where(has_host, ALLOCATED, ZERO), 0))
    starts, hosts = guest[:, None] + step, host[:, None] + np.where(has_host, step, 0)
    length = np.full(starts.size, size)
    layer = np.zeros(starts.size, np.int16)
    return Extents(starts.ravel(), length, kinds.ravel().astype(np.uint8), layer, hosts.ravel())


def _is_impossible(kind: NDArray[np.uint8], bitmaps: Entries) -> Mask:
    """Which bitmaps say of a subcluster that it is allocated, and also that it is zero or has no host cluster."""
    allocated = bitmaps & ALL_ALLOCATED
    both = (allocated & bitmaps >> np.uint64(SUBCLUSTER_COUNT)) != 0
    impossible: Mask = both | ((allocated != 0) & (kind != DATA))
    return impossible


def to_bits(geometry: Geometry, cluster: Offsets, ranges: Ranges) -> Entries:
    """Which subclusters of some sorted clusters the ranges cover, a bit for each, the lowest for the first.
    `ranges` are joined, and of whole subclusters.
    """
    bits, size = geometry.cluster_bits, geometry.subcluster_size_bytes
    parts = intersect(Ranges(cluster << bits, (cluster + 1) << bits), ranges)
    row = np.searchsorted(cluster, parts.start >> bits)
    start = cluster[row] << bits
    first, last = (parts.start - start) // size, (parts.stop - start) // size
    return np.bincount(row, (1 << last) - (1 << first), len(cluster)).astype(np.uint64)


def from_bits(geometry: Geometry, cluster: Offsets, bits: Entries) -> Ranges:
    """The ranges of the subclusters whose bits are set, joined."""
    some = np.flatnonzero(bits)
    chosen, size = bits[some].astype("<u4"), geometry.subcluster_size_bytes
    # A run begins where the bit before is not set, and ends where the next one is not.
    firsts, lasts = chosen & ~(chosen << np.uint32(1)), chosen & ~(chosen >> np.uint32(1))
    (row, first), (_, last) = (np.nonzero(_unpacked(each)) for each in (firsts, lasts))
    start = cluster[some][row] << geometry.cluster_bits
    return merge_ranges(Ranges(start + first * size, start + (last + 1) * size))


def _unpacked(bits: NDArray[np.uint32]) -> NDArray[np.uint8]:
    return np.unpackbits(bits.view(np.uint8).reshape(-1, 4), axis=1, bitorder="little")


def l1_range(geometry: Geometry, start: int, stop: int) -> tuple[int, int]:
    """The L1 indices whose tables map some guest byte of the range, half-open."""
    return start // geometry.l2_span_bytes, -(-stop // geometry.l2_span_bytes)


def l1_bytes(l1: Entries) -> int:
    """Length of the table on disk."""
    return len(l1) * L1_ENTRY_BYTES
