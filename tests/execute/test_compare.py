"""Owns the proof that what differs between two chains is found, all of it and no more, with little reading."""

from pathlib import Path

import numpy as np
import pytest

from cowtree import extents as ex
from cowtree.chain.view import Chain, open_chain, resolve
from cowtree.execute.compare import differences, differing, sift
from cowtree.execute.read import PAGE_BYTES
from cowtree.extents import Ranges
from cowtree.monitor import Counting
from cowtree.plan.create import NewImage
from cowtree.storage.contract import Access
from cowtree.storage.file import LocalFiles
from cowtree.storage.memory import MemoryFiles
from cowtree.storage.passing import PassingFile
from tests.pictures import CLUSTER_BITS, CLUSTER_BYTES, draw, family
from tests.qemu import content, qemu_img, qemu_io, random_chain

NO_CHAIN = Chain((), ())


class CountingFile(PassingFile):
    """Counts the guest bytes that are read."""

    def __init__(self, inner):
        super().__init__(inner)
        self.read_bytes = 0

    def preadv(self, offset, buffers):
        self.read_bytes += sum(map(len, buffers))
        super().preadv(offset, buffers)


def with_counters(chain: Chain) -> tuple[Chain, list[CountingFile]]:
    files = [CountingFile(layer.file) for layer in chain.layers]
    for index, file in enumerate(files):
        chain = chain.with_layer(index, chain.layers[index]._replace(file=file))
    return chain, files


def pairs(ranges: Ranges) -> list[tuple[int, int]]:
    return list(zip(ranges.start.tolist(), ranges.stop.tolist(), strict=True))


