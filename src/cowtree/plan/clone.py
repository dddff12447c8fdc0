"""Which parts of a move need no copying, because the file system can let two files share the same blocks."""

from typing import Final, NamedTuple

import numpy as np

from cowtree import extents as ex
from cowtree.extents import Extents, Mask, Offsets, Ranges
from cowtree.steps import Move, by_target

# Sharing a range costs about 40 us, however long it is; so much is copied in that time.
PIECE_BYTES_MIN: Final = 1 << 16
# At multiples of this what is put may be cut into parts that are carried out one after the other.
CUT_BYTES: Final = 2 << 20


class Sharing(NamedTuple):
    """What a file can share with the layers of a chain.
    Shapes: int64, (layer count,); the block size, 0 where a layer's bytes cannot be shared, and where its file ends.
    """

    block_bytes: Offsets
    end_bytes: Offsets


def is_long(source: Extents) -> Mask:
    """Which extents are worth it, if they lie as they should."""
    mask: Mask = (source.kind == ex.DATA) & (source.length >= PIECE_BYTES_MIN)
    return mask


def split(move: Move, block_bytes: Offsets, end_bytes: Offsets) -> tuple[Move, Move]:
    """Part a move into what can be cloned, whole blocks from block to block, and what is left to be copied.
    Shapes: both (layer count,); the block size, 0 where a layer's bytes cannot be shared, and where its file ends.
    """
    source, target = move
    layer = source.layer
    unit = np.maximum(block_bytes[layer], 1)
    skip = -target % unit
    stop = np.minimum(source.host_offset + source.length, end_bytes[layer] // unit * unit) - source.host_offset
    length = (stop - skip) // unit * unit
    fits = (block_bytes[layer] > 0) & ((source.host_offset - target) % unit == 0)
    which = is_long(source) & fits & (length >= PIECE_BYTES_MIN)
    whole = _part(move, which, skip, length)
    head = _part(move, which & (skip > 0), np.zeros_like(skip), skip)
    behind = skip + length
    tail = _part(move, which & (behind < source.length), behind, source.length - behind)
    others = Move(source.take(~which), target[~which])
    return whole, join([head, tail, others])


def sure(move: Move, sharing: Sharing) -> Ranges:
    """The guest's ranges of a move that are cloned however it is cut into parts. A part of a move that is whole is no
    less: what is cloned of pieces is cloned of the piece that they make together.
    """
    source = move.source
    if not (is_long(source) & (sharing.block_bytes[source.layer] > 0)).any():
        return ex.one_range(0, 0)
    count = (source.stop - 1) // CUT_BYTES - source.start // CUT_BYTES + 1
    which = np.repeat(np.arange(len(count)), count)
    number = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    first = source.start[which]
    start = np.maximum(first, (first // CUT_BYTES + number) * CUT_BYTES)
    stop = np.minimum(source.stop[which], (first // CUT_BYTES + number + 1) * CUT_BYTES)
    everything = Move(source.take(which), move.target_offset[which])
    pieces = _part(everything, np.ones(len(which), np.bool_), start - first, stop - start)
    start, stop = split(pieces, *sharing)[0].source.ranges
    order = np.argsort(start)
    return ex.merge_ranges(Ranges(start[order], stop[order]))


def join(moves: list[Move]) -> Move:
    """One move of several that write to different places."""
    columns = zip(*(each.source for each in moves), strict=True)
    source = Extents._make(np.concatenate(column) for column in columns)
    return by_target(source, np.concatenate([each.target_offset for each in moves]))


def _part(move: Move, which: Mask, skip: Offsets, length: Offsets) -> Move:
    """Of some extents, all of them data, the bytes from `skip` on."""
    source, skip = move.source.take(which), skip[which]
    start, host_offset = source.start + skip, source.host_offset + skip
    part = source._replace(start=start, length=length[which], host_offset=host_offset)
    return Move(part, move.target_offset[which] + skip)
