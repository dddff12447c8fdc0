"""Moving guest data: many pieces, sorted by target, through two large buffers; what can be cloned is not copied.

While one buffer is written the next one is read, so that both cores work. Pieces that end up side by side are written
by one call; what is large enough goes past the page cache (`storage/file.py`), for which buffers must start on a page.
What lies on a disk is asked for some batches ahead, in the order of its file, so that the disk is never idle.
"""

import mmap
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import numpy as np

from cowtree.chain.view import Chain
from cowtree.execute.cloner import clone
from cowtree.execute.read import fetch, prefetch
from cowtree.extents import MOVING, Extents, Offsets
from cowtree.monitor import Monitor
from cowtree.steps import Move
from cowtree.storage.contract import Storage

BATCH_BYTES: Final = 4 << 20
BATCHES_AHEAD: Final = 8


def copy(chain: Chain, move: Move, target: Storage, monitor: Monitor) -> None:
    """Carry out a move. Not durable before the target is flushed.
    Raises: StorageFailed, BrokenTable.
    """
    move = clone(chain, move, target, monitor)
    if not len(move.target_offset):
        return
    pieces, target_offset = _split(move)
    buffers = [memoryview(mmap.mmap(-1, 2 * BATCH_BYTES)) for _ in range(2)]
    batches = list(_batches(pieces.length))
    with ThreadPoolExecutor(2) as threads:
        pending: Future[None] | None = None
        for index, (first, last) in enumerate(batches):
            if index % BATCHES_AHEAD == 0:
                coming = batches[index + BATCHES_AHEAD :][:BATCHES_AHEAD]
                threads.submit(prefetch, chain, pieces.take(_span(coming)))
            buffer = buffers[index % 2]
            batch = pieces.take(slice(first, last))
            position = np.cumsum(batch.length) - batch.length
            fetch(chain, batch, position, buffer)
            if pending is not None:
                pending.result()
            pending = threads.submit(write_pieces, target, target_offset[first:last], (position, batch.length), buffer)
            monitor.advance(batch.total_bytes)
        if pending is not None:
            pending.result()


def _split(move: Move) -> tuple[Extents, Offsets]:
    """Pieces of at most BATCH_BYTES."""
    source, target_offset = move
    counts = -(-source.length // BATCH_BYTES)
    which = np.repeat(np.arange(len(counts)), counts)
    inside = (np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)) * BATCH_BYTES
    pieces = source.take(which)
    moved = np.where(np.isin(pieces.kind, MOVING), inside, 0)
    length = np.minimum(pieces.length - inside, BATCH_BYTES)
    pieces = pieces._replace(start=pieces.start + inside, length=length, host_offset=pieces.host_offset + moved)
    return pieces, target_offset[which] + inside


def _batches(length: Offsets) -> Iterator[tuple[int, int]]:
    """Half-open runs of pieces, each at most a buffer long."""
    if not len(length):
        return
    number = (np.cumsum(length) - length) // BATCH_BYTES
    first = np.flatnonzero(np.concatenate(([True], np.diff(number) > 0))).tolist()
    yield from zip(first, [*first[1:], len(length)], strict=True)


def _span(batches: list[tuple[int, int]]) -> slice:
    """The pieces of some batches that follow each other."""
    return slice(batches[0][0], batches[-1][1]) if batches else slice(0)


def write_pieces(target: Storage, target_offset: Offsets, where: tuple[Offsets, Offsets], buffer: memoryview) -> None:
    """Write pieces of a buffer, `where` being their positions and lengths; neighbours here and there by one call."""
    position, length = where
    if not len(target_offset):
        return
    goes_on = (target_offset[1:] == target_offset[:-1] + length[:-1]) & (position[1:] == position[:-1] + length[:-1])
    first = np.flatnonzero(np.concatenate(([True], ~goes_on)))
    last = np.append(first[1:] - 1, len(position) - 1)
    ends = (position + length)[last]
    for offset, begin, end in zip(
        *(each.tolist() for each in (target_offset[first], position[first], ends)), strict=True
    ):
        target.pwrite(offset, buffer[begin:end])
