"""Internal snapshots of images that nobody else has open: made, applied and deleted.

All that must be refused is refused before the first change. After a stop at any point the disk and every snapshot are
what they were, or what they shall be; whichever of these functions is called next first mends what the stop has left.
The fact `cause` of an error is the name of the system's error that QEMU reports in its place.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np

from cowtree.chain import gate, load
from cowtree.chain.gate import Layer
from cowtree.chain.lists import read_snapshots
from cowtree.chain.view import Chain
from cowtree.errors import BrokenTable, Refused
from cowtree.execute.run import run
from cowtree.extents import Mask, Offsets
from cowtree.images.check import CLUSTER_COUNT_MAX, refuse_damage, repair_counts
from cowtree.images.mend import load_rows
from cowtree.monitor import Silent
from cowtree.plan import snapshot as plan
from cowtree.plan.put import refcount_table_clusters
from cowtree.qcow2 import refcounts, tables, writes
from cowtree.qcow2.check import References
from cowtree.qcow2.image import Image, Slice, no_slice, refuse_what_we_cannot_write
from cowtree.qcow2.refcounts import Counts
from cowtree.qcow2.snapshots import Snapshot
from cowtree.qcow2.tables import Entries, Tables
from cowtree.steps import Flush, Step, Write
from cowtree.storage.contract import Access, FileSystem

# So many entries are read at once, and kept when these are all; so many entries or counts are looked at together, while
# they are in the processor's cache.
ENTRIES_HELD_MAX: Final = 1 << 21
ENTRIES_PER_WINDOW: Final = 1 << 14
COUNTS_PER_WINDOW: Final = 1 << 16


def list_snapshots(
    files: FileSystem, path: str, image_format: str | None = None, access: str = Access.READ
) -> tuple[Snapshot, ...]:
    """The internal snapshots of an image, in the order of its table; none when its format has none."""
    layer = gate.open_alone(files, path, image_format, access)
    try:
        return read_snapshots(layer, layer.header)[0] if layer.header else ()
    finally:
        layer.close()


def create(
    files: FileSystem, path: str, image_format: str | None = None, *, name: str, time_ns: int | None = None
) -> Snapshot:
    """Take a snapshot of the disk as it is. Names need not differ. Returns: it, with its new ID.
    Raises: Refused with the fact `cause`, and what opening and writing raise.
    """
    with _opened(files, path, image_format) as editor:
        image = editor.image
        entry = plan.new_entry(image, name, time.time_ns() if time_ns is None else time_ns)
        length = len(plan.packed(image, (*image.snapshots, entry)))
        uses, old = editor.count(image.l1), editor.table_uses()
        editor.check(uses, raises=True)
        editor.check(old, raises=False)
        l1_offset, offset = editor.begin(tables.l1_bytes(image.l1), length)
        entry = entry._replace(l1_table_offset=l1_offset)
        found = (*image.snapshots, entry)
        editor.write(l1_offset, tables.encode_words(image.l1 & ~tables.COPIED))
        editor.write(offset, plan.packed(image, found))
        editor.clear_flags(image.l1)
        editor.clear_l1_flags()
        editor.raise_counts(uses)
        editor.switch(plan.with_snapshots(editor.image, found, offset, length))
        editor.lower_counts(old)
        editor.finish()
        return entry


def apply(files: FileSystem, path: str, image_format: str | None = None, *, wanted: str) -> Snapshot:
    """Let the disk be what it was when the snapshot with this ID, or else of this name, was made.
    Raises: Refused with the fact `cause`, and what opening and writing raise.
    """
    with _opened(files, path, image_format) as editor:
        image = editor.image
        if image.bitmaps:
            reason, hint = "Device has active dirty bitmaps", f"cowtree img bitmap --remove {path} NAME"
            raise Refused(reason=reason, hint=hint, cause="EBUSY")
        entry = _found(plan.find(image.snapshots, wanted), path)
        l1 = load.read_snapshot_l1(editor.layer, entry)
        applied = plan.applied_l1(image, entry, l1)
        uses, old = editor.count(l1), editor.count(image.l1)
        old.use_region(image.header.l1_table_offset, tables.l1_bytes(image.l1))
        editor.check(uses, raises=True)
        editor.check(old, raises=False)
        (offset,) = editor.begin(tables.l1_bytes(applied))
        editor.write(offset, tables.encode_words(applied))
        editor.clear_flags(l1)
        editor.raise_counts(uses)
        editor.switch(plan.with_l1(editor.image, entry, applied, offset))
        editor.lower_counts(old)
        editor.finish()
        return entry


def delete(
    files: FileSystem, path: str, image_format: str | None = None, *, name: str, entry_id: str | None = None
) -> Snapshot:
    """Delete the first snapshot of this name; the one with an ID where that is given too.
    Raises: Refused with the fact `cause`, and what opening and writing raise.
    """
    with _opened(files, path, image_format) as editor:
        image = editor.image
        wanted = [each for each in image.snapshots if entry_id in (None, each.id)]
        entry = _found(plan.find_name(wanted, name), path)
        found = tuple(each for each in image.snapshots if each is not entry)
        data = plan.packed(image, found)
        l1 = load.read_snapshot_l1(editor.layer, entry)
        uses = editor.count(l1)
        # Nothing may have been written since the snapshot was made.
        left = uses.copy() if plan.have_same_tables(l1, image.l1) else editor.count(image.l1)
        uses.use_as(editor.table_uses())
        uses.use_region(entry.l1_table_offset, entry.l1_bytes)
        left.use_as(uses)
        # What was counted too low would be free now, while the disk uses it.
        editor.check(left, raises=False)
        (offset,) = editor.begin(len(data))
        editor.write(offset, data)
        editor.switch(plan.with_snapshots(editor.image, found, offset, len(data)))
        editor.set_flags(editor.lower_counts(uses))
        editor.finish()
        return entry


def _found(snapshot: Snapshot | None, path: str) -> Snapshot:
    if snapshot is None:
        hint = f"cowtree img snapshot -l {path}"
        raise Refused(reason=f"{path} has no such snapshot", hint=hint, cause="ENOENT")
    return snapshot


@contextmanager
def _opened(files: FileSystem, path: str, image_format: str | None) -> Iterator["_Editor"]:
    """Open an image for writing, mended when a stopped run has left it wrong."""
    layer = gate.open_alone(files, path, image_format, Access.WRITE)
    try:
        image = load.load_image(layer)
        if image is None or image.geometry.has_data_file:
            reason = f"{path} is {layer.format}" if image is None else f"the data of {path} lies in another file"
            reason += ": it has no internal snapshots"
            raise Refused(reason=reason, cause="ENOTSUP", format=layer.format)
        refuse_what_we_cannot_write(image)
        yield _Editor(layer, image)
    finally:
        layer.close()


class _Editor:
    """Changes the snapshots of one open layer; `image` is what it is on disk now."""

    def __init__(self, layer: Layer, image: Image) -> None:
        self.layer = layer
        self.image = image
        self._file = layer.file
        self._kept: tuple[Offsets, Tables] | None = None
        if image.host_cluster_count > CLUSTER_COUNT_MAX:
            raise BrokenTable(path=image.path, reason="File too large")
        # Version 2 has no bit that would tell that a run was stopped.
        if image.header.is_dirty or image.header.version < 3:
            self.image = repair_counts(layer, image)
            if image.header.is_dirty:
                self.finish()
        refcounts.check_table(image.path, image.geometry, self.image.refcount_table, image.file_size_bytes)

    def count(self, l1: Entries) -> References:
        """Count what a tree uses. Raises: BrokenTable."""
        uses, tell = References(self.image.geometry, self.image.file_size_bytes), refuse_damage(self.image.path)
        try:
            plan.count_l1(self.image, l1, uses)
            for held in self._windows(l1):
                for finding in plan.count_l2(self.image.geometry, held, uses):
                    tell(finding)
            plan.refuse_data_in_tables(self.image, l1, uses)
        except BrokenTable as error:
            error.facts["cause"] = "EIO"
            raise
        return uses

    def table_uses(self) -> References:
        """What the snapshot table uses."""
        uses = References(self.image.geometry, self.image.file_size_bytes)
        uses.use_region(self.image.header.snapshot_table_offset, self.image.snapshot_table_bytes)
        return uses

    def check(self, uses: References, *, raises: bool) -> None:
        """Refuse a change of counts that cannot be made. Raises: Refused, BrokenTable."""
        for counts in self._blocks(uses):
            plan.check_counts(self.image, counts, uses.in_blocks(counts.block_index), raises=raises)

    def begin(self, *lengths: int) -> list[int]:
        """Begin, and count room for tables of these lengths. Returns: where each goes.
        Raises: Refused, BrokenTable, before anything is changed.
        """
        steps, image = writes.begin_tables(self.image)
        sizes = [image.geometry.cluster_count(length) for length in lengths]
        # A run of clusters side by side is looked for among all that are free.
        wanted = sum(sizes) if max(sizes) <= 1 else image.host_cluster_count
        counts = load.load_counts(self._file, image, refcount_table_clusters(image), wanted)
        offsets, room, image = plan.take(Slice(image, no_slice(image).tables, counts), lengths)
        self._run([*steps, *room], image)
        return offsets

    def write(self, offset: int, data: bytes) -> None:
        """Write a table to where nothing points yet."""
        self._run([Write(offset, data)] if data else [], self.image)

    def clear_flags(self, l1: Entries) -> None:
        """Take the flags of all L2 tables of a tree away."""
        for held in self._windows(l1):
            self._run(plan.without_flags(held), self.image)

    def clear_l1_flags(self) -> None:
        """Take the flags of the active L1 table away."""
        self._run(*plan.change_l1(self.image, self.image.l1 & ~tables.COPIED))

    def set_flags(self, is_single: Mask) -> None:
        """Give the active tree the flags of these clusters, once it is durable that their counts say so."""
        self._run([Flush()], self.image)
        for held in self._windows(self.image.l1):
            self._run(plan.with_flags(self.image, held, is_single), self.image)
        self._run(*plan.change_l1(self.image, plan.l1_with_flags(self.image, is_single)))

    def raise_counts(self, uses: References) -> None:
        """Count so many users more."""
        for counts in self._blocks(uses):
            new = plan.raised(counts, uses.in_blocks(counts.block_index))
            self._run(writes.count_writes(self.image, counts, new), self.image)

    def lower_counts(self, uses: References) -> Mask:
        """Count so many users less; it is durable that they are gone. Returns: for each host cluster, and for one
        behind them, whether it has one user now and had more.
        """
        is_single = np.zeros(len(uses.counts) + 1, bool)
        size = self.image.geometry.refcount_block_entry_count
        for counts in self._blocks(uses):
            here = uses.in_blocks(counts.block_index)
            new = plan.lowered(counts, here)
            self._run(writes.count_writes(self.image, counts, new), self.image)
            for index, left in zip(counts.block_index.tolist(), (new.counts == 1) & (here != 0), strict=True):
                place = is_single[:-1][index * size : (index + 1) * size]
                place[:] = left[: len(place)]
        return is_single

    def switch(self, image: Image) -> None:
        """Let the header point at what was written."""
        self._run(writes.switch(image.header), image)

    def finish(self) -> None:
        """Make everything durable and clear the dirty bit."""
        self._run(*writes.finish(self.image))

    def _windows(self, l1: Entries) -> Iterator[Tables]:
        """The L2 tables that an L1 table names, a few at a time."""
        step = max(ENTRIES_PER_WINDOW // self.image.geometry.l2_entry_count, 1)
        for held in self._read(l1):
            for first in range(0, len(held.l1_index), step):
                yield Tables._make(column[first : first + step] for column in held)

    def _read(self, l1: Entries) -> Iterator[Tables]:
        """The L2 tables that an L1 table names; those that were kept have not changed since the last look."""
        offset = tables.table_offsets(l1)
        if self._kept is not None and np.array_equal(self._kept[0], offset):
            yield self._kept[1]
            return
        index = np.flatnonzero(offset)
        step = max(ENTRIES_HELD_MAX // self.image.geometry.l2_entry_count, 1)
        for first in range(0, len(index), step):
            rows = index[first : first + step]
            held = load_rows(self._file, self.image, rows, offset[rows])
            self._kept = (offset, held) if len(index) <= step else None
            yield held

    def _blocks(self, uses: References) -> Iterator[Counts]:
        """The refcount blocks that count what is used, a few at a time."""
        index = plan.blocks_of(self.image, uses)
        step = max(COUNTS_PER_WINDOW // self.image.geometry.refcount_block_entry_count, 1)
        for first in range(0, len(index), step):
            yield load.read_blocks(self._file, self.image, index[first : first + step])

    def _run(self, steps: Sequence[Step], image: Image) -> None:
        run(steps, self._file, Chain((), ()), Silent())
        self.image = image._replace(file_size_bytes=self._file.size_bytes)
