"""What block status says of a disk: where it is allocated, and how deep.

Source: the NBD protocol, "base:allocation"; QEMU's documentation of `qemu:allocation-depth`.
"""

from collections.abc import Iterator
from typing import Final

from cowtree import extents as ex
from cowtree.live import map as guest_map
from cowtree.live.sight import Sight
from cowtree.nbd import wire

ALLOCATION_DEPTH: Final = "qemu:allocation-depth"
EXTENT_COUNT_MAX: Final = 1 << 16
LENGTH_BYTES_MAX: Final = (1 << 32) - (1 << 20)

Flagged = tuple[int, int]


def allocation(sight: Sight, offset: int, stop: int) -> list[Flagged]:
    """Where there is data, and what reads as zeroes."""
    return _limited(_allocation(sight, offset, stop))


def _allocation(sight: Sight, offset: int, stop: int) -> Iterator[Flagged]:
    for begin, end, code, host in _pieces(sight, offset, stop):
        kind = guest_map.kind_of(code)
        if kind == ex.DATA and sight.layers.is_flat(guest_map.layer_of(code)):
            yield from _holes(sight, code, host, end - begin)
        elif kind in ex.BYTES:
            yield end - begin, 0
        else:
            yield end - begin, wire.STATE_ZERO if kind == ex.ALLOCATED else wire.STATE_ZERO | wire.STATE_HOLE


def _holes(sight: Sight, code: int, host: int, length: int) -> Iterator[Flagged]:
    """Of a raw layer the file system knows where it has holes."""
    done = 0
    for span in sight.layers.file_of(guest_map.layer_of(code)).extents(host, length):
        yield span.length, 0 if span.is_data else wire.STATE_ZERO | wire.STATE_HOLE
        done += span.length
    if done < length:
        yield length - done, wire.STATE_ZERO | wire.STATE_HOLE


def depth(sight: Sight, offset: int, stop: int) -> list[Flagged]:
    """How many layers down what is seen is held: 1 for the top, 0 where none holds anything."""
    depths = {number: index + 1 for index, number in enumerate(sight.layers.numbers)}
    found = (
        (end - begin, depths[guest_map.layer_of(code)] if guest_map.kind_of(code) else 0)
        for begin, end, code, _ in _pieces(sight, offset, stop)
    )
    return _limited(found)


def _pieces(sight: Sight, offset: int, stop: int) -> Iterator[guest_map.Piece]:
    """The pieces of a range, cut to it; found one by one, for whoever asks may not want them all."""
    while offset < stop:
        begin, end, code, host = sight.find(offset)
        moved = host + offset - begin if guest_map.kind_of(code) in ex.MOVING else host
        yield offset, min(end, stop), code, moved
        offset = end


def _limited(found: Iterator[Flagged]) -> list[Flagged]:
    """Neighbours that say the same as one, and no more of them than an answer holds."""
    joined: list[Flagged] = []
    for length, flags in found:
        if joined and joined[-1][1] == flags and joined[-1][0] + length < LENGTH_BYTES_MAX:
            joined[-1] = (joined[-1][0] + length, flags)
        elif len(joined) == EXTENT_COUNT_MAX:
            break
        else:
            joined.append((length, flags))
    return joined