def compare_pictures(left: str, right: str, granule_clusters: int = 1) -> str:
    """Mark with x each cluster that differs."""
    files = MemoryFiles()
    for name, picture in (("left", left), ("right", right)):
        draw(files, NewImage(name, "qcow2", len(picture) * CLUSTER_BYTES, CLUSTER_BITS), picture)
    one, other = (open_chain(files, name, "qcow2") for name in ("left", "right"))
    found = differing(one, other, ex.one_range(0, len(left) * CLUSTER_BYTES), granule_clusters * CLUSTER_BYTES)
    marks = ["."] * len(left)
    for start, stop in pairs(found):
        for index in range(start // CLUSTER_BYTES, -(-stop // CLUSTER_BYTES)):
            marks[index] = "x"
    return "".join(marks)


def test_only_different_bytes_count():
    assert compare_pictures("AAAa", "AB0A") == ".xx."
    assert compare_pictures("oA0--", "0--o0") == ".x..."


def test_a_difference_marks_its_granule():
    assert compare_pictures("AAAAAAAA", "AAABAAAA", granule_clusters=4) == "xxxx...."


def test_nothing_is_looked_at_outside_the_ranges():
    files = MemoryFiles()
    for name, picture in (("left", "AAAA"), ("right", "BBBB")):
        draw(files, NewImage(name, "qcow2", 4 * CLUSTER_BYTES, CLUSTER_BITS), picture)
    one, other = (open_chain(files, name, "qcow2") for name in ("left", "right"))
    where = Ranges(np.array([100, 1100]), np.array([200, 1800]))
    assert pairs(differing(one, other, where, 512)) == [(100, 200), (1100, 1800)]
    assert pairs(differing(one, other, ex.one_range(0, 0), 512)) == []


def test_against_nothing_all_that_is_not_zero_differs():
    made = family("A0-oa", "--B--")
    chain = open_chain(made.files, made.top, "qcow2")
    found = differing(chain, NO_CHAIN, ex.one_range(0, chain.size_bytes), 512)
    assert pairs(found) == [(0, 512), (1024, 1536), (2048, 2560)]


def test_past_the_end_of_the_shorter_chain_zeroes_are_seen():
    assert compare_pictures("AA0A", "A") == ".x.x"


@pytest.mark.slow
@pytest.mark.soak
def test_two_chains_differ_where_their_bytes_do(tmp_path: Path, seed: int):
    made = random_chain(tmp_path, seed)
    ends = [(made.paths[index], made.formats[index]) for index in (-1, 0)]
    shown = [content(*end) for end in ends]
    size = max(map(len, shown))
    one, other = (np.frombuffer(data.ljust(size, b"\0"), np.uint8) for data in shown)
    top, base = (open_chain(LocalFiles(), str(path), image_format) for path, image_format in ends)
    choose = np.random.default_rng(seed)
    borders = np.unique(choose.integers(0, size // 512 + 1, 12))[: 2 * choose.integers(0, 5)] * 512
    where = Ranges(borders[: len(borders) // 2 * 2 : 2], borders[1::2])
    asked = np.zeros(size, np.bool_)
    for start, stop in pairs(where):
        asked[start:stop] = True
    differs = (one != other) & asked
    for granule in (512, 4096, 1 << 16, 1 << 20):
        expected = np.zeros(size, np.bool_)
        for start in range(0, size, granule):
            if differs[start : start + granule].any():
                expected[start : start + granule] = asked[start : start + granule]
        found = np.zeros(size, np.bool_)
        for start, stop in pairs(differing(top, base, where, granule)):
            found[start:stop] = True
        assert (found == expected).all()


def test_what_is_one_place_of_one_file_is_not_read(tmp_path: Path):
    base, link = tmp_path / "base", tmp_path / "link"
    qemu_img("create", "-q", "-f", "qcow2", base, "4M")
    qemu_io(base, "write -P 1 0 1M")
    link.symlink_to(base)
    chains = []
    for name, backing in (("left", base), ("right", link)):
        qemu_img("create", "-q", "-f", "qcow2", "-b", backing, "-F", "qcow2", tmp_path / name)
        qemu_io(tmp_path / name, "write -P 2 512k 64k")
        chains.append(with_counters(open_chain(LocalFiles(), str(tmp_path / name), "qcow2")))
    read_before = [sum(file.read_bytes for file in files) for _, files in chains]
    assert pairs(differing(chains[0][0], chains[1][0], ex.one_range(0, 4 << 20), 65536)) == []
    tables = 2 * 65536
    for (_, files), before in zip(chains, read_before, strict=True):
        assert sum(file.read_bytes for file in files) - before == 65536 + tables


def test_one_file_at_two_places_is_read():
    made = family("AB")
    chain = open_chain(made.files, made.top, "qcow2")
    swapped = MemoryFiles({made.top: made.files.content(made.top)})
    file = swapped.open(made.top, Access.WRITE)
    image = chain.images[0]
    assert image is not None
    table = int(image.l1[0]) & ~(1 << 63)
    entries = file.pread(table, 16)
    file.pwrite(table, entries[8:] + entries[:8])
    file.close()
    found = differing(chain, open_chain(swapped, made.top, "qcow2"), ex.one_range(0, 1024), 512)
    assert pairs(found) == [(0, 1024)]


def test_the_first_difference_is_found_without_reading_all(tmp_path: Path):
    size = 8 * PAGE_BYTES
    files = []
    for name in ("left", "right"):
        path = tmp_path / name
        path.write_bytes(name.encode().ljust(size, b"x"))
        files.append(with_counters(open_chain(LocalFiles(), str(path), "raw")))
    found = next(differences(files[0][0], files[1][0], ex.one_range(0, size), 512))
    assert pairs(found) == [(0, 512)]
    assert all(file.read_bytes <= 3 * PAGE_BYTES for _, counted in files for file in counted)


def sifted(top: str, base: str, unit: int = CLUSTER_BYTES) -> tuple[list[tuple[int, int]], ...]:
    """Sift what the top holds from what its base shows. Returns: the clusters that differ, and those that are not 0."""
    made = family(top, base)
    chain = open_chain(made.files, made.top)
    try:
        below, counting = chain.below(1), Counting()
        own, shown = (resolve(each, 0, chain.size_bytes, last=1).of_kind(*ex.BYTES) for each in (chain, below))
        found = sift((chain, own), (below, shown), ex.merge_ranges(own.ranges), unit, counting)
        assert counting.moved_bytes == ex.widen(own.ranges, unit).total_bytes
    finally:
        chain.close()
    return tuple(
        [
            (first // CLUSTER_BYTES, last // CLUSTER_BYTES)
            for first, last in zip(*map(np.ndarray.tolist, each), strict=True)
        ]
        for each in found
    )


def test_one_reading_tells_what_differs_and_what_is_not_zero():
    assert sifted("AB-aC", "AA0A-") == ([(1, 2), (4, 5)], [(0, 2), (3, 5)])


def test_a_unit_counts_when_one_of_its_clusters_does():
    assert sifted("AA-C", "AAB-", 2 * CLUSTER_BYTES) == ([(2, 4)], [(0, 4)])


def test_nothing_is_sifted_where_nothing_is_held():
    assert sifted("--", "AB") == ([], [])
