"""Persistent dirty bitmaps: which ones an image shall have, what is in them, and where that goes.

What an image shall have is a tuple of `Wanted`: a bitmap that stays as it is stored, or one that is written anew, as
the union of stored ones and of ranges of the disk. What is new is written where nothing points yet; then the header
switches to the new directory; then what nothing needs any more is freed.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from cowtree.errors import BrokenTable, Refused
from cowtree.extents import Offsets, Ranges
from cowtree.qcow2 import bitmaps, writes
from cowtree.qcow2 import header as qcow2
from cowtree.qcow2.allocate import allocate, allocate_run
from cowtree.qcow2.bitmaps import AUTO, IN_USE, Bitmap, Directory
from cowtree.qcow2.dirty import Packed
from cowtree.qcow2.header import Extension, Header
from cowtree.qcow2.header_writes import with_extension, without_extension
from cowtree.qcow2.image import Image, Slice
from cowtree.qcow2.tables import Entries
from cowtree.steps import Step, Write

DEFAULT_BITS_MIN, DEFAULT_BITS_MAX = 12, 16
GRANULARITY_MAX: Final = (1 << 32) - 1

ADD, REMOVE, CLEAR, ENABLE, DISABLE, MERGE = VERBS = ("add", "remove", "clear", "enable", "disable", "merge")


class Part(NamedTuple):
    """A stored bitmap whose bits are wanted: of the image itself, or of the other one that is open beside it."""

    bitmap: Bitmap
    is_own: bool


class Wanted(NamedTuple):
    """One bitmap that an image shall have. It is `kept` as it is stored but for its flags, or else it is written anew:
    `parts` and `touched`, ranges of the disk, are what is dirty.
    """

    name: str
    flags: int
    granularity_bits: int
    kept: Bitmap | None = None
    parts: tuple[Part, ...] = ()
    touched: Ranges | None = None

    @property
    def entry(self) -> Bitmap:
        """What the directory says of it, but for its table."""
        extra_data = self.kept.extra_data if self.kept else b""
        return Bitmap(self.name, 0, 0, self.flags, self.granularity_bits, 0, extra_data)


class Holder(NamedTuple):
    """An image that has bitmaps, or may get one; `header` is None when it is raw."""

    path: str
    header: Header | None
    size_bytes: int
    wanted: tuple[Wanted, ...] = ()

    def with_bitmaps(self, found: Sequence[Bitmap]) -> "Holder":
        """The same with bitmaps as they are stored."""
        return self._replace(wanted=tuple(map(keep, found)))

    def find(self, name: str) -> Wanted:
        """The bitmap of this name. Raises: Refused."""
        for each in self.wanted:
            if each.name == name:
                return each
        raise Refused(reason=f"Dirty bitmap '{name}' not found")

    def replaced(self, old: Wanted, new: Wanted) -> "Holder":
        """The same with another bitmap in the place of one."""
        return self._replace(wanted=tuple(new if each is old else each for each in self.wanted))


class Action(NamedTuple):
    """Something that is done to one bitmap: `other` is the name of the one that is merged into it, `granularity` that
    of a new one.
    """

    verb: str
    other: str = ""
    granularity: int | None = None


def keep(bitmap: Bitmap) -> Wanted:
    """A bitmap as it is stored."""
    return Wanted(bitmap.name, bitmap.flags, bitmap.granularity_bits, bitmap)


def act(holder: Holder, name: str, action: Action, source: Holder | None = None) -> Holder:
    """What a holder has after one action on the bitmap `name`; another is merged from `source`, or from its own.
    Raises: Refused in QEMU's words.
    """
    if action.verb == ADD:
        return add(holder, name, action.granularity)
    found = holder.find(name)
    if action.verb == REMOVE:
        return holder._replace(wanted=tuple(each for each in holder.wanted if each is not found))
    if action.verb == MERGE:
        return merge(holder, found, source or holder, action.other)
    _refuse_unusable(found)
    if action.verb == CLEAR:
        return holder.replaced(found, found._replace(kept=None, parts=(), touched=None))
    flags = found.flags | AUTO if action.verb == ENABLE else found.flags & ~AUTO
    return holder.replaced(found, found._replace(flags=flags))


def add(holder: Holder, name: str, granularity: int | None, *, is_auto: bool = True) -> Holder:
    """The same with a new bitmap that is clean.
    Raises: Refused in QEMU's words.
    """
    if not name:
        raise Refused(reason="Bitmap name cannot be empty")
    if granularity is not None and (granularity < 512 or granularity & (granularity - 1)):
        raise Refused(reason="Granularity must be power of 2 and at least 512", hint="-g 64k")
    if holder.header is None:
        raise Refused(reason=f"Can't store persistent bitmaps to {holder.path}: Operation not supported")
    if any(each.name == name for each in holder.wanted):
        raise Refused(reason=f"Bitmap already exists: {name}")
    bits = holder.header.cluster_bits if granularity is None else granularity.bit_length() - 1
    if granularity is None:
        bits = min(max(bits, DEFAULT_BITS_MIN), DEFAULT_BITS_MAX)
    new = Wanted(name, AUTO if is_auto else 0, bits)
    reason = _unstorable(holder, holder.header, new)
    if reason:
        raise Refused(reason=f"Can't make bitmap '{name}' persistent in '{holder.path}': {reason}")
    return holder._replace(wanted=(*holder.wanted, new))


def _unstorable(holder: Holder, header: Header, new: Wanted) -> str:
    """Why there cannot be such a bitmap; empty when there can."""
    data_bytes = -(-bitmaps.bit_count(holder.size_bytes, new.granularity_bits) // 8)
    directory_bytes = sum(each.entry.entry_bytes for each in (*holder.wanted, new))
    rules = (
        (header.version < 3, "Cannot store dirty bitmaps in qcow2 v2 files"),
        (
            data_bytes > bitmaps.DATA_BYTES_MAX,
            "Too much space will be occupied by the bitmap. Use larger granularity",
        ),
        (
            len(qcow2.encode_name(new.name)) > bitmaps.NAME_BYTES_MAX,
            f"Name length exceeds maximum ({bitmaps.NAME_BYTES_MAX} characters)",
        ),
        (len(holder.wanted) == bitmaps.BITMAP_COUNT_MAX, "Maximum number of persistent bitmaps is already reached"),
        (directory_bytes > bitmaps.DIRECTORY_BYTES_MAX, "Not enough space in the bitmap directory"),
        # QEMU finds out when it is too late.
        (data_bytes == 0, "the disk is empty"),
    )
    return next((reason for is_broken, reason in rules if is_broken), "")


def merge(holder: Holder, found: Wanted, source: Holder, name: str) -> Holder:
    """The same where `found` also has the dirty bits of the bitmap `name` of `source`.
    Raises: Refused in QEMU's words.
    """
    other = source.find(name)
    _refuse_unusable(found)
    _refuse_unusable(other)
    if source.size_bytes != holder.size_bytes:
        sizes = f"destination size is {holder.size_bytes}, source size is {source.size_bytes}"
        raise Refused(reason=f"Bitmaps are of different sizes ({sizes}) and can't be merged")
    if other is found:
        return holder
    parts = (*_content(found, is_own=True), *_content(other, is_own=source is holder))
    return holder.replaced(found, found._replace(kept=None, parts=parts))


def _content(wanted: Wanted, *, is_own: bool) -> tuple[Part, ...]:
    return wanted.parts if wanted.kept is None else (Part(wanted.kept, is_own),)


def _refuse_unusable(wanted: Wanted) -> None:
    if wanted.flags & IN_USE:
        hint = "the same with --remove, to delete this bitmap from disk"
        raise Refused(reason=f"Bitmap '{wanted.name}' is inconsistent and cannot be used", hint=hint)
    if wanted.kept and wanted.kept.has_foreign_data:
        raise Refused(reason=f"Bitmap '{wanted.name}' has extra data that nobody here knows, and cannot be used")


def refuse_resize(found: Sequence[Bitmap]) -> None:
    """Refuse to change the size of a disk when that of a bitmap cannot follow. Raises: Refused in QEMU's words."""
    for each in found:
        _refuse_unusable(keep(each))


