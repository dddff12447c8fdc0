"""Owns the proof that a base gets a longer table when it needs one."""

import numpy as np
import pytest

from cowtree.chain import gate, load
from cowtree.errors import Refused
from cowtree.plan import growth
from cowtree.plan.create import NewImage
from cowtree.qcow2 import tables
from cowtree.qcow2.image import Slice, no_slice
from cowtree.qcow2.snapshots import Snapshot
from cowtree.steps import Write
from cowtree.storage.memory import MemoryFiles
from cowtree.units import GIB
from tests.pictures import draw


def opened(sign_count: int = 4) -> Slice:
    """An image with data, its counts, and no L2 table."""
    files = MemoryFiles()
    draw(files, NewImage("image", "qcow2", sign_count * 512, 9), "A" * sign_count)
    layer = gate.open_layer(files, "image", "qcow2")
    image = load.load_image(layer)
    assert image is not None
    nothing = no_slice(image)
    return nothing._replace(counts=load.load_counts(layer.file, image, np.arange(image.host_cluster_count), 1))


def test_a_longer_l1_table_goes_where_nothing_is_and_the_old_one_is_free_at_last():
    piece = opened()
    old = growth.l1_clusters(piece.image)
    steps, image = growth.lengthen_l1(piece, 8 << 20)
    assert image.header.size_bytes == piece.image.header.size_bytes
    assert image.header.l1_entry_count == len(image.l1) == 256
    assert image.l1[0] == piece.image.l1[0]
    assert not image.l1[1:].any()
    new = growth.l1_clusters(image)
    assert len(new) == 4
    assert not set(new) & set(old)
    # The header changes after the new table is durable, and the old one is counted down after that.
    kinds = [step.offset if isinstance(step, Write) else "flush" for step in steps]
    assert kinds.index(int(new[0]) * 512) < kinds.index(0) < len(kinds) - 1
    assert "flush" in kinds[kinds.index(int(new[0]) * 512) : kinds.index(0)]
    assert "flush" in kinds[kinds.index(0) :]


def test_a_table_that_is_long_enough_stays_where_it_is():
    piece = opened(200)
    assert growth.lengthen_l1(piece, 200 * 512) == ([], piece.image)
    assert growth.lengthen_l1(piece, 1) == ([], piece.image)


def test_room_is_made_in_memory_only():
    image = opened().image
    roomy = growth.with_room(image, 1 << 20)
    assert len(roomy.l1) == 32
    assert roomy.header == image.header
    assert len(growth.with_room(image, 1).l1) == len(image.l1)


def test_a_disk_that_is_too_large_for_its_clusters_is_refused():
    image = opened().image
    growth.refuse_growth(image, 128 * GIB)
    with pytest.raises(Refused, match="image: a disk of 137438953473 bytes is too large for clusters of 512 bytes"):
        growth.refuse_growth(image, 128 * GIB + 1)


def test_a_snapshot_that_does_not_say_its_size_is_in_the_way():
    image = opened().image
    snapshot = Snapshot("1", "old", 0, 0, 0, 0, 0, 0, 0, None, b"")
    with pytest.raises(Refused, match="snapshot 'old' does not say how large the disk was"):
        growth.refuse_growth(image._replace(snapshots=(snapshot,)), GIB)
    growth.refuse_growth(image._replace(snapshots=(snapshot._replace(extra_data=bytes(16)),)), GIB)


def test_an_image_without_an_l1_table_has_no_clusters_for_it():
    image = opened().image._replace(l1=np.empty(0, np.uint64))
    assert len(growth.l1_clusters(image)) == 0
    assert tables.l1_bytes(image.l1) == 0
