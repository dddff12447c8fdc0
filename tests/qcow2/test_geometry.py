"""Owns the proof that the arithmetic of an image is the specification's, and QEMU's."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowtree.qcow2.geometry import Geometry, ceil_div, round_up
from cowtree.qcow2.header import HEADER_V2
from tests.qemu import qemu_img

USUAL = Geometry(version=3, cluster_bits=16, refcount_order=4)
WITH_SUBCLUSTERS = USUAL._replace(has_subclusters=True)


@given(st.integers(0, 1 << 64), st.integers(1, 1 << 32))
def test_rounding_up_reaches_the_next_multiple(value: int, multiple: int):
    rounded = round_up(value, multiple)
    assert rounded % multiple == 0
    assert 0 <= rounded - value < multiple
    assert ceil_div(value, multiple) * multiple == rounded


def test_the_usual_image():
    assert USUAL.cluster_size_bytes == 65536
    assert (USUAL.l2_entry_bytes, USUAL.l2_entry_count, USUAL.l2_span_bytes) == (8, 8192, 512 << 20)
    assert (USUAL.refcount_bits, USUAL.refcount_max, USUAL.refcount_block_entry_count) == (16, 65535, 32768)
    assert USUAL.compressed_offset_bits == 54


def test_subclusters_halve_what_an_l2_table_maps():
    found = WITH_SUBCLUSTERS
    assert (found.l2_entry_bytes, found.l2_entry_count, found.l2_span_bytes) == (16, 4096, 256 << 20)


@pytest.mark.parametrize(
    ("order", "largest", "count"), [(0, 1, 4096), (1, 3, 2048), (3, 255, 512), (6, (1 << 64) - 1, 64)]
)
def test_counts_of_every_width_fill_a_block(order: int, largest: int, count: int):
    geometry = Geometry(version=3, cluster_bits=9, refcount_order=order)
    assert geometry.refcount_max == largest
    assert geometry.refcount_block_entry_count == count


@pytest.mark.parametrize(("cluster_bits", "offset_bits"), [(9, 61), (12, 58), (16, 54), (21, 49)])
def test_a_compressed_offset_leaves_room_for_the_sectors_of_a_cluster(cluster_bits: int, offset_bits: int):
    geometry = USUAL._replace(cluster_bits=cluster_bits)
    assert geometry.compressed_offset_bits == offset_bits


def test_a_started_cluster_is_a_cluster():
    assert [USUAL.cluster_count(size) for size in (0, 1, 65536, 65537)] == [0, 1, 1, 2]


@pytest.mark.parametrize("has_subclusters", [False, True])
@pytest.mark.parametrize("cluster_bits", [14, 16, 21])
def test_qemu_makes_as_many_l1_entries(tmp_path: Path, cluster_bits: int, has_subclusters: bool):
    geometry = Geometry(3, cluster_bits, 4, has_subclusters)
    options = f"cluster_size={1 << cluster_bits},extended_l2={'on' if has_subclusters else 'off'}"
    span = geometry.l2_span_bytes
    for size in (512, span - 512, span, span + 512, 17 * span):
        qemu_img("create", "-q", "-f", "qcow2", "-o", options, tmp_path / "a", str(size))
        header = HEADER_V2.integers((tmp_path / "a").read_bytes()[:72])
        assert geometry.l1_entry_count(size) == header["l1_size"], size
