"""Writing the persistent bitmaps of one open image, and reading those that go into them.

A disk of 16 TiB has bitmaps of many MiB, so bits come and go in windows. The caller has set the dirty bit, and takes it
down: a stop leaves the old bitmaps or the new ones, and at worst clusters that are counted and not used.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from cowtree import extents as ex
from cowtree.chain import gate, load
from cowtree.chain.gate import Layer
from cowtree.chain.view import Chain
from cowtree.errors import BrokenTable, Refused, TruncatedImage
from cowtree.execute.run import run
from cowtree.extents import Ranges
from cowtree.monitor import Silent
from cowtree.plan import bitmap as plan
from cowtree.plan.bitmap import Part, Wanted
from cowtree.plan.put import refcount_table_clusters
from cowtree.qcow2 import bitmaps, dirty, tables
from cowtree.qcow2.bitmaps import Bitmap, Directory
from cowtree.qcow2.check import wrong_bitmap_entries
from cowtree.qcow2.dirty import Packed
from cowtree.qcow2.geometry import ceil_div, round_up
from cowtree.qcow2.header import Header
from cowtree.qcow2.header_writes import rewrite
from cowtree.qcow2.image import Image, Slice, no_slice
from cowtree.qcow2.tables import Entries
from cowtree.steps import Step

WINDOW_BYTES: Final = 1 << 20
STEP_BYTES: Final = 1 << 17
RANGES_PER_JOIN: Final = 1 << 12
RANGE_COUNT_MAX: Final = 1 << 20


class Stored(NamedTuple):
    """A bitmap whose table is known."""

    layer: Layer
    cluster_bytes: int
    bitmap: Bitmap
    entries: Entries

    def read(self, start: int, stop: int) -> Packed:
        """The bytes [start, stop) of its bits, one cluster behind the other."""
        found, size = np.zeros(stop - start, np.uint8), self.cluster_bytes
        for row in range(start // size, ceil_div(stop, size)):
            low, high, entry = max(start, row * size), min(stop, (row + 1) * size), int(self.entries[row])
            here = slice(low - start, high - start)
            if entry == dirty.ALL_ONES:
                found[here] = 0xFF
            elif entry:
                found[here] = np.frombuffer(self.layer.file.pread(entry + low - row * size, high - low), np.uint8)
        return found

    def paint(self, window: Packed, first: int, granularity_bits: int) -> None:
        """Set the bits of a window, from bit `first` on, that stand for what is dirty here."""
        last, own_bits = first + 8 * len(window), self.bitmap.granularity_bits
        begin = ((first << granularity_bits) >> own_bits) // 8
        end = min(ceil_div(last << granularity_bits, 8 << own_bits), len(self.entries) * self.cluster_bytes)
        if own_bits == granularity_bits and begin < end:
            window[: end - begin] |= self.read(begin, end)
            return
        for start in range(begin, end, STEP_BYTES):
            packed = self.read(start, min(start + STEP_BYTES, end))
            if not packed.any():
                continue
            found = dirty.unpack(packed)
            bits = Ranges(found.start + 8 * start, found.stop + 8 * start)
            mark(window, first, dirty.rescale(bits, own_bits, granularity_bits))


def mark(window: Packed, first: int, bits: Ranges) -> None:
    """Set bits of a window that begins with bit `first`."""
    if not len(bits.start):
        return
    low = max(int(bits.start[0]) - first, 0) // 8 * 8
    high = min(round_up(int(bits.stop[-1]) - first, 8), 8 * len(window))
    if low < high:
        window[low // 8 : high // 8] |= dirty.pack(bits, first + low, high - low)


def open_stored(layer: Layer, image: Image, bitmap: Bitmap) -> Stored:
    """Read a bitmap's table. Raises: BrokenTable, TruncatedImage."""
    what = f"the table of bitmap '{bitmap.name}'"
    entries = load.read_table(layer, what, bitmap.table_offset, bitmap.table_entry_count)
    size = image.geometry.cluster_size_bytes
    end = round_up(layer.file.size_bytes, size)
    if (tables.table_offsets(entries) >= end).any() or wrong_bitmap_entries(image.geometry, entries).any():
        reason = f"Could not read bitmap_table table from image for bitmap '{bitmap.name}': Invalid argument"
        raise BrokenTable(path=image.path, reason=reason)
    return Stored(layer, size, bitmap, entries)


