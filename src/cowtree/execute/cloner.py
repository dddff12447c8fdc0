"""Moving guest data without copying it: the file system lets two files share blocks.

A clone stands where a write of the same bytes would: what must be durable before and after is the same. A crash before
the target is flushed leaves old or new blocks.
"""

import numpy as np

from cowtree.chain.view import Chain
from cowtree.extents import Offsets
from cowtree.monitor import Monitor, advance_cloned
from cowtree.plan.clone import Sharing, is_long, join, split
from cowtree.steps import Move
from cowtree.storage.contract import Storage


def block_bytes(chain: Chain, target: Storage) -> Offsets:
    """Of which blocks `target` can share those of each layer's guest data; 0 where it cannot. Changes nothing.
    Shapes: int64, (layer count,).
    """
    # Where bytes are encrypted by guest offset, the same bytes mean something else elsewhere.
    found = [0 if layer.guest_cipher else target.clone_block_bytes(layer.data_file) for layer in chain.layers]
    return np.array(found, np.int64)


def sharing(chain: Chain, target: Storage) -> Sharing:
    """What `target` can share of each layer's guest data. Changes nothing."""
    blocks = block_bytes(chain, target)
    end = [layer.data_file.size_bytes if size else 0 for layer, size in zip(chain.layers, blocks.tolist(), strict=True)]
    return Sharing(blocks, np.array(end, np.int64))


def clone(chain: Chain, move: Move, target: Storage, monitor: Monitor) -> Move:
    """Clone what can be cloned of a move. Returns: what is left to be copied. Not durable before the target is flushed.
    Raises: StorageFailed.
    """
    if not is_long(move.source).any():
        return move
    whole, rest = split(move, *sharing(chain, target))
    columns = (whole.source.layer, whole.source.host_offset, whole.target_offset, whole.source.length)
    refused: set[int] = set()
    is_left = np.zeros(len(whole.target_offset), np.bool_)
    # One call of the system for each, which no array can make.
    for index, (layer, host_offset, offset, length) in enumerate(
        zip(*(each.tolist() for each in columns), strict=True)
    ):
        if layer not in refused and target.clone(chain.layers[layer].data_file, host_offset, offset, length):
            advance_cloned(monitor, length)
        else:
            refused.add(layer)
            is_left[index] = True
    return join([rest, Move(whole.source.take(is_left), whole.target_offset[is_left])])
