"""The tables of a qcow2 image that is being written: as they shall be, in memory, until the guest asks for durability.

    1  a cluster is counted ahead (`room.py`), and guest data is written to it; its entry changes here only
    2  a flush makes counts and data durable, then writes all entries that changed as one batch, in the order of
       `qcow2/writes.py`, and makes them durable
    3  what no entry points at any more is counted down after that, when no request can be reading it

A stop loses what was not flushed, and leaves clusters counted that nothing uses; never anything else. `lock` is held
while an entry is looked at or changed; whoever calls what writes holds the writers' lock of the disk as well.
"""

import threading
from collections.abc import Callable
from typing import Final

import numpy as np

from cowtree import extents as ex
from cowtree.chain import load
from cowtree.chain.gate import Layer
from cowtree.chain.view import Chain
from cowtree.errors import BrokenTable
from cowtree.execute.run import run
from cowtree.extents import Extents, Mask, Ranges
from cowtree.live.room import Room
from cowtree.live.traffic import Traffic
from cowtree.monitor import Silent
from cowtree.plan import put
from cowtree.qcow2 import tables, writes
from cowtree.qcow2.image import Image, Slice, no_slice
from cowtree.qcow2.tables import COPIED, HOST_OFFSET, Entries, Tables
from cowtree.steps import Flush, Step

TABLE_BYTES_MAX: Final = 32 << 20
DIRTY_BYTES_MAX: Final = 8 << 20


class Table:
    """One L2 table: what its clusters hold now, and what the file says. `host_offset` is 0 while it has none;
    `is_own` when no snapshot shares it, or it is about to be copied. `fault` is why nobody may write by it.
    """

    __slots__ = ("bitmaps", "entries", "fault", "host_offset", "is_dirty", "is_own", "old_bitmaps", "old_entries")

    def __init__(self, host_offset: int, entries: Entries, bitmaps: Entries, *, is_own: bool) -> None:
        self.host_offset = host_offset
        self.entries, self.bitmaps = entries, bitmaps
        self.old_entries, self.old_bitmaps = entries, bitmaps
        self.is_own = is_own
        self.is_dirty = False
        self.fault: BrokenTable | None = None

    def touch(self) -> None:
        """Something may change: from now on the file's words are kept apart. A table that is copied shares all that it
        points at.
        """
        if not self.is_dirty:
            self.entries, self.bitmaps = self.old_entries.copy(), self.old_bitmaps.copy()
            if not self.is_own:
                self.entries &= ~COPIED
            self.is_dirty = self.is_own = True


