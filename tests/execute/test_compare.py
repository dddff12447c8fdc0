"""Holds that what differs is found, cut to granules, and nothing is read twice or in vain."""

import random
from collections.abc import Callable, Sequence

from cowtree import extents as ex
from cowtree.chain.view import Chain, open_chain
from cowtree.execute.compare import differing
from cowtree.qcow2.tables import table_offsets
from cowtree.storage.memory import MemoryFiles
from tests.pictures import CLUSTER_BYTES, Family, family

NO_CHAIN = Chain((), ())


def spans(left: Chain, right: Chain, *, granule: int = CLUSTER_BYTES, stop: int = 1 << 20) -> list[tuple[int, int]]:
    """The ranges that differ, in bytes."""
    found = differing(left, right, ex.one_range(0, stop), granule)
    return list(zip(found.start.tolist(), found.stop.tolist(), strict=True))


def opened(made: Family) -> Chain:
    """The chain of a family."""
    return open_chain(made.files, made.top, made.formats[0])


def noting(reads: list[int], preadv: Callable[[int, Sequence[memoryview]], None]):
    """The same read, which also writes down from where."""

    def read(offset: int, buffers: Sequence[memoryview]) -> None:
        reads.append(offset)
        preadv(offset, buffers)

    return read


def test_only_different_clusters_are_found():
    left, right = opened(family("AB-0C-", "----DE")), opened(family("ABF0C0"))
    assert spans(left, right) == [(2 * CLUSTER_BYTES, 3 * CLUSTER_BYTES), (5 * CLUSTER_BYTES, 6 * CLUSTER_BYTES)]


def test_a_chain_of_no_layers_shows_zeroes():
    assert spans(opened(family("-A0")), NO_CHAIN) == [(CLUSTER_BYTES, 2 * CLUSTER_BYTES)]
    assert spans(opened(family("-0o")), NO_CHAIN) == []


def test_random_disks_differ_where_their_bytes_do(seed):
    choose = random.Random(seed)
    size, granule = 64 * 512, choose.choice([512, 1024, 4096, 65536])
    first = bytearray(choose.choices(b"\0\1", k=1)[0] for _ in range(size))
    second = bytearray(first)
    for _ in range(choose.randint(0, 5)):
        second[choose.randrange(size)] ^= choose.randint(1, 255)
    files = MemoryFiles({"first": bytes(first), "second": bytes(second)})
    one, other = (open_chain(files, name, "raw") for name in ("first", "second"))
    start, stop = sorted(512 * choose.randint(0, 64) for _ in range(2))
    found = differing(one, other, ex.one_range(start, stop), granule)
    wrong = {place // granule for place in range(start, stop) if first[place] != second[place]}
    wanted = bytearray(size)
    for number in wrong:
        low, high = max(number * granule, start), min((number + 1) * granule, stop)
        wanted[low:high] = b"\1" * (high - low)
    marked = bytearray(size)
    for low, high in zip(found.start.tolist(), found.stop.tolist(), strict=True):
        marked[low:high] = b"\1" * (high - low)
    assert marked == wanted


def test_the_same_bytes_of_the_same_file_are_not_read(monkeypatch):
    made = family("-B-", "A-C")
    reads: list[int] = []
    left, right = opened(made), opened(made)
    for layer in (*left.layers, *right.layers):
        monkeypatch.setattr(layer.file, "preadv", noting(reads, layer.file.preadv))
    assert spans(left, right) == []
    l2_tables = {offset for image in left.images if image for offset in table_offsets(image.l1).tolist()}
    assert set(reads) <= l2_tables
