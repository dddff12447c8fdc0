"""Reading every table of an open qcow2 layer: what is referenced how often, and what its counts say on disk."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from cowtree.chain import load
from cowtree.chain.gate import Layer
from cowtree.errors import BrokenTable
from cowtree.extents import Mask, Offsets, distinct
from cowtree.images.mend import COUNTS_PER_WINDOW, WORDS_PER_WINDOW, load_rows
from cowtree.qcow2 import bitmaps, findings, snapshots, tables
from cowtree.qcow2 import check as rules
from cowtree.qcow2.bitmaps import Bitmap
from cowtree.qcow2.check import Mismatch, References, Statistics, TableUse
from cowtree.qcow2.findings import CORRUPTION, INTERNAL, Finding, at, remark
from cowtree.qcow2.geometry import L1_BYTES_MAX, ceil_div
from cowtree.qcow2.header import Header
from cowtree.qcow2.image import Image
from cowtree.qcow2.snapshots import Snapshot
from cowtree.qcow2.tables import Entries
from cowtree.storage.contract import Storage

IO_ERROR, INVALID_ARGUMENT = "Input/output error", "Invalid argument"

Tell = Callable[[Finding], None]


class Stopped(Exception):
    """The check cannot go on; says why."""


class Count:
    """Counts every reference of one image, and tells what is wrong with the tables on the way."""

    def __init__(self, layer: Layer, image: Image, tell: Tell, *, mends: bool = False) -> None:
        self.file: Storage = layer.file
        self.image = image
        self.geometry = image.geometry
        self.references = References(self.geometry, layer.file.size_bytes)
        self.use = rules.no_tables()
        self.statistics = Statistics()
        self.blocks = rules.BlockFindings((), False)
        # L2 tables with zero clusters that are not aligned, which are mended later, and how often each is used.
        self.misplaced = rules.no_tables()
        self._tell = tell
        self._mends = mends

    def count(self) -> None:
        """Count everything. Raises: Stopped."""
        header = self.image.header
        self._use_region(0, self.geometry.cluster_size_bytes)
        if len(self.image.l1):
            self._use_region(header.l1_table_offset, tables.l1_bytes(self.image.l1))
            self._use_l1(self.image.l1, self._tell, is_active=True)
        active_count = len(self.use.offset)
        later: list[Finding] = []
        self._use_snapshots(later.append)
        self._use_tables()
        self._walk(0, active_count)
        for finding in later:
            self._tell(finding)
        self._walk(active_count, len(self.use.offset))
        self._use_region(header.snapshot_table_offset, self.image.snapshot_table_bytes)
        length = header.refcount_table_cluster_count << header.cluster_bits
        self._use_region(header.refcount_table_offset, length)
        self._use_region(*(header.encryption_header or (0, 0)))
        self._use_bitmaps()
        self.blocks = rules.check_refcount_table(self.geometry, self.image.refcount_table, self.references)
        for finding in self.blocks.findings:
            self._tell(finding.mended() if self._mends and finding.kind is findings.BLOCK_OUTSIDE else finding)
        self._tell(self.references.overflows())

    @property
    def must_rebuild(self) -> bool:
        """Whether the refcount table and its blocks cannot be mended where they are."""
        header = self.image.header
        length = header.refcount_table_cluster_count << header.cluster_bits
        is_inside = length > 0 and self.references.holds(header.refcount_table_offset, length)
        return self.blocks.is_broken or bool(self.blocks.findings) or not is_inside

    def _use_region(self, offset: int, length: int, tell: Tell | None = None) -> None:
        finding = self.references.use_region(offset, length)
        if finding is not None:
            (tell or self._tell)(finding)

    def _use_l1(self, l1: Entries, tell: Tell, *, is_active: bool) -> None:
        entries = l1[l1 != 0]
        for finding in rules.check_l1(self.geometry, entries, self.references):
            tell(finding)
        self.use = rules.add_l1(self.use, entries, is_active=is_active)

    def _use_snapshots(self, tell: Tell) -> None:
        found = self.image.snapshots
        if found and self.geometry.has_data_file:
            tell(remark(CORRUPTION, f"ERROR {len(found)} snapshots in image with data file"))
        sound = []
        for each in found:
            if not snapshots.wrong_l1(self.image.header, each):
                sound.append(each)
            else:
                tell(remark(CORRUPTION, _say_wrong_l1(self.image.header, each)))
        self._stop_at_overlap("snapshot L1 tables", sum(each.l1_bytes for each in sound))
        for each in sound:
            if each.l1_entry_count:
                self._use_region(each.l1_table_offset, each.l1_bytes, tell)
                if each.l1_table_offset + each.l1_bytes > rules.OFFSET_MAX:
                    self._tell(remark(INTERNAL, "ERROR: I/O error in check_refcounts_l1"))
                    raise Stopped(IO_ERROR)
                self._use_l1(self._read_words(each.l1_table_offset, each.l1_entry_count), tell, is_active=False)

    def _use_tables(self) -> None:
        size = self.geometry.cluster_size_bytes
        # Tables that are not aligned may lie on top of each other, but not many of them.
        self._stop_at_overlap("L2 tables", int((self.use.offset < self.references.file_size_bytes).sum()) * size // 2)
        inside = ~self.references.outside(self.use.offset, size)
        self.references.use(self.use.offset[inside], size, self.use.times[inside])

    def _stop_at_overlap(self, what: str, length: int) -> None:
        # Tables that fill more than the file lie on top of each other, and to walk them all could take for ever.
        if length > max(self.references.file_size_bytes, self.geometry.cluster_size_bytes):
            self._tell(remark(INTERNAL, f"ERROR {what} lie on top of each other"))
            raise Stopped(INVALID_ARGUMENT)

    def _read_words(self, offset: int, count: int) -> Entries:
        """Read 64-bit entries as far as the file goes; what would follow is zero."""
        count = max(min(count, (self.references.file_size_bytes - offset) // 8), 0)
        return tables.decode_words(self.file.pread(offset, count * 8) if count else b"")

    def _walk(self, first: int, last: int) -> None:
        """Count what the L2 tables [first, last) use."""
        step = max(WORDS_PER_WINDOW * 8 // self.geometry.cluster_size_bytes, 1)
        for start in range(first, last, step):
            use = self.use.take(np.arange(start, min(start + step, last)))
            use = use.take(use.offset < self.references.file_size_bytes)
            held = load_rows(self.file, self.image, np.arange(len(use.offset)), use.offset)
            mends = self._mends and not (use.offset % self.geometry.cluster_size_bytes).any()
            for finding in rules.check_l2(self.geometry, held, use.times, self.references, mends=mends):
                self._tell(finding)
            if mends:
                held = self._without_misplaced(held, use)
            self.statistics = self.statistics.plus(rules.statistics(self.geometry, held, use.active_times))

    def _without_misplaced(self, held: tables.Tables, use: TableUse) -> tables.Tables:
        which = rules.unaligned_zeroes(self.geometry, held)
        found = use.take(np.flatnonzero(which.any(axis=1)))
        columns = zip(self.misplaced, found, strict=True)
        self.misplaced = TableUse._make(np.concatenate(column) for column in columns)
        return rules.without_host(self.geometry, held, which)

    def _use_bitmaps(self) -> None:
        directory = self.image.directory
        if directory is None:
            return
        self._use_region(directory.offset, directory.length_bytes)
        named = self.image.bitmaps or self._read_bitmaps(directory)
        self._stop_at_overlap("bitmap tables", sum(each.table_entry_count * 8 for each in named))
        for each in named:
            self._use_region(each.table_offset, each.table_entry_count * 8)
            for first in range(0, each.table_entry_count, WORDS_PER_WINDOW):
                count = min(WORDS_PER_WINDOW, each.table_entry_count - first)
                self._use_bitmap_data(each, self._read_words(each.table_offset + first * 8, count))

    def _read_bitmaps(self, directory: bitmaps.Directory) -> tuple[Bitmap, ...]:
        data = self.file.pread(directory.offset, directory.length_bytes)
        try:
            return bitmaps.parse(self.image.path, self.image.header, data, directory.bitmap_count)
        except BrokenTable as error:
            self._tell(remark(CORRUPTION, f"ERROR {error.reason}"))
            raise Stopped(INVALID_ARGUMENT) from error

    def _use_bitmap_data(self, bitmap: Bitmap, entries: Entries) -> None:
        if rules.wrong_bitmap_entries(self.geometry, entries).any():
            self._tell(remark(CORRUPTION, f"ERROR bitmap '{bitmap.name}': an entry of its table breaks a rule"))
            raise Stopped(INVALID_ARGUMENT)
        offset = tables.table_offsets(entries)
        offset = offset[offset != 0]
        size = self.geometry.cluster_size_bytes
        outside = self.references.outside(offset, size)
        self._tell(at(findings.OUTSIDE, outside, offset, np.full(len(offset), size)))
        self.references.use(offset[~outside], size, np.ones(len(offset), np.int64)[~outside])


def _say_wrong_l1(header: Header, snapshot: Snapshot) -> str:
    what = snapshots.wrong_l1(header, snapshot)
    is_large = snapshot.l1_bytes > L1_BYTES_MAX and "large" in what
    field = f"l1_size={snapshot.l1_entry_count:#x}" if is_large else f"l1_offset={snapshot.l1_table_offset:#x}"
    return f"ERROR snapshot {snapshot.id} ({snapshot.name}) {field}: {what}; snapshot table entry corrupted"


class OnDisk:
    """The counts as the image has them now."""

    def __init__(self, file: Storage, image: Image) -> None:
        self._file = file
        table = rules.readable_blocks(image.geometry, image.refcount_table, image.file_size_bytes)
        self._image = image._replace(refcount_table=table)
        self._per_block = image.geometry.refcount_block_entry_count
        self._is_unreadable = rules.unreadable_blocks(image.geometry, image.refcount_table)
        self.used_end = 1

    def windows(self, references: References) -> Iterator[tuple[Mismatch, Finding | None]]:
        """Compare all counts with the references. Returns: those that differ, and those that cannot be read."""
        step = max(COUNTS_PER_WINDOW // self._per_block, 1)
        for first in range(0, ceil_div(references.cluster_count, self._per_block), step):
            start = first * self._per_block
            stop = min((first + step) * self._per_block, references.cluster_count)
            # In a huge file there are holes of billions of clusters.
            is_counted = self._image.refcount_table[first : first + step].any() or self._is_unreadable.any()
            if not is_counted and not references.counts.any_in(start, stop):
                continue
            counted = self._read(first, first + step)[: stop - start]
            seen = (counted != 0) | (references.counts.window(start, stop) != 0)
            mismatch, unreadable = rules.compare(start, counted, references), None
            if self._is_unreadable.any():
                clusters = np.arange(start, stop)
                known = self.known(clusters)
                mismatch = mismatch.take(known[mismatch.cluster - start])
                unreadable = at(findings.UNREADABLE, ~known, clusters)
                seen &= known
            if seen.any():
                self.used_end = stop - int(seen[::-1].argmax())
            yield mismatch, unreadable

    def _read(self, first: int, last: int) -> NDArray[np.unsignedinteger]:
        """The counts of the blocks [first, last), one behind the other."""
        found = load.load_blocks(self._file, self._image, first, last)
        counts = np.zeros((last - first, self._per_block), found.counts.dtype)
        counts[found.block_index - first] = found.counts
        return counts.ravel()

    def known(self, clusters: Offsets) -> Mask:
        """Which clusters have a count that can be read."""
        if not self._is_unreadable.any():
            return np.ones(clusters.shape, bool)
        block = np.minimum(clusters // self._per_block, len(self._is_unreadable) - 1)
        known: Mask = ~self._is_unreadable[block]
        return known

    def once(self, clusters: Offsets) -> Mask:
        """Which clusters are counted once."""
        once: Mask = self.get(clusters.ravel()).reshape(clusters.shape) == 1
        return once

    def get(self, clusters: Offsets) -> NDArray[np.unsignedinteger]:
        """The counts of some clusters, wherever they are; 0 where there is no block."""
        counts = np.zeros(len(clusters), np.uint64)
        order = np.argsort(clusters, kind="stable")
        block, place = np.divmod(clusters[order], self._per_block)
        wanted = distinct(block[block < len(self._is_unreadable)])
        wanted = wanted[self._image.refcount_table[wanted] != 0]
        step = max(COUNTS_PER_WINDOW // self._per_block, 1)
        for first in range(0, len(wanted), step):
            found = load.read_blocks(self._file, self._image, wanted[first : first + step])
            start, stop = np.searchsorted(block, [found.block_index[0], found.block_index[-1] + 1])
            row = np.searchsorted(found.block_index, block[start:stop])
            here = found.block_index[np.minimum(row, len(found.block_index) - 1)] == block[start:stop]
            counts[order[start:stop][here]] = found.counts[row[here], place[start:stop][here]]
        return counts
