"""Resize: the disk of an image gets another size.

A larger one shows zeroes where it is new, whatever the image and its backing file hold there; that is put first, and
the size changes last. A smaller one gets its size first; then nobody sees what lies past its end, and that may go.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np

from cowtree import extents as ex
from cowtree.errors import Refused
from cowtree.extents import Extents, Mask, Offsets, Ranges
from cowtree.plan.bitmap import refuse_resize
from cowtree.plan.create import FALLOC, FILL_BYTES, FULL
from cowtree.plan.growth import refuse_old_snapshots
from cowtree.plan.put import (
    Demand,
    Wish,
    count_down,
    entry_users,
    move_tables,
    refcount_table_clusters,
    refuse_tables,
)
from cowtree.qcow2 import tables, writes
from cowtree.qcow2.allocate import allocate
from cowtree.qcow2.geometry import L1_BYTES_MAX, L1_ENTRY_BYTES, round_up
from cowtree.qcow2.image import Image, Slice
from cowtree.qcow2.tables import COPIED, Tables
from cowtree.steps import Allocate, Step, Write
from cowtree.units import SECTOR_BYTES

ENTRIES_PER_WINDOW: Final = 1 << 18


def refuse(image: Image, size_bytes: int) -> None:
    """Refuse a disk size that an image cannot have. Raises: Refused in QEMU's words."""
    if size_bytes % SECTOR_BYTES:
        raise Refused(reason=f"The new size must be a multiple of {SECTOR_BYTES}")
    refuse_old_snapshots(image)
    refuse_resize(image.bitmaps)
    if image.geometry.l1_entry_count(size_bytes) * L1_ENTRY_BYTES > L1_BYTES_MAX:
        hint = f"convert {image.path} to an image with larger clusters first"
        raise Refused(reason="Failed to grow the L1 table: File too large", hint=hint)


def refuse_hiding(image: Image, size_bytes: int, backing_bytes: int) -> None:
    """Refuse to grow over a backing file that is longer without zero clusters. Raises: Refused in QEMU's words."""
    old_bytes = image.header.size_bytes
    end_bytes = round_up(old_bytes, image.geometry.cluster_size_bytes)
    if image.header.version < 3 and backing_bytes > old_bytes and size_bytes > end_bytes:
        reason = "Failed to zero out new clusters: Operation not supported"
        raise Refused(reason=reason, hint="the same with --preallocation=falloc")


def growth_wish(new: Ranges, views: tuple[Extents, Extents], *, has_backing: bool, fills: bool) -> Wish:
    """What one window of a disk that grows must hold where it is `new`; `views` are what it shows, and would show when
    it had grown and nothing were put.
    """
    return Wish(ex.fill(new, ex.ZERO), *views, has_backing, fills, leaves_holes=True)


def fill_steps(found: Extents, preallocation: str) -> Iterator[Step]:
    """Steps that give space on disk to the host clusters of new guest data, or really write its zeroes."""
    data = found.of_kind(*ex.MOVING)
    for start, length in zip(data.host_offset.tolist(), data.length.tolist(), strict=True):
        if preallocation == FALLOC:
            yield Allocate(start, length)
        if preallocation == FULL:
            for first in range(0, length, FILL_BYTES):
                yield Write(start + first, bytes(min(FILL_BYTES, length - first)))


def windows(image: Image, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Guest ranges past a size in which the image has L2 tables, each with a bounded number of entries."""
    geometry = image.geometry
    span, step = geometry.l2_span_bytes, max(ENTRIES_PER_WINDOW // geometry.l2_entry_count, 1)
    index = np.flatnonzero(tables.table_offsets(image.l1))
    index = index[index >= size_bytes // span]
    for first in range(0, len(index), step):
        part = index[first : first + step]
        yield int(part[0]) * span, (int(part[-1]) + 1) * span


def demand(image: Image, held: Tables, size_bytes: int) -> Demand:
    """Say which counts `cut` needs."""
    lost = _lost(image, held, size_bytes)
    gone, changed = _fates(held, lost)
    clusters = np.concatenate((_released(image, held, lost), refcount_table_clusters(image)))
    return Demand(clusters, len(_shared(image, held.l1_index[changed & ~gone])))


def cut(piece: Slice, size_bytes: int) -> tuple[list[Step], Image]:
    """Let go what guest clusters past the end hold, and the L2 tables that hold nothing then.
    Returns: the steps, and the image after them.
    Raises: BrokenTable.
    """
    image, held = piece.image, piece.tables
    lost = _lost(image, held, size_bytes)
    gone, changed = _fates(held, lost)
    shared = _shared(image, held.l1_index[changed & ~gone])
    taken, counted = allocate(piece, len(shared))
    refuse_tables(counted.image, taken)
    counts = count_down(image.path, counted.counts, _released(image, held, lost))
    moved = move_tables(counted._replace(counts=counts), shared, taken)
    where = lost & (changed & ~gone)[:, None]
    entries, bitmaps, l1 = moved.tables.entries.copy(), moved.tables.bitmaps.copy(), moved.image.l1.copy()
    entries[where] = 0
    if bitmaps.shape[1]:
        bitmaps[where] = 0
    l1[held.l1_index[gone]] = 0
    tables_after = moved.tables._replace(entries=entries, bitmaps=bitmaps)
    new = moved._replace(image=moved.image._replace(l1=l1), tables=tables_after)
    return writes.order(piece, new), new.image


def _lost(image: Image, held: Tables, size_bytes: int) -> Mask:
    """Which entries of these tables are for guest clusters that lie past the end."""
    count = image.geometry.l2_entry_count
    cluster = held.l1_index[:, None] * count + np.arange(count)
    found: Mask = cluster >= image.geometry.cluster_count(size_bytes)
    return found


def _fates(held: Tables, lost: Mask) -> tuple[Mask, Mask]:
    """Which tables hold nothing when the lost entries are gone, and which are not the same then."""
    used = held.entries != 0
    if held.bitmaps.shape[1]:
        used = used | (held.bitmaps != 0)
    changed: Mask = (used & lost).any(axis=1)
    # A table that is empty already goes when all of it lies past the end.
    gone: Mask = ~(used & ~lost).any(axis=1) & (changed | lost.all(axis=1))
    return gone, changed


def _shared(image: Image, l1_index: Offsets) -> Offsets:
    """Those of these L1 indices whose table a snapshot has as well."""
    found: Offsets = l1_index[(image.l1[l1_index] & COPIED) == 0]
    return found


def _released(image: Image, held: Tables, lost: Mask) -> Offsets:
    """The host clusters that lose users, each as often: of guest clusters, and of tables."""
    gone, changed = _fates(held, lost)
    is_shared = (image.l1[held.l1_index] & COPIED) == 0
    left = held.host_offset[gone | (changed & is_shared)] >> image.header.cluster_bits
    return np.concatenate((entry_users(image.geometry, held.entries[lost]), left))
