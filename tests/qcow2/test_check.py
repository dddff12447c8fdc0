"""Owns the proof that references are counted as a slow count would, and that each rule of an entry is held."""

import random

import numpy as np
import pytest

from cowtree.qcow2 import check, findings
from cowtree.qcow2.check import References
from cowtree.qcow2.findings import Finding
from cowtree.qcow2.geometry import Geometry
from cowtree.qcow2.tables import COMPRESSED_FLAG, COPIED, Entries, Tables

CLUSTER_BITS = 12
SIZE = 1 << CLUSTER_BITS
GEOMETRY = Geometry(3, CLUSTER_BITS, 4)
EXTENDED = Geometry(3, 14, 4, has_subclusters=True)
WITH_DATA_FILE = Geometry(3, CLUSTER_BITS, 4, has_data_file=True)
FILE_BYTES = 64 * SIZE


def words(*values: int) -> Entries:
    return np.array(values, np.uint64)


def ones(count: int) -> np.ndarray:
    return np.ones(count, np.int64)


def table(geometry: Geometry, entries: dict[int, int], bitmaps: dict[int, int] | None = None) -> Tables:
    """One L2 table with a few entries."""
    held = np.zeros((1, geometry.l2_entry_count), np.uint64)
    maps = np.zeros((1, geometry.l2_entry_count if geometry.has_subclusters else 0), np.uint64)
    for column, entry in entries.items():
        held[0, column] = entry
    for column, bitmap in (bitmaps or {}).items():
        maps[0, column] = bitmap
    return Tables(np.zeros(1, np.int64), np.full(1, SIZE), held, maps)


def kinds(found) -> list[findings.Kind]:
    return [finding.kind for finding in found for _ in range(len(finding.times))]


@pytest.mark.soak
def test_references_are_those_of_a_slow_count(seed: int):
    choose = random.Random(seed)
    references, slow = References(GEOMETRY, FILE_BYTES), [0] * 70
    for _ in range(choose.randint(1, 30)):
        regions = [
            (choose.randrange(FILE_BYTES), choose.randint(1, 3 * SIZE), choose.choice((1, 2, 100, 70000)))
            for _ in range(choose.randint(1, 20))
        ]
        offset, length, times = (np.array(column) for column in zip(*regions, strict=True))
        outside = references.outside(offset, length)
        references.use(offset[~outside], length[~outside], times[~outside])
        for is_outside, (start, count, often) in zip(outside.tolist(), regions, strict=True):
            assert is_outside == (start + count - FILE_BYTES >= SIZE)
            for cluster in range(start >> CLUSTER_BITS, (start + count - 1 >> CLUSTER_BITS) + 1):
                slow[cluster] += 0 if is_outside else often
    counts = references.counts.window(0, 1000).tolist()
    assert counts == slow[: len(counts)]
    assert not any(slow[len(counts) :])


def test_counts_take_one_byte_until_they_need_more():
    references = References(GEOMETRY, FILE_BYTES)
    where = np.array([5 * SIZE])
    for times, dtype in ((255, "u1"), (1, "u2"), (1 << 16, "u4"), (1 << 32, "u8")):
        references.use(where, SIZE, np.array([times]))
        assert references.counts.dtype == dtype
    assert references.uses(np.array([5, 6, 1000])).tolist() == [256 + (1 << 16) + (1 << 32), 0, 0]
    assert references.get(np.array([5])).tolist() == [GEOMETRY.refcount_max]


def test_the_end_of_a_cut_cluster_belongs_to_the_file():
    references = References(GEOMETRY, 10 * SIZE - 700)
    assert references.file_size_bytes == 10 * SIZE - 512
    assert references.use_region(9 * SIZE, SIZE) is None
    assert references.use_region(0, 0) is None
    finding = references.use_region(10 * SIZE, SIZE)
    assert finding is not None
    assert list(finding.sentences()) == [
        "ERROR: counting reference for region exceeding the end of the file by one cluster or more: "
        f"offset {10 * SIZE:#x} size {SIZE:#x}"
    ]


