"""What an overlay keeps of its base, in bytes: read, written, and left out."""

import random
from typing import Any

import pytest

from cowtree.qcow2 import header as qcow2
from cowtree.qcow2.header import Extension, Header
from cowtree.qcow2.image import Image
from cowtree.qcow2.lineage import (
    LINEAGE,
    RECORD,
    BaseRecord,
    find_record,
    has_room,
    link_of,
    pack,
    parse,
    record_steps,
    with_record,
)
from cowtree.steps import Write

KNOWN = BaseRecord(1 << 30, 5, 7, bytes(range(32)))
OTHER = Extension(0x12345678, b"other")
KNOWN_TYPES = {
    *(qcow2.END, qcow2.BACKING_FORMAT, qcow2.FEATURE_NAMES, qcow2.BITMAPS, qcow2.ENCRYPTION, qcow2.DATA_FILE_NAME)
}


def overlay(*extensions: Extension, name: bytes = b"base", cluster_bits: int = 16) -> Header:
    """The header of an overlay."""
    listed = (Extension(qcow2.BACKING_FORMAT, b"qcow2"), *extensions)
    header = Header(3, cluster_bits, 512, 1, 3 << cluster_bits, 1 << cluster_bits, 1, unknown_fields=bytes(7))
    return header._replace(extensions=listed, backing_name_bytes=name)


def test_the_type_is_readable_and_nobody_elses():
    assert LINEAGE.to_bytes(4, "big") == b"cowt"
    assert LINEAGE not in KNOWN_TYPES


def test_a_record_is_what_was_packed():
    assert parse(pack(KNOWN)) == KNOWN
    assert len(pack(KNOWN)) == RECORD.size_bytes
    assert parse(pack(KNOWN._replace(mtime_ns=-1))) == KNOWN._replace(mtime_ns=(1 << 64) - 1)


def test_an_overlay_keeps_a_record_behind_all_that_it_has():
    header = with_record(overlay(OTHER), KNOWN)
    assert [each.type for each in header.extensions] == [qcow2.BACKING_FORMAT, OTHER.type, LINEAGE]
    assert find_record(header) == (KNOWN, None)
    again = with_record(header, KNOWN._replace(size_bytes=1))
    assert len(again.extensions) == 3
    assert find_record(again)[0] == KNOWN._replace(size_bytes=1)
    assert with_record(again, None) == overlay(OTHER)
    assert find_record(overlay()) == (None, None)


def test_what_is_packed_into_the_first_cluster_is_found_there():
    header = with_record(overlay(name=b"b" * 100), KNOWN)
    data = qcow2.pack(header)
    assert find_record(qcow2.parse("image", data, 1 << 40)) == (KNOWN, None)


@pytest.mark.parametrize(
    "change",
    [
        {"backing_name_bytes": b"other"},
        {"backing_name_bytes": b""},
        {"extensions": (Extension(qcow2.BACKING_FORMAT, b"raw"), with_record(overlay(), KNOWN).extensions[-1])},
        {"extensions": with_record(overlay(), KNOWN).extensions[-1:]},
    ],
)
def test_a_record_counts_for_the_link_that_it_was_made_for(change: dict[str, Any]):
    header = with_record(overlay(), KNOWN)._replace(**change)
    known, note = find_record(header)
    assert known is None
    assert note == "it was given another base since it noted what its base was"


@pytest.mark.parametrize("data", [b"", b"\1", b"\1" * 63, b"\2" * 80, b"\0" * 80, pack(KNOWN)[:-1]])
def test_what_is_foreign_or_damaged_is_noted_and_never_an_error(data: bytes):
    known, note = find_record(overlay(Extension(LINEAGE, data)))
    assert known is None
    assert note is not None
    assert "newer cowtree, or is damaged" in note


@pytest.mark.parametrize("cluster_bits", [9, 10, 11, 12, 16])
@pytest.mark.parametrize("length", [1, 100, 1023])
def test_a_record_leaves_room_for_the_longest_name(cluster_bits: int, length: int):
    bare = overlay(name=b"n" * length, cluster_bits=cluster_bits)
    header = with_record(bare, KNOWN)
    has_it = header != bare
    assert has_it == has_room(bare)
    assert has_it == (cluster_bits >= 12 or (cluster_bits == 11 and length < 1023))
    if has_it:
        qcow2.pack(header._replace(backing_name_bytes=b"n" * qcow2.BACKING_NAME_BYTES_MAX))


def test_an_image_without_a_base_keeps_nothing():
    assert with_record(overlay(name=b""), KNOWN) == overlay(name=b"")


def standing(header: Header) -> tuple[Image, bytes]:
    nothing: Any = None
    cluster = qcow2.pack(header).ljust(1 << header.cluster_bits, b"\0")
    header = qcow2.parse_fields("image", cluster, 1 << 40)
    return Image("image", header, nothing, nothing, (), 0, (), None, (), 1 << 40), cluster


def put(cluster: bytes, steps: list[Any], count: int | None = None) -> bytes:
    """The cluster after some of the writes."""
    data = bytearray(cluster)
    for step in [each for each in steps if isinstance(each, Write)][:count]:
        data[step.offset : step.offset + len(step.data)] = step.data
    return bytes(data)


def test_steps_change_the_record_and_nothing_else():
    image, cluster = standing(overlay(OTHER, qcow2.feature_table()))
    steps = record_steps(image, cluster, KNOWN)
    writes = [step for step in steps if isinstance(step, Write)]
    for count in range(len(writes) + 1):
        header = qcow2.parse_fields("image", put(cluster, steps, count), 1 << 40)
        assert with_record(header, None)._replace(extensions=(), backing_file_offset=0) == image.header._replace(
            extensions=(), backing_file_offset=0
        )
        assert {each for each in header.extensions if each.type != LINEAGE} >= set(image.header.extensions)
        known, note = find_record(header)
        assert (known, note) in ((None, None), (KNOWN, None))
        assert link_of(header) == link_of(image.header)
    assert find_record(qcow2.parse_fields("image", put(cluster, steps), 1 << 40)) == (KNOWN, None)
    image, cluster = standing(with_record(overlay(), KNOWN))
    assert record_steps(image, cluster, KNOWN) == []
    image, cluster = standing(overlay(cluster_bits=9))
    assert record_steps(image, cluster, KNOWN) == []


def test_what_unknown_features_want_cleared_is_cleared_with_the_first_change():
    image, cluster = standing(overlay()._replace(autoclear=1 << 40 | qcow2.AUTOCLEAR_BITMAPS))
    header = qcow2.parse_fields("image", put(cluster, record_steps(image, cluster, KNOWN)), 1 << 40)
    assert header.autoclear == qcow2.AUTOCLEAR_BITMAPS


def test_any_bytes_are_a_record_or_none(seed: int):
    choose = random.Random(seed)
    data = bytearray(pack(KNOWN) + b"qcow2\0base")
    for _ in range(choose.randint(1, 5)):
        data[choose.randrange(len(data))] = choose.randrange(256)
    known, note = find_record(overlay(Extension(LINEAGE, bytes(data[: choose.randint(0, len(data))]))))
    assert (known is None) != (note is None)
