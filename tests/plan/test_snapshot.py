"""What snapshots do to counts, flags and tables, computed."""

from pathlib import Path

import numpy as np
import pytest

from cowtree.chain import gate
from cowtree.chain.load import load_counts, load_image, load_tables
from cowtree.errors import BrokenTable, Refused
from cowtree.extents import Offsets
from cowtree.plan import snapshot as plan
from cowtree.qcow2 import check, tables
from cowtree.qcow2.check import References
from cowtree.qcow2.header import Header
from cowtree.qcow2.image import Image, Slice, no_slice
from cowtree.qcow2.refcounts import Counts
from cowtree.qcow2.snapshots import Snapshot
from cowtree.qcow2.tables import COPIED, Tables
from cowtree.steps import Write
from cowtree.storage.file import LocalFiles
from tests.qemu import qemu_img, qemu_io

NONE = np.empty(0, np.int64)


def snapshot(number: str, name: str) -> Snapshot:
    return Snapshot(number, name, 0x10000, 1, 0, 0, 0, 0, 1 << 20, 0, bytes(24))


def load(folder: Path, options: str, *commands: str) -> tuple[Image, gate.Layer]:
    path = folder / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, "1M")
    qemu_io(path, *commands)
    layer = gate.open_layer(LocalFiles(), str(path), "qcow2")
    image = load_image(layer)
    assert image is not None
    return image, layer


def test_an_id_is_looked_for_before_a_name():
    found = [snapshot("1", "2"), snapshot("2", "1"), snapshot("3", "1")]
    assert plan.find(found, "1") is found[0]
    assert plan.find(found, "2") is found[1]
    assert plan.find_name(found, "1") is found[1]
    assert plan.find(found, "nope") is plan.find_name(found, "3") is None


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((), "1"),
        (("1", "7", "3"), "8"),
        (("a", "", "-"), "1"),
        ((" +12x", "3"), "13"),
        (("-1",), "0"),
        (("-3",), str((1 << 64) - 2)),
        ((str(1 << 70),), "0"),
        (("0x10",), "1"),
    ],
)
def test_a_new_id_is_one_more_than_the_largest(numbers: tuple[str, ...], expected: str):
    assert plan.next_id([snapshot(number, "") for number in numbers]) == expected


def test_a_new_entry_describes_the_disk(tmp_path: Path):
    image, layer = load(tmp_path, "cluster_size=512", "write 0 1M")
    entry = plan.new_entry(image, "ü" * 200, 5_000_001_999)
    assert (entry.id, entry.time_s, entry.time_ns) == ("1", 5, 1000)
    assert (entry.l1_entry_count, entry.size_bytes) == (len(image.l1), 1 << 20)
    # Cut where QEMU cuts it, in the midst of a letter.
    assert entry.name.encode("utf-8", "surrogateescape") == ("ü" * 200).encode()[:255]
    full = image._replace(snapshots=(snapshot("1", ""),) * 65536)
    with pytest.raises(Refused) as refused:
        plan.new_entry(full, "a", 0)
    assert refused.value.facts["cause"] == "EFBIG"
    layer.close()


