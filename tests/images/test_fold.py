"""Owns the proof that a layer takes over what the others of its group hold, at the printed price, and goes on from a
mark: by picture, by model, and against qemu-img. How it is stopped is tried in test_safety_act.py.
"""

import json
import os
import random
from contextlib import ExitStack
from pathlib import Path

import pytest

from cowtree.chain.view import open_chain
from cowtree.errors import Refused
from cowtree.images import fold, snapshot
from cowtree.images.act import Act
from cowtree.images.create import create
from cowtree.images.fold import Fold
from cowtree.images.merge import open_for_writing, relink
from cowtree.images.order import Order
from cowtree.images.tally import Tally
from cowtree.plan.create import NewImage
from cowtree.plan.family import Family as Kin
from cowtree.plan.family import Member, Merge
from cowtree.plan.put import Cost
from cowtree.storage.contract import Access, FileSystem
from cowtree.storage.file import LocalFiles
from cowtree.storage.memory import MemoryFiles
from cowtree.storage.powercut import find_undurable
from cowtree.storage.recording import Event, RecordingFiles
from tests.crash import snapshot_views
from tests.pictures import CLUSTER_BYTES, Family, draw, family, view
from tests.qemu import RandomChain, assert_clean, content, qemu_img, random_chain
from tests.trees import carry_out, find_journal

MIB = 1 << 20


def run(files: FileSystem, top: tuple[str, str], wanted: Fold, begin: int = 0) -> tuple[int, list[int], Cost]:
    """Fold. Returns: the bytes moved, the marks, and the bill that was printed before."""
    marks: list[int] = []
    tally = Tally(None)
    with ExitStack() as stack:
        chain = open_chain(files, *top, Access.WRITE)
        stack.callback(chain.close)
        if wanted.target:
            chain = open_for_writing(files, stack, chain, wanted.target)
        bill = fold.price(chain, wanted, begin)
        assert fold.survey(chain, wanted, begin) == bill
        fold.run(chain, wanted, tally, begin, marks.append)
    return tally.moved_bytes, marks, bill


def folded(*layers: str, target: int, last: int, raw_base: bool = False, seen: int = 0) -> Family:
    """Fold pictures into one of them, at the printed price. Returns: the family; what lies over the target stays."""
    made = family(*layers, raw_base=raw_base)
    sizes = [len(layer) * CLUSTER_BYTES for layer in layers]
    link = (made.names[last + 1], made.formats[last + 1]) if last + 1 < len(layers) else None
    wanted = Fold(target, last, max(sizes[0], seen * CLUSTER_BYTES), max(sizes[0], sizes[target]), link)
    moved_bytes, _, bill = run(made.files, (made.top, made.formats[0]), wanted)
    assert moved_bytes == bill.moved_bytes
    return made


def test_the_bottom_takes_over_what_lies_above():
    made = folded("A--0-", "-B---", "CCCC-", "DDDDD", target=2, last=2)
    assert (made.seen(2), made.held(2)) == ("ABC0D", "ABC0-")


def test_the_top_takes_over_what_lies_below():
    made = folded("A----", "-B-0-", "CCCC-", "DDDDD", target=0, last=2)
    assert (made.seen(0), made.held(0)) == ("ABC0D", "ABC0-")


def test_the_middle_takes_over_from_both_sides():
    made = folded("A----", "-B-0-", "CCCC-", "DDDDD", target=1, last=2)
    assert (made.seen(1), made.held(1)) == ("ABC0D", "ABC0-")


def test_one_that_stands_alone_in_the_end_holds_no_zeroes_in_vain():
    made = folded("A--0-", "-B---", "CC-CC", target=1, last=2)
    assert (made.seen(1), made.held(1)) == ("AB00C", "AB--C")


def test_compressed_clusters_and_kept_zeroes_are_taken_over():
    made = folded("a-o--", "-bBob", "CcCCC", target=2, last=2)
    assert made.seen(2) == "AB00B"
    made = folded("a-o--", "-bBob", "CcCCC", target=1, last=2)
    assert made.seen(1) == "AB00B"


def test_nothing_that_the_target_holds_already_is_moved():
    made = family("A---", "-BB-", "CC-C")
    moved_bytes, _, _ = run(made.files, (made.top, "qcow2"), Fold(1, 2, 4 * CLUSTER_BYTES, 4 * CLUSTER_BYTES))
    assert moved_bytes == 2 * CLUSTER_BYTES  # A, and the last C
    assert made.seen(1) == "ABBC"


def test_a_raw_target_shows_what_the_top_shows():
    made = folded("A-0-", "-B--", "CCCC", target=2, last=2, raw_base=True)
    assert made.seen(2) == "AB0C"


