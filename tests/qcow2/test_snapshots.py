"""Owns the proof that a snapshot table is read as QEMU wrote it, and that no broken one gets through."""

import json
from pathlib import Path
from typing import Any

import pytest

from cowtree.errors import BrokenTable
from cowtree.qcow2.header import HEADER_V2, Header, parse
from cowtree.qcow2.snapshots import EXTRA_DATA_BYTES_MAX, SNAPSHOT, Snapshot, pack, parse_entries, wrong_l1
from cowtree.qcow2.snapshots import parse as parse_table
from tests.qemu import qemu_img, qemu_io

DISK_BYTES = 1 << 20
NAMES = ("one", "zwei mit Leerzeichen", "trois-é", "x" * 200)


def image_with_snapshots(folder: Path, *names: str, options: str = "compat=1.1") -> Path:
    image = folder / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, image, str(DISK_BYTES))
    for index, name in enumerate(names):
        qemu_io(image, f"write -P {index + 1} {index * 65536} 64k")
        qemu_img("snapshot", "-c", name, image)
    return image


def read(image: Path) -> tuple[Header, bytes]:
    """The header, and the file from the snapshot table on."""
    data = image.read_bytes()
    header = parse(str(image), data[: 1 << 16], len(data))
    return header, data[header.snapshot_table_offset :]


def header_of(count: int) -> Header:
    return Header(3, 16, DISK_BYTES, 1, 0x30000, 0x10000, 1, snapshot_count=count, snapshot_table_offset=0x40000)


def entry(*, name: bytes = b"a", extra: bytes = b"", **changes: int) -> bytes:
    """One entry as the specification lays it out, padded to 8 bytes; `changes` may lie about it."""
    fields = {
        **{"l1_table_offset": 0x50000, "l1_size": 1, "id_size": 1, "name_size": len(name), "date_sec": 5},
        **{"date_nsec": 6, "vm_clock_nsec": 7, "vm_state_size": 8, "extra_data_size": len(extra)},
    }
    data = SNAPSHOT.pack(**fields | changes) + extra + b"1" + name
    return data + bytes(-len(data) % 8)


def only(data: bytes) -> Snapshot:
    (found,), length = parse_table("a", header_of(1), data)
    assert length == len(data)
    return found


@pytest.mark.parametrize("options", ["compat=1.1", "compat=0.10", "compat=1.1,extended_l2=on"])
def test_the_snapshots_are_those_that_qemu_lists(tmp_path: Path, options: str):
    image = image_with_snapshots(tmp_path, *NAMES, options=options)
    listed: list[dict[str, Any]] = json.loads(qemu_img("info", "--output=json", image))["snapshots"]
    found, _ = parse_table(str(image), *read(image))
    assert [each.name for each in found] == list(NAMES)
    for ours, theirs in zip(found, listed, strict=True):
        assert (ours.id, ours.name, ours.vm_state_bytes) == (theirs["id"], theirs["name"], theirs["vm-state-size"])
        assert (ours.time_s, ours.time_ns) == (theirs["date-sec"], theirs["date-nsec"])
        assert ours.vm_clock_ns == theirs["vm-clock-sec"] * 10**9 + theirs["vm-clock-nsec"]
        assert ours.icount == theirs.get("icount")
        assert ours.size_bytes == DISK_BYTES
        assert ours.has_size


def test_the_l1_table_of_a_snapshot_is_where_it_says(tmp_path: Path):
    image = image_with_snapshots(tmp_path, "one")
    header, table = read(image)
    (snapshot,), _ = parse_table(str(image), header, table)
    data = image.read_bytes()
    l2_offset = int.from_bytes(data[snapshot.l1_table_offset :][:8], "big") & ~(1 << 63)
    assert snapshot.l1_bytes == 8
    cluster = int.from_bytes(data[l2_offset:][:8], "big") & ~(3 << 62)
    assert data[cluster:][:65536] == b"\1" * 65536


def test_the_table_ends_behind_its_last_entry(tmp_path: Path):
    image = image_with_snapshots(tmp_path, *NAMES)
    header, table = read(image)
    _, length = parse_table(str(image), header, table)
    assert parse_table(str(image), header, table[:length])[1] == length
    assert not any(table[length:65536])


def test_a_table_cut_anywhere_is_broken(tmp_path: Path):
    image = image_with_snapshots(tmp_path, "one", "two")
    header, table = read(image)
    _, length = parse_table(str(image), header, table)
    names_end = len(table[:length].rstrip(b"\0"))
    for cut in range(names_end):
        with pytest.raises(BrokenTable):
            parse_table(str(image), header, table[:cut])


