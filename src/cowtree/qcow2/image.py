"""An image as one frozen value: its header and the tables that are small enough to hold whole.

L2 tables and refcount blocks are many, so they come and go in slices: `Slice` is the image together with those tables
and blocks that one window of work touches. An edit of a slice is a new slice; `writes.py` turns the difference into
bytes.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cowtree.errors import BrokenTable, MarkedCorrupt, Refused
from cowtree.extents import Offsets, distinct, is_among
from cowtree.qcow2.bitmaps import Bitmap, Directory
from cowtree.qcow2.geometry import Geometry, ceil_div, round_up
from cowtree.qcow2.header import Header
from cowtree.qcow2.refcounts import Counts, block_offsets
from cowtree.qcow2.snapshots import Snapshot
from cowtree.qcow2.tables import Entries, Tables, l1_bytes, table_offsets


class Image(NamedTuple):
    """One qcow2 image. `file_size_bytes` is where its file ends."""

    path: str
    header: Header
    l1: Entries
    refcount_table: Entries
    snapshots: tuple[Snapshot, ...]
    snapshot_table_bytes: int
    snapshot_l1s: tuple[Entries, ...]
    directory: Directory | None
    bitmaps: tuple[Bitmap, ...]
    file_size_bytes: int

    @property
    def geometry(self) -> Geometry:
        """The arithmetic of this image."""
        return self.header.geometry

    @property
    def host_cluster_count(self) -> int:
        """Clusters of the file, the last one perhaps cut."""
        return self.geometry.cluster_count(self.file_size_bytes)

    def fixed_ranges(self) -> list[tuple[str, int, int]]:
        """Name, offset and length in bytes of each table that is not an L2 table or refcount block."""
        header = self.header
        ranges = [
            ("header", 0, 1 << header.cluster_bits),
            (
                "refcount table",
                header.refcount_table_offset,
                header.refcount_table_cluster_count << header.cluster_bits,
            ),
            ("active L1 table", header.l1_table_offset, l1_bytes(self.l1)),
            ("snapshot table", header.snapshot_table_offset, self.snapshot_table_bytes),
        ]
        ranges += [("snapshot L1 table", each.l1_table_offset, each.l1_bytes) for each in self.snapshots]
        if header.encryption_header:
            ranges.append(("encryption header", *header.encryption_header))
        if self.directory:
            ranges.append(("bitmap directory", self.directory.offset, self.directory.length_bytes))
            ranges += [("bitmap table", each.table_offset, each.table_entry_count * 8) for each in self.bitmaps]
        return [each for each in ranges if each[2]]

    def metadata_clusters(self) -> Offsets:
        """The host clusters of all tables and blocks, sorted; guest data in one of them is damage."""
        return distinct(np.concatenate(self._metadata()))

    def tables_among(self, clusters: Offsets) -> Offsets:
        """Those of some host clusters in which a table or a block lies. Nothing is sorted but these few."""
        if not len(clusters):
            return clusters
        ordered = np.sort(clusters)
        found = [each[ordered[np.searchsorted(ordered[:-1], each)] == each] for each in self._metadata()]
        return np.concatenate(found)

    def _metadata(self) -> list[Offsets]:
        """The host clusters of each table, and of all L2 tables and refcount blocks, in no order."""
        bits = self.header.cluster_bits
        fixed = [
            np.arange(start >> bits, ceil_div(start + length, 1 << bits)) for _, start, length in self.fixed_ranges()
        ]
        offsets = [*(table_offsets(l1) for l1 in (self.l1, *self.snapshot_l1s)), block_offsets(self.refcount_table)]
        return [*fixed, *(each[each > 0] >> bits for each in offsets)]


class Slice(NamedTuple):
    """An image, and the L2 tables and refcount blocks of it that are in memory."""

    image: Image
    tables: Tables
    counts: Counts


def refuse_what_we_cannot_write(image: Image) -> None:
    """Refuse an image before a byte of it changes.
    Raises: MarkedCorrupt, BrokenTable, Refused.
    """
    if image.header.is_corrupt:
        raise MarkedCorrupt(path=image.path)
    if len(image.snapshot_l1s) < len(image.snapshots):
        raise Refused(reason=f"{image.path}: there are too many snapshots to know what must not be overwritten")
    check_layout(image)


def check_layout(image: Image) -> None:
    """Refuse an image whose tables lie on top of each other, or outside its file.
    Raises: BrokenTable naming the first byte that two of them claim.
    """
    bits = image.header.cluster_bits
    _check_fixed_ranges(image)
    active = table_offsets(image.l1) >> bits
    foreign = [table_offsets(l1) >> bits for l1 in image.snapshot_l1s]
    blocks = block_offsets(image.refcount_table) >> bits
    fixed = [np.arange(start >> bits, ceil_div(start + length, 1 << bits)) for _, start, length in image.fixed_ranges()]
    # Snapshots share L2 tables with the active table and with each other, but with nothing else.
    shared = distinct(np.concatenate([np.empty(0, np.int64), *foreign]))
    shared = shared[~is_among(shared, np.sort(active))]
    claims = np.sort(np.concatenate([*fixed, blocks[blocks > 0], active[active > 0], shared[shared > 0]]))
    twice = claims[1:][claims[1:] == claims[:-1]]
    if len(twice):
        raise BrokenTable(path=image.path, reason=f"two tables lie at byte {int(twice[0]) << bits} of the file")


def _check_fixed_ranges(image: Image) -> None:
    """Refuse tables that no memory may be taken for."""
    size = image.geometry.cluster_size_bytes
    end, last = 0, ""
    for what, start, length in sorted(image.fixed_ranges(), key=lambda each: each[1]):
        if start < end:
            raise BrokenTable(path=image.path, reason=f"the {what} at byte {start} lies inside the {last}")
        if start + length > round_up(image.file_size_bytes, size):
            where = f"the {what} at byte {start} ends past the end of the file ({image.file_size_bytes})"
            raise BrokenTable(path=image.path, reason=where)
        end, last = round_up(start + length, size), what


def no_slice(image: Image) -> Slice:
    """The image with no table and no block in memory."""
    none = np.empty(0, np.int64)
    geometry = image.geometry
    words = np.empty((0, geometry.l2_entry_count), np.uint64)
    empty_tables = Tables(none, none, words, np.empty((0, 0), np.uint64))
    counts = np.empty((0, geometry.refcount_block_entry_count), np.uint16)
    return Slice(image, empty_tables, Counts(none, none, counts))


def lookup(tables: Tables, geometry: Geometry, cluster: Offsets) -> tuple[Entries, Entries]:
    """The L2 entries of guest clusters, and their bitmaps; 0 where there is no table, or no bitmap."""
    index, column = np.divmod(cluster, geometry.l2_entry_count)
    row = np.searchsorted(tables.l1_index, index)
    here: NDArray[np.bool_] = row < len(tables.l1_index)
    here[here] = tables.l1_index[row[here]] == index[here]
    entries, bitmaps = np.zeros(len(cluster), np.uint64), np.zeros(len(cluster), np.uint64)
    entries[here] = tables.entries[row[here], column[here]]
    if geometry.has_subclusters:
        bitmaps[here] = tables.bitmaps[row[here], column[here]]
    return entries, bitmaps
