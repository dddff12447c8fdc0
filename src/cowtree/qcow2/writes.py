"""The one owner of crash order: it turns (old image, new image) into ordered writes with flush points. How the first
cluster itself is rewritten, extensions and names too, is owned by `header_writes.py`.

    1  counts go up, new refcount blocks and a new refcount table are written
    2  (flush) the refcount table points at the new blocks, or the header at the new table
    3  guest data, new L2 tables and a new L1 table are written where nothing points yet
    4  (flush) L2 and L1 entries change, or the header's L1 fields
    5  (flush) counts go down

So a cluster is counted before anything points at it, data and tables are durable before a pointer to them, and a
pointer is gone, durably, before the count goes down. A stop between any two writes leaves the old content or the new
one, and at worst clusters that are counted but not used; the dirty bit, set around all of it, says so.

Everything works on differences: only the entries that changed, widened to one span per table or block, are written.
"""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from cowtree.extents import Offsets, is_among
from cowtree.qcow2 import bitmaps, refcounts, tables
from cowtree.qcow2 import header as qcow2
from cowtree.qcow2.bitmaps import Bitmap
from cowtree.qcow2.geometry import round_up
from cowtree.qcow2.header import Header
from cowtree.qcow2.header_writes import header_write
from cowtree.qcow2.image import Image, Slice
from cowtree.qcow2.refcounts import Counts
from cowtree.steps import Flush, Move, Step, Truncate, Write

Words = NDArray[np.unsignedinteger]


def order(old: Slice, new: Slice, move: Move | None = None) -> list[Step]:
    """The steps that lead from one slice to the other, with guest data moved in between.
    The new slice holds every table and block of the old one, and perhaps more.
    """
    peak = _peak(old.counts, new.counts)
    steps = _raise_counts(old, new, peak)
    fill = _new_tables(old, new)
    pointers = _pointers(old, new)
    if move is not None and len(move.target_offset):
        fill.insert(0, move)
    steps += fill
    if pointers:
        steps += [Flush(), *pointers]
    drops = count_writes(new.image, peak, new.counts)
    if drops:
        steps += [Flush(), *drops]
    return steps


def _peak(old: Counts, new: Counts) -> Counts:
    """What is counted in the midst of the change: old and new users together."""
    counts = new.counts.copy()
    rows = np.searchsorted(new.block_index, old.block_index)
    counts[rows] = np.maximum(counts[rows], old.counts)
    return new._replace(counts=counts)


def _raise_counts(old: Slice, new: Slice, peak: Counts) -> list[Step]:
    geometry = new.image.geometry
    fresh = ~is_among(peak.block_index, old.counts.block_index)
    steps: list[Step] = [
        Write(int(offset), refcounts.encode(geometry, counts))
        for offset, counts in zip(peak.host_offset[fresh], peak.counts[fresh], strict=True)
    ]
    kept = Counts._make(column[~fresh] for column in peak)
    steps += count_writes(new.image, old.counts, kept)
    before, after = old.image, new.image
    if before.header.refcount_table_offset != after.header.refcount_table_offset:
        steps.append(Write(after.header.refcount_table_offset, tables.encode_words(after.refcount_table)))
        moved = before.header._replace(
            refcount_table_offset=after.header.refcount_table_offset,
            refcount_table_cluster_count=after.header.refcount_table_cluster_count,
        )
        return [*steps, Flush(), header_write(moved), Flush()]
    entries = _table_writes(before.header.refcount_table_offset, before.refcount_table, after.refcount_table)
    return [*steps, Flush(), *entries, Flush()] if entries else steps


