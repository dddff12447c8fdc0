"""Changing the locks of a layer that is open."""

from cowtree.chain.gate import Layer
from cowtree.errors import ImageLocked
from cowtree.storage.contract import Access


def relock(layer: Layer, access: str) -> None:
    """Hold a layer's files under the locks of another access. Raises: ImageLocked; then those are held that a reader
    has.
    """
    try:
        layer.file.relock(access)
        if layer.data is not None:
            layer.data.relock(access)
    except ImageLocked:
        layer.file.relock(Access.READ)
        raise
