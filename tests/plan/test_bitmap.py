"""What an image shall have after actions on its bitmaps, and where that goes."""

import numpy as np
import pytest

from cowtree.errors import BrokenTable, Refused
from cowtree.plan import bitmap as plan
from cowtree.plan.bitmap import ADD, CLEAR, DISABLE, ENABLE, MERGE, REMOVE, Action, Holder, Part, Wanted, act
from cowtree.qcow2 import bitmaps
from cowtree.qcow2 import header as qcow2
from cowtree.qcow2.bitmaps import AUTO, IN_USE, Bitmap, Directory
from cowtree.qcow2.header import Extension, Header
from cowtree.qcow2.image import Image, Slice
from cowtree.qcow2.refcounts import Counts
from cowtree.qcow2.tables import Tables
from cowtree.steps import Write

SIZE = 1 << 20
HEADER = Header(3, 9, SIZE, 32, 0x800, 0x200, 1, autoclear=qcow2.AUTOCLEAR_BITMAPS)
ONE = Bitmap("one", 0x1000, 1, AUTO, 9, 0)
TWO = Bitmap("two", 0x1200, 1, 0, 12, 32)
LOST = Bitmap("lost", 0x1400, 1, AUTO | IN_USE, 9, 64)


def holder(*found: Bitmap, header: Header | None = HEADER) -> Holder:
    """An image that has these."""
    return Holder("a", header, SIZE).with_bitmaps(found)


def after(start: Holder, name: str, *actions: Action) -> tuple[Wanted, ...]:
    """What it has in the end."""
    for action in actions:
        start = act(start, name, action)
    return start.wanted


def test_a_new_bitmap_is_the_last_one_and_records():
    *old, new = after(holder(ONE, TWO), "new", Action(ADD))
    assert [each.kept for each in old] == [ONE, TWO]
    assert new == Wanted("new", AUTO, 12)


@pytest.mark.parametrize(("cluster_bits", "expected"), [(9, 12), (12, 12), (14, 14), (16, 16), (21, 16)])
def test_the_granularity_follows_the_clusters_within_bounds(cluster_bits: int, expected: int):
    (new,) = after(holder(header=HEADER._replace(cluster_bits=cluster_bits)), "new", Action(ADD))
    assert new.granularity_bits == expected


@pytest.mark.parametrize("granularity", [512, 1 << 16, 1 << 31])
def test_a_granularity_that_is_given_counts(granularity: int):
    (new,) = after(holder(), "new", Action(ADD, granularity=granularity))
    assert 1 << new.granularity_bits == granularity


@pytest.mark.parametrize("granularity", [0, 1, 256, 513, 1000, 3 << 16])
def test_a_wrong_granularity_is_refused(granularity: int):
    with pytest.raises(Refused, match="Granularity must be power of 2 and at least 512"):
        plan.add(holder(), "new", granularity)


