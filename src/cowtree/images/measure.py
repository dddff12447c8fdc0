"""How much of an image a copy would have to hold."""

from cowtree import extents as ex
from cowtree.chain.view import Chain, windows
from cowtree.images import map as mapping


def used_bytes(chain: Chain, cluster_size_bytes: int) -> int:
    """The length of all clusters of a copy in which the guest would find data; not what is known to be zeroes.
    Raises: StorageFailed, BrokenTable.
    """
    hollow = mapping.hollow_layers(chain)
    total = 0
    for start, stop in windows(chain, chain.size_bytes):
        # No cluster goes on from one window into the next.
        data = mapping.data(chain, start, stop, hollow)
        total += ex.widen(data.ranges, cluster_size_bytes).total_bytes
    return total