def test_a_target_that_is_too_short_grows_and_shows_nothing_that_was_hidden():
    made = folded("A----E", "BB", "CCCCCC", target=1, last=1)
    assert made.seen(1) == "AB000E"
    made = folded("A----E", "BB", "CCCCCC", target=1, last=2)
    assert made.seen(1) == "AB000E"


@pytest.mark.parametrize("target", range(3))
def test_a_target_that_is_too_long_is_cut_and_linked(target: int):
    made = family("A--", "-BBBB", "CCCCCC", "DDDDDD")
    wanted = Fold(target, 2, 3 * CLUSTER_BYTES, 3 * CLUSTER_BYTES, (made.names[3], "qcow2"))
    run(made.files, (made.top, "qcow2"), wanted)
    assert (made.seen(target), made.held(target)) == ("ABB", "ABB")
    chain = open_chain(made.files, made.names[target], "qcow2")
    assert [layer.path for layer in chain.layers] == [made.names[target], made.names[3]]
    chain.close()


def test_where_an_overlay_looks_past_the_end_of_the_top_it_sees_zeroes():
    made = folded("A-", "BBBB", target=1, last=1, seen=3)
    assert made.seen(1) == "AB0B"


@pytest.mark.parametrize("target", [1, 2])
def test_internal_snapshots_of_the_target_keep_what_they_hold(target: int):
    made = family("A--0", "-B--", "CCC-", "DDDD")
    snapshot.create(made.files, made.names[target], name="before", time_ns=1)
    before = snapshot_views(made.files, made.names[target])
    run(
        made.files, (made.top, "qcow2"), Fold(target, 2, 4 * CLUSTER_BYTES, 4 * CLUSTER_BYTES, (made.names[3], "qcow2"))
    )
    assert made.seen(target) == "ABC0"
    assert snapshot_views(made.files, made.names[target]) == before


@pytest.mark.parametrize("target", range(3))
@pytest.mark.parametrize("kind", ["subclusters", "data file", "raw data file"])
def test_other_kinds_of_targets_take_over_the_same(kind: str, target: int):
    files = MemoryFiles()
    pictures = ["A--0----" * 8, "-B-----B" * 8, "CCC-C0--" * 8, "D" * 64]
    for index in reversed(range(4)):
        new = NewImage(f"image-{index}", "qcow2", 64 * CLUSTER_BYTES, 9)
        if index == target and kind == "subclusters":
            new = new._replace(cluster_bits=14, has_subclusters=True)
        elif index == target:
            is_raw = kind == "raw data file"
            new = new._replace(data_file=f"image-{index}.data", is_data_file_raw=is_raw)
        if index < 3 and not new.is_data_file_raw:
            new = new._replace(backing_file=f"image-{index + 1}", backing_format="qcow2")
        draw(files, new, pictures[index])
    if kind == "raw data file" and target < 2:
        return  # nothing can back it, so it is the bottom of its group
    last = 2
    link = None if kind == "raw data file" else ("image-3", "qcow2")
    expected = view(files, "image-0", "qcow2")
    moved_bytes, _, bill = run(files, ("image-0", "qcow2"), Fold(target, last, len(expected), len(expected), link))
    assert moved_bytes == bill.moved_bytes
    assert view(files, f"image-{target}", "qcow2") == expected
    if kind == "raw data file":
        assert files.snapshot()["image-2.data"] == expected


def test_what_cannot_be_linked_is_refused_before_anything_changes():
    made = family("A---", "-B--", "CCCC", "DDDD")
    before = made.files.snapshot()
    with pytest.raises(Refused):
        run(made.files, (made.top, "qcow2"), Fold(1, 2, 4 * CLUSTER_BYTES, 4 * CLUSTER_BYTES, ("x" * 1023, "qcow2")))
    assert made.files.snapshot() == before


def large(files: FileSystem, count: int = 8) -> None:
    """Make an overlay that holds so many MiB, and its base."""
    create(files, NewImage("ink", "raw", count * MIB))
    file = files.open("ink", Access.WRITE)
    for index in range(count):
        file.pwrite(index * MIB, bytes([index + 1]) * MIB)
    file.close()
    create(files, NewImage("base", "qcow2", count * MIB))
    create(files, NewImage("top", "qcow2", count * MIB, backing_file="ink", backing_format="raw"))
    run(files, ("top", "qcow2"), Fold(0, 1, count * MIB, count * MIB, None))
    relink(files, "top", "qcow2", backing=("base", "qcow2"))


class Stop(Exception):
    """Somebody pulls the plug."""