class Pending:
    """The tables of one open image. What is buried waits until it may be used again."""

    def __init__(self, layer: Layer, image: Image, traffic: Traffic, lock: threading.Lock) -> None:
        self.room = Room(layer.file, image)
        self.geometry = image.geometry
        self._layer = layer
        self._traffic = traffic
        self._lock = lock
        self._tables: dict[int, Table] = {}
        self._dirty: set[int] = set()
        # Clusters that were taken since the last flush: no entry of the file points at them.
        self._unborn: set[int] = set()
        self._lost: list[int] = []
        self._graves: list[tuple[int, list[int], bool]] = []

    @property
    def image(self) -> Image:
        """The image as its file says."""
        return self.room.image

    @property
    def is_large(self) -> bool:
        """Whether so much waits that it should not wait for the guest."""
        return len(self._dirty) * self.geometry.cluster_size_bytes > DIRTY_BYTES_MAX

    def prepare(self, start: int, stop: int) -> None:
        """Read the tables of a range of the disk. Raises: StorageFailed."""
        first, last = tables.l1_range(self.geometry, start, stop)
        with self._lock:
            missing = [index for index in range(first, last) if index not in self._tables]
        for index in missing:
            table = self._read(index)
            with self._lock:
                self._tables.setdefault(index, table)
                self._trim(range(first, last))

    def _trim(self, kept: range) -> None:
        """Forget tables that are as the file says, the oldest first, when there are many."""
        most = max(TABLE_BYTES_MAX // self.geometry.cluster_size_bytes, 1)
        for index in list(self._tables) if len(self._tables) > most else []:
            if len(self._tables) <= most:
                return
            if index not in self._dirty and index not in kept:
                del self._tables[index]

    def _read(self, index: int) -> Table:
        image, count = self.image, self.geometry.l2_entry_count
        entry = int(image.l1[index])
        offset = entry & int(HOST_OFFSET)
        if not offset:
            bitmaps = np.zeros(count if self.geometry.has_subclusters else 0, np.uint64)
            return Table(0, np.zeros(count, np.uint64), bitmaps, is_own=True)
        span = self.geometry.l2_span_bytes
        found = load.load_tables(self._layer.file, image, index * span, (index + 1) * span)
        table = Table(offset, found.entries[0], found.bitmaps[0], is_own=bool(entry & int(COPIED)))
        try:
            self._check(table)
        except BrokenTable as error:
            table.fault = error
        return table

    def _check(self, table: Table) -> None:
        """Refuse to write by a table whose entries lead into other tables, or to clusters that are not its own.
        Raises: BrokenTable.
        """
        if self.geometry.has_data_file:
            return
        hosts = (table.entries[self._own(table)] & HOST_OFFSET).astype(np.int64) >> self.geometry.cluster_bits
        put.refuse_tables(self.image, hosts)
        counts = load.load_counts(self._layer.file, self.image, hosts, 0)
        put.check_kept(no_slice(self.image)._replace(counts=counts), hosts)

    def _own(self, table: Table) -> Mask:
        """Which clusters have a host cluster that is theirs alone."""
        kind = tables.classify(self.geometry, table.entries)
        own: Mask = ((table.entries & COPIED) != 0) & np.isin(kind, ex.MOVING) & table.is_own
        return own

    def held(self, start: int, stop: int) -> tuple[Extents, Ranges] | None:
        """What the clusters of a range hold now, and which of them may be written in place; the lock is held.
        Raises: BrokenTable.
        """
        first, last = tables.l1_range(self.geometry, start, stop)
        if any(index not in self._tables for index in range(first, last)):
            return None
        index = np.arange(first, last)
        held = [self._tables[each] for each in range(first, last)]
        entries, bitmaps = np.stack([each.entries for each in held]), np.stack([each.bitmaps for each in held])
        offset = np.array([each.host_offset for each in held], np.int64)
        found = Tables(index, offset, entries, bitmaps)
        if self.geometry.has_subclusters:
            found = tables.within(self.geometry, found, start, stop)
        end = max(self._layer.data_file.size_bytes, self._layer.file.size_bytes, self._end_bytes())
        seen = ex.clip(tables.to_extents(self.image.path, self.geometry, found, end), start, stop)
        row, column = np.nonzero(np.stack([self._own(each) & (each.fault is None) for each in held]))
        cluster = (index[row] * self.geometry.l2_entry_count + column) << self.geometry.cluster_bits
        return seen, ex.merge_ranges(Ranges(cluster, cluster + self.geometry.cluster_size_bytes))

    def _end_bytes(self) -> int:
        """Where the furthest cluster ends that was taken and is not written to its end, perhaps."""
        if self.geometry.has_data_file:
            return self._layer.size_bytes
        return (max(self._unborn, default=-1) + 1) << self.geometry.cluster_bits

    def entry(self, cluster: int) -> tuple[int, int, bool]:
        """A cluster's entry and bitmap, and whether its host cluster is its own; it may be `set` then, until the next
        flush. Raises: BrokenTable, StorageFailed.
        """
        index, column = divmod(cluster, self.geometry.l2_entry_count)
        span = self.geometry.l2_span_bytes
        while True:
            with self._lock:
                table = self._tables.get(index)
                if table is not None and table.fault is None:
                    table.touch()
                    self._dirty.add(index)
            if table is not None:
                break
            self.prepare(index * span, (index + 1) * span)
        if table.fault is not None:
            raise BrokenTable(**table.fault.facts)
        entry = int(table.entries[column])
        bitmap = int(table.bitmaps[column]) if self.geometry.has_subclusters else 0
        return entry, bitmap, bool(entry & int(COPIED))

    def set(self, cluster: int, entry: int, bitmap: int = 0) -> None:
        """Let a cluster have another entry; the lock is held."""
        index, column = divmod(cluster, self.geometry.l2_entry_count)
        table = self._tables[index]
        before = int(table.entries[column])
        table.entries[column] = entry
        if self.geometry.has_subclusters:
            table.bitmaps[column] = bitmap
        if before and (before ^ entry) & int(HOST_OFFSET | tables.COMPRESSED_FLAG):
            self._lose(before)

    def _lose(self, entry: int) -> None:
        """A host cluster is not used any more by an entry."""
        users = put.entry_users(self.geometry, np.array([entry], np.uint64)).tolist()
        if len(users) == 1 and users[0] in self._unborn:
            self._unborn.discard(users[0])
            self._graves.append((self._traffic.let_go(), users, True))
        else:
            self._lost += users

    def take(self, count: int) -> list[int]:
        """Take host clusters for guest data. Raises: StorageFailed, BrokenTable, Refused."""
        self.settle()
        taken = self.room.take(count)
        self._unborn.update(taken)
        return taken

    def put_back(self, clusters: list[int]) -> None:
        """Clusters that were taken and are not used after all."""
        self._unborn.difference_update(clusters)
        self.room.put_back(clusters)

    def settle(self) -> None:
        """Let what is buried be used again as far as nobody can be reading it any more. Raises: StorageFailed."""
        while self._graves and self._traffic.has_passed(self._graves[0][0]):
            # What fails half-way is not tried again: nobody knows which counts went down.
            _, clusters, is_counted = self._graves.pop(0)
            if is_counted:
                self.room.put_back(clusters)
            else:
                self.room.release(np.array(clusters, np.int64))

    @property
    def has_changes(self) -> bool:
        """Whether the file does not say yet what the tables say here."""
        return bool(self._dirty)

    def sync(self) -> None:
        """Make durable what lies where the file's entries say. Raises: StorageFailed."""
        self._run([Flush()])

    def flush(self) -> None:
        """Make all durable: data, then the entries. Raises: StorageFailed; then the same is tried the next time."""
        if not self._dirty:
            self.sync()
            return
        old, new = self._slices()
        steps = writes.order(old, new)
        # From the first entry on the file may point at what was taken.
        self._unborn.clear()
        with self.room.doubting():
            self._run([*steps, Flush()])
        self._done(old, new)
        self.settle()

    def _slices(self) -> tuple[Slice, Slice]:
        """The image as its file says, and as it shall be, with a place for each new table."""
        image, bits = self.image, self.geometry.cluster_bits
        index = np.array(sorted(self._dirty), np.int64)
        held = [self._tables[each] for each in index.tolist()]
        words = image.l1[index]
        is_new = ((words & HOST_OFFSET) == 0) | ((words & COPIED) == 0)
        hosts = np.array(self.room.take(int(is_new.sum())), np.int64) << bits
        image = self.image
        l1 = image.l1.copy()
        l1[index[is_new]] = hosts.astype(np.uint64) | COPIED
        offset = tables.table_offsets(image.l1[index])
        was = Tables(
            index, offset, np.stack([each.old_entries for each in held]), np.stack([each.old_bitmaps for each in held])
        )
        now = Tables(
            index,
            tables.table_offsets(l1[index]),
            np.stack([each.entries for each in held]),
            np.stack([each.bitmaps for each in held]),
        )
        there = Tables._make(column[offset != 0] for column in was)
        counts = no_slice(image).counts
        return Slice(image, there, counts), Slice(image._replace(l1=l1), now, counts)

    def _done(self, old: Slice, new: Slice) -> None:
        """The file says now what the tables say here."""
        before, after = old.image.l1, new.image.l1
        moved = tables.table_offsets(before[before != after])
        self.room.image = new.image._replace(file_size_bytes=self._layer.file.size_bytes)
        with self._lock:
            for index, offset in zip(new.tables.l1_index.tolist(), new.tables.host_offset.tolist(), strict=True):
                table = self._tables[index]
                table.old_entries, table.old_bitmaps = table.entries, table.bitmaps
                table.host_offset, table.is_dirty = offset, False
        self._dirty.clear()
        lost = self._lost + (moved[moved != 0] >> self.geometry.cluster_bits).tolist()
        self._lost = []
        if lost:
            self._graves.append((self._traffic.let_go(), lost, False))

    def begin(self) -> None:
        """Say durably that the image is being written. Raises: StorageFailed."""
        steps, image = writes.begin(self.image)
        self._run(steps)
        self.room.image = image

    def finish(self, settled: Callable[[Image], Image]) -> None:
        """Let go what is not needed, and say durably that all is right; `settled` does what is left to be done with
        the image before that. Nobody uses the disk any more.
        """
        self.flush()
        self.settle()
        if self.room.is_doubtful:
            # The dirty bit stays, so that whoever comes next mends the counts.
            self.room.give_back()
            self.sync()
            return
        self.room.image = settled(self.image)
        self.room.give_back()
        steps, self.room.image = writes.finish(self.image)
        self._run(steps)

    def _run(self, steps: list[Step]) -> None:
        run(steps, self._layer.file, Chain((), ()), Silent(), self._layer.data_file)
