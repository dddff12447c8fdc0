"""Where two chains show different bytes.

Nothing is read where both chains point at the same bytes of the same file. Of the rest each side is read by a thread of
its own, one batch ahead of the batch that is being compared.
"""

import os
from collections.abc import Iterator
from typing import Final

import numpy as np

from cowtree import extents as ex
from cowtree.chain.view import Chain, resolve
from cowtree.execute.read import ahead, pages
from cowtree.extents import Extents, Offsets, Ranges
from cowtree.monitor import Monitor

# Bytes are compared cell by cell; a granule differs when one of its cells does.
CELL_BYTES_MAX: Final = 4096


def differing(left: Chain, right: Chain, where: Ranges, granule: int) -> Ranges:
    """The granule-aligned parts of `where` in which the two views' bytes differ.
    Units: `granule` is a power of two, in bytes.
    Raises: StorageFailed, BrokenTable.
    """
    found = list(differences(left, right, where, granule))
    if not found:
        return ex.one_range(0, 0)
    return ex.merge_ranges(Ranges._make(np.concatenate(column) for column in zip(*found, strict=True)))


def differences(left: Chain, right: Chain, where: Ranges, granule: int) -> Iterator[Ranges]:
    """Find the same page by page, for callers that may stop early; what is found on two pages may meet in a granule."""
    if not len(where.start):
        return
    start, stop = int(where.start[0]), int(where.stop[-1])
    first, second = (resolve(chain, start, stop).of_kind(ex.DATA, ex.COMPRESSED) for chain in (left, right))
    where = ex.merge_ranges(where)
    shown = ex.intersect(where, ex.union(first.ranges, second.ranges))
    doubtful = ex.subtract(shown, _shared((left, first), (right, second)))
    cell = min(granule, CELL_BYTES_MAX)
    cells = ex.merge_ranges(Ranges(doubtful.start // cell * cell, -(-doubtful.stop // cell) * cell))
    # What lies in a cell but is not asked for reads as zeroes on both sides.
    sides = [pages(chain, ex.cut(seen, doubtful), cells) for chain, seen in ((left, first), (right, second))]
    for one, other in zip(*map(ahead, sides), strict=True):
        words = np.frombuffer(one.data, np.uint64) != np.frombuffer(other.data, np.uint64)
        rows = np.flatnonzero(words.reshape(-1, cell // 8).any(axis=1))
        if len(rows):
            yield _granules(one.guest_offset(rows * cell), where, granule)


def _shared(one: tuple[Chain, Extents], other: tuple[Chain, Extents]) -> Ranges:
    """Where both sides point at the same bytes of the same file."""
    common = ex.intersect(one[1].ranges, other[1].ranges)
    first, second = (ex.cut(seen, common) for _, seen in (one, other))
    numbers: dict[str, int] = {}
    left, right = (_file_numbers(chain, numbers)[seen.layer] for (chain, _), seen in ((one, first), (other, second)))
    same = (left == right) & (first.host_offset == second.host_offset) & (first.kind == second.kind)
    return first.take(same).ranges


def _file_numbers(chain: Chain, numbers: dict[str, int]) -> Offsets:
    """A number for the file of each layer, the same for the same file; `numbers` holds those given so far."""
    paths = [os.path.realpath(layer.data_file.path) for layer in chain.layers]
    return np.array([numbers.setdefault(path, len(numbers)) for path in paths], np.int64)


def _granules(guest_offset: Offsets, where: Ranges, granule: int) -> Ranges:
    start = ex.distinct(guest_offset // granule) * granule
    return ex.intersect(ex.merge_ranges(Ranges(start, start + granule)), where)


def sift(
    left: tuple[Chain, Extents], right: tuple[Chain, Extents], where: Ranges, unit: int, monitor: Monitor
) -> tuple[Ranges, Ranges]:
    """Read both sides once, each a chain and what is seen of it. Returns: the units, a power of two of bytes, of which
    the bytes in `where` differ, and those of which the left ones are not all zero.
    Raises: StorageFailed, BrokenTable.
    """
    found: tuple[list[Offsets], list[Offsets]] = [], []
    cell = min(unit, CELL_BYTES_MAX)
    cells = ex.widen(where, unit)
    sides = [pages(chain, ex.cut(seen, where), cells) for chain, seen in (left, right)]
    for one, other in zip(*map(ahead, sides), strict=True):
        words = np.frombuffer(one.data, np.uint64)
        for marks, which in zip(found, (words != np.frombuffer(other.data, np.uint64), words != 0), strict=True):
            rows = np.flatnonzero(which.reshape(-1, cell // 8).any(axis=1))
            marks.append(ex.distinct(one.guest_offset(rows * cell) // unit * unit))
        monitor.advance(len(one.data))
    none = np.empty(0, np.int64)
    differing, solid = (np.concatenate([none, *marks]) for marks in found)
    return ex.widen(Ranges(differing, differing + unit), unit), ex.widen(Ranges(solid, solid + unit), unit)