def test_free_clusters_are_taken_from_the_front_and_then_from_behind_the_end():
    references = References(GEOMETRY, 4 * SIZE)
    references.use(np.array([0, 2 * SIZE]), SIZE, ones(2))
    assert references.take_free(1).tolist() == [1]
    assert references.take_free(3).tolist() == [3, 4, 5]
    assert references.take_end(2) == 6
    assert references.counts.window(0, 8).tolist() == [1] * 8
    assert references.cluster_count == 8
    references.give_back(np.array([1, 6]))
    assert references.take_free(0).tolist() == []
    assert references.take_free(2).tolist() == [1, 6]


def test_a_count_that_does_not_fit_is_said_for_each_use_too_many():
    references = References(Geometry(3, CLUSTER_BITS, 0), FILE_BYTES)
    references.use(np.array([SIZE, SIZE, SIZE, 2 * SIZE]), SIZE, ones(4))
    finding = references.overflows()
    assert finding.error_count == 2
    assert [sentence.splitlines()[0] for sentence in finding.sentences()] == [
        f"ERROR: overflow cluster offset={SIZE:#x}"
    ]


def test_tables_are_listed_once_in_the_order_in_which_they_are_met():
    active, snapshot = words(9 * SIZE, 3 * SIZE, 9 * SIZE), words(4 * SIZE, 3 * SIZE, 1 * SIZE)
    use = check.add_l1(check.no_tables(), active, is_active=True)
    use = check.add_l1(use, snapshot, is_active=False)
    assert (use.offset // SIZE).tolist() == [9, 3, 4, 1]
    assert use.times.tolist() == [2, 2, 1, 1]
    assert use.active_times.tolist() == [2, 1, 0, 0]
    assert not len(check.add_l1(check.no_tables(), words(), is_active=True).offset)


def test_each_rule_of_an_l1_entry_is_held():
    references = References(GEOMETRY, FILE_BYTES)
    entries = words(5 * SIZE | 1 << 63, 5 * SIZE | 1, 5 * SIZE | 1 << 56, 5 * SIZE + 512, 64 * SIZE)
    assert kinds(check.check_l1(GEOMETRY, entries, references)) == [
        findings.L1_RESERVED,
        findings.L1_RESERVED,
        findings.L1_UNALIGNED,
        findings.OUTSIDE,
    ]


DATA = 5 * SIZE
PACKED = 1 << 62
BIG = 1 << 14
RULES = {
    "data": (GEOMETRY, DATA, 0, []),
    "copied data": (GEOMETRY, DATA | 1 << 63, 0, []),
    "zeroes": (GEOMETRY, 1, 0, []),
    "kept zeroes": (GEOMETRY, DATA | 1, 0, []),
    "compressed": (GEOMETRY, PACKED | DATA + 700, 0, []),
    "a reserved bit": (GEOMETRY, DATA | 2, 0, [findings.L2_RESERVED]),
    "a high reserved bit": (GEOMETRY, DATA | 1 << 61, 0, [findings.L2_RESERVED]),
    "data that is not aligned": (GEOMETRY, DATA + 512, 0, [findings.DATA_UNALIGNED]),
    "kept zeroes that are not aligned": (GEOMETRY, DATA + 513, 0, [findings.ZERO_UNALIGNED]),
    "data past the end": (GEOMETRY, FILE_BYTES, 0, [findings.OUTSIDE]),
    "compressed past the end": (GEOMETRY, PACKED | FILE_BYTES + SIZE, 0, [findings.OUTSIDE]),
    "copied and compressed": (GEOMETRY, PACKED | 1 << 63 | DATA, 0, [findings.PACKED_COPIED]),
    "compressed with a data file": (WITH_DATA_FILE, PACKED | DATA, 0, [findings.PACKED_OUTSIDE]),
    "data far out in a data file": (WITH_DATA_FILE, 1 << 40, 0, []),
    "subclusters": (EXTENDED, 2 * BIG, 0b0110 | 1 << 32, []),
    "zero subclusters": (EXTENDED, 0, 0b0110 << 32, []),
    "compressed with a bitmap": (EXTENDED, PACKED | 2 * BIG, 1 << 32, [findings.PACKED_BITMAP]),
    "a subcluster that is both": (EXTENDED, 2 * BIG, 1 | 1 << 32, [findings.BITMAP_BOTH]),
    "subclusters of nothing": (EXTENDED, 0, 1, [findings.BITMAP_ALONE]),
    "subclusters that are not aligned": (EXTENDED, 2 * BIG + 512, 1, [findings.DATA_UNALIGNED]),
    "no subclusters, not aligned": (EXTENDED, 2 * BIG + 512, 0, [findings.ZERO_UNALIGNED]),
}


@pytest.mark.parametrize("name", RULES)
def test_each_rule_of_an_l2_entry_is_held(name: str):
    geometry, entry, bitmap, expected = RULES[name]
    references = References(geometry, FILE_BYTES)
    held = table(geometry, {3: entry}, {3: bitmap} if bitmap else None)
    assert kinds(check.check_l2(geometry, held, ones(1), references)) == expected


def test_what_a_shared_table_uses_counts_as_often_as_it_is_shared():
    references = References(GEOMETRY, FILE_BYTES)
    sector_bits = GEOMETRY.compressed_offset_bits
    packed = PACKED | 2 << sector_bits | 9 * SIZE - 600
    held = table(GEOMETRY, {0: DATA, 1: DATA | 1, 2: 1, 3: packed, 4: DATA + 512})
    assert [each.error_count for each in check.check_l2(GEOMETRY, held, np.array([3]), references)] == [3]
    counts = references.counts.window(0, 1000).tolist()
    assert {index: count for index, count in enumerate(counts) if count} == {5: 9, 6: 3, 8: 3, 9: 3}


def test_nothing_in_a_data_file_is_counted():
    references = References(WITH_DATA_FILE, FILE_BYTES)
    list(check.check_l2(WITH_DATA_FILE, table(WITH_DATA_FILE, {0: 1 << 63, 1: DATA}), ones(1), references))
    assert not references.counts.any_in(0, 1000)


def test_a_cluster_that_does_not_follow_the_one_before_is_a_fragment():
    entries = {0: 5 * SIZE, 1: 6 * SIZE, 2: PACKED | 9 * SIZE, 3: 7 * SIZE, 5: 8 * SIZE | 1, 6: 4 * SIZE, 7: 1}
    statistics = check.statistics(GEOMETRY, table(GEOMETRY, entries), ones(1))
    assert statistics == check.Statistics(allocated=6, fragmented=2, compressed=1)
    twice = check.statistics(GEOMETRY, table(GEOMETRY, entries), np.array([2]))
    assert twice == statistics.plus(statistics)
    assert check.statistics(GEOMETRY, table(GEOMETRY, entries), np.array([0])) == check.Statistics()


def test_each_rule_of_the_refcount_table_is_held():
    references = References(GEOMETRY, FILE_BYTES)
    references.use(np.array([7 * SIZE]), SIZE, ones(1))
    entries = words(5 * SIZE, 0, 6 * SIZE | 1, 6 * SIZE + 512, FILE_BYTES, 7 * SIZE, 5 * SIZE, 1 << 63)
    found = check.check_refcount_table(GEOMETRY, entries, references)
    assert [sentence for finding in found.findings for sentence in finding.sentences()] == [
        "ERROR refcount table entry 2 has reserved bits set",
        "ERROR refcount block 3 is not cluster aligned; refcount table entry corrupted",
        "ERROR refcount block 4 is outside image",
        "ERROR refcount block 5 refcount=2",
        "ERROR refcount block 6 refcount=2",
        "ERROR refcount block 7 is outside image",
    ]
    assert found.is_broken
    assert references.uses(np.array([5, 6, 7])).tolist() == [2, 0, 2]
    assert check.readable_blocks(GEOMETRY, entries, FILE_BYTES).tolist() == [
        *(5 * SIZE, 0, 6 * SIZE | 1, 0, 0, 7 * SIZE, 5 * SIZE, 0)
    ]
    assert check.unreadable_blocks(GEOMETRY, entries).tolist() == [False] * 3 + [True] + [False] * 3 + [True]


def test_a_block_outside_the_file_alone_breaks_no_other():
    found = check.check_refcount_table(GEOMETRY, words(5 * SIZE, FILE_BYTES), References(GEOMETRY, FILE_BYTES))
    assert kinds(found.findings) == [findings.BLOCK_OUTSIDE]
    assert not found.is_broken


def test_blocks_that_share_a_cluster_are_broken_even_where_counts_cannot_say_so():
    geometry = Geometry(3, CLUSTER_BITS, 0)
    found = check.check_refcount_table(geometry, words(5 * SIZE, 5 * SIZE), References(geometry, FILE_BYTES))
    assert found == check.BlockFindings((), True)


def test_counts_are_compared_with_references():
    references = References(GEOMETRY, FILE_BYTES)
    references.use(np.array([8, 9, 9, 10, 12]) * SIZE, SIZE, ones(5))
    mismatch = check.compare(8, np.array([1, 1, 3, 5, 0], np.uint16), references)
    plain = ["ERROR cluster 9 refcount=1 reference=2", "Leaked cluster 10 refcount=3 reference=1"]
    plain += ["Leaked cluster 11 refcount=5 reference=0", "ERROR cluster 12 refcount=0 reference=1"]
    assert sentences(mismatch.findings()) == plain
    assert sentences(mismatch.findings(lowers=True))[:2] == [
        plain[0],
        "Repairing cluster 10 refcount=3 reference=1",
    ]
    assert all(each.startswith("Repairing") for each in sentences(mismatch.findings(raises=True, lowers=True)))


def sentences(found) -> list[str]:
    return [sentence for finding in found for sentence in finding.sentences()]


def test_guest_data_in_a_table_is_found():
    references = References(GEOMETRY, FILE_BYTES)
    metadata = np.array([0, 3, 4])
    use = check.TableUse(np.array([4 * SIZE]), np.array([2]), np.array([1]))
    references.use(np.array([0, 3, 4, 4, 9]) * SIZE, SIZE, ones(5))
    assert check.data_in_tables(metadata, use, references).tolist() == []
    references.use(np.array([4 * SIZE]), SIZE, ones(1))
    assert check.data_in_tables(metadata, use, references).tolist() == [4]


def test_blocks_are_needed_where_something_is_used():
    geometry = Geometry(3, 9, 6)
    references = References(geometry, 200 * 512)
    references.use(np.array([0, 63, 128]) * 512, 512, ones(3))
    assert check.blocks_in_use(references).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("entry", "is_wrong"),
    [(0, False), (1, False), (DATA, False), (DATA + 512, True), (DATA | 1, True), (DATA | 2, True), (1 << 56, True)],
)
def test_each_rule_of_a_bitmap_table_is_held(entry: int, is_wrong: bool):
    assert check.wrong_bitmap_entries(GEOMETRY, words(entry)).tolist() == [is_wrong]


