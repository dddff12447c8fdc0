"""Owns the proof that each cluster meets its fate, and that nothing is written where something else lies."""

import numpy as np
import pytest

from cowtree import extents as ex
from cowtree.chain import gate, load
from cowtree.errors import BrokenTable
from cowtree.extents import Extents
from cowtree.plan import put
from cowtree.plan.put import CLEARED, FRESH, IN_PLACE, REUSE, Wish
from cowtree.qcow2 import tables
from cowtree.qcow2.image import Image, Slice
from cowtree.steps import Flush, Move, Zero
from tests.pictures import CLUSTER_BYTES, family

FATES = {IN_PLACE: "i", REUSE: "r", FRESH: "f", CLEARED: "c"}
NOBODY = ex.empty()


def drawn(picture: str) -> Extents:
    """Extents of a picture: letters are data of layer 1, `0` zeroes; a sign is half a cluster."""
    half = CLUSTER_BYTES // 2
    parts = [
        ex.single(index * half, (index + 1) * half, ex.ZERO)
        if sign == "0"
        else ex.single(index * half, (index + 1) * half, ex.DATA, layer=1, host_offset=index * half)
        for index, sign in enumerate(picture)
        if sign != "-"
    ]
    return ex.coalesce(ex.concatenate(parts))


def opened(layer: str, version: int = 3) -> Slice:
    """A layer with all its tables and counts."""
    made = family(layer, version=version)
    file = gate.open_layer(made.files, made.top, "qcow2")
    image = load.load_image(file)
    assert image is not None
    held = load.load_tables(file.file, image, 0, file.size_bytes)
    every = np.arange(image.host_cluster_count)
    return Slice(image, held, load.load_counts(file.file, image, every, 1))


def fates(layer: str, wanted: str, *, shown: str = "", has_backing: bool = True, version: int = 3) -> str:
    """The fate of each cluster of a layer, `-` for those that are not touched."""
    piece = opened(layer, version)
    wish = Wish(drawn(wanted), drawn(shown), drawn(shown), has_backing)
    found = put.decide(piece.image, piece.tables, wish)
    signs = ["-"] * len(layer)
    for cluster, fate in zip(found.cluster.tolist(), found.fate.tolist(), strict=True):
        signs[cluster] = FATES[fate]
    return "".join(signs)


def test_data_goes_where_the_cluster_is_its_own():
    assert fates("AoA0a-", "XXXXXXXXXXXX") == "iriff" + "f"


def test_zeroes_only_change_the_entry():
    assert fates("Aoa0--", "000000000000", shown="AAAAAAAAAA--") == "ccccc-"


def test_zeroes_that_nobody_would_miss_are_not_put():
    assert fates("o0-", "000000") == "---"
    assert fates("A--", "000000", shown="AA----") == "c--"


def test_zeroes_over_a_part_of_a_cluster_are_written():
    assert fates("A-", "0---", shown="AAAA") == "i-"
    assert fates("--", "0---", shown="AAAA") == "f-"


def test_zeroes_over_all_that_a_cluster_shows_only_change_the_entry():
    assert fates("A-", "0---", shown="A---") == "c-"


def test_data_and_zeroes_in_one_cluster_are_written():
    assert fates("A-", "0X0X", shown="AAAA") == "if"


def test_version_2_has_no_flag_for_zeroes_over_a_backing_file():
    assert fates("A--", "000000", shown="AABB--", version=2) == "if-"
    assert fates("A--", "000000", shown="AA----", version=2, has_backing=False) == "c--"


