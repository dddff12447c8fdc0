"""A raw layer that must be whole at every moment: it is written as a new file, which takes its place in the end."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from cowtree import extents as ex
from cowtree.chain.view import Chain, layer_extents, windows
from cowtree.execute.copier import copy
from cowtree.operations.create import kept_mode, renewed_file
from cowtree.operations.tally import Tally
from cowtree.steps import Move
from cowtree.storage.contract import FileSystem


def own_bytes(chain: Chain, index: int) -> int:
    """How much the new file holds of what the layer holds."""
    size_bytes = chain.layers[index].size_bytes
    spans = windows(chain.below(index), size_bytes)
    return sum(layer_extents(chain, index, *span).of_kind(ex.DATA).total_bytes for span in spans)


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
            held = layer_extents(chain, index, *span).of_kind(ex.DATA)
            copy(chain, Move(held._replace(layer=held.layer * 0 + index), held.host_offset), file, tally)
        yield chain.with_layer(index, layer._replace(file=file))
