"""What an overlay tells of the moment below it, in bytes: read, written, left out, and not believed."""

import random

import pytest

from cowtree.qcow2 import header as qcow2
from cowtree.qcow2.header import Extension, Header
from cowtree.qcow2.lineage import BaseRecord, find_record, with_record
from cowtree.qcow2.moment import DESCRIPTION_BYTES_MAX, MOMENT, RECORD, Moment, find_moment, pack, parse, with_moment

KNOWN = Moment("vm", "6236e2e8-2923-40bb-ae9c-6483cf848ccc", "vda", "first", "", "a wörd", 5_000, 7_000, False, "/a/b")


def overlay(*extensions: Extension, name: bytes = b"base", cluster_bits: int = 16) -> Header:
    """The header of an overlay."""
    listed = (Extension(qcow2.BACKING_FORMAT, b"qcow2"), *extensions)
    header = Header(3, cluster_bits, 512, 1, 3 << cluster_bits, 1 << cluster_bits, 1, unknown_fields=bytes(7))
    return header._replace(extensions=listed, backing_name_bytes=name)


def packed(moment: Moment) -> bytes:
    """The bytes of one that can be kept."""
    data = pack(moment)
    assert data is not None
    return data


def test_a_moment_is_what_was_packed():
    for moment in (KNOWN, KNOWN._replace(is_tip=True, name="tip", parent="first", path="/a/\udcff")):
        assert parse(packed(moment) + b"qcow2\0base") == (moment, b"qcow2\0base")


def test_the_type_is_readable_and_nobody_elses():
    assert MOMENT.to_bytes(4, "big") == b"cowm"


def test_a_moment_is_found_in_the_first_cluster_beside_the_record_of_the_base():
    known = BaseRecord(1, 2, 3, bytes(32))
    header = with_moment(with_record(overlay(), known), KNOWN)
    again = qcow2.parse("image", qcow2.pack(header), 1 << 40)
    assert find_moment(again) == (KNOWN, True)
    assert find_record(again) == (known, None)
    assert find_moment(with_record(again, known._replace(mtime_ns=9))) == (KNOWN, True)


@pytest.mark.parametrize("name", [b"other", b""])
def test_a_moment_is_not_true_of_another_link(name: bytes):
    header = with_moment(overlay(), KNOWN)._replace(backing_name_bytes=name)
    assert find_moment(header) == (KNOWN, False)


def test_a_moment_can_be_taken_away_and_given_anew():
    header = with_moment(overlay(), KNOWN)
    assert with_moment(header, None) == overlay()
    assert find_moment(with_moment(header, KNOWN._replace(name="second")))[0] == KNOWN._replace(name="second")
    assert find_moment(overlay()) == (None, False)


def test_without_a_base_a_moment_is_kept_and_not_true():
    assert find_moment(with_moment(overlay(name=b""), KNOWN)) == (KNOWN, False)


def test_there_is_no_moment_without_room():
    assert with_moment(overlay(cluster_bits=9), KNOWN) == overlay(cluster_bits=9)


def test_a_long_description_is_cut_and_a_long_name_not_kept():
    kept = parse(packed(KNOWN._replace(description="é" * DESCRIPTION_BYTES_MAX)))
    assert kept is not None
    assert kept[0].description == "é" * (DESCRIPTION_BYTES_MAX // 2)
    assert pack(KNOWN._replace(name="n" * 256)) is None
    assert pack(KNOWN._replace(created_ns=-1)) is None
    assert pack(KNOWN._replace(made_ns=1 << 63)) is None


def test_what_is_cut_short_or_of_a_later_version_is_none():
    data = packed(KNOWN)
    assert all(parse(data[:length]) is None for length in range(len(data)))
    assert parse(b"\x02" + data[1:]) is None
    assert parse(data[:1] + b"\x02" + data[2:]) is None


def test_hostile_texts_are_none():
    assert parse(packed(KNOWN).replace(b"first", b"fir\xfft")) is None
    assert parse(packed(KNOWN).replace(b"first", b"fir\0t")) is None
    fields: dict[str, int | bytes] = {**dict.fromkeys(RECORD.names, 0), "version": 1, "reserved": b"", "name": 256}
    assert parse(RECORD.pack(**fields)) is None


def test_damage_is_never_raised(seed: int):
    source = random.Random(seed)
    data = bytearray(packed(KNOWN) + b"qcow2\0base")
    for _ in range(source.randint(1, 8)):
        data[source.randrange(len(data))] = source.randrange(256)
    parse(bytes(data[: source.randint(0, len(data))]))
