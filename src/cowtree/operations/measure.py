"""How much of an image a copy would have to hold."""

import numpy as np

from cowtree import extents as ex
from cowtree.chain.view import Chain, windows
from cowtree.extents import Ranges
from cowtree.operations import map as mapping


def used_bytes(chain: Chain, cluster_size_bytes: int) -> int:
    """The length of all clusters of a copy in which the guest would find data; not what is known to be zeroes.
    Raises: StorageFailed, BrokenTable.
    """
    hollow = mapping.hollow_layers(chain)
    total = end = 0
    for start, stop in windows(chain, chain.size_bytes):
        data = mapping.data(chain, start, stop, hollow)
        # Windows end on borders of clusters; a cluster of the copy may be larger than all of those.
        first = np.maximum(data.start // cluster_size_bytes * cluster_size_bytes, end)
        last = -(-data.stop // cluster_size_bytes) * cluster_size_bytes
        clusters = ex.merge_ranges(Ranges(first, np.maximum(first, last)))
        total += clusters.total_bytes
        end = max(end, int(clusters.stop[-1])) if len(clusters.stop) else end
    return total