def resized(image: Image, size_bytes: int) -> tuple[Wanted, ...]:
    """The bitmaps of an image whose disk gets another size; what is new is clean. Those that are in use stay."""
    header = image.header._replace(size_bytes=size_bytes)
    old, new = bitmaps.disk_size_bytes(image.header), bitmaps.disk_size_bytes(header)
    wanted = []
    for each in image.bitmaps:
        count = bitmaps.table_entry_count(new, each.granularity_bits, header.cluster_bits)
        stays = each.is_in_use or (new >= old and count == each.table_entry_count)
        wanted.append(keep(each) if stays else renewed(each))
    return tuple(wanted)


def renewed(bitmap: Bitmap, touched: Ranges | None = None) -> Wanted:
    """The bitmap written anew and no more in use, with some ranges of the disk dirty as well."""
    return keep(bitmap)._replace(
        flags=bitmap.flags & ~IN_USE, kept=None, parts=(Part(bitmap, is_own=True),), touched=touched
    )


def flag_steps(image: Image, wanted: Sequence[Wanted]) -> tuple[list[Step], Image] | None:
    """Steps that change nothing but flags, in place; None when something else changes as well."""
    if [each.kept for each in wanted] != list(image.bitmaps):
        return None
    start = image.directory.offset + bitmaps.FLAGS_OFFSET if image.directory else 0
    changed = [(each, old) for each, old in zip(wanted, image.bitmaps, strict=True) if each.flags != old.flags]
    steps: list[Step] = [Write(start + old.entry_offset, each.flags.to_bytes(4, "big")) for each, old in changed]
    now = (old._replace(flags=each.flags) for each, old in zip(wanted, image.bitmaps, strict=True))
    return steps, image._replace(bitmaps=tuple(now))