def test_flags_that_contradict_counts_are_found():
    references = References(GEOMETRY, FILE_BYTES)
    references.use(np.array([5, 6, 6]) * SIZE, SIZE, ones(3))
    flag, packed = int(COPIED), int(COMPRESSED_FLAG)
    entries = words(5 * SIZE | flag, 5 * SIZE, 6 * SIZE | flag, 6 * SIZE, 0, 1, 5 * SIZE | 1, packed | 5 * SIZE)
    wrong = check.find_wrong_flags(GEOMETRY, entries, references)
    assert wrong.tolist() == [False, True, True, False, False, False, True, False]
    finding = check.flag_findings(GEOMETRY, entries[wrong], np.array([1, 2, 3]), references)
    assert finding.error_count == 6
    assert list(finding.sentences()) == [
        f"ERROR OFLAG_COPIED data cluster: l2_entry={5 * SIZE:x} refcount=1",
        f"ERROR OFLAG_COPIED data cluster: l2_entry={6 * SIZE | flag:x} refcount=2",
        f"ERROR OFLAG_COPIED data cluster: l2_entry={5 * SIZE | 1:x} refcount=1",
    ]


def test_every_cluster_of_a_data_file_has_its_flag():
    references = References(WITH_DATA_FILE, FILE_BYTES)
    entries = words(0, int(COPIED), 5 * SIZE, 5 * SIZE | int(COPIED))
    assert check.find_wrong_flags(WITH_DATA_FILE, entries, references).tolist() == [False, False, True, False]
    assert check.flag_findings(WITH_DATA_FILE, entries[2:3], ones(1), references).values.tolist() == [[5 * SIZE, 1]]