KINDS = {
    "data": ("cluster_size=512", ("write 0 300k", "discard 4k 2k")),
    "zeroes": ("cluster_size=512", ("write 0 100k", "write -z 10k 20k")),
    "compressed": ("cluster_size=4k", ("write -c -P 1 0 64k", "write 128k 9k")),
    "subclusters": ("cluster_size=16k,extended_l2=on", ("write 1k 90k", "write -z 8k 4k")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_quick_count_is_that_of_a_check(tmp_path: Path, kind: str):
    image, layer = load(tmp_path, KINDS[kind][0], *KINDS[kind][1])
    held = load_tables(layer.file, image, 0, 1 << 20)
    quick, slow = (References(image.geometry, image.file_size_bytes) for _ in range(2))
    plan.count_l1(image, image.l1, quick)
    assert not [each for each in plan.count_l2(image.geometry, held, quick) if each.error_count]
    offset = tables.table_offsets(image.l1)
    slow.use(offset[offset > 0], image.geometry.cluster_size_bytes, np.ones(int((offset > 0).sum()), np.int64))
    assert not [
        each
        for each in check.check_l2(image.geometry, held, np.ones(len(held.l1_index), np.int64), slow)
        if each.error_count
    ]
    assert (quick.counts.window(0, 1 << 20) == slow.counts.window(0, 1 << 20)).all()
    plan.refuse_data_in_tables(image, image.l1, quick)
    layer.close()


def test_wrong_entries_are_found(tmp_path: Path):
    image, layer = load(tmp_path, "cluster_size=512", "write 0 300k")
    held = load_tables(layer.file, image, 0, 1 << 20)
    for wrong in (1 << 40, 1 << 57, int(held.entries[0, 0]) + 256):
        entries = held.entries.copy()
        entries[0, 0] = wrong
        uses = References(image.geometry, image.file_size_bytes)
        found = plan.count_l2(image.geometry, held._replace(entries=entries), uses)
        assert sum(each.error_count for each in found)
    twice = image.l1.copy()
    twice[1] = twice[0]
    with pytest.raises(BrokenTable, match="names the L2 table at byte"):
        plan.count_l1(image, twice, References(image.geometry, image.file_size_bytes))
    layer.close()


def test_data_in_a_table_is_refused(tmp_path: Path):
    image, layer = load(tmp_path, "cluster_size=512", "write 0 9k")
    uses = References(image.geometry, image.file_size_bytes)
    plan.count_l1(image, image.l1, uses)
    uses.use_clusters(np.array([image.header.refcount_table_offset >> 9]))
    with pytest.raises(BrokenTable, match="which holds a table"):
        plan.refuse_data_in_tables(image, image.l1, uses)
    layer.close()


def blocks(*counts: int) -> Counts:
    return Counts(np.array([2]), np.array([0x20000]), np.array([counts], np.uint8))


def image_of(bits: int) -> Image:
    """An image of which only the width of its counts matters."""
    header = Header(3, 16, 1 << 20, 1, 0x30000, 0x10000, 1, refcount_order=bits.bit_length() - 1)
    none = np.empty(0, np.uint64)
    return Image("a", header, none, none, (), 0, (), None, (), 1 << 20)


def test_counts_go_up_and_down_by_what_is_used():
    uses = np.array([[1, 0, 2, 0]], np.uint8)
    up = plan.raised(blocks(1, 1, 1, 0), uses)
    assert up.counts.tolist() == [[2, 1, 3, 0]]
    assert plan.lowered(up, uses).counts.tolist() == [[1, 1, 1, 0]]
    assert up.counts.dtype == np.uint8


@pytest.mark.parametrize(
    ("counts", "uses", "raises", "said"),
    [
        ((3, 1), (1, 0), True, "host cluster 4 is counted 3 times, and 3 is the most that can be counted"),
        ((2, 1), (0, 3), True, "host cluster 5 is counted 1 times, and 3 is the most"),
        ((0, 1), (1, 0), True, "host cluster 4 is in use but counted 0 times"),
        ((1, 1), (0, 2), False, "host cluster 5 is in use but counted 1 times"),
    ],
)
def test_counts_that_cannot_change_are_named(counts: tuple[int, ...], uses: tuple[int, ...], raises: bool, said: str):
    with pytest.raises((BrokenTable, Refused), match=said) as found:
        plan.check_counts(image_of(2), blocks(*counts), np.array([uses], np.uint16), raises=raises)
    assert found.value.facts["cause"] == "EINVAL"


def test_counts_that_just_fit_may_change():
    plan.check_counts(image_of(2), blocks(2, 3), np.array([[1, 0]], np.uint16), raises=True)
    plan.check_counts(image_of(2), blocks(2, 3), np.array([[2, 3]], np.uint16), raises=False)
    wide = Counts(np.array([0]), np.array([0]), np.array([[(1 << 64) - 2]], np.uint64))
    plan.check_counts(image_of(64), wide, np.array([[1]], np.uint8), raises=True)
    with pytest.raises(Refused):
        plan.check_counts(image_of(64), wide, np.array([[2]], np.uint8), raises=True)


def held_at(image: Image, *entries: int) -> Tables:
    words = np.zeros((1, image.geometry.l2_entry_count), np.uint64)
    words[0, : len(entries)] = entries
    return Tables(np.array([0]), np.array([0x5000]), words, np.empty((1, 0), np.uint64))


def test_flags_go_and_come_back(tmp_path: Path):
    image, layer = load(tmp_path, "cluster_size=512", "read 0 512")
    layer.close()
    copied, packed = int(COPIED), 1 << 62
    held = held_at(image, copied | 0x800, 0xA00, 1, copied | 0xC01)
    (write,) = plan.without_flags(held)
    assert write == Write(0x5000, tables.encode_words(np.array([0x800, 0xA00, 1, 0xC01], np.uint64)))
    is_single = np.zeros(10, bool)
    is_single[[4, 5]] = True
    bare = held_at(image, 0x800, 0xC00, packed | 0x800, 1 << 40, 0xA01)
    (write,) = plan.with_flags(image, bare, is_single)
    flagged = np.array([copied | 0x800, 0xC00, packed | 0x800, 1 << 40, copied | 0xA01], np.uint64)
    assert write == Write(0x5000, tables.encode_words(flagged))
    l1 = plan.l1_with_flags(image._replace(l1=np.array([0x800, 0, 0xC00], np.uint64)), is_single)
    assert l1.tolist() == [copied | 0x800, 0, 0xC00]


def test_room_for_tables_is_counted_before_it_is_used(tmp_path: Path):
    image, layer = load(tmp_path, "cluster_size=512", "write 0 64k")
    counts = load_counts(layer.file, image, NONE, image.host_cluster_count)
    piece = Slice(image, no_slice(image).tables, counts)
    offsets, steps, changed = plan.take(piece, (1500, 0, 10))
    assert offsets[1] == 0
    assert offsets[0] % 512 == offsets[2] % 512 == 0
    taken = np.array([offsets[0], offsets[0] + 1024, offsets[2]]) >> 9
    assert not counts.get(taken).any()
    assert changed.header == image.header
    assert [type(step) for step in steps] == [Write] * len(steps)
    layer.close()


def test_room_that_a_table_has_is_not_taken(tmp_path: Path):
    image, layer = load(tmp_path, "cluster_size=512", "write 0 64k")
    counts = load_counts(layer.file, image, NONE, image.host_cluster_count)
    l1_cluster: Offsets = np.array([image.header.l1_table_offset >> 9])
    lost = counts.put(l1_cluster, np.zeros(1, np.uint16))
    with pytest.raises(BrokenTable, match="is counted as free, but holds a table"):
        plan.take(Slice(image, no_slice(image).tables, lost), (1,))
    layer.close()


def test_an_applied_table_fits_the_disk_of_then(tmp_path: Path):
    image, layer = load(tmp_path, "cluster_size=512", "write 0 64k")
    layer.close()
    l1 = image.l1[:2]
    entry = snapshot("1", "a")._replace(size_bytes=200 << 10)
    applied = plan.applied_l1(image, entry, l1)
    assert applied.tolist() == [*(l1 & ~COPIED).tolist(), 0, 0, 0, 0, 0]
    changed = plan.with_l1(image, entry, applied, 0x9000)
    assert (changed.header.size_bytes, changed.header.l1_entry_count) == (200 << 10, 7)
    odd = image._replace(header=image.header._replace(size_bytes=1001))
    assert plan.with_l1(odd, entry._replace(size_bytes=512), l1, 0).header.size_bytes == 1001
    for wrong in (1000, 1 << 60):
        with pytest.raises(Refused):
            plan.applied_l1(image, entry._replace(size_bytes=wrong), l1)
    old = image._replace(header=image.header._replace(version=2))
    with pytest.raises(Refused, match="Can't resize a v2 image which has snapshots"):
        plan.applied_l1(old, entry, l1)


def test_a_table_that_nobody_would_read_is_not_made(tmp_path: Path):
    image, layer = load(tmp_path, "cluster_size=64k", "read 0 512")
    layer.close()
    long = snapshot("1", "x" * 60000)
    with pytest.raises(Refused, match="would be too long") as refused:
        plan.packed(image, [long] * 1200)
    assert refused.value.facts["cause"] == "EFBIG"
    found = plan.with_snapshots(image, [long], 0x70000, 99)
    assert (found.header.snapshot_count, found.header.snapshot_table_offset) == (1, 0x70000)


def test_used_clusters_without_counts_are_refused(tmp_path: Path):
    image, layer = load(tmp_path, "cluster_size=512", "write 0 300k")
    layer.close()
    uses = References(image.geometry, image.file_size_bytes)
    uses.use_clusters(np.array([300]))
    assert plan.blocks_of(image, uses).tolist() == [1]
    table = image.refcount_table.copy()
    table[1] = 0
    for lost in (table, table[:1]):
        with pytest.raises(BrokenTable, match="clusters from 256 on are in use but have no reference counts"):
            plan.blocks_of(image._replace(refcount_table=lost), uses)


def test_trees_are_the_same_when_their_tables_are_whatever_their_flags_say():
    one = np.array([0x10000 | int(COPIED), 0, 0x20000], np.uint64)
    assert plan.have_same_tables(one, one & ~COPIED)
    assert not plan.have_same_tables(one, one[::-1])
    assert not plan.have_same_tables(one, one[:2])
