"""Host clusters for what is written: counted ahead, so that a guest's write need not wait for its count.

A stop leaves at most so many clusters counted that nothing uses, and the dirty bit says so. What is not used when the
disk is closed is given back.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np

from cowtree import extents as ex
from cowtree.chain import load
from cowtree.chain.view import Chain
from cowtree.execute.run import run
from cowtree.extents import Offsets, Ranges
from cowtree.monitor import Silent
from cowtree.plan import put
from cowtree.qcow2 import writes
from cowtree.qcow2.allocate import allocate
from cowtree.qcow2.image import Image, no_slice
from cowtree.steps import Step, Zero
from cowtree.storage.contract import Storage

# So much is taken ahead at first; twice as much each time, up to the most.
AHEAD_COUNT_MIN: Final = 16
AHEAD_BYTES_MAX: Final = 64 << 20


class Room:
    """What is free in one image file, and counted once already."""

    def __init__(self, file: Storage, image: Image) -> None:
        self.image = image
        # Something failed half-way: clusters may be counted that nothing uses.
        self.is_doubtful = False
        self._file = file
        self._free: list[int] = []
        self._ahead_count = AHEAD_COUNT_MIN
        self._most = max(AHEAD_BYTES_MAX >> image.header.cluster_bits, 1)
        # Whatever lies from here on was never written; nor was what became a hole since.
        self._fresh_from = image.host_cluster_count
        self._holes: set[int] = set()

    def take(self, count: int) -> list[int]:
        """Take host clusters, lowest first. Raises: StorageFailed, BrokenTable, Refused; then none is taken."""
        if len(self._free) < count:
            self._fill(count - len(self._free))
        taken = self._free[-count:][::-1] if count else []
        del self._free[len(self._free) - count :]
        return taken

    def is_hole(self, cluster: int) -> bool:
        """Whether a cluster that was taken reads as zeroes in the file; from now on it is taken for written."""
        if cluster in self._holes:
            self._holes.discard(cluster)
            return True
        if cluster < self._fresh_from:
            return False
        self._fresh_from = cluster + 1
        return True

    def put_back(self, clusters: list[int]) -> None:
        """Clusters that were taken, and that nothing points at: they are the next to be taken."""
        self._free += sorted(clusters, reverse=True)

    def release(self, clusters: Offsets) -> None:
        """Take one user away from each cluster, as often as it is named; what nobody uses any more becomes a hole, and
        is the next to be taken as far as there is need for it. Nothing points at them any more, durably.
        Raises: StorageFailed, BrokenTable.
        """
        image, bits = self.image, self.image.header.cluster_bits
        counts = load.load_counts(self._file, image, clusters, 0)
        new = put.count_down(image.path, counts, clusters)
        unique = ex.distinct(clusters)
        unused = unique[new.get(unique) == 0]
        kept = unused[: max(self._most - len(self._free), 0)]
        new = new.put(kept, np.ones(len(kept), new.counts.dtype))
        holes = ex.merge_ranges(Ranges(unused << bits, (unused + 1) << bits))
        inside = ex.intersect(holes, ex.one_range(0, self._file.size_bytes))
        steps: list[Step] = [*writes.count_writes(image, counts, new)]
        steps += [Zero(start, stop - start) for start, stop in zip(*(each.tolist() for each in inside), strict=True)]
        self._run(steps)
        self._holes.update(kept.tolist())
        self.put_back(kept.tolist())

    def give_back(self) -> None:
        """Let what was counted ahead be free again. Raises: StorageFailed, BrokenTable."""
        clusters, self._free = np.array(sorted(self._free), np.int64), []
        if len(clusters):
            counts = load.load_counts(self._file, self.image, clusters, 0)
            new = put.count_down(self.image.path, counts, clusters)
            self._run(writes.count_writes(self.image, counts, new))

    def _fill(self, count: int) -> None:
        wanted = max(count, min(self._ahead_count, self._most))
        self._ahead_count = min(2 * self._ahead_count, self._most)
        image = self.image
        counts = load.load_counts(self._file, image, put.refcount_table_clusters(image), wanted)
        piece = no_slice(image)._replace(counts=counts)
        taken, counted = allocate(piece, wanted)
        put.refuse_tables(counted.image, taken)
        self._run(writes.order(piece, counted))
        self.image = counted.image._replace(file_size_bytes=self._file.size_bytes)
        self._free = taken[::-1].tolist() + self._free

    @contextmanager
    def doubting(self) -> Iterator[None]:
        """Whatever fails in the block leaves the counts in doubt."""
        try:
            yield
        except BaseException:
            self.is_doubtful = True
            raise

    def _run(self, steps: list[Step]) -> None:
        with self.doubting():
            run(steps, self._file, Chain((), ()), Silent())