def place(piece: Slice, rows: Packed) -> tuple[Entries, list[Step], Image]:
    """Give clusters of bits a place, but for those without a dirty one. Shapes: rows (count, bytes of a cluster).
    Returns: their table entries, the steps that write them where nothing points, and the image after these.
    """
    bits = piece.image.header.cluster_bits
    used = np.flatnonzero(rows.any(axis=1))
    if not len(used):
        return np.zeros(len(rows), np.uint64), [], piece.image
    taken, counted = allocate(piece, len(used))
    _refuse_tables(counted.image, taken)
    entries = np.zeros(len(rows), np.uint64)
    entries[used] = taken.astype(np.uint64) << np.uint64(bits)
    steps = writes.order(piece, counted)
    for run in np.split(np.arange(len(used)), np.flatnonzero(np.diff(taken) != 1) + 1):
        steps.append(Write(int(taken[run[0]]) << bits, rows[used[run]].tobytes()))
    return entries, steps, counted.image


def place_run(piece: Slice, data: bytes) -> tuple[int, list[Step], Image]:
    """Give a table a place of its own. Returns: its offset, the steps that write it, and the image after these."""
    geometry = piece.image.geometry
    count = geometry.cluster_count(len(data))
    first, counted = allocate_run(piece, count)
    _refuse_tables(counted.image, np.arange(first, first + count))
    offset = first << geometry.cluster_bits
    return offset, [*writes.order(piece, counted), Write(offset, data)], counted.image


def _refuse_tables(image: Image, targets: Offsets) -> None:
    hit = image.tables_among(targets)
    if len(hit):
        raise BrokenTable(path=image.path, reason=f"host cluster {hit[0]} is counted as free, but holds a table")


def with_directory(header: Header, found: Directory | None) -> Header:
    """The header of an image whose bitmap directory lies there, or that has none."""
    if found is None:
        extensions = without_extension(header.extensions, qcow2.BITMAPS)
        return header._replace(extensions=extensions, autoclear=header.autoclear & ~qcow2.AUTOCLEAR_BITMAPS)
    data = bitmaps.BITMAPS_EXTENSION.pack(
        nb_bitmaps=found.bitmap_count,
        reserved=0,
        bitmap_directory_size=found.length_bytes,
        bitmap_directory_offset=found.offset,
    )
    extensions = with_extension(header.extensions, Extension(qcow2.BITMAPS, data))
    return header._replace(extensions=extensions, autoclear=header.autoclear | qcow2.AUTOCLEAR_BITMAPS)


def release(piece: Slice, clusters: Offsets) -> list[Step]:
    """Steps that free clusters that nothing names any more; none when their counts, or a table that lies in one of
    them, say that somebody else uses them.
    """
    if not len(clusters) or (piece.counts.get(clusters) != 1).any() or len(piece.image.tables_among(clusters)):
        return []
    counts = piece.counts.put(clusters, np.zeros(len(clusters), piece.counts.counts.dtype))
    return writes.order(piece, piece._replace(counts=counts))
