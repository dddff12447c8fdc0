"""A raw layer that must be whole at every moment: it is written as a new file, which takes its place in the end."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from cowtree import extents as ex
from cowtree.chain.view import Chain, layer_extents, windows
from cowtree.execute.cloner import sharing
from cowtree.execute.copier import copy
from cowtree.images.create import kept_mode, renewed_file
from cowtree.images.tally import Tally
from cowtree.plan.clone import sure
from cowtree.steps import Move
from cowtree.storage.contract import FileSystem


def own_bytes(chain: Chain, index: int) -> int:
    """How much the new file holds of what the layer holds."""
    size_bytes = chain.layers[index].size_bytes
    spans = windows(chain.below(index), size_bytes)
    return sum(layer_extents(chain, index, *span).of_kind(ex.DATA).total_bytes for span in spans)


def surely_cloned_bytes(chain: Chain, index: int) -> int:
    """How much of that the new file shares with the old one, for they lie on one file system."""
    size_bytes, found = chain.layers[index].size_bytes, sharing(chain, chain.layers[index].data_file)
    total = 0
    for span in windows(chain.below(index), size_bytes):
        total += sure(_all_of(chain, index, *span), found).total_bytes
    return total


def _all_of(chain: Chain, index: int, start: int, stop: int) -> Move:
    """All that the layer holds there, to where it lies now."""
    held = layer_extents(chain, index, start, stop).of_kind(ex.DATA)
    return Move(held._replace(layer=held.layer * 0 + index), held.host_offset)


@contextmanager
def renewed(files: FileSystem, chain: Chain, index: int, tally: Tally) -> Iterator[Chain]:
    """The chain over a copy of a raw layer; the copy takes the layer's place when what is done with it succeeds.
    Raises: StorageFailed.
    """
    layer = chain.layers[index]
    path = os.path.realpath(layer.path) if os.path.islink(layer.path) else layer.path
    with renewed_file(files, path, kept_mode(path)) as file:
        files.copy_rights(path, file.path)
        file.truncate(layer.file.size_bytes)
        tally.expect(own_bytes(chain, index))
        for span in windows(chain.below(index), layer.size_bytes):
            copy(chain, _all_of(chain, index, *span), file, tally)
        yield chain.with_layer(index, layer._replace(file=file))
