"""Emptying a layer after its content was committed: its pointers go first; then its space can be counted anew."""

import numpy as np

from cowtree.extents import Ranges, gaps, merge_ranges
from cowtree.qcow2 import tables, writes
from cowtree.qcow2.image import Image
from cowtree.qcow2.refcounts import Counts
from cowtree.steps import Flush, Step, Write, Zero


def forget(image: Image) -> tuple[list[Step], Image]:
    """Steps after which the layer holds nothing: its L1 table is zero, durably. Of an external data file nothing is
    counted, so what it holds goes at once.
    """
    changed = image._replace(l1=np.zeros_like(image.l1))
    steps: list[Step] = [Write(image.header.l1_table_offset, tables.encode_words(changed.l1)), Flush()]
    if image.geometry.has_data_file:
        steps.append(Zero(0, image.header.size_bytes, is_data=True))
    return steps, changed


def used_runs(counts: Counts) -> Ranges:
    """Half-open runs of host clusters that these blocks count."""
    row, column = np.nonzero(counts.counts)
    cluster = counts.block_index[row] * counts.counts.shape[1] + column
    return merge_ranges(Ranges(cluster, cluster + 1))


def give_back(image: Image, used: Ranges) -> list[Step]:
    """Steps that cut off the free end of the file and make holes of the other free clusters; `used` are all runs."""
    bits, end = image.header.cluster_bits, int(used.stop[-1])
    free = gaps(used, 0, min(end, image.host_cluster_count))
    holes = [
        Zero(start << bits, (stop - start) << bits) for start, stop in zip(*map(np.ndarray.tolist, free), strict=True)
    ]
    return [Flush(), *holes, *writes.shrink(image, end)]