def try_stored(layer: Layer, image: Image, bitmap: Bitmap) -> Stored | None:
    """A bitmap's table, or None when it is too broken to be followed."""
    try:
        return open_stored(layer, image, bitmap)
    except (BrokenTable, TruncatedImage):
        return None


class BitmapWriter:
    """Gives one image other bitmaps; `image` is what it has become. Parts that are not its own come from `source`."""

    def __init__(self, layer: Layer, image: Image, source: tuple[Layer, Image] | None = None) -> None:
        self.image = image
        self._layer = layer
        self._own = layer, image
        self._source = source or self._own

    def survey(self, wanted: Sequence[Wanted]) -> None:
        """Find out what `store` would fall over. Raises: BrokenTable, TruncatedImage, Refused."""
        for part in (part for each in wanted for part in each.parts):
            self._open(part)
        place = Directory(len(wanted), 0, 0) if wanted else None
        self._rewritten(plan.with_directory(self.image.header, place))

    def store(self, wanted: Sequence[Wanted], header: Header | None = None) -> None:
        """Write what is new, switch to it, and free what is no longer needed; with a `header` the switch goes to that.
        Raises: BrokenTable and TruncatedImage before the switch, Refused, StorageFailed.
        """
        header = header or self.image.header
        size_bytes = bitmaps.disk_size_bytes(header)
        found = bitmaps.placed([self._written(each, size_bytes) for each in wanted])
        data = bitmaps.pack(found)
        place = Directory(len(found), self._put_run(data), len(data)) if found else None
        # What a new refcount table has changed in the header must stay.
        current = self.image.header
        header = header._replace(
            refcount_table_offset=current.refcount_table_offset,
            refcount_table_cluster_count=current.refcount_table_cluster_count,
        )
        self._run(self._rewritten(plan.with_directory(header, place)))
        old = self.image
        header = gate.read_header(old.path, self._layer.file)
        self.image = old._replace(header=header, directory=place, bitmaps=found)
        self._free(old, {each.table_offset for each in found})

    def resize(self, size_bytes: int) -> bool:
        """Let the disk have another size, and its bitmaps follow. Returns: whether that was done; it is not when none
        of them needs it, or one cannot.
        """
        wanted = plan.resized(self.image, size_bytes)
        if all(each.kept for each in wanted):
            return False
        try:
            self.survey(wanted)
        except (BrokenTable, TruncatedImage, Refused):
            return False
        self.store(wanted, self.image.header._replace(size_bytes=size_bytes))
        return True

    def settle(self, recorder: "Recorder") -> None:
        """Write down what was recorded; bitmaps that are kept right by that are no more in use."""
        wanted = recorder.wanted(self._layer, self.image)
        flags = plan.flag_steps(self.image, wanted)
        if flags is not None:
            self._run(*flags)
            return
        try:
            self.survey(wanted)
        except (BrokenTable, TruncatedImage, Refused):
            return
        self.store(wanted)

    def _rewritten(self, header: Header) -> list[Step]:
        cluster = self._layer.file.pread(0, self.image.geometry.cluster_size_bytes)
        return rewrite(self.image, cluster, header)

    def _open(self, part: Part) -> Stored:
        return open_stored(*(self._own if part.is_own else self._source), part.bitmap)

    def _written(self, wanted: Wanted, size_bytes: int) -> Bitmap:
        """Write a bitmap where nothing points yet; one that is kept is there already."""
        if wanted.kept is not None:
            return wanted.kept._replace(flags=wanted.flags)
        bits, size = wanted.granularity_bits, self.image.geometry.cluster_size_bytes
        bit_count = bitmaps.bit_count(size_bytes, bits)
        entries = np.zeros(bitmaps.table_entry_count(size_bytes, bits, self.image.header.cluster_bits), np.uint64)
        sources = [self._open(part) for part in wanted.parts]
        touched = None if wanted.touched is None else dirty.to_bits(wanted.touched, bits)
        step = max(WINDOW_BYTES // size, 1)
        for row in range(0, len(entries) if sources or touched else 0, step):
            window = np.zeros(min(step, len(entries) - row) * size, np.uint8)
            first = row * size * 8
            for source in sources:
                source.paint(window, first, bits)
            if touched is not None:
                mark(window, first, touched)
            _cut_off(window, bit_count - first)
            rows = window.reshape(-1, size)
            piece = self._piece(int(rows.any(axis=1).sum()))
            entries[row : row + step], steps, image = plan.place(piece, rows)
            self._run(steps, image)
        offset = self._put_run(tables.encode_words(entries))
        return wanted.entry._replace(table_offset=offset, table_entry_count=len(entries))

    def _put_run(self, data: bytes) -> int:
        image = self.image
        # Clusters side by side are looked for among all that are free.
        count = 1 if len(data) <= image.geometry.cluster_size_bytes else image.host_cluster_count
        offset, steps, image = plan.place_run(self._piece(count), data)
        self._run(steps, image)
        return offset

    def _piece(self, free_count: int) -> Slice:
        counts = load.load_counts(self._layer.file, self.image, refcount_table_clusters(self.image), free_count)
        return no_slice(self.image)._replace(counts=counts)

    def _free(self, old: Image, kept: set[int]) -> None:
        """Free the old directory and the bitmaps that are gone; what is too broken to be freed is left to a check."""
        if old.directory is None:
            return
        bits = old.header.cluster_bits
        place = old.directory
        clusters = [np.arange(place.offset >> bits, ceil_div(place.offset + place.length_bytes, 1 << bits))]
        for each in old.bitmaps:
            stored = None if each.table_offset in kept else try_stored(self._layer, old, each)
            if stored is not None:
                clusters.append(dirty.users(old.geometry, each, stored.entries))
        for wanted in clusters:
            try:
                counts = load.load_counts(self._layer.file, self.image, wanted, 0)
            except BrokenTable:
                continue
            self._run(plan.release(no_slice(self.image)._replace(counts=counts), wanted))

    def _run(self, steps: list[Step], image: Image | None = None) -> None:
        run(steps, self._layer.file, Chain((), ()), Silent())
        self.image = (image or self.image)._replace(file_size_bytes=self._layer.file.size_bytes)


class Recorder:
    """Knows which bitmaps of one image record what is written, and what was written since it was opened."""

    def __init__(self, image: Image) -> None:
        recording = [
            each for each in image.bitmaps if each.is_auto and not each.is_in_use and not each.has_foreign_data
        ]
        self._names = {each.name for each in recording}
        self._unit = 1 << min((each.granularity_bits for each in recording), default=0)
        self._written = ex.one_range(0, 0)
        self._fresh: list[Ranges] = []
        self._fresh_count = 0
        self._is_lost = False

    def note(self, written: Ranges) -> None:
        """Remember sorted ranges of the disk as written."""
        if self._names and len(written.start):
            self._fresh.append(ex.widen(written, self._unit))
            self._fresh_count += len(self._fresh[-1].start)
            # Joining costs as much as all that is known, so it waits until as much is new.
            if self._fresh_count > max(len(self._written.start), RANGES_PER_JOIN):
                self._join()

    @property
    def has_noted(self) -> bool:
        """Whether something was written that a bitmap records."""
        return bool(self._fresh or len(self._written.start) or self._is_lost)

    def _join(self) -> None:
        fresh = Ranges._make(np.concatenate(column) for column in zip(ex.one_range(0, 0), *self._fresh, strict=True))
        self._written = ex.union(self._written, fresh)
        self._fresh, self._fresh_count = [], 0
        if len(self._written.start) > RANGE_COUNT_MAX:
            self._written, self._is_lost = ex.one_range(0, 0), True

    def wanted(self, layer: Layer, image: Image) -> tuple[Wanted, ...]:
        """The bitmaps as they shall be now; those that cannot be kept right stay in use."""
        self._join()
        return tuple(self._kept(layer, image, each) for each in image.bitmaps)

    def _kept(self, layer: Layer, image: Image, bitmap: Bitmap) -> Wanted:
        if bitmap.name not in self._names or self._is_lost or try_stored(layer, image, bitmap) is None:
            return plan.keep(bitmap)
        count = bitmaps.table_entry_count(
            bitmaps.disk_size_bytes(image.header), bitmap.granularity_bits, image.header.cluster_bits
        )
        if len(self._written.start) or bitmap.table_entry_count != count:
            return plan.renewed(bitmap, self._written)
        return plan.keep(bitmap)._replace(flags=bitmap.flags & ~bitmaps.IN_USE)


def _cut_off(window: Packed, bit_count: int) -> None:
    """Clear the bits behind the first `bit_count`, which stand for nothing."""
    if bit_count < 8 * len(window):
        window[ceil_div(bit_count, 8) :] = 0
        if bit_count % 8:
            window[bit_count // 8] &= (1 << bit_count % 8) - 1
