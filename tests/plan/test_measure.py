"""Owns the proof that sizes are measured as QEMU measures them; the tables are compared in `cli/img`."""

import pytest

from cowtree.errors import WrongUse
from cowtree.plan.measure import Sizes, measure_bitmaps, measure_qcow2, measure_raw, refuse_too_large
from cowtree.qcow2.bitmaps import Bitmap
from cowtree.qcow2.geometry import Geometry

GEOMETRY = Geometry(version=3, cluster_bits=16, refcount_order=4)
KIB, MIB, TIB = 1 << 10, 1 << 20, 1 << 40


def test_a_raw_image_is_as_long_as_its_disk():
    assert measure_raw(5 * MIB) == Sizes(5 * MIB, 5 * MIB)


def test_an_empty_image_is_a_header_and_tables():
    # Header, L2 table, L1 table, refcount block and refcount table: five clusters.
    assert measure_qcow2(GEOMETRY, MIB, 0) == Sizes(5 * 64 * KIB, 5 * 64 * KIB + MIB)


def test_only_used_clusters_are_required():
    empty, used = measure_qcow2(GEOMETRY, MIB, 0), measure_qcow2(GEOMETRY, MIB, 128 * KIB)
    assert used == empty._replace(required=empty.required + 128 * KIB)


def test_an_encryption_header_fills_whole_clusters():
    plain, encrypted = measure_qcow2(GEOMETRY, MIB, 0), measure_qcow2(GEOMETRY, MIB, 0, header_bytes=100_000)
    assert encrypted.fully_allocated - plain.fully_allocated == 128 * KIB


def test_a_bitmap_takes_its_data_its_table_and_its_place_in_the_directory():
    bitmap = Bitmap("b", 0, 1, 0, granularity_bits=16, entry_offset=0)
    assert measure_bitmaps((), TIB, 64 * KIB) == 0
    # 2^24 bits are 2 MiB; the table and the directory fill a cluster each.
    assert measure_bitmaps((bitmap,), TIB, 64 * KIB) == 2 * MIB + 2 * 64 * KIB


def test_a_disk_that_no_table_can_map_is_refused():
    small = GEOMETRY._replace(cluster_bits=9)
    refuse_too_large(small, 128 << 30)
    with pytest.raises(WrongUse, match="too large"):
        refuse_too_large(small, (128 << 30) + 1)