def test_flags_of_l1_entries_are_found():
    references = References(GEOMETRY, FILE_BYTES)
    references.use(np.array([5, 6, 6]) * SIZE, SIZE, ones(3))
    l1 = words(0, 5 * SIZE, 6 * SIZE | int(COPIED), 5 * SIZE | int(COPIED), FILE_BYTES, 1)
    wrong = check.find_wrong_l1_flags(GEOMETRY, l1, references)
    assert wrong.tolist() == [1, 2]
    finding: Finding = check.l1_flag_findings(GEOMETRY, l1, wrong, references)
    assert next(finding.sentences()) == f"ERROR OFLAG_COPIED L2 cluster: l1_index=1 l1_entry={5 * SIZE:x} refcount=1"
    use = check.active_tables(GEOMETRY, l1, references, FILE_BYTES)
    assert ((use.offset // SIZE).tolist(), use.times.tolist()) == ([5, 6], [2, 1])


@pytest.mark.parametrize("bits", [0, 4, 6])
def test_uses_are_told_block_by_block(bits: int):
    geometry = Geometry(3, 9, bits)
    size = geometry.refcount_block_entry_count
    references = References(geometry, (size + size // 2) * 512)
    references.use_clusters(np.array([3, size - 1, size, 3, 3, size + 5]))
    found = references.in_blocks(np.array([0, 1, 7]))
    assert found.shape == (3, size)
    assert {(row, column): int(found[row, column]) for row, column in zip(*np.nonzero(found), strict=True)} == {
        **{(0, 3): 3, (0, size - 1): 1},
        **{(1, 0): 1, (1, 5): 1},
    }


def test_clusters_in_order_are_counted_as_others_are(seed: int):
    choose = np.random.default_rng(seed)
    clusters = choose.integers(0, 60, 300)
    times = choose.integers(1, 90, 300)
    one, other = References(GEOMETRY, FILE_BYTES), References(GEOMETRY, FILE_BYTES)
    one.use(clusters << CLUSTER_BITS, SIZE, times)
    for cluster, count in zip(clusters.tolist(), times.tolist(), strict=True):
        other.use(np.array([cluster]) << CLUSTER_BITS, SIZE, np.array([count]))
    assert (one.counts.window(0, 1000) == other.counts.window(0, 1000)).all()
    assert one.counts.dtype == other.counts.dtype


def test_uses_add_up():
    one, other = References(GEOMETRY, FILE_BYTES), References(GEOMETRY, FILE_BYTES)
    one.use(np.array([5 * SIZE, 6 * SIZE]), SIZE, np.array([200, 1]))
    other.use(np.array([5 * SIZE, 7 * SIZE]), SIZE, np.array([100, 300]))
    one.use_as(other)
    assert one.uses(np.arange(4, 9)).tolist() == [0, 300, 1, 300, 0]
    assert other.uses(np.arange(4, 9)).tolist() == [0, 100, 0, 300, 0]


def test_a_cluster_may_be_named_more_often_in_one_call_than_a_byte_can_count():
    references = References(GEOMETRY, FILE_BYTES)
    references.use_clusters(np.full(257, 3))
    references.use_clusters(np.array([3, 3, 4]))
    assert references.uses(np.array([2, 3, 4])).tolist() == [0, 259, 1]


def test_a_copy_counts_on_by_itself():
    references = References(GEOMETRY, FILE_BYTES)
    references.use_clusters(np.array([3]))
    other = references.copy()
    other.use_clusters(np.array([3, 4]))
    assert references.uses(np.array([3, 4])).tolist() == [1, 0]
    assert other.uses(np.array([3, 4])).tolist() == [2, 1]