def placed(piece: Slice, wanted: str, shown: str = "") -> tuple[list[tuple[int, int, int, int]], Image]:
    """What is moved: (kind, source offset, length, target offset) in half clusters, and the image afterwards."""
    wish = Wish(drawn(wanted), drawn(shown), drawn(shown), True)
    steps, image = put.place(piece, put.decide(piece.image, piece.tables, wish), wish)
    moves = [step for step in steps if isinstance(step, Move)]
    half = CLUSTER_BYTES // 2
    rows = [
        (int(kind), host // half, length // half, target // half)
        for move in moves
        for kind, host, length, target in zip(
            *(each.tolist() for each in (move.source.kind, move.source.host_offset, move.source.length)),
            move.target_offset.tolist(),
            strict=True,
        )
    ]
    return rows, image


def host_of(piece: Slice, cluster: int) -> int:
    """Where a guest cluster lies, in half clusters."""
    return 2 * int(piece.tables.entries[0, cluster] & tables.HOST_OFFSET) // CLUSTER_BYTES


def test_in_place_only_what_is_wanted_is_written():
    piece = opened("AB")
    assert placed(piece, "-X--", "AABB")[0] == [(ex.DATA, 1, 1, host_of(piece, 0) + 1)]


def test_a_fresh_cluster_is_written_whole():
    piece = opened("-B")
    moves, _ = placed(piece, "-X--", "Y---")
    target = moves[0][3]
    assert moves == [(ex.DATA, 0, 1, target), (ex.DATA, 1, 1, target + 1)]
    moves, _ = placed(piece, "-X--", "----")
    assert moves == [(ex.ZERO, 0, 1, target), (ex.DATA, 1, 1, target + 1)]


def test_a_kept_cluster_of_zeroes_is_written_whole():
    piece = opened("oB")
    target = host_of(piece, 0)
    assert placed(piece, "-X--", "00BB")[0] == [(ex.ZERO, 0, 1, target), (ex.DATA, 1, 1, target + 1)]


def test_moves_go_from_the_front_of_the_file_to_its_end():
    piece = opened("-A-B-C")
    moves, _ = placed(piece, "XXXXXXXXXXXX")
    targets = [target for *_, target in moves]
    assert targets == sorted(targets)
    assert sum(length for _, _, length, _ in moves) == 12


def test_a_table_that_a_snapshot_shares_is_copied_first():
    piece = opened("AB")
    image = piece.image._replace(l1=piece.image.l1 & ~tables.COPIED)
    table = int(piece.tables.host_offset[0]) // CLUSTER_BYTES
    twice = piece.counts.put(np.array([table, table + 1, table + 2]), np.array([2, 2, 2], np.uint16))
    shared = piece._replace(image=image, counts=twice)
    moves, after = placed(shared, "-X--", "AABB")
    # All of the cluster is written anew, for the snapshot uses the old one.
    assert sum(length for _, _, length, _ in moves) == 2
    assert after.l1[0] & tables.COPIED
    assert tables.table_offsets(after.l1)[0] != piece.tables.host_offset[0]


def test_all_that_is_needed_of_the_counts_is_said_before():
    piece = opened("AoaB--")
    wish = Wish(drawn("XXXXXX--XXXX"), NOBODY, NOBODY, True)
    found = put.decide(piece.image, piece.tables, wish)
    clusters, free_count = put.demand(piece.image, piece.tables, found)
    assert free_count == 3
    hosts = {host_of(piece, index) // 2 for index in range(2)}
    assert hosts | set(put.refcount_table_clusters(piece.image).tolist()) <= set(clusters.tolist())
    assert put.review(piece, found, wish).moved_bytes == 5 * CLUSTER_BYTES


@pytest.mark.parametrize("wanted", ["XXXX", "0000"])
def test_a_cluster_that_is_not_counted_is_not_touched(wanted):
    piece = opened("AB")
    counts = piece.counts.put(np.array([host_of(piece, 0) // 2]), np.array([0], np.uint16))
    with pytest.raises(BrokenTable, match="counted 0 times"):
        placed(piece._replace(counts=counts), wanted, "AABB")


def test_a_cluster_that_is_counted_twice_is_not_written():
    piece = opened("AB")
    counts = piece.counts.put(np.array([host_of(piece, 0) // 2]), np.array([2], np.uint16))
    with pytest.raises(BrokenTable, match="is marked as used once, but counted 2 times"):
        placed(piece._replace(counts=counts), "XX--", "AABB")


def test_a_cluster_of_two_masters_is_not_written():
    piece = opened("AB")
    entries = piece.tables.entries.copy()
    entries[0, 1] = entries[0, 0]
    with pytest.raises(BrokenTable, match="belongs to two guest clusters"):
        placed(piece._replace(tables=piece.tables._replace(entries=entries)), "XXXX", "AABB")


def test_a_table_is_not_written_over():
    piece = opened("AB")
    entries = piece.tables.entries.copy()
    entries[0, 0] = tables.COPIED | np.uint64(piece.image.header.refcount_table_offset)
    with pytest.raises(BrokenTable, match="guest data would be written to host cluster 1, which holds a table"):
        placed(piece._replace(tables=piece.tables._replace(entries=entries)), "XX--", "AABB")


def test_a_table_that_is_counted_as_free_is_not_written_over():
    piece = opened("A-")
    l1 = put.refcount_table_clusters(piece.image)
    counts = piece.counts.put(l1, np.zeros(len(l1), np.uint16))
    with pytest.raises(BrokenTable, match="which holds a table"):
        placed(piece._replace(counts=counts), "--XX")


def test_nothing_to_put_is_no_step():
    piece = opened("A-")
    wish = Wish(NOBODY, NOBODY, NOBODY, True)
    assert put.place(piece, put.decide(piece.image, piece.tables, wish), wish) == ([], piece.image)
    assert put.into_raw(wish) == []


def test_into_raw_zeroes_come_first_and_then_data_where_the_guest_has_them():
    wish = Wish(drawn("0AA00-B"), drawn("XX-X--X"), drawn("XX-X--X"), False)
    first, second, move, last = put.into_raw(wish)
    assert (first, second) == (Zero(0, 256, is_data=True), Zero(768, 256, is_data=True))
    assert isinstance(move, Move)
    assert move.target_offset.tolist() == [256, 1536]
    assert last == Flush()


def test_a_compressed_cluster_uses_all_host_clusters_that_its_sectors_touch():
    piece = opened("-")
    geometry = piece.image.geometry
    descriptor = 1 << geometry.compressed_offset_bits | 700
    entry = np.array([int(tables.COMPRESSED_FLAG) | descriptor, 512 * 9, 0, 1], np.uint64)
    assert sorted(put.entry_users(geometry, entry).tolist()) == [1, 2, 9]