@pytest.mark.parametrize(
    ("start", "name", "reason"),
    [
        (holder(), "", "Bitmap name cannot be empty"),
        (holder(header=None), "new", "Can't store persistent bitmaps to a: Operation not supported"),
        (holder(ONE), "one", "Bitmap already exists: one"),
        (holder(LOST), "lost", "Bitmap already exists: lost"),
        (holder(header=HEADER._replace(version=2)), "new", "'new' persistent in 'a': Cannot store dirty bitmaps in"),
        (holder(), "n" * 1024, r"Name length exceeds maximum \(1023 characters\)"),
        (holder(), "ü" * 512, "Name length exceeds maximum"),
        (holder()._replace(size_bytes=1 << 55), "new", "Too much space will be occupied by the bitmap"),
        (holder()._replace(size_bytes=0), "new", "the disk is empty"),
        (holder(*[ONE] * bitmaps.BITMAP_COUNT_MAX), "new", "Maximum number of persistent bitmaps is already reached"),
        (
            holder(*[ONE._replace(name="n" * 1023)] * 65000),
            "n" * 1022,
            "Not enough space in the bitmap directory",
        ),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_cannot_be_stored_is_refused(start: Holder, name: str, reason: str):
    with pytest.raises(Refused, match=reason):
        plan.add(start, name, None)


@pytest.mark.parametrize("name", ["n" * 1023, "ü" * 511, "with spaces", "-"])
def test_any_name_that_fits_is_taken(name: str):
    assert after(holder(), name, Action(ADD))[0].name == name


def test_flags_change_and_the_bits_stay():
    assert after(holder(ONE, TWO), "one", Action(DISABLE))[0] == plan.keep(ONE)._replace(flags=0)
    assert after(holder(ONE, TWO), "two", Action(ENABLE))[1] == plan.keep(TWO)._replace(flags=AUTO)


def test_a_clear_bitmap_holds_nothing():
    assert after(holder(ONE), "one", Action(CLEAR)) == (Wanted("one", AUTO, 9),)


def test_the_others_stay_when_one_is_removed():
    assert after(holder(ONE, TWO, LOST), "two", Action(REMOVE)) == (plan.keep(ONE), plan.keep(LOST))


def test_a_merge_is_a_union_of_what_is_stored():
    (one, _) = after(holder(ONE, TWO), "one", Action(MERGE, "two"))
    assert one == Wanted("one", AUTO, 9, None, (Part(ONE, is_own=True), Part(TWO, is_own=True)))


def test_a_bitmap_merged_into_itself_stays():
    assert after(holder(ONE), "one", Action(MERGE, "one")) == (plan.keep(ONE),)


def test_actions_follow_each_other():
    wanted = after(holder(ONE, TWO), "new", Action(ADD, "", 512), Action(MERGE, "two"), Action(DISABLE))
    assert wanted[2] == Wanted("new", 0, 9, None, (Part(TWO, is_own=True),))
    assert after(holder(ONE, TWO), "two", Action(MERGE, "one"), Action(CLEAR))[1].parts == ()


def test_a_merge_from_elsewhere_remembers_where_the_bits_are():
    beside = holder(TWO)._replace(path="b")
    merged = act(holder(ONE), "one", Action(MERGE, "two"), beside)
    assert merged.wanted[0].parts == (Part(ONE, is_own=True), Part(TWO, is_own=False))
    with pytest.raises(Refused, match="Dirty bitmap 'one' not found"):
        act(holder(ONE), "one", Action(MERGE, "one"), beside)


def test_bitmaps_of_different_disks_do_not_merge():
    beside = holder(TWO)._replace(size_bytes=SIZE * 2)
    with pytest.raises(Refused, match=r"different sizes \(destination size is 1048576, source size is 2097152\) and"):
        act(holder(ONE), "one", Action(MERGE, "two"), beside)


@pytest.mark.parametrize("action", [Action(CLEAR), Action(ENABLE), Action(DISABLE), Action(MERGE, "one")])
def test_a_broken_bitmap_can_only_be_removed(action: Action):
    with pytest.raises(Refused, match="Bitmap 'lost' is inconsistent and cannot be used"):
        after(holder(ONE, LOST), "lost", action)
    with pytest.raises(Refused, match="Bitmap 'lost' is inconsistent and cannot be used"):
        after(holder(ONE, LOST), "one", Action(MERGE, "lost"))
    assert after(holder(ONE, LOST), "lost", Action(REMOVE)) == (plan.keep(ONE),)


def test_a_bitmap_that_means_something_unknown_is_left_alone():
    strange = ONE._replace(extra_data=b"extra")
    with pytest.raises(Refused, match="has extra data that nobody here knows"):
        after(holder(strange), "one", Action(CLEAR))
    known = strange._replace(flags=AUTO | bitmaps.EXTRA_DATA_COMPATIBLE)
    (disabled,) = after(holder(known), "one", Action(DISABLE))
    assert (disabled.flags, disabled.entry.extra_data) == (bitmaps.EXTRA_DATA_COMPATIBLE, b"extra")


@pytest.mark.parametrize("verb", [REMOVE, CLEAR, ENABLE, DISABLE, MERGE])
def test_what_is_not_there_is_not_found(verb: str):
    with pytest.raises(Refused, match="Dirty bitmap 'gone' not found"):
        after(holder(ONE), "gone", Action(verb, "one"))


# Sizes.


def image(*found: Bitmap, size_bytes: int = SIZE) -> Image:
    """An image with bitmaps, whose tables do not matter."""
    none = np.empty(0, np.uint64)
    header = HEADER._replace(size_bytes=size_bytes)
    directory = Directory(len(found), 0xE00, sum(each.entry_bytes for each in found)) if found else None
    return Image("a", header, np.zeros(32, np.uint64), none, (), 0, (), directory, found, 0x2000)


def test_bitmaps_stay_while_their_tables_fit_a_larger_disk():
    # One cluster holds 4096 bits: 2 MiB at 512 bytes a bit, 16 MiB at 4 KiB a bit.
    assert plan.resized(image(ONE, TWO, LOST), 2 << 20) == (plan.keep(ONE), plan.keep(TWO), plan.keep(LOST))
    one, two, lost = plan.resized(image(ONE, TWO, LOST), (2 << 20) + 512)
    assert one.parts == (Part(ONE, is_own=True),)
    assert (two, lost) == (plan.keep(TWO), plan.keep(LOST))


def test_bitmaps_are_cut_with_a_smaller_disk():
    assert [each.kept for each in plan.resized(image(ONE, TWO, LOST), 4096)] == [None, None, LOST]


def test_a_disk_with_a_broken_bitmap_keeps_its_size():
    plan.refuse_resize([ONE, TWO])
    with pytest.raises(Refused, match="Bitmap 'lost' is inconsistent and cannot be used"):
        plan.refuse_resize([ONE, LOST])


# Places.


def test_flags_alone_are_written_where_they_are():
    old = image(ONE, TWO)
    found = plan.flag_steps(old, (plan.keep(ONE), plan.keep(TWO)._replace(flags=AUTO)))
    assert found is not None
    steps, new = found
    assert steps == [Write(0xE00 + 32 + 12, (AUTO).to_bytes(4, "big"))]
    assert new.bitmaps == (ONE, TWO._replace(flags=AUTO))


def test_anything_else_needs_a_new_directory():
    old = image(ONE, TWO)
    keep = plan.keep
    for wanted in ((keep(ONE),), (keep(TWO), keep(ONE)), (Wanted("one", AUTO, 9), keep(TWO)), ()):
        assert plan.flag_steps(old, wanted) is None
    bare = image()
    assert plan.flag_steps(bare, ()) == ([], bare)


def piece(counts: list[int]) -> Slice:
    """An image with these reference counts, and nothing else in memory."""
    none = np.empty(0, np.int64)
    row = np.zeros((1, 256), np.uint16)
    row[0, : len(counts)] = counts
    held = Counts(np.array([0]), np.array([0x400]), row)
    own = image()._replace(refcount_table=np.array([0x400] + [0] * 63, np.uint64))
    return Slice(own, Tables(none, none, np.empty((0, 64), np.uint64), np.empty((0, 0), np.uint64)), held)


def test_only_clusters_with_a_dirty_bit_get_a_place():
    rows = np.zeros((4, 512), np.uint8)
    rows[1, 7], rows[3, 0] = 1, 0x80
    entries, steps, _ = plan.place(piece([1] * 6 + [0, 1, 0]), rows)
    assert entries.tolist() == [0, 6 << 9, 0, 8 << 9]
    written = {step.offset: step.data for step in steps if isinstance(step, Write)}
    assert written[6 << 9] == rows[1].tobytes()
    assert written[8 << 9] == rows[3].tobytes()
    assert len(written) == 3


def test_clusters_side_by_side_are_written_at_once():
    rows = np.ones((3, 512), np.uint8)
    entries, steps, _ = plan.place(piece([1] * 6), rows)
    assert entries.tolist() == [6 << 9, 7 << 9, 8 << 9]
    assert Write(6 << 9, bytes([1]) * 3 * 512) in steps


def test_nothing_is_written_for_a_clean_bitmap():
    start = piece([1] * 6)
    entries, steps, new = plan.place(start, np.zeros((2, 512), np.uint8))
    assert (entries.tolist(), steps, new) == ([0, 0], [], start.image)


def test_a_table_lies_in_one_piece():
    offset, steps, _ = plan.place_run(piece([1] * 6 + [0, 1, 0, 0]), bytes(600))
    assert offset == 8 << 9
    assert Write(8 << 9, bytes(600)) in steps


def test_a_free_cluster_that_holds_a_table_is_not_taken():
    # The refcount block lies in cluster 2, and is counted as free.
    with pytest.raises(BrokenTable, match="host cluster 2 is counted as free, but holds a table"):
        plan.place(piece([1, 1, 0, 1]), np.ones((1, 512), np.uint8))


def test_clusters_are_freed_when_nobody_else_uses_them():
    assert [type(step) for step in plan.release(piece([1] * 16), np.array([14, 15]))][-1] is Write
    assert plan.release(piece([1] * 15 + [2]), np.array([14, 15])) == []
    assert plan.release(piece([1] * 15 + [0]), np.array([14, 15])) == []
    # The header, the refcount table, its block, the L1 table.
    for cluster in (0, 1, 2, 4):
        assert plan.release(piece([1] * 16), np.array([cluster])) == []
    assert plan.release(piece([1] * 16), np.empty(0, np.int64)) == []


def test_the_header_says_where_the_directory_is():
    bare = HEADER._replace(autoclear=qcow2.AUTOCLEAR_RAW_DATA, extensions=(Extension(1, b"one"), Extension(2, b"")))
    named = plan.with_directory(bare, Directory(3, 0x1000, 96))
    assert bitmaps.directory("a", named) == Directory(3, 0x1000, 96)
    moved = plan.with_directory(named, Directory(1, 0x2000, 32))
    assert len(moved.extensions) == 3
    assert bitmaps.directory("a", moved) == Directory(1, 0x2000, 32)
    assert plan.with_directory(moved, None) == bare
