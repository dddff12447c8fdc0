"""Owns the proof that an emptied layer points nowhere, and gives back all that it does not need."""

import numpy as np

from cowtree.chain import gate, load
from cowtree.extents import Ranges
from cowtree.plan import empty
from cowtree.qcow2.image import Image
from cowtree.qcow2.refcounts import Counts
from cowtree.steps import Flush, Truncate, Write, Zero
from tests.pictures import family


def image_of(*layers: str) -> Image:
    made = family(*layers)
    layer = gate.open_layer(made.files, made.top, "qcow2")
    image = load.load_image(layer)
    assert image is not None
    return image


def test_the_l1_table_becomes_zero_durably():
    image = image_of("ABC")
    steps, after = empty.forget(image)
    assert steps == [Write(image.header.l1_table_offset, bytes(8)), Flush()]
    assert not after.l1.any()
    assert image.l1.any()


def test_runs_of_used_clusters_go_over_the_borders_of_blocks():
    counts = np.array([[1, 1, 0, 2], [1, 0, 0, 0], [0, 1, 0, 0]], np.uint16)
    runs = empty.used_runs(Counts(np.array([0, 1, 3]), np.array([1, 2, 3]) * 512, counts))
    assert list(zip(*(column.tolist() for column in runs), strict=True)) == [(0, 2), (3, 5), (13, 14)]


def test_free_clusters_become_holes_and_the_end_is_cut_off():
    image = image_of("ABC")._replace(file_size_bytes=20 * 512)
    used = Ranges(np.array([0, 5, 10]), np.array([3, 6, 12]))
    assert empty.give_back(image, used) == [Flush(), Zero(1536, 1024), Zero(3072, 2048), Truncate(6144)]


def test_nothing_is_done_behind_the_end_of_the_file():
    image = image_of("ABC")._replace(file_size_bytes=4 * 512)
    used = Ranges(np.array([0, 9]), np.array([3, 10]))
    assert empty.give_back(image, used) == [Flush(), Zero(1536, 512)]


def test_the_last_blocks_that_count_only_each_other_are_spare():
    # 256 counts a block: of the blocks 0 to 4, 1 lies in its own range, 2 and 3 in that of 1, and 4 in that of 0.
    table = np.zeros(64, np.uint64)
    table[:5] = np.array([2, 256, 257, 258, 9], np.uint64) << np.uint64(9)
    image = image_of("ABC")._replace(refcount_table=table)
    own = Ranges(np.array([0, 256]), np.array([10, 259]))
    assert empty.spare_blocks(image, own).tolist() == [1, 2, 3, 4]
    used = Ranges(np.array([0, 256, 600]), np.array([10, 259, 601]))
    assert empty.spare_blocks(image, used).tolist() == [3, 4]
    assert empty.spare_blocks(image, Ranges(np.array([0]), np.array([1100]))).tolist() == []


def test_a_block_that_counts_one_which_is_of_use_is_of_use():
    table = np.zeros(64, np.uint64)
    # Block 0 lies in the range of block 1.
    table[:3] = np.array([300, 256, 257], np.uint64) << np.uint64(9)
    image = image_of("ABC")._replace(refcount_table=table)
    used = Ranges(np.array([0, 256, 300]), np.array([10, 258, 301]))
    assert empty.spare_blocks(image, used).tolist() == [2]
