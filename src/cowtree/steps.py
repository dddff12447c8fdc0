"""What can be done to one file: the whole vocabulary of a plan.

Steps are values. Those of one file are carried out in order; nothing after a `Flush` starts before everything that
stands before it is durable.
"""

from typing import NamedTuple

import numpy as np

from cowtree.extents import Extents, Offsets


class Write(NamedTuple):
    """Write these bytes."""

    offset: int
    data: bytes


class Zero(NamedTuple):
    """Make the range read as zeroes, as a hole if possible; `is_data` says that it lies where guest data lies."""

    offset: int
    length: int
    is_data: bool = False


class Allocate(NamedTuple):
    """Give the range space of its own on disk; what it reads as stays."""

    offset: int
    length: int


class Move(NamedTuple):
    """Copy guest data: each extent of `source` goes to the byte `target_offset` of the file. Sorted by target."""

    source: Extents
    target_offset: Offsets

    @property
    def total_bytes(self) -> int:
        """Bytes that are written."""
        return self.source.total_bytes


class Truncate(NamedTuple):
    """Set where the file ends."""

    size_bytes: int


class Flush(NamedTuple):
    """Make all of the above durable."""


Step = Write | Zero | Allocate | Move | Truncate | Flush


def by_target(source: Extents, target_offset: Offsets) -> Move:
    """A move in the order in which it is written."""
    order = np.argsort(target_offset, kind="stable")
    return Move(source.take(order), target_offset[order])
