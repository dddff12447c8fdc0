"""Owns the proof that the first cluster is read as QEMU wrote it, written as it was read, and refused when it lies."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowtree.errors import BrokenHeader, ImageError, NotAnImage, TruncatedImage, UnknownFeature
from cowtree.qcow2 import header as hd
from cowtree.qcow2.geometry import REFCOUNT_TABLE_BYTES_MAX
from cowtree.qcow2.header import Extension, Header, pack, parse, parse_fields, wanted_bytes
from tests.qemu import qemu_img, run

KIB = 1024
CLUSTER = 64 * KIB
FILE_BYTES = 16 * CLUSTER
PLAIN = Header(
    version=3,
    cluster_bits=16,
    size_bytes=1 << 30,
    l1_entry_count=2,
    l1_table_offset=3 * CLUSTER,
    refcount_table_offset=CLUSTER,
    refcount_table_cluster_count=1,
    unknown_fields=bytes(7),
)
UNKNOWN_BIT = 1 << 5
VERSION, BACKING_OFFSET, BACKING_SIZE, CLUSTER_BITS, HEADER_LENGTH, EXTENSIONS = 4, 8, 16, 20, 100, 112

OPTIONS = [
    *("compat=0.10", "compat=0.10,cluster_size=512", "cluster_size=512,refcount_bits=1", "cluster_size=2M"),
    *("refcount_bits=64,lazy_refcounts=on", "refcount_bits=8", "compression_type=zstd", "extended_l2=on"),
    *("extended_l2=on,cluster_size=16k,compression_type=zstd", "cluster_size=4k,lazy_refcounts=on"),
]


def whole(data: bytes, cluster_bits: int = 16) -> bytes:
    """The first cluster, filled up."""
    return data.ljust(1 << cluster_bits, b"\0")


def patched(offset: int, value: int, length: int = 4, header: Header = PLAIN) -> bytes:
    """The first cluster with one integer overwritten."""
    data = bytearray(whole(pack(header)))
    data[offset : offset + length] = value.to_bytes(length, "big")
    return bytes(data)


def read(header: Header, size_bytes: int = FILE_BYTES) -> Header:
    return parse("a.qcow2", whole(pack(header), header.cluster_bits), size_bytes)


def read_or_refuse(data: bytes, size_bytes: int) -> Header | ImageError:
    try:
        return parse("a", data, size_bytes)
    except ImageError as error:
        return error


def made_by_qemu(folder: Path, options: str, has_backing: bool = False) -> Path:
    words = ["create", "-q", "-f", "qcow2", "-o", options]
    if has_backing:
        qemu_img("create", "-q", "-f", "raw", folder / "base é.img", "1M")
        words += ["-b", "base é.img", "-F", "raw"]
    qemu_img(*words, folder / "a.qcow2", "3M")
    return folder / "a.qcow2"


@pytest.mark.parametrize(("options", "has_backing"), list(product(OPTIONS, [False, True])))
def test_an_image_is_read_as_qemu_reads_it(tmp_path: Path, options: str, has_backing: bool):
    image = made_by_qemu(tmp_path, options, has_backing)
    data = image.read_bytes()
    header = parse(str(image), data[: hd.first_cluster_bytes(data)], len(data))
    info: dict[str, Any] = json.loads(qemu_img("info", "--output=json", image))
    about = info["format-specific"]["data"]
    assert (header.size_bytes, header.geometry.cluster_size_bytes) == (info["virtual-size"], info["cluster-size"])
    assert (header.backing_file, header.backing_format) == (
        info.get("backing-filename"),
        info.get("backing-filename-format"),
    )
    assert {2: "0.10", 3: "1.1"}[header.version] == about["compat"]
    assert header.geometry.refcount_bits == about["refcount-bits"]
    assert hd.COMPRESSION_NAMES[header.compression_type] == about["compression-type"]
    assert bool(header.compatible & hd.LAZY_REFCOUNTS) == about.get("lazy-refcounts", False)
    assert header.geometry.has_subclusters == about.get("extended-l2", False)
    assert (header.is_dirty, header.is_corrupt) == (False, about.get("corrupt", False))


@pytest.mark.parametrize(("options", "has_backing"), list(product(OPTIONS, [False, True])))
def test_the_header_of_qemu_is_written_back_byte_for_byte(tmp_path: Path, options: str, has_backing: bool):
    data = made_by_qemu(tmp_path, options, has_backing).read_bytes()
    cluster = data[: hd.first_cluster_bytes(data)]
    written = pack(parse("a", cluster, len(data)))
    assert whole(written, len(cluster).bit_length() - 1) == cluster


@pytest.mark.parametrize(("options", "has_backing"), list(product(OPTIONS, [False, True])))
def test_no_more_is_wanted_than_is_needed(tmp_path: Path, options: str, has_backing: bool):
    data = made_by_qemu(tmp_path, options, has_backing).read_bytes()
    length = 512
    while (wanted := wanted_bytes(data[:length])) > length:
        length = wanted
    assert length <= 4 * KIB
    assert parse("a", data[:length], len(data)) == parse("a", data[: hd.first_cluster_bytes(data)], len(data))


def test_the_feature_table_of_a_new_image_is_that_of_qemu(tmp_path: Path):
    data = made_by_qemu(tmp_path, "compat=1.1").read_bytes()
    header = parse("a", data[:CLUSTER], len(data))
    assert hd.feature_table().data == header.extension(hd.FEATURE_NAMES)


extensions = st.builds(
    Extension,
    st.integers(1, (1 << 32) - 1).filter(lambda kind: kind != hd.ENCRYPTION) | st.just(hd.BACKING_FORMAT),
    st.binary(max_size=100),
)


@st.composite
def headers(draw: st.DrawFn) -> Header:
    """Headers that break no rule about single fields, with tables anywhere."""
    cluster_bits, version = draw(st.integers(14, 21)), draw(st.sampled_from([2, 3]))
    offsets = st.integers(0, 1 << 30).map(lambda index: index << cluster_bits)
    header = Header(
        version=version,
        cluster_bits=cluster_bits,
        size_bytes=draw(st.integers(0, 1 << 34)),
        l1_entry_count=1 << 14,
        l1_table_offset=draw(offsets),
        refcount_table_offset=draw(offsets),
        refcount_table_cluster_count=draw(st.integers(0, (8 << 20) >> cluster_bits)),
        crypt_method=draw(st.sampled_from([0, 1, 2])),
        snapshot_count=draw(st.integers(0, 65536)),
        snapshot_table_offset=draw(offsets),
        header_length=72,
        extensions=tuple(draw(st.lists(extensions, max_size=5))),
        backing_name_bytes=draw(st.binary(max_size=1023).map(lambda name: name.replace(b"\0", b"/"))),
    )
    return _with_version_3(draw, header) if version == 3 else header


def _with_version_3(draw: st.DrawFn, header: Header) -> Header:
    unknown = draw(st.sampled_from([None, 7, 15, 200]))
    compression = draw(st.sampled_from([hd.ZLIB, hd.ZSTD])) if unknown is not None else hd.ZLIB
    bits = draw(st.integers(0, 31)) & ~hd.COMPRESSION_TYPE
    return header._replace(
        refcount_order=draw(st.integers(0, 6)),
        incompatible=bits | (hd.COMPRESSION_TYPE if compression == hd.ZSTD else 0),
        compatible=draw(st.integers(0, (1 << 64) - 1)),
        autoclear=draw(st.integers(0, (1 << 64) - 1)),
        compression_type=compression,
        header_length=104 if unknown is None else 105 + unknown,
        unknown_fields=b"" if unknown is None else draw(st.binary(min_size=unknown, max_size=unknown)),
    )


@given(headers())
def test_what_was_written_is_read_back(header: Header):
    data = pack(header)
    found = parse_fields("a", whole(data, header.cluster_bits), 1 << 62)
    assert found._replace(backing_file_offset=0) == header
    assert pack(found) == data


@given(st.binary(max_size=600), st.integers(0, 1 << 40))
def test_noise_behind_the_magic_is_read_or_refused_by_name(noise: bytes, size_bytes: int):
    found = read_or_refuse((hd.MAGIC + noise).ljust(1 << 21, b"\0"), max(size_bytes, len(noise) + 4))
    assert found.version in (2, 3) if isinstance(found, Header) else str(found).startswith("a: ")


@given(st.lists(st.tuples(st.integers(4, 127), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_few_wrong_bytes_are_read_or_refused_by_name(changes: list[tuple[int, int]]):
    data = bytearray(whole(pack(PLAIN._replace(backing_name_bytes=b"base.img", extensions=(hd.feature_table(),)))))
    for offset, value in changes:
        data[offset] = value
    found = read_or_refuse(bytes(data), FILE_BYTES)
    assert isinstance(found, Header) or str(found).startswith("a: ")


def test_extensions_that_nobody_knows_are_kept_in_place():
    strange = (Extension(0x12345678, b"odd"), Extension(hd.BACKING_FORMAT, b"raw"), Extension(0x12345678, bytes(8)))
    header = PLAIN._replace(extensions=strange, backing_name_bytes=b"base.img")
    found = read(header)
    assert found.extensions == strange
    assert found.extension(0x12345678) == bytes(8)
    assert pack(found) == pack(header)


def test_an_unknown_feature_is_refused_by_the_name_that_the_image_gives_it(tmp_path: Path):
    entries = [(1, 5, b"compatible namesake"), (0, 5, b"time travel"), (0, 6, b"not set"), (0, 63, b"last")]
    table = b"".join(hd.FEATURE_NAME.pack(type=kind, bit=bit, name=name) for kind, bit, name in entries)
    image = made_by_qemu(tmp_path, "compat=1.1")
    data = image.read_bytes()
    header = parse(str(image), data[:CLUSTER], len(data))
    bits = UNKNOWN_BIT | 1 << 63 | 1 << 40
    cluster = whole(pack(header._replace(incompatible=bits, extensions=(Extension(hd.FEATURE_NAMES, table),))))
    image.write_bytes(cluster + data[CLUSTER:])
    with pytest.raises(UnknownFeature) as caught:
        parse(str(image), cluster, len(data))
    assert caught.value.facts["features"] == "time travel, last, Unknown incompatible feature: 10000000000"
    assert caught.value.reason in run("qemu-img", "info", image).stderr


def test_an_unknown_feature_without_a_name_is_refused_by_its_bit():
    with pytest.raises(UnknownFeature, match="Unknown incompatible feature: 20"):
        read(PLAIN._replace(incompatible=UNKNOWN_BIT))


def test_unknown_compatible_and_autoclear_bits_are_kept():
    header = PLAIN._replace(compatible=1 << 63, autoclear=1 << 62)
    assert read(header) == header


TOO_LONG = (REFCOUNT_TABLE_BYTES_MAX >> 16) + 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"refcount_order": 7}, "Reference count entry width too large"),
        ({"crypt_method": 3}, "Unsupported encryption method 3"),
        ({"compression_type": 2, "incompatible": hd.COMPRESSION_TYPE}, "Unknown compression type: 2"),
        ({"compression_type": hd.ZSTD}, "Compression type does not match its feature bit"),
        ({"incompatible": hd.COMPRESSION_TYPE}, "Compression type does not match its feature bit"),
        ({"incompatible": hd.EXTENDED_L2, "cluster_bits": 13, "size_bytes": 512}, "Unsupported subcluster size"),
        ({"snapshot_count": 65537}, "Snapshot table too large"),
        ({"l1_entry_count": (4 << 20) + 1}, "Active L1 table too large"),
        ({"l1_entry_count": 1}, "L1 table is too small"),
        ({"size_bytes": (1 << 30) + 1}, "L1 table is too small"),
        ({"refcount_table_cluster_count": TOO_LONG}, "Reference count table too large"),
        ({"refcount_table_cluster_count": 0}, "Image does not contain a reference count table"),
        ({"refcount_table_offset": CLUSTER + 512}, "Reference count table offset invalid"),
        ({"l1_table_offset": 3 * CLUSTER + 8}, "Active L1 table offset invalid"),
        ({"l1_table_offset": (1 << 63)}, "Active L1 table offset invalid"),
        ({"snapshot_count": 1, "snapshot_table_offset": 9}, "Snapshot table offset invalid"),
    ],
)
def test_a_field_that_breaks_a_rule_is_refused(changes: dict[str, Any], reason: str):
    assert read(PLAIN) == PLAIN
    with pytest.raises(BrokenHeader, match=reason):
        read(PLAIN._replace(**changes))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (patched(VERSION, 1), "Unsupported qcow2 version 1"),
        (patched(VERSION, 4), "Unsupported qcow2 version 4"),
        (patched(CLUSTER_BITS, 8), r"Unsupported cluster size: 2\^8"),
        (patched(CLUSTER_BITS, 22), r"Unsupported cluster size: 2\^22"),
        (patched(HEADER_LENGTH, 103), "qcow2 header too short"),
        (patched(HEADER_LENGTH, CLUSTER + 8), "qcow2 header exceeds cluster size"),
        (patched(BACKING_OFFSET, CLUSTER + 1, 8), "Invalid backing file offset"),
        (patched(BACKING_OFFSET, 8, 8), "Invalid backing file offset"),
        (patched(BACKING_OFFSET, (CLUSTER - 4) << 32 | 5, 12), "Backing file name too long"),
        (patched(EXTENSIONS, 0x1234 << 32 | CLUSTER, 8), "Header extension too large"),
    ],
)
def test_a_header_that_breaks_a_rule_is_refused(data: bytes, reason: str):
    with pytest.raises(BrokenHeader, match=reason):
        parse("a", data, FILE_BYTES)


@pytest.mark.parametrize("length", [1024, (1 << 32) - 1])
def test_a_backing_file_name_has_at_most_1023_bytes(length: int):
    named = PLAIN._replace(backing_name_bytes=b"n" * 1023)
    assert read(named).backing_file == "n" * 1023
    with pytest.raises(BrokenHeader, match="Backing file name too long"):
        parse("a", patched(BACKING_SIZE, length, header=named), FILE_BYTES)


def test_another_format_is_not_taken_for_qcow2():
    for data in (b"", b"QFI", b"QFI\xfa" + bytes(100), bytes(512)):
        with pytest.raises(NotAnImage):
            parse("a", data, len(data))


@pytest.mark.parametrize("size_bytes", [4, 71, 72, 103])
def test_a_file_that_ends_inside_its_header_is_truncated(size_bytes: int):
    with pytest.raises(TruncatedImage, match=f"the header at byte 0 .* ends at {size_bytes}"):
        parse("a", whole(pack(PLAIN)[:size_bytes]), size_bytes)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"l1_table_offset": FILE_BYTES}, "Active L1 table"),
        ({"l1_entry_count": CLUSTER // 8 + 1, "l1_table_offset": FILE_BYTES - CLUSTER}, "Active L1 table"),
        ({"refcount_table_offset": FILE_BYTES}, "Reference count table"),
        ({"snapshot_count": 1, "snapshot_table_offset": FILE_BYTES}, "Snapshot table"),
        (
            {"extensions": (Extension(hd.ENCRYPTION, hd.ENCRYPTION_HEADER.pack(offset=FILE_BYTES, length=1)),)},
            "Encryption header",
        ),
    ],
)
def test_a_table_past_the_end_of_the_file_is_truncated(changes: dict[str, Any], what: str):
    with pytest.raises(TruncatedImage, match=f"{what} at byte .* but the file ends at {FILE_BYTES}"):
        read(PLAIN._replace(**changes))
    assert parse_fields("a", whole(pack(PLAIN._replace(**changes))), FILE_BYTES)


def test_the_last_cluster_of_the_file_may_be_cut():
    header = PLAIN._replace(l1_table_offset=FILE_BYTES - CLUSTER)
    assert read(header, FILE_BYTES - CLUSTER + 1) == header
    with pytest.raises(TruncatedImage):
        read(header, FILE_BYTES - CLUSTER)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"l1_table_offset": 0}, "Active L1 table offset invalid: byte 0 lies inside the header"),
        ({"refcount_table_offset": 0}, "Reference count table offset invalid: byte 0 lies inside the header"),
        ({"l1_table_offset": CLUSTER}, f"byte {CLUSTER} lies inside Reference count table"),
        ({"refcount_table_cluster_count": 3}, "Active L1 table offset invalid: .* inside Reference count table"),
        (
            {"l1_entry_count": CLUSTER // 8 + 1, "snapshot_count": 1, "snapshot_table_offset": 4 * CLUSTER},
            "Snapshot table offset invalid: .* inside Active L1 table",
        ),
    ],
)
def test_no_table_lies_inside_another(changes: dict[str, Any], reason: str):
    with pytest.raises(BrokenHeader, match=reason):
        read(PLAIN._replace(**changes))
    assert parse_fields("a", whole(pack(PLAIN._replace(**changes))), FILE_BYTES)


def test_a_table_of_no_entries_may_lie_anywhere():
    header = PLAIN._replace(size_bytes=0, l1_entry_count=0, l1_table_offset=5, snapshot_table_offset=7)
    assert read(header) == header


def test_a_name_ends_at_its_first_zero_byte():
    kept = read(PLAIN._replace(backing_name_bytes=b"base.img", extensions=(Extension(hd.BACKING_FORMAT, b"raw\0x"),)))
    assert kept.backing_format == "raw"
    data = whole(pack(PLAIN._replace(backing_name_bytes=b"base.img"))).replace(b"base.img", b"base\0img")
    assert parse("a", data, FILE_BYTES).backing_file == "base"


def test_a_name_in_no_known_encoding_is_kept():
    name = b"b\xe4se.img"
    assert hd.encode_name(read(PLAIN._replace(backing_name_bytes=name)).backing_file or "") == name


def test_a_header_that_does_not_fit_into_its_cluster_is_not_written():
    tiny = PLAIN._replace(cluster_bits=9, backing_name_bytes=b"n" * 380)
    assert len(pack(tiny)) == 500
    with pytest.raises(ValueError, match="does not fit into one cluster"):
        pack(tiny._replace(backing_name_bytes=b"n" * 393))
