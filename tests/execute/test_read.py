"""Owns the proof that what extents point at is read, whole and in its place."""

import contextlib
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowtree import extents as ex
from cowtree.chain import gate
from cowtree.chain.view import Chain, open_chain, resolve
from cowtree.errors import BrokenCluster, BrokenTable, StorageFailed
from cowtree.execute.read import PAGE_BYTES, UNREADABLE, ahead, fetch, pages, portions, prefetch
from cowtree.extents import Ranges
from cowtree.qcow2.compression import deflate
from cowtree.qcow2.header import ZLIB, ZSTD
from cowtree.storage.memory import MemoryFiles
from cowtree.storage.passing import PassingFile
from tests.pictures import CLUSTER_BYTES, family


class CountingFile(PassingFile):
    """Remembers each read."""

    def __init__(self, inner):
        super().__init__(inner)
        self.reads = []

    def preadv(self, offset, buffers):
        self.reads.append((offset, sum(map(len, buffers))))
        super().preadv(offset, buffers)


class StoredFile(PassingFile):
    """Holds the same bytes everywhere."""

    def __init__(self, inner, stored):
        super().__init__(inner)
        self.stored = stored

    def pread(self, offset, length):
        return self.stored


def raw_chain(data: bytes) -> Chain:
    return Chain((gate.open_layer(MemoryFiles({"raw": data}), "raw", "raw"),), (None,))


def counting(chain: Chain) -> tuple[Chain, list[tuple[int, int]]]:
    file = CountingFile(chain.top.file)
    return chain.with_layer(0, chain.top._replace(file=file)), file.reads


def ranges_of(*pairs: tuple[int, int]) -> Ranges:
    flat = np.array(pairs, np.int64).reshape(-1, 2)
    return Ranges(flat[:, 0], flat[:, 1])


def test_every_kind_of_extent_is_read():
    made = family("Aa0o-", "BBBBb")
    chain = open_chain(made.files, made.top, "qcow2")
    seen = resolve(chain, 0, chain.size_bytes)
    buffer = bytearray(b"?" * chain.size_bytes)
    fetch(chain, seen, seen.start, memoryview(buffer))
    assert buffer == b"A" * 1024 + bytes(1024) + b"B" * 512


def test_a_part_of_a_compressed_cluster_is_read():
    made = family("a")
    chain = open_chain(made.files, made.top, "qcow2")
    part = ex.clip(resolve(chain, 0, 512), 100, 300)
    buffer = bytearray(200)
    fetch(chain, part, part.start - 100, memoryview(buffer))
    assert buffer == b"A" * 200


def test_what_lies_side_by_side_is_read_at_once_wherever_it_belongs():
    chain, reads = counting(raw_chain(bytes(range(256)) * 8))
    here = np.array([0, 512, 1024], np.int64)
    parts = ex.concatenate([ex.single(at, at + 512, ex.DATA, host_offset=at) for at in here.tolist()])
    buffer = bytearray(2048)
    fetch(chain, parts, np.array([1024, 0, 512], np.int64), memoryview(buffer))
    assert reads == [(0, 1536)]
    assert bytes(buffer[1024:1536]) == bytes(range(256)) * 2


def test_what_is_asked_for_ahead_is_data_in_the_order_of_its_file():
    class Asked(PassingFile):
        def prefetch(self, offset, length):
            asked.append((offset, length))

    asked: list[tuple[int, int]] = []
    chain = raw_chain(bytes(4096))
    chain = chain.with_layer(0, chain.top._replace(file=Asked(chain.top.file)))
    places = ((0, 1024, ex.DATA), (512, 0, ex.DATA), (1024, 2048, ex.ZERO))
    prefetch(chain, ex.concatenate([ex.single(at, at + 512, kind, host_offset=host) for at, host, kind in places]))
    assert asked == [(0, 512), (1024, 512)]


def test_pages_hold_the_ranges_one_behind_the_other():
    chain = raw_chain(bytes(range(1, 251)) * 40)
    seen = ex.cut(resolve(chain, 0, 10000), ranges_of((0, 3000), (5000, 9000)))
    (page,) = pages(chain, seen, ranges_of((100, 200), (2900, 3100), (6000, 6001)))
    whole = bytes(range(1, 251)) * 40
    assert bytes(page.data) == whole[100:200] + whole[2900:3000] + bytes(100) + whole[6000:6001]
    assert page.guest_offset(np.array([0, 99, 100, 300])).tolist() == [100, 199, 2900, 6000]
    assert page.position_of(np.array([100, 199, 2900, 6000])).tolist() == [0, 99, 100, 300]


def test_many_bytes_come_in_many_pages():
    size = PAGE_BYTES * 2 + 512
    chain = raw_chain(b"")
    found = [len(page.data) for page in pages(chain, ex.empty(), ranges_of((0, 512), (1024, size + 512)))]
    assert found == [PAGE_BYTES, PAGE_BYTES, 512]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 70))
