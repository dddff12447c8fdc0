"""What a layer need not hold, decided on values alone."""

from pathlib import Path

import numpy as np

from cowtree import extents as ex
from cowtree.chain import gate, load
from cowtree.extents import Extents, Ranges
from cowtree.plan import trim
from cowtree.plan.trim import Loose, Lost
from cowtree.storage.file import LocalFiles
from tests.qemu import qemu_img, qemu_io

UNIT = 512
NONE = ex.one_range(0, 0)
KINDS = {"A": ex.DATA, "0": ex.ZERO, "o": ex.ALLOCATED}


def drawn(picture: str) -> Extents:
    """Extents of a picture; a letter is data."""
    parts = [
        ex.single(at * UNIT, (at + 1) * UNIT, KINDS.get(sign, ex.DATA))
        for at, sign in enumerate(picture)
        if sign != "-"
    ]
    return ex.concatenate(parts)


def units(picture: str) -> Ranges:
    """The units of a picture that are marked."""
    start = np.array([at * UNIT for at, sign in enumerate(picture) if sign == "x"], np.int64)
    return ex.merge_ranges(Ranges(start, start + UNIT))


def picture(ranges: Ranges, count: int) -> str:
    signs = np.full(count, "-")
    signs[ex.integers(ranges) // UNIT] = "x"
    return "".join(signs)


def test_data_that_does_not_differ_is_loose_and_so_is_zero_data():
    found = trim.loose(drawn("AAA-"), drawn("AAAA"), (units("-xx-"), units("xx--")), UNIT)
    assert picture(found.same, 4) == "x---"
    assert picture(found.zero, 4) == "--x-"


def test_zeroes_are_the_same_only_where_nothing_below_shows_bytes():
    found = trim.loose(drawn("0o0o"), drawn("AA0-"), (NONE, NONE), UNIT)
    assert picture(found.same, 4) == "--xx"
    assert picture(found.zero, 4) == "xxxx"


def test_a_byte_below_keeps_the_whole_unit():
    below = ex.single(UNIT + 100, UNIT + 101, ex.DATA)
    assert picture(trim.loose(drawn("00"), below, (NONE, NONE), UNIT).same, 2) == "x-"


def test_only_what_the_reader_holds_from_end_to_end_is_hidden():
    hiding = Ranges(np.array([0, 1200]), np.array([UNIT, 3000]))
    assert picture(trim.hidden(drawn("AAAAAA0"), hiding, (0, 7 * UNIT), UNIT).same, 7) == "x--xx--"


def test_host_clusters_are_counted_as_runs():
    runs, times = trim.count_lost(np.array([7, 3, 4, 4, 5, 9, 8], np.int64))
    assert list(zip(runs.start.tolist(), runs.stop.tolist(), times.tolist(), strict=True)) == [
        (3, 4, 1),
        (4, 5, 2),
        (5, 6, 1),
        (7, 10, 1),
    ]
    assert trim.count_lost(np.empty(0, np.int64)).times.tolist() == []
    assert isinstance(trim.count_lost(np.array([1])), Lost)


def test_only_whole_blocks_come_free_but_for_the_end_that_is_cut_off():
    ranges = Ranges(np.array([0, 5000, 20000]), np.array([4096, 9000, 25000]))
    assert trim.whole_blocks(ranges).start.tolist() == [0, 20480]
    assert trim.whole_blocks(ranges).stop.tolist() == [4096, 24576]
    assert trim.whole_blocks(ranges, 25000).stop.tolist() == [4096, 25000]


def test_where_nothing_is_loose_a_cluster_of_zeroes_keeps_its_place(tmp_path: Path):
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "extended_l2=on", path, "1M")
    qemu_io(path, "write -P 1 0 128k", "write -z 64k 64k")
    layer = gate.open_layer(LocalFiles(), str(path), "qcow2")
    image = load.load_image(layer)
    assert image is not None
    held = load.load_tables(layer.file, image, 0, 1 << 20)
    layer.close()
    kept = trim.after(image, held, Loose(NONE, NONE))
    assert held.entries[0, :2].all()
    assert not trim.is_changed(held, kept).any()
    everything = ex.one_range(64 << 10, 128 << 10)
    dropped = trim.after(image, held, Loose(everything, NONE))
    assert trim.is_changed(held, dropped)[0].nonzero()[0].tolist() == [1]
