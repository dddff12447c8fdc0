"""Guests' writes into a qcow2 layer: in place where it holds a cluster alone, else to a cluster that is free.

What of a cluster, or of a subcluster, the guest does not write is copied up from what it sees there. Data is written
before the map shows it, and entries change in memory only (`pending.py`).
"""

from typing import Final, NamedTuple

from cowtree import extents as ex
from cowtree.live import map as guest_map
from cowtree.live.bitmaps import Bitmaps
from cowtree.live.pending import Pending
from cowtree.live.sight import Sight
from cowtree.plan.put import is_raw_too
from cowtree.qcow2 import tables
from cowtree.qcow2.geometry import SUBCLUSTER_COUNT
from cowtree.qcow2.image import Image

PLACED_BYTES_MAX: Final = 4 << 20
CLUSTERS_PER_ROUND: Final = 4096
COPIED, ZERO_FLAG, HOST_OFFSET = int(tables.COPIED), int(tables.ZERO_FLAG), int(tables.HOST_OFFSET)
COMPRESSED_FLAG: Final = int(tables.COMPRESSED_FLAG)
ALL_ALLOCATED: Final = int(tables.ALL_ALLOCATED)


class Place(NamedTuple):
    """Where a cluster gets to: the guest's range [low, high) of it is written from `host` on, and its entry after that.
    `is_hole` says that nothing was ever written there.
    """

    cluster: int
    low: int
    high: int
    host: int
    entry: int
    bitmap: int
    is_hole: bool


