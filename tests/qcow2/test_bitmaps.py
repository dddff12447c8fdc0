"""Owns the proof that the bitmap directory is read as QEMU wrote it, and that no broken one gets through."""

import json
from pathlib import Path
from typing import Any

import pytest

from cowtree.errors import BrokenTable
from cowtree.qcow2.bitmaps import (
    AUTO,
    BITMAP,
    BITMAP_COUNT_MAX,
    BITMAPS_EXTENSION,
    DIRECTORY_BYTES_MAX,
    FLAGS_OFFSET,
    IN_USE,
    TABLE_ENTRY_COUNT_MAX,
    Bitmap,
    Directory,
    directory,
    pack,
    parse,
    placed,
    table_entry_count,
)
from cowtree.qcow2.header import AUTOCLEAR_BITMAPS, BITMAPS, Extension, Header
from cowtree.qcow2.header import parse as parse_header
from tests.qemu import qemu_img

GRANULARITIES = {"first": 512, "second with spaces": 65536, "dritte-ü": 1 << 31, "n" * 300: 4096}
HEADER = Header(3, 16, 1 << 20, 1, 0x30000, 0x10000, 1, autoclear=AUTOCLEAR_BITMAPS)


def image_with_bitmaps(folder: Path) -> Path:
    image = folder / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", image, "64M")
    for name, granularity in GRANULARITIES.items():
        qemu_img("bitmap", "--add", "-g", str(granularity), image, name)
    qemu_img("bitmap", "--disable", image, "first")
    return image


def read_directory(image: Path) -> tuple[Header, Directory, bytes]:
    data = image.read_bytes()
    header = parse_header(str(image), data[:65536], len(data))
    found = directory(str(image), header)
    assert found
    return header, found, data[found.offset : found.offset + found.length_bytes]


def with_extension(**changes: int) -> Header:
    fields = {"nb_bitmaps": 1, "reserved": 0, "bitmap_directory_size": 32, "bitmap_directory_offset": 0x40000}
    return HEADER._replace(extensions=(Extension(BITMAPS, BITMAPS_EXTENSION.pack(**fields | changes)),))


def entry(*, name: bytes = b"a", extra: bytes = b"", **changes: int) -> bytes:
    """One entry as the specification lays it out, padded to 8 bytes; `changes` may lie about it."""
    fields = {
        **{"bitmap_table_offset": 0x50000, "bitmap_table_size": 1, "flags": AUTO, "type": 1, "granularity_bits": 16},
        **{"name_size": len(name), "extra_data_size": len(extra)},
    }
    data = BITMAP.pack(**fields | changes) + extra + name
    return data + bytes(-len(data) % 8)


def test_the_bitmaps_are_those_that_qemu_lists(tmp_path: Path):
    image = image_with_bitmaps(tmp_path)
    listed = json.loads(qemu_img("info", "--output=json", image))["format-specific"]["data"]["bitmaps"]
    header, found, data = read_directory(image)
    bitmaps = parse(str(image), header, data, found.bitmap_count)
    ours = [
        {
            "name": each.name,
            "granularity": 1 << each.granularity_bits,
            "flags": ["in-use"] * each.is_in_use + ["auto"] * each.is_auto,
        }
        for each in bitmaps
    ]
    assert ours == listed
    assert {each.name: 1 << each.granularity_bits for each in bitmaps} == GRANULARITIES
    assert [each.name for each in bitmaps if not each.is_auto] == ["first"]


def test_every_table_of_qemu_describes_the_whole_disk(tmp_path: Path):
    header, found, data = read_directory(image_with_bitmaps(tmp_path))
    for each in parse("a", header, data, found.bitmap_count):
        assert each.disk_bytes_max(header.cluster_bits) >= header.size_bytes
        smaller = each._replace(table_entry_count=each.table_entry_count - 1)
        assert smaller.disk_bytes_max(header.cluster_bits) < header.size_bytes


def test_a_bitmap_in_use_is_found_where_its_entry_lies(tmp_path: Path):
    image = image_with_bitmaps(tmp_path)
    header, found, data = read_directory(image)
    place = parse("a", header, data, found.bitmap_count)[1].entry_offset + FLAGS_OFFSET
    with image.open("r+b") as file:
        file.seek(found.offset + place)
        file.write((AUTO | IN_USE).to_bytes(4, "big"))
    header, found, data = read_directory(image)
    assert [each.is_in_use for each in parse("a", header, data, found.bitmap_count)] == [False, True, False, False]
    listed = json.loads(qemu_img("info", "--output=json", image))["format-specific"]["data"]["bitmaps"]
    assert listed[1]["flags"] == ["in-use", "auto"]


def test_a_directory_cut_anywhere_is_broken(tmp_path: Path):
    header, found, data = read_directory(image_with_bitmaps(tmp_path))
    for cut in range(len(data)):
        with pytest.raises(BrokenTable, match=r"Broken bitmap directory|Less bitmaps found than specified"):
            parse("a", header, data[:cut], found.bitmap_count)


@pytest.mark.parametrize("difference", [-1, 1])
def test_a_count_that_differs_from_the_directory_is_broken(tmp_path: Path, difference: int):
    header, found, data = read_directory(image_with_bitmaps(tmp_path))
    with pytest.raises(BrokenTable, match=r"(More|Less) bitmaps found than specified in header extension"):
        parse("a", header, data, found.bitmap_count + difference)


def test_an_image_without_bitmaps_has_no_directory():
    assert directory("a", HEADER) is None