def test_portions_are_the_ranges_cut(steps, size):
    borders = np.cumsum(steps[: len(steps) // 2 * 2], dtype=np.int64)
    ranges = Ranges(borders[::2], borders[1::2])
    parts = list(portions(ranges, size))
    sizes = [part.total_bytes for part in parts]
    assert sizes[:-1] == [size] * (len(sizes) - 1)
    assert sum(sizes) == ranges.total_bytes
    every = [byte for part in parts for pair in zip(*part, strict=True) for byte in range(*pair)]
    assert every == [byte for pair in zip(*ranges, strict=True) for byte in range(*pair)]


def test_ahead_makes_one_item_while_the_one_before_is_used():
    made: list[int] = []
    second = threading.Event()

    def make() -> Iterator[int]:
        for number in range(3):
            made.append(number)
            if number == 1:
                second.set()
            yield number

    items = ahead(make())
    assert next(items) == 0
    assert second.wait(10)
    assert [0, *items] == [0, 1, 2]
    assert made == [0, 1, 2]


def test_ahead_passes_errors_on():
    def make() -> Iterator[int]:
        yield 1
        raise BrokenTable(path="image", reason="broken")

    items = ahead(make())
    assert next(items) == 1
    with pytest.raises(BrokenTable):
        next(items)


def test_a_compressed_cluster_in_a_raw_image_is_damage():
    part = ex.single(0, 512, ex.COMPRESSED)
    with pytest.raises(BrokenTable):
        fetch(raw_chain(b""), part, part.start, memoryview(bytearray(512)))


def packed_cluster(kind: int) -> tuple[Chain, bytes]:
    """A chain with one compressed cluster, and a good stream of that kind for it."""
    made = family("a")
    chain = open_chain(made.files, made.top, "qcow2")
    assert chain.top.header is not None
    plain = np.random.default_rng(1).bytes(CLUSTER_BYTES // 4) * 4
    layer = chain.top._replace(header=chain.top.header._replace(compression_type=kind))
    return chain.with_layer(0, layer), deflate(plain, kind)


def read_packed(chain: Chain, stored: bytes) -> bytes:
    """Read the cluster as if that was stored for it."""
    seen = resolve(chain, 0, CLUSTER_BYTES)
    buffer = bytearray(CLUSTER_BYTES)
    chain = chain.with_layer(0, chain.top._replace(file=StoredFile(chain.top.file, stored)))
    fetch(chain, seen, seen.start, memoryview(buffer))
    return bytes(buffer)


@pytest.mark.parametrize("kind", [ZLIB, ZSTD])
def test_damaged_compressed_clusters_end_with_our_error(kind: int, seed: int):
    chain, stored = packed_cluster(kind)
    choose = np.random.default_rng(seed)
    for _ in range(50):
        damaged = bytearray(stored + choose.bytes(32))
        damaged[int(choose.integers(0, len(stored)))] = int(choose.integers(0, 256))
        with contextlib.suppress(BrokenCluster):
            assert len(read_packed(chain, bytes(damaged))) == CLUSTER_BYTES


@pytest.mark.parametrize("kind", [ZLIB, ZSTD])
def test_a_cut_compressed_cluster_ends_with_our_error(kind: int):
    chain, stored = packed_cluster(kind)
    assert read_packed(chain, stored + b"junk")[:128] == read_packed(chain, stored)[128:256]
    for length in range(0, len(stored) - 16, 7):
        with pytest.raises(BrokenCluster):
            read_packed(chain, stored[:length])


class Scratched(PassingFile):
    """A file of which some bytes cannot be read."""

    def preadv(self, offset: int, buffers) -> None:
        """Fill the buffers, unless a bad byte is among what is asked for."""
        if any(offset <= bad < offset + sum(map(len, buffers)) for bad in (700, 5000, 5600)):
            raise StorageFailed(path=self.path, action="read", reason="bad sector")
        self.inner.preadv(offset, buffers)


def test_of_a_salvaged_layer_only_the_sectors_that_cannot_be_read_are_lost():
    data = bytes(range(1, 201)) * 41
    chain, told = raw_chain(data[:8192]), list[tuple[int, str]]()
    layer = chain.top._replace(file=Scratched(chain.top.file), origin=0)
    parts = ex.concatenate([ex.single(512, 6144, ex.DATA, host_offset=512), ex.single(6144, 7168, ex.LOST)])
    buffer = memoryview(bytearray(b"x" * 6656))
    with pytest.raises(StorageFailed):
        fetch(chain.with_layer(0, layer), parts, parts.start - 512, buffer)
    salvaged = layer._replace(salvage=lambda offset, reason: told.append((offset, reason)))
    fetch(chain.with_layer(0, salvaged), parts, parts.start - 512, buffer)
    bad = {512: "bad sector", 4608: "bad sector", 5120: "bad sector", 6144: UNREADABLE, 6656: UNREADABLE}
    assert dict(told) == bad
    expected = bytearray(data[512:7168])
    for offset in dict(told):
        expected[offset - 512 : offset] = bytes(512)
    assert buffer == expected