def test_a_run_goes_on_from_its_last_mark_and_moves_nothing_twice(monkeypatch):
    monkeypatch.setattr(fold, "MARK_BYTES", 2 * MIB)
    files = MemoryFiles()
    large(files)
    marks: list[int] = []

    def mark(begin: int) -> None:
        marks.append(begin)
        if len(marks) == 4:
            raise Stop

    tally, wanted = Tally(None), Fold(1, 1, 8 * MIB, 8 * MIB)
    with ExitStack() as stack:
        chain = open_chain(files, "top", "qcow2", Access.WRITE)
        stack.callback(chain.close)
        chain = open_for_writing(files, stack, chain, 1)
        with pytest.raises(Stop):
            fold.run(chain, wanted, tally, 0, mark)
    assert marks == [0, 2 * MIB, 4 * MIB, 6 * MIB]
    assert tally.moved_bytes == 6 * MIB
    moved_bytes, more, bill = run(files, ("top", "qcow2"), wanted, marks[-1])
    assert moved_bytes == bill.moved_bytes == 2 * MIB
    assert more == [6 * MIB, 8 * MIB]
    assert view(files, "base", "qcow2") == view(files, "top", "qcow2")


def test_what_is_marked_is_durable(monkeypatch):
    monkeypatch.setattr(fold, "MARK_BYTES", 2 * MIB)
    made = MemoryFiles()
    large(made)
    files, pending = RecordingFiles(made), list[list[Event]]()
    with ExitStack() as stack:
        chain = open_chain(files, "top", "qcow2", Access.WRITE)
        stack.callback(chain.close)
        chain = open_for_writing(files, stack, chain, 1)
        wanted = Fold(1, 1, 8 * MIB, 8 * MIB)
        fold.run(chain, wanted, Tally(None), 0, lambda _: pending.append(find_undurable(files.log)))
    assert pending == [[]] * 5


def test_a_mark_is_not_trusted_when_a_source_has_changed_meanwhile(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = LocalFiles()
    large(files, 2)
    kin = Kin((Member("top", "qcow2", 2 * MIB, 1), Member("base", "qcow2", 2 * MIB)))
    wanted = Order(kin, (Merge((0, 1), 1, 1),), stamp="then")
    chain = open_chain(files, "top", "qcow2")
    journal = find_journal(files, wanted)
    assert journal.begin_of(chain, Act(files, wanted, 0)) == 0
    journal.mark(MIB)
    again = find_journal(files, wanted)
    assert again.begin_of(chain, Act(files, wanted, 0)) == MIB
    os.utime("base", ns=(1, 1))  # the target may change: it is what is written
    assert again.begin_of(chain, Act(files, wanted, 0)) == MIB
    os.utime("top", ns=(1, 1))
    assert again.begin_of(chain, Act(files, wanted, 0)) == 0
    chain.close()


@pytest.mark.slow
@pytest.mark.soak
def test_any_layer_of_a_chain_of_qemu_s_shows_what_its_top_showed(seed: int, tmp_path: Path):
    choose = random.Random(seed)
    made: RandomChain = random_chain(tmp_path, seed, layer_count=choose.randint(2, 4))
    files, names, formats = LocalFiles(), [*map(str, reversed(made.paths))], list(reversed(made.formats))
    expected = content(made.top)
    last = choose.randrange(1, len(names))
    target = choose.randrange(last + 1)
    if formats[target] == "raw" and target < last:
        target = 0
    link = (Path(names[last + 1]).name, formats[last + 1]) if last + 1 < len(names) else None
    wanted = Fold(target, last, len(expected), len(expected), link)
    # A disk of version 2 that has snapshots cannot get another size.
    info = json.loads(qemu_img("info", "--output=json", names[target]))
    is_old = info.get("format-specific", {}).get("data", {}).get("compat") == "0.10"
    if is_old and info.get("snapshots") and info["virtual-size"] != len(expected):
        with pytest.raises(Refused, match="v2 image which has snapshots"):
            run(files, (names[0], formats[0]), wanted)
        return
    moved_bytes, _, bill = run(files, (names[0], formats[0]), wanted)
    assert moved_bytes == bill.moved_bytes
    assert content(Path(names[target]), formats[target]) == expected
    if formats[target] == "qcow2":
        assert_clean(Path(names[target]))


def test_zeroes_over_what_lies_below_stay_zeroes_when_a_larger_cluster_is_written_whole():
    files, size = MemoryFiles(), 2 * 4096
    draw(files, NewImage("low", "qcow2", size, 9), "A" * 16)
    draw(files, NewImage("target", "qcow2", size, 12)._replace(backing_file="low", backing_format="qcow2"), "-" * 16)
    draw(files, NewImage("top", "qcow2", size, 9)._replace(backing_file="target", backing_format="qcow2"), "0B--" * 4)
    kin = Kin((Member("low", "qcow2", size), Member("target", "qcow2", size, 0), Member("top", "qcow2", size, 1)))
    shown = view(files, "top", "qcow2")
    carry_out(files, kin, [Merge((2, 1, 0), 1, 2)])
    assert view(files, "top", "qcow2") == shown
