"""Reference counts: blocks of 1 to 64 bit counts, and finding clusters that nobody uses.

A `Counts` holds some refcount blocks of one image. A block that the refcount table does not have counts 0 for all
its clusters.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cowtree.errors import BrokenTable
from cowtree.extents import Offsets, Ranges, integers
from cowtree.qcow2.geometry import Geometry, round_up
from cowtree.records import bits

TABLE_OFFSET: Final = np.uint64(bits(9, 63))


class Counts(NamedTuple):
    """Some refcount blocks, sorted by their place in the refcount table.
    Shapes: block_index and host_offset int64 (count,); counts unsigned (count, entries of a block).
    """

    block_index: Offsets
    host_offset: Offsets
    counts: NDArray[np.unsignedinteger]

    def get(self, cluster: Offsets) -> NDArray[np.unsignedinteger]:
        """The counts of these host clusters; their blocks must be here or not exist: then they count 0."""
        row, column, here = self._locate(cluster)
        found = np.zeros(len(cluster), self.counts.dtype)
        found[here] = self.counts[row[here], column[here]]
        return found

    def _locate(self, cluster: Offsets) -> tuple[Offsets, Offsets, NDArray[np.bool_]]:
        block, column = np.divmod(cluster, self.counts.shape[1])
        row = np.searchsorted(self.block_index, block)
        here = row < len(self.block_index)
        here[here] = self.block_index[row[here]] == block[here]
        return row, column, here

    def put(self, cluster: Offsets, value: NDArray[np.unsignedinteger]) -> "Counts":
        """The same blocks with these counts; every cluster's block must be here."""
        row, column, _ = self._locate(cluster)
        counts = self.counts.copy()
        counts[row, column] = value
        return self._replace(counts=counts)

    def free_runs(self) -> Ranges:
        """The runs of clusters that these blocks count 0 for; some may lie past the end of the file.
        A run goes on from one block into the next.
        """
        per_block = self.counts.shape[1]
        free = self.counts == 0
        before, after = np.zeros_like(free), np.zeros_like(free)
        before[:, 1:], after[:, :-1] = free[:, :-1], free[:, 1:]
        goes_on = np.diff(self.block_index) == 1
        before[1:, 0], after[:-1, -1] = free[:-1, -1] & goes_on, free[1:, 0] & goes_on
        row, column = np.nonzero(free & ~before)
        last_row, last_column = np.nonzero(free & ~after)
        start = self.block_index[row] * per_block + column
        return Ranges(start, self.block_index[last_row] * per_block + last_column + 1)

    def free(self, limit: int) -> Offsets:
        """The first clusters that these blocks count 0 for, at most `limit`."""
        runs = self.free_runs()
        before = np.cumsum(runs.stop - runs.start) - (runs.stop - runs.start)
        stop = np.minimum(runs.stop, runs.start + limit - before)
        return integers(Ranges(runs.start[before < limit], stop[before < limit]))

    def with_blocks(self, block_index: Offsets, host_offset: Offsets) -> "Counts":
        """The same blocks and some new ones that count 0 everywhere."""
        fresh = np.zeros((len(block_index), self.counts.shape[1]), self.counts.dtype)
        order = np.argsort(np.concatenate((self.block_index, block_index)), kind="stable")
        return Counts(
            np.concatenate((self.block_index, block_index))[order],
            np.concatenate((self.host_offset, host_offset))[order],
            np.concatenate((self.counts, fresh))[order],
        )


def count_type(geometry: Geometry) -> np.dtype[np.unsignedinteger]:
    """The smallest type that holds a count in memory."""
    return np.dtype(f"u{max(geometry.refcount_bits // 8, 1)}")


def decode(geometry: Geometry, block_index: Offsets, host_offset: Offsets, data: bytes | memoryview) -> Counts:
    """Turn the bytes of refcount blocks, one behind the other, into a value.
    Source: qcow2 specification, "Refcount block entry": counts under 8 bits start at the low bit of a byte.
    """
    shape = (len(block_index), geometry.refcount_block_entry_count)
    if geometry.refcount_bits >= 8:
        words = np.frombuffer(data, f">u{geometry.refcount_bits // 8}").astype(count_type(geometry))
        return Counts(block_index, host_offset, words.reshape(shape))
    packed = np.frombuffer(data, np.uint8)
    shifts = np.arange(0, 8, geometry.refcount_bits, dtype=np.uint8)
    counts = packed[:, None] >> shifts & np.uint8(geometry.refcount_max)
    return Counts(block_index, host_offset, counts.reshape(shape))


def encode(geometry: Geometry, counts: NDArray[np.unsignedinteger]) -> bytes:
    """Counts as they stand on disk. Under 8 bits their number must fill whole bytes."""
    if geometry.refcount_bits >= 8:
        return counts.astype(f">u{geometry.refcount_bits // 8}").tobytes()
    shifts = np.arange(0, 8, geometry.refcount_bits, dtype=np.uint8)
    groups = counts.astype(np.uint8).reshape(-1, len(shifts)) << shifts
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(groups, axis=1).astype(np.uint8)
    return packed.tobytes()


def block_offsets(table: NDArray[np.uint64]) -> Offsets:
    """Where each refcount table entry says its block is; 0 when there is none."""
    return (table & TABLE_OFFSET).astype(np.int64)


def check_table(path: str, geometry: Geometry, table: NDArray[np.uint64], size_bytes: int) -> None:
    """Refuse a refcount table that no writer may follow.
    Raises: BrokenTable when a block is not aligned, past the end of the file, inside the header or named twice.
    """
    offsets = block_offsets(table)
    used = offsets[offsets != 0]
    cluster_size = geometry.cluster_size_bytes
    end = round_up(size_bytes, cluster_size)
    ordered = np.sort(used)
    for wrong, what in (
        (used[used % cluster_size != 0], "is not aligned to a cluster"),
        (used[(used + cluster_size > end) | (used < cluster_size)], f"is outside the file's data ({size_bytes})"),
        (ordered[1:][ordered[1:] == ordered[:-1]], "is already another refcount block"),
    ):
        if len(wrong):
            reason = f"the refcount table points at byte {wrong[0]}, which {what}"
            raise BrokenTable(path=path, reason=reason)