def test_a_count_beyond_the_table_is_broken(tmp_path: Path):
    header, table = read(image_with_snapshots(tmp_path, "one"))
    with pytest.raises(BrokenTable, match="Snapshot 1 of 2 lies past the table's end"):
        parse_entries("a", header._replace(snapshot_count=2), table[:80])


def test_an_image_without_snapshots_has_an_empty_table(tmp_path: Path):
    header, _ = read(image_with_snapshots(tmp_path))
    assert parse_table("a", header, b"") == ((), 0)


def test_an_old_entry_says_neither_disk_size_nor_instructions():
    found = only(entry())
    assert (found.vm_state_bytes, found.size_bytes, found.icount, found.has_size) == (8, DISK_BYTES, None, False)


def test_extra_data_tells_large_states_disk_sizes_and_instructions():
    numbers = [number.to_bytes(8, "big") for number in (1 << 40, 1 << 30, 99)]
    found = only(entry(extra=b"".join(numbers)))
    assert (found.vm_state_bytes, found.size_bytes, found.icount, found.has_size) == (1 << 40, 1 << 30, 99, True)
    assert only(entry(extra=b"".join(numbers[:2]) + b"\xff" * 8)).icount is None


def test_extra_data_that_nobody_knows_is_kept():
    extra = bytes(range(40))
    assert only(entry(extra=extra)).extra_data == extra


def test_each_entry_starts_at_a_multiple_of_eight_bytes():
    data = entry(name=b"longer") + entry(name=b"b", l1_table_offset=0x60000)
    assert [each.name for each in parse_table("a", header_of(2), data)[0]] == ["longer", "b"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (entry(name_size=65535), "runs past the end of the table"),
        (entry(id_size=65535), "runs past the end of the table"),
        (entry(extra_data_size=EXTRA_DATA_BYTES_MAX), "runs past the end of the table"),
        (entry(extra=bytes(EXTRA_DATA_BYTES_MAX + 1)), "Too much extra metadata in snapshot table entry 0"),
        (entry(extra_data_size=(1 << 32) - 1), "Too much extra metadata in snapshot table entry 0"),
        (entry(l1_table_offset=0x50200), "snapshot 'a': L1 table is not cluster aligned"),
        (entry(l1_size=(32 << 20) // 8 + 1), "snapshot 'a': L1 table is too large"),
    ],
)
def test_an_entry_that_breaks_a_rule_is_refused(data: bytes, reason: str):
    with pytest.raises(BrokenTable, match=reason):
        parse_table("a", header_of(1), data)


def test_the_largest_legal_entry_is_read():
    found = only(entry(l1_size=(32 << 20) // 8, extra=bytes(EXTRA_DATA_BYTES_MAX)))
    assert wrong_l1(header_of(1), found) == ""


def test_two_snapshots_may_not_share_an_l1_table():
    data = entry(l1_size=16384) + entry(name=b"b", l1_table_offset=0x60000)
    with pytest.raises(BrokenTable, match="snapshot 'b': L1 table lies inside that of another snapshot"):
        parse_table("a", header_of(2), data)
    assert len(parse_entries("a", header_of(2), data)[0]) == 2


def test_the_header_says_how_many_there_are(tmp_path: Path):
    image = image_with_snapshots(tmp_path, "one", "two")
    assert HEADER_V2.integers(image.read_bytes()[:72])["nb_snapshots"] == len(parse_table("a", *read(image))[0]) == 2


@pytest.mark.parametrize("options", ["compat=1.1", "compat=0.10"])
def test_a_table_that_qemu_wrote_is_packed_as_it_was(tmp_path: Path, options: str):
    header, table = read(image_with_snapshots(tmp_path, *NAMES, options=options))
    found, length = parse_table("a", header, table)
    # The file ends where the last entry does, before it is padded.
    assert pack(found) == table[:length].ljust(length, b"\0")


def test_what_is_packed_is_read_again():
    numbers = [number.to_bytes(8, "big") for number in (1 << 40, 1 << 30, 99)]
    for extra in (b"", bytes(8), b"".join(numbers), b"".join(numbers) + b"more, and odd"):
        found = only(entry(extra=extra))._replace(name="a-\udcff-ü")
        again, length = parse_table("a", header_of(1), pack([found]))
        assert length % 8 == 0
        assert again == (found._replace(extra_data=again[0].extra_data),)
        assert again[0].extra_data[24:] == extra[24:]
        assert len(again[0].extra_data) == max(len(extra), 24)


def test_a_state_of_more_than_32_bits_is_none_for_who_knows_only_32():
    found = only(entry())
    for size, expected in ((1 << 32, 0), ((1 << 32) - 1, (1 << 32) - 1)):
        data = pack([found._replace(vm_state_bytes=size)])
        assert SNAPSHOT.integers(data)["vm_state_size"] == expected
        assert only(data).vm_state_bytes == size