class Active:
    """The qcow2 layer on top of a disk."""

    def __init__(self, sight: Sight, pending: Pending, bitmaps: Bitmaps, *, has_backing: bool) -> None:
        self._sight = sight
        self._pending = pending
        self._bitmaps = bitmaps
        self._file = data_file = sight.layers.file_of(sight.layers.numbers[0])
        self._geometry = pending.geometry
        self._bits = pending.geometry.cluster_bits
        self._size = pending.geometry.cluster_size_bytes
        self._unit = pending.geometry.subcluster_size_bytes
        self._is_raw_too = is_raw_too(pending.image)
        self._has_backing = has_backing
        # Zeroes can be said without being written, unless version 2 has something that would show through.
        self.can_say_zero = (pending.geometry.version >= 3 or not has_backing) and not self._is_raw_too
        self._is_plain = data_file.place(0, 0) is not None

    @property
    def has_changes(self) -> bool:
        """Whether tables wait to be written."""
        return self._pending.has_changes

    @property
    def image(self) -> Image:
        """The image as its file says."""
        return self._pending.image

    def begin(self) -> None:
        """Set the dirty bit."""
        self._pending.begin()

    def flush(self) -> None:
        """Write what waits."""
        self._pending.flush()

    def sync(self) -> None:
        """Make data durable that lies in clusters of its own."""
        self._pending.sync()

    def finish(self) -> None:
        """Write what waits, and take the dirty bit down."""
        self._pending.finish(self._bitmaps.settle)

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of it."""
        done, stop = 0, offset + len(data)
        while offset + done < stop:
            at = offset + done
            begin, end, code, host = self._sight.find(at)
            if code & guest_map.OWN:
                end = min(end, stop)
                self._file.pwrite(host + at - begin, data[done : end - offset])
            else:
                end = self._foreign_end(at, min(stop, at + PLACED_BYTES_MAX))
                self._put(at, data[done : end - offset])
            done = end - offset

    def _foreign_end(self, offset: int, stop: int) -> int:
        """Where the first piece begins that may be written in place."""
        while offset < stop:
            piece = self._sight.find(offset)
            if piece[2] & guest_map.OWN:
                return offset
            offset = piece[1]
        return stop

    def _put(self, offset: int, data: memoryview) -> None:
        """Write into clusters, or subclusters, that the layer does not hold alone yet."""
        stop = offset + len(data)
        places, taken = self._choose(offset, stop)
        try:
            self._write_out(places, offset, data)
        except BaseException:
            self._pending.put_back(taken)
            raise
        with self._sight.lock:
            for each in places:
                self._pending.set(each.cluster, each.entry, each.bitmap)
            for low, high, host in _runs(places):
                self._show(low, high, ex.DATA, host)
        if self._pending.is_large:
            self._pending.flush()

    def _show(self, low: int, high: int, kind: int, host: int) -> None:
        """Let the map say where a range lies now; the lock is held."""
        number = self._sight.layers.numbers[0]
        code = guest_map.code_of(number, kind, is_own=kind == ex.DATA)
        self._sight.map.put(low, min(high, self._sight.size_bytes), code, host)

    def _choose(self, offset: int, stop: int) -> tuple[list[Place], list[int]]:
        """A place for each cluster of a range. Returns: the places, and the host clusters that were taken."""
        clusters = range(offset >> self._bits, ((stop - 1) >> self._bits) + 1)
        found = [self._pending.entry(cluster) for cluster in clusters]
        has_own = [is_own and self._has_host(entry) for entry, _, is_own in found]
        taken: list[int] = []
        if not self._geometry.has_data_file:
            taken = self._pending.take(len(found) - sum(has_own))
        rest = iter(taken)
        places = []
        for cluster, (entry, bitmap, _), is_own in zip(clusters, found, has_own, strict=True):
            is_hole = False
            if self._geometry.has_data_file:
                host = cluster << self._bits
            elif is_own:
                host = entry & HOST_OFFSET
            else:
                fresh = next(rest)
                host, is_hole = fresh << self._bits, self._is_plain and self._pending.room.is_hole(fresh)
            low, high, after = self._span(cluster, (offset, stop), (entry, bitmap, is_own))
            places.append(
                Place(cluster, low, high, host + low - (cluster << self._bits), host | COPIED, after, is_hole)
            )
        return places, taken

    def _has_host(self, entry: int) -> bool:
        """Whether an entry names a plain host cluster."""
        if entry & COMPRESSED_FLAG:
            return False
        return bool(entry & HOST_OFFSET) or (self._geometry.has_data_file and entry & (COPIED | ZERO_FLAG) == COPIED)

    def _span(self, cluster: int, wanted: tuple[int, int], now: tuple[int, int, bool]) -> tuple[int, int, int]:
        """Which guest range of a cluster is written, and its bitmap after that."""
        start = cluster << self._bits
        entry, bitmap, is_own = now
        if not self._geometry.has_subclusters:
            return start, start + self._size, 0
        if not is_own and (self._has_host(entry) or entry & COMPRESSED_FLAG):
            # What another may hold as well is copied as a whole.
            return start, start + self._size, ALL_ALLOCATED
        first = max(wanted[0] - start, 0) // self._unit
        last = -(-min(wanted[1] - start, self._size) // self._unit)
        touched = (1 << last) - (1 << first)
        bitmap = (bitmap | touched) & ~(touched << SUBCLUSTER_COUNT)
        return start + first * self._unit, start + last * self._unit, bitmap

    def _write_out(self, places: list[Place], offset: int, data: memoryview) -> None:
        """Write the guest's bytes, and around them what it sees there now."""
        stop, low, high = offset + len(data), places[0].low, places[-1].high
        size_bytes = self._sight.size_bytes
        if self._only_holes(places, (low, offset), (stop, high)):
            # All that is not written reads as zeroes here and there.
            low, high = offset, stop
            view = data
        elif (low, high) != (offset, stop):
            head = self._sight.read(low, offset - low) if low < offset else b""
            end = min(high, size_bytes)
            tail = self._sight.read(stop, end - stop) if stop < end else b""
            if not self._geometry.has_data_file:
                tail = bytes(tail).ljust(high - stop, b"\0")
            view = memoryview(b"".join((head, data, tail)))
        else:
            view = data
        for begin, end, host in _runs(places):
            first, last = max(begin, low), min(end, low + len(view))
            if first < last:
                self._file.pwrite(host + first - begin, view[first - low : last - low])

    def _only_holes(self, places: list[Place], head: tuple[int, int], tail: tuple[int, int]) -> bool:
        """Whether what is around the guest's bytes is zero, in clusters that are holes."""
        sides = [(place, side) for place, side in ((places[0], head), (places[-1], tail)) if side[0] < side[1]]
        if not sides or not all(place.is_hole for place, _ in sides):
            return False
        end = self._sight.size_bytes
        return all(self._sight.is_zero(low, min(high, end)) for _, (low, high) in sides)

    def zero(self, start: int, stop: int, *, may_trim: bool) -> None:
        """Let a range read as zeroes."""
        first, last = self._whole_units(start, stop)
        if first >= last or not self.can_say_zero:
            self._write_zeroes(start, stop)
            return
        self._write_zeroes(start, first)
        self._write_zeroes(last, stop)
        self._clear(first, last, may_trim=may_trim)

    def _whole_units(self, start: int, stop: int) -> tuple[int, int]:
        """The part of a range that consists of whole units; the last one of the disk may be cut."""
        last = stop if stop == self._sight.size_bytes else stop // self._unit * self._unit
        return -(-start // self._unit) * self._unit, last

    def _write_zeroes(self, start: int, stop: int) -> None:
        """Write zeroes out where something else is seen."""
        while start < stop:
            begin, end, code, host = self._sight.find(start)
            end = min(end, stop, start + PLACED_BYTES_MAX)
            if code & guest_map.OWN:
                self._file.write_zeroes(host + start - begin, end - start)
            elif not guest_map.is_zero(code):
                self.write(start, memoryview(bytes(end - start)))
            start = end

    def trim(self, start: int, stop: int) -> None:
        """Give back the clusters, and subclusters, that lie in a range."""
        first, last = self._whole_units(start, stop)
        if first < last and self.can_say_zero:
            self._clear(first, last, may_trim=True)
        elif self._is_raw_too:
            self._write_zeroes(start, stop)

    def _clear(self, start: int, stop: int, *, may_trim: bool) -> None:
        """Let whole units read as zeroes by their entries alone."""
        for first in range(start >> self._bits, ((stop - 1) >> self._bits) + 1, CLUSTERS_PER_ROUND):
            last = min(first + CLUSTERS_PER_ROUND, ((stop - 1) >> self._bits) + 1)
            for cluster in range(first, last):
                low, high = max(start, cluster << self._bits), min(stop, (cluster + 1) << self._bits)
                self._clear_cluster(cluster, (low, high), may_trim=may_trim)
            if self._pending.is_large:
                self._pending.flush()

    def _clear_cluster(self, cluster: int, part: tuple[int, int], *, may_trim: bool) -> None:
        """Let a cluster, or some of its subclusters, read as zeroes."""
        low, high = part
        start = cluster << self._bits
        entry, bitmap, is_own = self._pending.entry(cluster)
        has_host = self._has_host(entry)
        is_whole = low == start and high >= min(start + self._size, self._sight.size_bytes)
        if not is_whole and entry & COMPRESSED_FLAG:
            self._write_zeroes(low, high)
            return
        keeps = has_host and (not is_whole or (is_own and not may_trim))
        if keeps and self._geometry.version < 3:
            self._write_zeroes(low, high)
            return
        new_entry, new_bitmap = self._cleared(entry if keeps else 0, bitmap, (low - start, high - start), is_whole)
        if may_trim and has_host and self._geometry.has_data_file:
            self._file.write_zeroes(low, max(min(high, self._file.size_bytes) - low, 0))
        with self._sight.lock:
            if (new_entry, new_bitmap) != (entry, bitmap):
                self._pending.set(cluster, new_entry, new_bitmap)
            host = (entry & HOST_OFFSET) + low - start
            self._show(low, high, ex.ALLOCATED if keeps else ex.ZERO, host if keeps else 0)

    def _cleared(self, entry: int, bitmap: int, part: tuple[int, int], is_whole: bool) -> tuple[int, int]:
        """The entry and the bitmap of a cluster that is zero in part; `entry` is 0 when its host cluster goes."""
        if not self._geometry.has_subclusters:
            return entry | (ZERO_FLAG if entry or self._has_backing else 0), 0
        first, last = part[0] // self._unit, SUBCLUSTER_COUNT if is_whole else -(-part[1] // self._unit)
        touched = (1 << last) - (1 << first)
        return entry, (bitmap & ~touched) | touched << SUBCLUSTER_COUNT


def _runs(places: list[Place]) -> list[tuple[int, int, int]]:
    """What is written side by side: guest ranges, and where they lie."""
    runs: list[tuple[int, int, int]] = []
    for each in places:
        if runs and runs[-1][1] == each.low and runs[-1][2] + each.low - runs[-1][0] == each.host:
            runs[-1] = (runs[-1][0], each.high, runs[-1][2])
        else:
            runs.append((each.low, each.high, each.host))
    return runs
