"""What a check can find: for each kind of damage the sentence that qemu-img prints, and what it counts as.

A `Finding` is one kind at many places, so that a million leaked clusters are one value.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cowtree.extents import Mask, Offsets

# What a finding counts as.
INTERNAL: Final = "internal error"
CORRUPTION: Final = "corruption"
LEAK: Final = "leak"
CORRUPTION_FIXED: Final = "corruption fixed"
LEAK_FIXED: Final = "leak fixed"
REMARK: Final = "remark"

TURN_COUNT_MAX: Final = 4096

Values = NDArray[np.uint64]


class Kind(NamedTuple):
    """One kind of damage; `text` has a place for each value."""

    counts_as: str
    text: str


class Finding(NamedTuple):
    """One kind of damage, and all the places where it was found.
    Shapes: values (count, places in the text); times (count,), how often a place is used.
    """

    kind: Kind
    values: Values
    times: Offsets

    @property
    def error_count(self) -> int:
        """How many errors this is."""
        return int(self.times.sum())

    def mended(self) -> "Finding":
        """The same, but as something that is repaired."""
        return self._replace(kind=MENDED[self.kind])

    def sentences(self) -> Iterator[str]:
        """One sentence for each place."""
        for row in self.values.tolist():
            yield self.kind.text.format(*row)


OUTSIDE = Kind(
    CORRUPTION,
    "ERROR: counting reference for region exceeding the end of the file by one cluster or more: "
    "offset 0x{0:x} size 0x{1:x}",
)
OVERFLOW = Kind(
    CORRUPTION,
    "ERROR: overflow cluster offset=0x{0:x}\n"
    "Use qemu-img amend to increase the refcount entry width or qemu-img convert to create a clean copy if the "
    "image cannot be opened for writing",
)
L1_RESERVED = Kind(CORRUPTION, "ERROR found L1 entry with reserved bits set: {0:x}")
L1_UNALIGNED = Kind(CORRUPTION, "ERROR l2_offset={0:x}: Table is not cluster aligned; L1 entry corrupted")
L2_RESERVED = Kind(CORRUPTION, "ERROR found l2 entry with reserved bits set: {0:x}")
PACKED_COPIED = Kind(CORRUPTION, "ERROR: coffset=0x{0:x}: copied flag must never be set for compressed clusters")
PACKED_OUTSIDE = Kind(CORRUPTION, "ERROR compressed cluster {0} with data file, entry=0x{1:x}")
PACKED_BITMAP = Kind(
    CORRUPTION, "ERROR compressed cluster {0} with non-zero subcluster allocation bitmap, entry=0x{1:x}"
)
BITMAP_BOTH = Kind(CORRUPTION, "ERROR offset={0:x}: Allocated cluster has corrupted subcluster allocation bitmap")
BITMAP_ALONE = Kind(CORRUPTION, "ERROR: Unallocated cluster has non-zero subcluster allocation map")
DATA_UNALIGNED = Kind(CORRUPTION, "ERROR offset={0:x}: Data cluster is not properly aligned; L2 entry corrupted.")
ZERO_UNALIGNED = Kind(
    CORRUPTION, "ERROR offset={0:x}: Preallocated cluster is not properly aligned; L2 entry corrupted."
)
BLOCK_RESERVED = Kind(CORRUPTION, "ERROR refcount table entry {0} has reserved bits set")
BLOCK_UNALIGNED = Kind(CORRUPTION, "ERROR refcount block {0} is not cluster aligned; refcount table entry corrupted")
BLOCK_OUTSIDE = Kind(CORRUPTION, "ERROR refcount block {0} is outside image")
BLOCK_SHARED = Kind(CORRUPTION, "ERROR refcount block {0} refcount={1}")
ZERO_MENDED = Kind(
    CORRUPTION_FIXED, "Repairing offset={0:x}: Preallocated cluster is not properly aligned; L2 entry corrupted."
)
BLOCK_MENDED = Kind(CORRUPTION_FIXED, "Repairing refcount block {0} is outside image")
UNREADABLE = Kind(INTERNAL, "Can't get refcount for cluster {0}: Input/output error")
TOO_LOW = Kind(CORRUPTION, "ERROR cluster {0} refcount={1} reference={2}")
TOO_HIGH = Kind(LEAK, "Leaked cluster {0} refcount={1} reference={2}")
RAISED = Kind(CORRUPTION_FIXED, "Repairing cluster {0} refcount={1} reference={2}")
LOWERED = Kind(LEAK_FIXED, "Repairing cluster {0} refcount={1} reference={2}")
TABLE_FLAG = Kind(CORRUPTION, "ERROR OFLAG_COPIED L2 cluster: l1_index={0} l1_entry={1:x} refcount={2}")
TABLE_FLAG_MENDED = Kind(
    CORRUPTION_FIXED, "Repairing OFLAG_COPIED L2 cluster: l1_index={0} l1_entry={1:x} refcount={2}"
)
DATA_FLAG = Kind(CORRUPTION, "ERROR OFLAG_COPIED data cluster: l2_entry={0:x} refcount={1}")
DATA_FLAG_MENDED = Kind(CORRUPTION_FIXED, "Repairing OFLAG_COPIED data cluster: l2_entry={0:x} refcount={1}")


MENDED: Final = {
    TOO_LOW: RAISED,
    TOO_HIGH: LOWERED,
    TABLE_FLAG: TABLE_FLAG_MENDED,
    DATA_FLAG: DATA_FLAG_MENDED,
    ZERO_UNALIGNED: ZERO_MENDED,
    BLOCK_OUTSIDE: BLOCK_MENDED,
}


def remark(counts_as: str, sentence: str, count: int = 1) -> Finding:
    """A finding of a kind of its own."""
    kind = Kind(counts_as, sentence.replace("{", "{{").replace("}", "}}"))
    return Finding(kind, np.empty((1, 0), np.uint64), np.array([count], np.int64))


def at(kind: Kind, where: Mask | Offsets, *columns: NDArray[np.generic], times: Offsets | None = None) -> Finding:
    """The finding at the places that a mask or an index selects, with the values that these columns have there."""
    rows = [np.asarray(column)[where].astype(np.uint64) for column in columns]
    count = len(rows[0]) if rows else int(np.count_nonzero(where) if where.dtype == bool else len(where))
    values = np.stack(rows, axis=1) if rows else np.empty((count, 0), np.uint64)
    return Finding(kind, values, np.ones(count, np.int64) if times is None else times[where])


def in_order(parts: Sequence[tuple[Offsets, Finding]]) -> Iterator[Finding]:
    """Put findings, each with the position of its places, in the order of the positions; kind by kind when kinds take
    turns too often, as in a table of noise.
    """
    found = [(position, finding) for position, finding in parts if len(position)]
    if not found:
        return
    part = np.repeat(np.arange(len(found)), [len(position) for position, _ in found])
    row = np.concatenate([np.arange(len(position)) for position, _ in found])
    order = np.argsort(np.concatenate([position for position, _ in found]), kind="stable")
    borders = np.flatnonzero(np.diff(part[order])) + 1
    if len(borders) > TURN_COUNT_MAX:
        order, borders = np.arange(len(part)), np.flatnonzero(np.diff(part)) + 1
    part, row = part[order], row[order]
    for run in np.split(np.arange(len(part)), borders):
        finding = found[int(part[run[0]])][1]
        yield finding._replace(values=finding.values[row[run]], times=finding.times[row[run]])
