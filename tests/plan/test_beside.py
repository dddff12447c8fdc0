"""Owns the proof that a tree beside another one keeps the old one's places, and gives back what only that one used."""

import numpy as np
import pytest

from cowtree.chain import gate, load
from cowtree.errors import Refused
from cowtree.plan import beside
from cowtree.plan.create import NewImage
from cowtree.qcow2.image import Image, Slice, no_slice
from cowtree.qcow2.tables import COPIED
from cowtree.steps import Flush, Write
from cowtree.storage.memory import MemoryFiles
from tests.pictures import draw


def opened(picture: str = "AB", **how: object) -> tuple[gate.Layer, Image]:
    files = MemoryFiles()
    draw(files, NewImage("image", "qcow2", len(picture) * 512, 9), picture)
    layer = gate.open_layer(files, "image", "qcow2")
    image = load.load_image(layer)
    assert image is not None
    return layer, image


def test_no_table_is_ones_own_before_the_switch_and_those_that_stay_are_afterwards():
    _, image = opened()
    detached = beside.detach(image, 1024)
    assert not (detached.l1 & COPIED).any()
    assert (beside.attach(detached, image.l1).l1 == image.l1).all()
    moved = detached._replace(l1=detached.l1 + np.uint64(512))
    assert not (beside.attach(moved, image.l1).l1 & COPIED)[0]


def test_one_sector_leads_to_the_new_table_when_that_is_durable():
    layer, image = opened()
    counts = load.load_counts(layer.file, image, np.arange(image.host_cluster_count), 1)
    piece = no_slice(image)._replace(counts=counts)
    assert isinstance(piece, Slice)
    steps, after = beside.switch(piece, 2048)
    new = after.header.l1_table_offset
    assert new != image.header.l1_table_offset
    assert after.header.size_bytes == 2048
    places = [step.offset if isinstance(step, Write) else "flush" for step in steps if isinstance(step, Write | Flush)]
    table, header = places.index(new), places.index(0)
    assert "flush" in places[table:header]
    assert places[header:] == [0, "flush"]
    (write,) = [step for step in steps if isinstance(step, Write) and step.offset == 0]
    assert len(write.data) <= 512


def test_what_cannot_change_in_one_step_is_refused():
    _, image = opened()
    beside.refuse(image, image.header.size_bytes)
    with_data = image._replace(header=image.header._replace(incompatible=image.header.incompatible | 4))
    with pytest.raises(Refused, match="external data file"):
        beside.refuse(with_data, image.header.size_bytes)
