"""Internal snapshots: what is counted, flagged and written when one is made, applied or deleted.

A tree is an L1 table and all that it leads to: the active one, and one for each snapshot. Trees share L2 tables and
clusters, which are counted once for each tree.

    create   the flags of the active tree go; its counts go up; the header learns of a table with one more snapshot
    apply    the flags of the snapshot's tree go; its counts go up; the header learns of a copy of its L1 table;
             the counts of the tree that was active go down
    delete   the header learns of a table with one snapshot less; the counts of its tree go down; flags come back

So nothing is ever flagged as used once that another tree uses, and what a tree uses is never counted too low.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cowtree.errors import BrokenTable, Refused
from cowtree.extents import Mask, Offsets, is_among
from cowtree.qcow2 import check, snapshots, tables, writes
from cowtree.qcow2.allocate import allocate_run
from cowtree.qcow2.check import References
from cowtree.qcow2.findings import Finding
from cowtree.qcow2.geometry import L1_BYTES_MAX, L1_ENTRY_BYTES, SNAPSHOT_COUNT_MAX, Geometry
from cowtree.qcow2.image import Image, Slice, no_slice
from cowtree.qcow2.refcounts import Counts
from cowtree.qcow2.snapshots import EXTRA_DATA, Snapshot
from cowtree.qcow2.tables import COMPRESSED_FLAG, COPIED, Entries, Tables, table_offsets
from cowtree.records import bits
from cowtree.steps import Step
from cowtree.units import SECTOR_BYTES

NAME_BYTES_MAX: Final = 255
NEEDS_ROOM: Final = "give the image wider reference counts: cowtree img convert -O qcow2 -o refcount_bits=16"
_ID_MAX: Final = (1 << 64) - 1
# Source: what strtoul takes before a number.
_NUMBER: Final = re.compile(r"[ \t\n\v\f\r]*([+-]?)(\d+)", re.ASCII)

Uses = NDArray[np.unsignedinteger]


def find(found: Sequence[Snapshot], wanted: str) -> Snapshot | None:
    """The first snapshot with this ID, or else the first one of this name."""
    with_id = (each for each in found if each.id == wanted)
    return next(with_id, None) or find_name(found, wanted)


def find_name(found: Sequence[Snapshot], name: str) -> Snapshot | None:
    """The first snapshot of this name."""
    return next((each for each in found if each.name == name), None)


def next_id(found: Sequence[Snapshot]) -> str:
    """One more than the largest ID; an ID that is no number counts as the number it starts with, or 0."""
    return str((max([0, *(_number(each.id) for each in found)]) + 1) & _ID_MAX)


def _number(text: str) -> int:
    start = _NUMBER.match(text)
    if start is None:
        return 0
    number = min(int(start[2]), _ID_MAX)
    return -number & _ID_MAX if start[1] == "-" and number < _ID_MAX else number


def new_entry(image: Image, name: str, time_ns: int) -> Snapshot:
    """The snapshot of the disk as it is; it has no L1 table yet. As in QEMU a long name is cut, and time has whole
    microseconds.
    Raises: Refused when the image can have no more snapshots.
    """
    if len(image.snapshots) >= SNAPSHOT_COUNT_MAX:
        raise Refused(reason=f"{image.path} has {len(image.snapshots)} snapshots already", cause="EFBIG")
    return Snapshot(
        id=next_id(image.snapshots),
        name=name.encode("utf-8", "surrogateescape")[:NAME_BYTES_MAX].decode("utf-8", "surrogateescape"),
        l1_table_offset=0,
        l1_entry_count=len(image.l1),
        time_s=time_ns // 10**9,
        time_ns=time_ns % 10**9 // 1000 * 1000,
        vm_clock_ns=0,
        vm_state_bytes=0,
        size_bytes=image.header.size_bytes // SECTOR_BYTES * SECTOR_BYTES,
        icount=0,
        extra_data=bytes(EXTRA_DATA.size_bytes),
    )


def count_l1(image: Image, l1: Entries, uses: References) -> None:
    """Count the L2 tables of a tree; each must be another one.
    Raises: BrokenTable.
    """
    tables.check_l1(image.path, image.geometry, l1, image.file_size_bytes)
    offset = np.sort(_tables_of(l1))
    twice = offset[1:][offset[1:] == offset[:-1]]
    if len(twice):
        raise BrokenTable(path=image.path, reason=f"an L1 table names the L2 table at byte {twice[0]} twice")
    uses.use_clusters(offset >> image.header.cluster_bits)


def _tables_of(l1: Entries) -> Offsets:
    return table_offsets(l1[table_offsets(l1) != 0])


def have_same_tables(one: Entries, other: Entries) -> bool:
    """Whether two L1 tables name the same L2 tables at the same places."""
    return np.array_equal(table_offsets(one), table_offsets(other))


def count_l2(geometry: Geometry, held: Tables, uses: References) -> Iterator[Finding]:
    """Count what L2 tables of a tree use. Returns: what is wrong with their entries."""
    entries = held.entries.ravel()
    plain = bits(geometry.cluster_bits, 55) | int(COPIED | tables.ZERO_FLAG)
    if not int(np.bitwise_or.reduce(entries)) & ~plain:
        cluster = ((entries & tables.HOST_OFFSET) >> np.uint64(geometry.cluster_bits)).astype(np.int64)
        if not cluster.all():
            cluster = cluster[cluster != 0]
        if not len(cluster) or int(cluster.max()) < uses.cluster_count:
            uses.use_clusters(cluster)
            return
    # Rarer entries, and wrong ones, take more looking.
    yield from check.check_l2(geometry, held, np.ones(len(held.l1_index), np.int64), uses)


def refuse_data_in_tables(image: Image, l1: Entries, uses: References) -> None:
    """Refuse a tree that takes for guest data what is a table. Raises: BrokenTable."""
    metadata = image.metadata_clusters()
    own = is_among(metadata, np.sort(_tables_of(l1)) >> image.header.cluster_bits)
    shared = metadata[uses.uses(metadata) != own]
    if len(shared):
        reason = f"guest data lies in host cluster {shared[0]}, which holds a table"
        raise BrokenTable(path=image.path, reason=reason)


def check_counts(image: Image, counts: Counts, uses: Uses, *, raises: bool) -> None:
    """Refuse to raise counts by so many uses, or to lower them, where that cannot be done.
    Raises: Refused when one would not fit; BrokenTable when one is too low already.
    """
    low = (counts.counts == 0) & (uses != 0) if raises else counts.counts < uses
    if low.any():
        cluster, counted = _first(counts, low)
        reason = f"host cluster {cluster} is in use but counted {counted} times"
        raise BrokenTable(path=image.path, reason=reason, cause="EINVAL")
    most = counts.counts.dtype.type(image.geometry.refcount_max)
    full = (most - counts.counts < uses) & raises
    if full.any():
        cluster, counted = _first(counts, full)
        reason = f"host cluster {cluster} is counted {counted} times, and {most} is the most that can be counted"
        raise Refused(reason=reason, hint=NEEDS_ROOM, cause="EINVAL")


def _first(counts: Counts, where: Mask) -> tuple[int, int]:
    row, column = (int(each) for each in np.unravel_index(int(where.argmax()), where.shape))
    cluster = int(counts.block_index[row]) * counts.counts.shape[1] + column
    return cluster, int(counts.counts[row, column])


def raised(counts: Counts, uses: Uses) -> Counts:
    """The counts with so many users more."""
    return counts._replace(counts=counts.counts + uses.astype(counts.counts.dtype))


def lowered(counts: Counts, uses: Uses) -> Counts:
    """The counts with so many users less."""
    return counts._replace(counts=counts.counts - uses.astype(counts.counts.dtype))


def blocks_of(image: Image, uses: References) -> Offsets:
    """The refcount blocks that count what a tree uses, as places in the refcount table.
    Raises: BrokenTable when one is missing.
    """
    index = check.blocks_in_use(uses)
    inside = index < len(image.refcount_table)
    missing = np.concatenate((index[~inside], index[inside][image.refcount_table[index[inside]] == 0]))
    if len(missing):
        cluster = int(missing[0]) * image.geometry.refcount_block_entry_count
        reason = f"clusters from {cluster} on are in use but have no reference counts"
        raise BrokenTable(path=image.path, reason=reason, cause="EINVAL")
    return index


def without_flags(held: Tables) -> list[Step]:
    """Steps that take the COPIED flags of L2 tables away."""
    return writes.entry_writes(held, held._replace(entries=held.entries & ~COPIED))


def with_flags(image: Image, held: Tables, is_single: Mask) -> list[Step]:
    """Steps that give L2 tables the flags of clusters that are now used once, once it is durable that they are."""
    flags = _flags(image, held.entries, is_single)
    packed = held.entries & COMPRESSED_FLAG
    if packed.any():
        flags[packed != 0] = tables.NONE
    return writes.entry_writes(held, held._replace(entries=held.entries | flags))


def _flags(image: Image, entries: Entries, is_single: Mask) -> Entries:
    """The flag for each entry whose cluster is used once; what lies past the end of the file is not."""
    cluster = (entries & tables.HOST_OFFSET) >> np.uint64(image.header.cluster_bits)
    is_flagged = is_single.take(cluster.astype(np.int64), mode="clip")
    return is_flagged.astype(np.uint64) << np.uint64(63)


def change_l1(image: Image, l1: Entries) -> tuple[list[Step], Image]:
    """Steps that change entries of the active L1 table."""
    old, changed = no_slice(image), image._replace(l1=l1)
    return writes.order(old, old._replace(image=changed)), changed


def l1_with_flags(image: Image, is_single: Mask) -> Entries:
    """The active L1 table with the flags of tables that are now used once."""
    return image.l1 | _flags(image, image.l1, is_single)


def take(piece: Slice, lengths: Sequence[int]) -> tuple[list[int], list[Step], Image]:
    """Count clusters for new tables of these lengths; the slice holds all blocks with room for them.
    Returns: where each table goes, the steps that make it durable that this room is counted, and the image.
    Raises: Refused, BrokenTable.
    """
    image, changed, offsets = piece.image, piece, []
    for length in lengths:
        cluster, count = 0, image.geometry.cluster_count(length)
        if count:
            cluster, changed = allocate_run(changed, count)
            hit = image.tables_among(np.arange(cluster, cluster + count))
            if len(hit):
                reason = f"host cluster {hit[0]} is counted as free, but holds a table"
                raise BrokenTable(path=image.path, reason=reason, cause="EIO")
        offsets.append(cluster << image.header.cluster_bits)
    return offsets, writes.order(piece, changed), changed.image


def packed(image: Image, found: Sequence[Snapshot]) -> bytes:
    """The snapshot table. Raises: Refused when it is longer than any reader accepts."""
    data = snapshots.pack(found)
    if len(data) > snapshots.TABLE_BYTES_MAX:
        reason = f"{image.path}: the snapshot table would be too long"
        raise Refused(reason=reason, hint="delete other snapshots, or use shorter names", cause="EFBIG")
    return data


def with_snapshots(image: Image, found: Sequence[Snapshot], offset: int, length: int) -> Image:
    """The image with other snapshots, the table of which lies here; their L1 tables are not loaded."""
    header = image.header._replace(snapshot_count=len(found), snapshot_table_offset=offset)
    return image._replace(header=header, snapshots=tuple(found), snapshot_table_bytes=length, snapshot_l1s=())


def applied_l1(image: Image, snapshot: Snapshot, l1: Entries) -> Entries:
    """The active L1 table once the snapshot is applied: long enough for the disk as it was, and without flags.
    Raises: Refused when no L1 table can be so long, or the disk's size must not change.
    """
    if _changes_size(image, snapshot) and image.header.version < 3:
        reason = "Can't resize a v2 image which has snapshots"
        raise Refused(reason=reason, hint=f"convert {image.path} to compat=1.1", cause="ENOTSUP")
    if snapshot.size_bytes % SECTOR_BYTES:
        raise Refused(reason=f"The new size must be a multiple of {SECTOR_BYTES}", cause="EINVAL")
    count = max(len(l1), image.geometry.l1_entry_count(snapshot.size_bytes))
    if count * L1_ENTRY_BYTES > L1_BYTES_MAX:
        reason = f"{image.path}: a disk of {snapshot.size_bytes} bytes is too large for its clusters"
        raise Refused(reason=reason, cause="EFBIG")
    return np.concatenate((l1 & ~COPIED, np.zeros(count - len(l1), np.uint64)))


def _changes_size(image: Image, snapshot: Snapshot) -> bool:
    # What lies behind the last whole sector is no part of the disk.
    return snapshot.size_bytes != image.header.size_bytes // SECTOR_BYTES * SECTOR_BYTES


def with_l1(image: Image, snapshot: Snapshot, l1: Entries, offset: int) -> Image:
    """The image with the disk of a snapshot, whose L1 table lies here for it."""
    size_bytes = snapshot.size_bytes if _changes_size(image, snapshot) else image.header.size_bytes
    header = image.header._replace(l1_table_offset=offset, l1_entry_count=len(l1), size_bytes=size_bytes)
    return image._replace(header=header, l1=l1)