def test_bitmaps_that_an_older_program_left_behind_do_not_count():
    assert directory("a", with_extension()) == Directory(1, 0x40000, 32)
    assert directory("a", with_extension(bitmap_directory_size=1)._replace(autoclear=0)) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"nb_bitmaps": 0}, "found bitmaps extension with zero bitmaps"),
        ({"nb_bitmaps": BITMAP_COUNT_MAX + 1}, "Image has 65536 bitmaps, exceeding"),
        ({"reserved": 1}, "Reserved field is not zero"),
        ({"bitmap_directory_size": 0}, "Requested bitmap directory size is zero"),
        ({"bitmap_directory_size": DIRECTORY_BYTES_MAX + 1}, "exceeds the maximum supported size"),
        ({"bitmap_directory_offset": 0x40200}, "invalid bitmap directory offset"),
    ],
)
def test_an_extension_that_breaks_a_rule_is_refused(changes: dict[str, int], reason: str):
    with pytest.raises(BrokenTable, match=reason):
        directory("a", with_extension(**changes))


@pytest.mark.parametrize("length", [0, 23, 25])
def test_an_extension_of_another_length_is_refused(length: int):
    header = HEADER._replace(extensions=(Extension(BITMAPS, bytes(length)),))
    with pytest.raises(BrokenTable, match="bitmaps_ext: Invalid extension length"):
        directory("a", header)


@pytest.mark.parametrize(
    "changes",
    [
        *({"bitmap_table_size": 0}, {"bitmap_table_size": TABLE_ENTRY_COUNT_MAX + 1}, {"bitmap_table_size": 8193}),
        *({"bitmap_table_offset": 0}, {"bitmap_table_offset": 0x50200}, {"type": 0}, {"type": 2}),
        *({"granularity_bits": 8}, {"granularity_bits": 32}, {"flags": 1 << 3}, {"flags": 1 << 31}),
    ],
    ids=str,
)
def test_an_entry_that_breaks_a_rule_is_refused(changes: dict[str, Any]):
    with pytest.raises(BrokenTable, match="Bitmap 'a' doesn't satisfy the constraints"):
        parse("a", HEADER, entry(**changes), 1)


@pytest.mark.parametrize(
    "changes",
    [
        *({}, {"bitmap_table_size": 1 << 13, "flags": AUTO | IN_USE}, {"flags": 7}),
        *({"granularity_bits": 9}, {"granularity_bits": 31}),
    ],
    ids=str,
)
def test_an_entry_at_the_edge_of_a_rule_is_read(changes: dict[str, Any]):
    assert len(parse("a", HEADER, entry(**changes), 1)) == 1


def test_a_name_has_at_most_1023_bytes():
    assert parse("a", HEADER, entry(name=b"n" * 1023), 1)[0].name == "n" * 1023
    with pytest.raises(BrokenTable, match="constraints"):
        parse("a", HEADER, entry(name=b"n" * 1024), 1)


def test_a_name_or_extra_data_past_the_end_is_broken():
    lies: list[Any] = [{"name_size": 65535}, {"extra_data_size": (1 << 32) - 1}]
    for lie in lies:
        with pytest.raises(BrokenTable, match="Broken bitmap directory"):
            parse("a", HEADER, entry(**lie), 1)


def test_extra_data_before_the_name_is_kept():
    data = entry(extra=b"extra", name=b"first") + entry(name=b"second")
    first, second = parse("a", HEADER, data, 2)
    assert first == Bitmap("first", 0x50000, 1, AUTO, 16, 0, b"extra")
    assert (second.name, second.entry_offset) == ("second", 40)


@pytest.mark.parametrize("count", [2, 8192])
def test_a_table_must_fit_the_disk_unless_nobody_uses_it(count: int):
    with pytest.raises(BrokenTable, match="Could not read bitmap 'a' from image: Invalid argument"):
        parse("a", HEADER, entry(bitmap_table_size=count), 1)
    assert parse("a", HEADER, entry(bitmap_table_size=count, flags=IN_USE), 1)[0].table_entry_count == count


def test_a_disk_that_is_too_large_for_its_bitmap_is_refused():
    large = HEADER._replace(size_bytes=1 << 40)
    with pytest.raises(BrokenTable, match="Bitmap 'a' doesn't satisfy the constraints"):
        parse("a", large, entry(), 1)


def test_a_directory_is_packed_as_qemu_packs_it(tmp_path: Path):
    header, found, data = read_directory(image_with_bitmaps(tmp_path))
    bitmaps = parse("a", header, data, found.bitmap_count)
    assert pack(bitmaps) == data
    assert placed(bitmaps) == bitmaps
    assert [each.entry_offset for each in placed(reversed(bitmaps))][1] == bitmaps[-1].entry_bytes


def test_extra_data_is_packed_where_it_was():
    data = entry(extra=b"extra", name=b"first") + entry(name="zweite-ü".encode())
    assert pack(parse("a", HEADER, data, 2)) == data


@pytest.mark.parametrize(
    ("size_bytes", "granularity_bits", "expected"),
    [(0, 9, 0), (1, 9, 1), (8 << 18, 9, 1), ((8 << 18) + 1, 9, 2), (1 << 44, 16, 1 << 16)],
)
def test_the_table_has_an_entry_for_each_cluster_of_bits(size_bytes: int, granularity_bits: int, expected: int):
    assert table_entry_count(size_bytes, granularity_bits, 9) == expected