def count_writes(image: Image, old: Counts, new: Counts) -> list[Step]:
    """Writes of the counts that change in refcount blocks that are there; before one goes down, it is durable that its
    pointer is gone.
    """
    geometry = image.geometry
    step = max(8 // geometry.refcount_bits, 1)
    return _spans(new.host_offset, (old.counts, new.counts), lambda counts: refcounts.encode(geometry, counts), step)


def _spans(
    host_offset: Offsets, change: tuple[Words, Words], encode: Callable[[Words], bytes], step: int = 1
) -> list[Step]:
    """One write per changed row, from its first changed entry to its last, widened to multiples of `step` entries."""
    old, new = change
    differs = old != new
    steps: list[Step] = []
    for row in np.flatnonzero(differs.any(axis=1)).tolist():
        changed = differs[row]
        count = len(changed) - int(changed[::-1].argmax())
        first, last = int(changed.argmax()) // step * step, round_up(count, step)
        skipped = first // step * len(encode(new[row, :step]))
        steps.append(Write(int(host_offset[row]) + skipped, encode(new[row, first:last])))
    return steps


def _table_writes(offset: int, old: tables.Entries, new: tables.Entries) -> list[Step]:
    return _spans(np.array([offset]), (old[None, :], new[None, :]), tables.encode_words)


def _interleave(piece: tables.Tables, rows: Offsets | slice) -> tables.Entries:
    """The words of L2 tables as they stand on disk: with subclusters each entry is followed by its bitmap."""
    entries, subclusters = piece.entries[rows], piece.bitmaps[rows]
    if not subclusters.shape[1]:
        return entries
    return np.stack([entries, subclusters], axis=2).reshape(len(entries), 2 * entries.shape[1])


def _new_tables(old: Slice, new: Slice) -> list[Step]:
    """Whole L2 tables and L1 tables that are written where nothing points yet."""
    fresh = np.flatnonzero(~is_among(new.tables.host_offset, np.sort(old.tables.host_offset)))
    words = _interleave(new.tables, fresh)
    steps: list[Step] = [
        Write(int(new.tables.host_offset[row]), tables.encode_words(words[index]))
        for index, row in enumerate(fresh.tolist())
    ]
    if old.image.header.l1_table_offset != new.image.header.l1_table_offset:
        steps.append(Write(new.image.header.l1_table_offset, tables.encode_words(new.image.l1)))
    return steps


def _pointers(old: Slice, new: Slice) -> list[Step]:
    """The entries that change in tables which the image already uses."""
    rows = np.flatnonzero(is_among(new.tables.host_offset, np.sort(old.tables.host_offset)))
    before = np.searchsorted(old.tables.l1_index, new.tables.l1_index[rows])
    change = _interleave(old.tables, before), _interleave(new.tables, rows)
    steps = _spans(new.tables.host_offset[rows], change, tables.encode_words)
    header, target = old.image.header, new.image.header
    if header.l1_table_offset == target.l1_table_offset:
        steps += _table_writes(header.l1_table_offset, old.image.l1, new.image.l1)
    if (header.l1_table_offset, header.size_bytes) != (target.l1_table_offset, target.size_bytes):
        steps.append(header_write(target))
    return steps


def entry_writes(old: tables.Tables, new: tables.Tables) -> list[Step]:
    """Writes of the entries that change in L2 tables which may be in use; all that they rely on is durable before."""
    change = _interleave(old, slice(None)), _interleave(new, slice(None))
    return _spans(new.host_offset, change, tables.encode_words)


def begin(image: Image) -> tuple[list[Step], Image]:
    """Steps that must be durable before anything else changes: bitmaps are marked in use, the dirty bit is set, and
    the autoclear bits of features that nobody here keeps right are cleared.
    Source: qcow2 specification, "Header", bytes 72 to 95.
    """
    header = image.header
    if header.version < 3:
        return [], image
    changed = header._replace(
        incompatible=header.incompatible | qcow2.DIRTY, autoclear=header.autoclear & qcow2.KNOWN_AUTOCLEAR
    )
    marks = _mark_in_use(image, [each for each in image.bitmaps if each.is_auto])
    steps: list[Step] = [*marks, Flush()] if marks else []
    if changed != header:
        steps += [header_write(changed), Flush()]
    marked = (each._replace(flags=each.flags | bitmaps.IN_USE) if each.is_auto else each for each in image.bitmaps)
    return steps, image._replace(header=changed, bitmaps=tuple(marked))


def _mark_in_use(image: Image, named: Iterable[Bitmap]) -> list[Step]:
    if image.directory is None:
        return []
    start = image.directory.offset + bitmaps.FLAGS_OFFSET
    return [
        Write(start + each.entry_offset, (each.flags | bitmaps.IN_USE).to_bytes(4, "big"))
        for each in named
        if not each.is_in_use
    ]


def resize(image: Image, size_bytes: int) -> tuple[list[Step], Image]:
    """Steps that set the size that the guest sees, once all before them is durable; the L1 table is long enough.
    A bitmap that is too short for the disk would keep the image from being opened, so it is given up.
    """
    short = [each for each in image.bitmaps if each.disk_bytes_max(image.header.cluster_bits) < size_bytes]
    steps, changed = _change_header(image, image.header._replace(size_bytes=size_bytes))
    return [*_mark_in_use(image, short), *steps], changed


def finish(image: Image) -> tuple[list[Step], Image]:
    """Steps that end a change: all is made durable, then the dirty bit is cleared."""
    header = image.header._replace(incompatible=image.header.incompatible & ~qcow2.DIRTY)
    if header == image.header:
        return [Flush()], image
    return [Flush(), header_write(header), Flush()], image._replace(header=header)


def begin_tables(image: Image) -> tuple[list[Step], Image]:
    """Steps that must be durable before tables change, but no guest data: the dirty bit is set, and the autoclear bits
    of features that nobody here knows are cleared.
    """
    header = image.header
    changed = header._replace(
        incompatible=header.incompatible | qcow2.DIRTY, autoclear=header.autoclear & qcow2.KNOWN_AUTOCLEAR
    )
    return ([], image) if header.version < 3 else _change_header(image, changed)


def begin_repair(image: Image) -> tuple[list[Step], Image]:
    """Steps that come before clusters are freed that no table names: an autoclear feature that nobody here knows may
    own some of them, so its bit goes first. Guest data stays, so bitmaps stay valid.
    """
    return _change_header(image, image.header._replace(autoclear=image.header.autoclear & qcow2.KNOWN_AUTOCLEAR))


def finish_repair(image: Image) -> tuple[list[Step], Image]:
    """Steps that say that all is right again: the dirty bit and the corrupt bit go."""
    wrong = qcow2.DIRTY | qcow2.CORRUPT
    return _change_header(image, image.header._replace(incompatible=image.header.incompatible & ~wrong))


def _change_header(image: Image, header: Header) -> tuple[list[Step], Image]:
    if header == image.header:
        return [], image
    return [Flush(), header_write(header), Flush()], image._replace(header=header)


def switch(header: Header) -> list[Step]:
    """Steps that let the header point at other tables, in one sector, once all that was written before is durable."""
    return [Flush(), header_write(header), Flush()]


def shrink(image: Image, cluster_count: int) -> list[Step]:
    """Cut off clusters that nothing uses at the end of the file."""
    size_bytes = cluster_count << image.header.cluster_bits
    return [Truncate(size_bytes)] if size_bytes < image.file_size_bytes else []
