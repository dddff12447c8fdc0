"""Mending counts and COPIED flags of an open qcow2 layer, once its references are known.

    1  flags that say "used once" of a cluster which is used more often go, before anything else
    2  counts that are too low go up, and what has no refcount block gets one
    3  counts that are too high go down
    4  flags that are missing are set

Each step alone makes the image better, so a stop between two of them leaves it no worse than it was. Only differences
are written: nothing, when all is right.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from cowtree.chain import load
from cowtree.chain.gate import Layer
from cowtree.chain.view import Chain
from cowtree.execute.run import run
from cowtree.extents import Offsets
from cowtree.monitor import Silent
from cowtree.plan import snapshot as plan
from cowtree.qcow2 import check, mend, tables, writes
from cowtree.qcow2 import header as qcow2
from cowtree.qcow2.check import Counted, References, TableUse
from cowtree.qcow2.findings import Finding
from cowtree.qcow2.geometry import ceil_div
from cowtree.qcow2.image import Image, no_slice
from cowtree.qcow2.snapshots import Snapshot
from cowtree.qcow2.tables import COPIED, Tables
from cowtree.steps import Flush, Step, Write
from cowtree.storage.contract import Storage

COUNTS_PER_WINDOW: Final = 1 << 18
WORDS_PER_WINDOW: Final = 1 << 18


class Window(NamedTuple):
    """Some active L2 tables, and how many L1 entries name each."""

    held: Tables
    times: Offsets


def active_windows(file: Storage, image: Image, counted: Counted) -> Iterator[Window]:
    """Read the active L2 tables that lie inside the file, each once."""
    geometry = image.geometry
    use = check.active_tables(geometry, image.l1, counted, image.file_size_bytes)
    offsets = tables.table_offsets(image.l1)
    order = np.argsort(offsets, kind="stable")
    index = order[np.searchsorted(offsets[order], use.offset)]
    step = max(WORDS_PER_WINDOW * 8 // geometry.cluster_size_bytes, 1)
    for first in range(0, len(index), step):
        rows = slice(first, first + step)
        yield Window(load_rows(file, image, index[rows], use.offset[rows]), use.times[rows])


def load_rows(file: Storage, image: Image, index: Offsets, offset: Offsets) -> Tables:
    """Read L2 tables, wherever they lie; what is past the end of the file reads as zeroes."""
    data = load.read_clusters(file, image.geometry, offset)
    return tables.decode(image.geometry, index, offset, data)


class Mender:
    """Makes one layer's counts and flags say what its references are; `image` is what it has become."""

    def __init__(self, layer: Layer, image: Image, references: References) -> None:
        self.image = image
        self._file = layer.file
        self._references = references
        self._has_begun = False

    def mend(self, *, anew: bool = False) -> list[Finding]:
        """Mend everything; with `anew` the refcount table and all its blocks are made new.
        Returns: what to say about the flags.
        Raises: StorageFailed, Refused.
        """
        new = mend.with_blocks(self.image, self._references, anew=anew)
        said = self.mend_flags(sets=False)
        if not anew:
            self._change_counts(raises=True)
        self._add_blocks(new, anew=anew)
        self.lower_counts()
        return [*said, *self.mend_flags(sets=True)]

    def clear_misplaced(self, use: TableUse) -> None:
        """Take the host cluster from zero clusters where it is not aligned, in these L2 tables."""
        geometry = self.image.geometry
        step = max(WORDS_PER_WINDOW * 8 // geometry.cluster_size_bytes, 1)
        for first in range(0, len(use.offset), step):
            offset = use.offset[first : first + step]
            held = load_rows(self._file, self.image, np.arange(len(offset)), offset)
            which = check.unaligned_zeroes(geometry, held)
            self._run(writes.entry_writes(held, check.without_host(geometry, held, which)), self.image)

    def replace_snapshots(self, found: tuple[Snapshot, ...]) -> None:
        """Write the snapshot table anew, with all that its entries must say, and free the old one.
        Raises: StorageFailed, Refused.
        """
        old, data = self.image, plan.packed(self.image, found)
        bits = old.header.cluster_bits
        # Counted before it is written, written before the header names it.
        offset = self._references.take_run(ceil_div(len(data), 1 << bits)) << bits if data else 0
        self.mend()
        self._begin()
        self._run([*([Write(offset, data)] if data else []), Flush()], self.image)
        changed = plan.with_snapshots(self.image, found, offset, len(data))
        self._run(writes.switch(changed.header), changed)
        self._references.give_back_region(old.header.snapshot_table_offset, old.snapshot_table_bytes)
        self.lower_counts()

    def lower_counts(self) -> None:
        """Free what nothing uses."""
        self._change_counts(raises=False)

    def mend_flags(self, *, sets: bool) -> list[Finding]:
        """Set flags that are missing, or take flags away that must not be there. Returns: what to say about them."""
        geometry, counted = self.image.geometry, self._references
        said = []
        wrong_l1 = check.find_wrong_l1_flags(geometry, self.image.l1, counted)
        wrong_l1 = wrong_l1[((self.image.l1[wrong_l1] & COPIED) == 0) == sets]
        if len(wrong_l1):
            said.append(check.l1_flag_findings(geometry, self.image.l1, wrong_l1, counted).mended())
            l1 = self.image.l1.copy()
            l1[wrong_l1] ^= COPIED
            old, changed = no_slice(self.image), self.image._replace(l1=l1)
            self._run(writes.order(old, old._replace(image=changed)), changed)
        for held, _ in active_windows(self._file, self.image, counted):
            wrong = check.find_wrong_flags(geometry, held.entries, counted) & (((held.entries & COPIED) == 0) == sets)
            wrong[held.host_offset % geometry.cluster_size_bytes != 0] = False
            if wrong.any():
                ones = np.ones(np.count_nonzero(wrong), np.int64)
                said.append(check.flag_findings(geometry, held.entries[wrong], ones, counted).mended())
                old = no_slice(self.image)._replace(tables=held)
                entries = np.where(wrong, held.entries ^ COPIED, held.entries)
                self._run(writes.order(old, old._replace(tables=held._replace(entries=entries))), self.image)
        return said

    def finish(self, *, all_is_right: bool) -> None:
        """Make everything durable, and if all is right say so."""
        if self.image.header.autoclear & ~qcow2.KNOWN_AUTOCLEAR:
            # Whoever writes to an image clears the bits of features that it does not know.
            self._begin()
        steps, image = writes.finish_repair(self.image) if all_is_right else ([], self.image)
        if steps or self._has_begun:
            self._run([*steps, Flush()], image)

    def _change_counts(self, *, raises: bool) -> None:
        """Bring the counts of the blocks that are there up, or down, to the truth."""
        choose = np.maximum if raises else np.minimum
        for block_index in load.block_windows(self.image, COUNTS_PER_WINDOW):
            counts = load.read_blocks(self._file, self.image, block_index)
            truth = mend.true_counts(self.image, self._references, counts.block_index)
            old = no_slice(self.image)._replace(counts=counts)
            new = old._replace(counts=truth._replace(counts=choose(truth.counts, counts.counts)))
            self._run(writes.order(old, new), self.image)

    def _add_blocks(self, new: Image, *, anew: bool) -> None:
        """Write the refcount blocks that are new, and then what points at them."""
        before = np.zeros_like(new.refcount_table)
        if not anew:
            before[: len(self.image.refcount_table)] = self.image.refcount_table
        fresh = np.flatnonzero(new.refcount_table != before)
        if not len(fresh):
            return
        self._begin()
        old = no_slice(self.image)
        for first in range(0, len(fresh), self._blocks_per_window()):
            counts = mend.true_counts(new, self._references, fresh[first : first + self._blocks_per_window()])
            self._run(writes.order(old, old._replace(counts=counts)), self.image)
        new = new._replace(header=new.header._replace(autoclear=self.image.header.autoclear))
        self._run([Flush(), *writes.order(old, old._replace(image=new))], new)

    def _blocks_per_window(self) -> int:
        return max(COUNTS_PER_WINDOW // self.image.geometry.refcount_block_entry_count, 1)

    def _begin(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            steps, image = writes.begin_repair(self.image)
            self._run(steps, image)

    def _run(self, steps: list[Step], image: Image) -> None:
        if steps:
            self._begin()
            run(steps, self._file, Chain((), ()), Silent())
        header = image.header._replace(autoclear=image.header.autoclear & self.image.header.autoclear)
        self.image = image._replace(header=header, file_size_bytes=self._file.size_bytes)
