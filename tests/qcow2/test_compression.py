"""Owns the proof that a compressed cluster is QEMU's, that damage is found, and that no stream takes much memory."""

import random
import tracemalloc
import zlib
from contextlib import suppress
from pathlib import Path

import pytest
import zstandard

from cowtree.errors import BrokenCluster
from cowtree.qcow2.compression import deflate, inflate
from cowtree.qcow2.geometry import Geometry
from cowtree.qcow2.header import HEADER_V2, ZLIB, ZSTD
from tests.qemu import content, qemu_io, run_well

CLUSTER_BYTES = 65536
MEMORY_BYTES_MAX = 4 << 20
BOTH = pytest.mark.parametrize("kind", [ZLIB, ZSTD], ids=["zlib", "zstd"])
NAMES = {ZLIB: "zlib", ZSTD: "zstd"}


def text_like(seed: int, length: int = CLUSTER_BYTES) -> bytes:
    """Bytes that can be compressed, but not to nothing."""
    return bytes(random.Random(seed).choices(b"cluster and table", k=length))


def expand(data: bytes, kind: int) -> bytes:
    return inflate("a.qcow2", data, compression_type=kind, cluster_size_bytes=CLUSTER_BYTES)


def compressed_by_qemu(folder: Path, kind: int, plain: bytes) -> bytes:
    """The sectors that hold the first cluster of an image, which QEMU has compressed."""
    (folder / "plain").write_bytes(plain)
    image = folder / "a.qcow2"
    run_well("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"compression_type={NAMES[kind]}", image, "64k")
    qemu_io(image, f"write -c -s {folder / 'plain'} 0 64k")
    assert content(image) == plain
    data = image.read_bytes()
    l1_offset = HEADER_V2.integers(data)["l1_table_offset"]
    l2_offset = int.from_bytes(data[l1_offset : l1_offset + 8], "big") & ~(1 << 63)
    entry = int.from_bytes(data[l2_offset : l2_offset + 8], "big")
    assert entry >> 62 == 1
    offset_bits = Geometry(3, 16, 4).compressed_offset_bits
    offset = entry & ((1 << offset_bits) - 1)
    sector_count = ((entry & ~(3 << 62)) >> offset_bits) + 1
    return data[offset : (offset & ~511) + 512 * sector_count]


def zstd_frame(*, window_bits: int, run_bytes: int) -> bytes:
    """A frame that wants so large a window and repeats one letter. Source: RFC 8878, 3.1.1."""
    is_last, is_run = 1, 1 << 1
    return (
        b"\x28\xb5\x2f\xfd"
        + bytes([0, (window_bits - 10) << 3])
        + (is_last | is_run | run_bytes << 3).to_bytes(3, "little")
        + b"A"
    )


@BOTH
def test_a_cluster_that_qemu_compressed_is_read(tmp_path: Path, kind: int):
    plain = text_like(1)
    packed = compressed_by_qemu(tmp_path, kind, plain)
    assert len(packed) < len(plain)
    assert expand(packed, kind) == plain


@BOTH
def test_a_cluster_is_compressed_to_the_bytes_that_qemu_writes(tmp_path: Path, kind: int):
    plain = text_like(2)
    packed = deflate(plain, kind)
    assert compressed_by_qemu(tmp_path, kind, plain).startswith(packed)


@BOTH
def test_what_was_compressed_comes_back_whatever_follows_it(kind: int, seed: int):
    plain = text_like(seed)
    assert expand(deflate(memoryview(plain), kind) + random.Random(seed).randbytes(511), kind) == plain


@BOTH
def test_what_cannot_be_compressed_grows_and_comes_back(kind: int):
    plain = random.Random(0).randbytes(CLUSTER_BYTES)
    packed = deflate(plain, kind)
    assert len(packed) > CLUSTER_BYTES
    assert expand(packed, kind) == plain


@BOTH
def test_a_stream_that_was_cut_short_is_broken(kind: int):
    packed = deflate(text_like(3), kind)
    for length in (0, 1, 4, len(packed) // 2, len(packed) - 100):
        with pytest.raises(BrokenCluster, match=r"a\.qcow2: a compressed cluster"):
            expand(packed[:length], kind)


@BOTH
def test_a_stream_of_less_than_a_cluster_is_broken(kind: int):
    with pytest.raises(BrokenCluster, match="a compressed cluster holds 65535 bytes, not 65536"):
        expand(deflate(text_like(4, CLUSTER_BYTES - 1), kind), kind)


@BOTH
def test_noise_is_broken(kind: int):
    with pytest.raises(BrokenCluster, match="a compressed cluster cannot be inflated"):
        expand(b"\xff" * 4096, kind)


@pytest.mark.slow
@BOTH
def test_a_damaged_stream_is_broken_or_gives_one_cluster(kind: int, seed: int):
    choose = random.Random(seed)
    for _ in range(20):
        packed = bytearray(deflate(text_like(5), kind))
        packed[choose.randrange(len(packed))] ^= 1 << choose.randrange(8)
        plain = b""
        with suppress(BrokenCluster):
            plain = expand(bytes(packed), kind)
        assert len(plain) in (0, CLUSTER_BYTES)


@BOTH
def test_a_bomb_gives_one_cluster_and_takes_little_memory(kind: int):
    if kind == ZLIB:
        stream = zlib.compressobj(wbits=-15)
        bomb = b"".join(stream.compress(bytes(1 << 20)) for _ in range(64)) + stream.flush()
    else:
        bomb = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    tracemalloc.start()
    try:
        assert expand(bomb, kind) == bytes(CLUSTER_BYTES)
        assert tracemalloc.get_traced_memory()[1] < MEMORY_BYTES_MAX
    finally:
        tracemalloc.stop()


def test_a_large_deflate_window_is_read():
    noise = random.Random(6).randbytes(30000)
    plain = (noise + noise + noise)[:CLUSTER_BYTES]
    stream = zlib.compressobj(wbits=-15)
    assert expand(stream.compress(plain) + stream.flush(), ZLIB) == plain


def test_the_largest_window_that_every_decoder_takes_is_read():
    assert expand(zstd_frame(window_bits=23, run_bytes=CLUSTER_BYTES), ZSTD) == b"A" * CLUSTER_BYTES


@pytest.mark.parametrize("window_bits", [24, 27, 31, 41])
def test_a_frame_that_asks_for_more_memory_is_refused(window_bits: int):
    with pytest.raises(BrokenCluster, match="cannot be inflated"):
        expand(zstd_frame(window_bits=window_bits, run_bytes=CLUSTER_BYTES), ZSTD)
