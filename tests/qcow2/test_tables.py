"""Owns the proof that L2 tables mean what the specification and QEMU say, and that a broken entry is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowtree.chain import gate, load
from cowtree.errors import BrokenTable
from cowtree.extents import ALLOCATED, COMPRESSED, DATA, ZERO, ZEROES, Ranges
from cowtree.qcow2 import tables
from cowtree.qcow2.geometry import Geometry
from cowtree.qcow2.tables import COMPRESSED_FLAG, COPIED, Tables
from cowtree.storage.file import LocalFiles
from tests.qemu import qemu_img, qemu_io

SMALL = Geometry(3, 9, 4)
EXTENDED = Geometry(3, 14, 4, has_subclusters=True)
FILE_BYTES = 1 << 20
CLUSTER, EXTENDED_CLUSTER = 512, 1 << 14
SUBCLUSTER = EXTENDED_CLUSTER // 32


def one_table(geometry: Geometry, entries: dict[int, int], bitmaps: dict[int, int] | None = None, l1_index=0) -> Tables:
    """One L2 table with a few entries."""
    words = np.zeros((1, geometry.l2_entry_count), np.uint64)
    masks = np.zeros((1, geometry.l2_entry_count if geometry.has_subclusters else 0), np.uint64)
    for index, entry in entries.items():
        words[0, index] = entry
    for index, mask in (bitmaps or {}).items():
        masks[0, index] = mask
    return Tables(np.array([l1_index]), np.array([geometry.cluster_size_bytes]), words, masks)


def rows(geometry: Geometry, held: Tables, size_bytes: int = FILE_BYTES) -> list[tuple[int, ...]]:
    """The extents as (start, length, kind, host offset)."""
    found = tables.to_extents("image", geometry, held, size_bytes)
    assert not found.layer.any()
    return list(
        zip(*(column.tolist() for column in (found.start, found.length, found.kind, found.host_offset)), strict=True)
    )


@given(st.binary(min_size=2 * CLUSTER, max_size=2 * CLUSTER))
def test_the_bytes_of_plain_tables_come_back(data):
    held = tables.decode(SMALL, np.array([0, 5]), np.array([CLUSTER, 2 * CLUSTER]), data)
    assert held.entries.shape == (2, 64)
    assert held.bitmaps.shape == (2, 0)
    assert tables.encode_words(held.entries) == data
    assert tables.decode_words(data).tolist() == held.entries.ravel().tolist()


def test_the_bytes_of_extended_tables_come_back():
    data = np.random.default_rng(1).bytes(2 * EXTENDED_CLUSTER)
    held = tables.decode(EXTENDED, np.array([0, 5]), np.array([EXTENDED_CLUSTER, 2 * EXTENDED_CLUSTER]), data)
    assert held.entries.shape == held.bitmaps.shape == (2, 1024)
    assert (int(held.entries[0, 0]), int(held.bitmaps[0, 0])) == tuple(
        int.from_bytes(data[at : at + 8], "big") for at in (0, 8)
    )
    assert tables.encode_words(np.stack((held.entries, held.bitmaps), axis=2)) == data


def test_the_row_of_an_l1_index_is_found():
    held = tables.decode(SMALL, np.array([3, 7, 9]), np.array([1, 2, 3]) * CLUSTER, bytes(3 * CLUSTER))
    assert held.rows_of(np.array([9, 3, 7])).tolist() == [2, 0, 1]


HOST = 7 * CLUSTER
# 512-byte clusters leave 61 bits for the offset: one more sector is bit 61.
PACKED = 0x1234 | 1 << 61


@pytest.mark.parametrize(
    ("entry", "kind", "host_offset"),
    [
        (HOST, DATA, HOST),
        (HOST | int(COPIED), DATA, HOST),
        (HOST | int(COPIED) | 1, ALLOCATED, HOST),
        (1, ZERO, 0),
        (int(COMPRESSED_FLAG) | PACKED, COMPRESSED, PACKED),
    ],
)
def test_each_kind_of_entry_is_told(entry, kind, host_offset):
    assert rows(SMALL, one_table(SMALL, {5: entry})) == [(5 * CLUSTER, CLUSTER, kind, host_offset)]


def test_an_entry_of_zero_allocates_nothing():
    assert rows(SMALL, one_table(SMALL, {})) == []


def test_a_table_maps_the_guest_bytes_of_its_place():
    held = one_table(SMALL, {63: HOST}, l1_index=1000)
    assert rows(SMALL, held) == [((1000 * 64 + 63) * CLUSTER, CLUSTER, DATA, HOST)]


def test_neighbours_that_go_on_in_the_file_are_one_extent():
    held = one_table(SMALL, {0: HOST, 1: HOST + CLUSTER, 2: HOST + 3 * CLUSTER, 3: 1, 4: 1})
    assert rows(SMALL, held) == [
        (0, 2 * CLUSTER, DATA, HOST),
        (2 * CLUSTER, CLUSTER, DATA, HOST + 3 * CLUSTER),
        (3 * CLUSTER, 2 * CLUSTER, ZERO, 0),
    ]


def test_byte_0_of_an_external_data_file_is_guest_data():
    geometry = SMALL._replace(has_data_file=True)
    assert rows(geometry, one_table(geometry, {0: int(COPIED)})) == [(0, CLUSTER, DATA, 0)]
    assert rows(geometry, one_table(geometry, {0: int(COPIED) | 1})) == [(0, CLUSTER, ZERO, 0)]


@pytest.mark.parametrize(
    ("offset_bits", "descriptor", "start", "stop"),
    [(61, 0x1234, 0x1234, 0x1400), (61, PACKED, 0x1234, 0x1600), (54, 1 << 54 | 512, 512, 1536)],
)
def test_a_compressed_cluster_ends_with_its_last_sector(offset_bits, descriptor, start, stop):
    geometry = Geometry(3, 70 - offset_bits, 4)
    assert geometry.compressed_offset_bits == offset_bits
    offset, length = tables.compressed_location(geometry, np.array([descriptor]))
    assert (offset.tolist(), (offset + length).tolist()) == ([start], [stop])


E_HOST = 3 * EXTENDED_CLUSTER
ALL = (1 << 32) - 1


@pytest.mark.parametrize(
    ("entry", "bitmap", "expected"),
    [
        (E_HOST, ALL, [(0, 32, DATA, 0)]),
        (E_HOST, ALL << 32, [(0, 32, ALLOCATED, 0)]),
        (E_HOST, 0, []),
        (0, ALL << 32, [(0, 32, ZERO, None)]),
        (E_HOST, 1 << 5, [(5, 1, DATA, 5)]),
        (E_HOST, 0b110 | 1 << (32 + 4), [(1, 2, DATA, 1), (4, 1, ALLOCATED, 4)]),
        (0, 0b11 << (32 + 30), [(30, 2, ZERO, None)]),
        (E_HOST, 1 << 31, [(31, 1, DATA, 31)]),
    ],
)
def test_subclusters_are_told_apart(entry, bitmap, expected):
    found = rows(EXTENDED, one_table(EXTENDED, {0: entry}, {0: bitmap}))
    assert found == [
        (first * SUBCLUSTER, count * SUBCLUSTER, kind, 0 if host is None else E_HOST + host * SUBCLUSTER)
        for first, count, kind, host in expected
    ]


def test_a_compressed_cluster_has_no_subclusters():
    entry = int(COMPRESSED_FLAG) | EXTENDED_CLUSTER
    assert rows(EXTENDED, one_table(EXTENDED, {1: entry})) == [
        (EXTENDED_CLUSTER, EXTENDED_CLUSTER, COMPRESSED, EXTENDED_CLUSTER)
    ]


@pytest.mark.parametrize(("entry", "bitmap"), [(E_HOST, 1 | 1 << 32), (0, 1), (0, ALL)])
def test_an_impossible_subcluster_bitmap_is_refused(entry, bitmap):
    with pytest.raises(BrokenTable, match="impossible subcluster bitmap"):
        rows(EXTENDED, one_table(EXTENDED, {0: entry}, {0: bitmap}))


WIDE = Geometry(3, 16, 4)


@pytest.mark.parametrize(
    ("geometry", "entry", "reason"),
    [
        (SMALL, FILE_BYTES, "guest byte 1024 points at byte 1048576, which is past the end of the file"),
        (SMALL, int(COMPRESSED_FLAG) | FILE_BYTES, "past the end"),
        (SMALL, int(COMPRESSED_FLAG) | (FILE_BYTES - 512) | 1 << 61, "past the end"),
        (SMALL, int(COMPRESSED_FLAG) | 511, "is inside the header"),
        (WIDE, 0x10200, "is not aligned to a cluster"),
        (WIDE, 0x200, "is not aligned to a cluster"),
        (SMALL._replace(version=2), HOST | 1, "Zero cluster entry found in pre-v3 image"),
        (SMALL._replace(version=2), 1, "Zero cluster entry found in pre-v3 image"),
    ],
)
def test_an_entry_that_no_reader_may_follow_is_refused(geometry, entry, reason):
    with pytest.raises(BrokenTable, match=reason):
        rows(geometry, one_table(geometry, {2: entry}))


def test_the_last_cluster_of_a_file_may_be_cut():
    assert rows(SMALL, one_table(SMALL, {0: HOST}), HOST + 1) == [(0, CLUSTER, DATA, HOST)]
    with pytest.raises(BrokenTable, match="past the end"):
        rows(SMALL, one_table(SMALL, {0: HOST}), HOST)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (0x10200, "L1 entry 1 points at byte 66048, which is not aligned"),
        (FILE_BYTES, "past the end"),
        (0x200, "align"),
    ],
)
def test_an_l1_entry_that_no_reader_may_follow_is_refused(entry, reason):
    l1 = np.array([0, entry], np.uint64) | COPIED
    with pytest.raises(BrokenTable, match=reason):
        tables.check_l1("image", WIDE, l1, FILE_BYTES)
    tables.check_l1("image", WIDE, np.array([0, 0x10000], np.uint64), FILE_BYTES)


def test_the_l1_entries_of_a_range_are_those_that_map_a_byte_of_it():
    span = SMALL.l2_span_bytes
    assert tables.l1_range(SMALL, 0, span) == (0, 1)
    assert tables.l1_range(SMALL, span - 1, span + 1) == (0, 2)
    assert tables.l1_range(SMALL, 3 * span, 3 * span) == (3, 3)


def seen_by_qemu(path: Path, unit: int, size: int) -> list[tuple[object, ...]]:
    """(present, zero, data, host offset) of each unit of the disk."""
    found: list[tuple[object, ...]] = []
    for row in json.loads(qemu_img("map", "--output=json", "-f", "qcow2", path)):
        for at in range(0, row["length"], unit):
            # QEMU names the place of unallocated subclusters too.
            offset = row["offset"] + at if "offset" in row and row["present"] else None
            found.append((row["present"], row["zero"], row["data"], offset))
    assert len(found) == size // unit
    return found


def seen_by_us(path: Path, unit: int, size: int) -> list[tuple[object, ...]]:
    layer = gate.open_layer(LocalFiles(), str(path), "qcow2")
    image = load.load_image(layer)
    assert image is not None
    held = load.load_tables(layer.file, image, 0, size)
    layer.close()
    found: list[tuple[object, ...]] = [(False, True, False, None)] * (size // unit)
    for start, length, kind, host in rows(image.geometry, held, image.file_size_bytes):
        for at in range(0, min(length, size - start), unit):
            offset = host + at if kind in (DATA, ALLOCATED) else None
            found[(start + at) // unit] = (True, kind in ZEROES, kind not in ZEROES, offset)
    return found


@pytest.mark.parametrize("options", [f"cluster_size={1 << bits}" for bits in range(9, 22)] + ["extended_l2=on"])
def test_real_images_say_what_qemu_says(tmp_path: Path, options):
    path = tmp_path / "image"
    extended = options == "extended_l2=on"
    cluster = 1 << 16 if extended else int(options.partition("=")[2])
    unit = cluster // 32 if extended else cluster
    size = 150 * cluster
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, str(size))
    qemu_io(path, f"write -c -P 7 {10 * cluster} {cluster}", f"write -c -P 8 {11 * cluster} {cluster}")
    data = [f"write -P {1 + at} {at * cluster} {cluster}" for at in (0, 70, 3, 2, 149, 40)]
    qemu_io(path, *data, f"write -z {40 * cluster} {cluster}", f"write -zu {50 * cluster} {2 * cluster}")
    if extended:
        qemu_io(path, f"write -P 9 {20 * cluster + 5 * unit} {3 * unit}", f"write -z {20 * cluster + 6 * unit} {unit}")
    ours = seen_by_us(path, unit, size)
    assert ours == seen_by_qemu(path, unit, size)
    assert len(set(ours)) > 8


def test_broken_entries_are_told_from_the_others():
    entries = {1: 2048, 3: 1 << 40, 4: int(COPIED) | 1 << 41, 6: 1, 7: int(COMPRESSED_FLAG) | 1 << 40, 9: 4096}
    held = one_table(SMALL, entries, l1_index=2)
    with pytest.raises(BrokenTable):
        rows(SMALL, held)
    sound, broken = tables.without_broken(SMALL, held, FILE_BYTES)
    assert (broken - 2 * SMALL.l2_entry_count).tolist() == [3, 4, 7]
    assert [row[2:] for row in rows(SMALL, sound)] == [(DATA, 2048), (ZERO, 0), (DATA, 4096)]
    again, none = tables.without_broken(SMALL, sound, FILE_BYTES)
    assert not len(none)
    assert (again.entries == sound.entries).all()


def test_impossible_bitmaps_are_broken_too():
    place = 2 * EXTENDED_CLUSTER
    entries, bitmaps = {0: place, 1: 0, 2: place}, {0: 1 << 32 | 1, 1: 1, 2: 2 << 32 | 1}
    sound, broken = tables.without_broken(EXTENDED, one_table(EXTENDED, entries, bitmaps), FILE_BYTES)
    assert broken.tolist() == [0, 1]
    assert [row[:3] for row in rows(EXTENDED, sound)] == [
        (2 * EXTENDED_CLUSTER, SUBCLUSTER, DATA),
        (2 * EXTENDED_CLUSTER + SUBCLUSTER, SUBCLUSTER, ALLOCATED),
    ]


def test_broken_entries_of_an_l1_table_are_told_from_the_others():
    l1 = np.array([0, 512, 1 << 40, 513 << 1, 1024], np.uint64)
    assert tables.broken_l1(SMALL, l1, FILE_BYTES).tolist() == [False, False, True, False, False]
    assert tables.broken_l1(EXTENDED, np.array([512, EXTENDED_CLUSTER], np.uint64), FILE_BYTES).tolist() == [
        True,
        False,
    ]


@given(st.dictionaries(st.integers(0, 40), st.integers(0, (1 << 32) - 1), max_size=8))
def test_bits_of_subclusters_and_ranges_are_the_same(chosen):
    cluster = np.array(sorted(chosen), np.int64)
    bits = np.array([chosen[each] for each in sorted(chosen)], np.uint64)
    ranges = tables.from_bits(EXTENDED, cluster, bits)
    expected = [
        each * EXTENDED_CLUSTER + index * SUBCLUSTER
        for each in sorted(chosen)
        for index in range(32)
        if chosen[each] >> index & 1
    ]
    starts = [at for start, stop in zip(*map(np.ndarray.tolist, ranges), strict=True) for at in range(start, stop, 512)]
    assert starts == expected
    assert (ranges.start[1:] > ranges.stop[:-1]).all()
    assert (tables.to_bits(EXTENDED, cluster, ranges) == bits).all()


def test_bits_are_those_of_the_clusters_that_are_asked_for():
    everything = Ranges(np.array([0]), np.array([8 * EXTENDED_CLUSTER]))
    assert tables.to_bits(EXTENDED, np.array([1, 5]), everything).tolist() == [0xFFFF_FFFF, 0xFFFF_FFFF]
    part = Ranges(np.array([EXTENDED_CLUSTER - SUBCLUSTER]), np.array([EXTENDED_CLUSTER + 2 * SUBCLUSTER]))
    assert tables.to_bits(EXTENDED, np.array([0, 1, 2]), part).tolist() == [1 << 31, 3, 0]
