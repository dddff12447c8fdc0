"""Changing the locks of a layer that is open."""

import pytest

from cowtree.chain import gate
from cowtree.errors import ImageLocked
from cowtree.images.create import create
from cowtree.live.locks import relock
from cowtree.plan.create import NewImage
from cowtree.storage.contract import Access
from cowtree.storage.memory import MemoryFiles


def test_an_image_and_its_data_file_are_locked_together_or_not_at_all():
    files = MemoryFiles()
    create(files, NewImage("image", "qcow2", 4096, data_file="data"))
    layer = gate.open_layer(files, "image")
    other = files.open("data", Access.READ)
    with pytest.raises(ImageLocked):
        relock(layer, Access.WRITE)
    files.open("image", Access.READ).close()
    other.close()
    relock(layer, Access.WRITE)
    for path in ("image", "data"):
        with pytest.raises(ImageLocked):
            files.open(path, Access.READ)
    relock(layer, Access.READ)
    for path in ("image", "data"):
        files.open(path, Access.READ).close()
    layer.close()
