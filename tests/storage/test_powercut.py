"""The power cut: which states it finds, and that it finds the bad ones."""

import random
import time

from cowtree.storage.contract import Access
from cowtree.storage.memory import MemoryFiles
from cowtree.storage.powercut import RANDOM_COUNT, durable_states, find_undurable
from cowtree.storage.recording import (
    Created,
    Event,
    FolderSynced,
    Linked,
    Opened,
    RecordingFiles,
    Renamed,
    Synced,
    Truncated,
    Unlinked,
    Wrote,
    Zeroed,
)

A = Opened("a", 1)


def states(initial, *log):
    return [state.files.snapshot() for state in durable_states(initial, log, 0)]


def contents(initial, *log):
    """All that the file `a` may hold."""
    return sorted(state["a"] for state in states({"a": initial}, A, *log))


def test_before_anything_happens_all_is_as_it_was():
    assert states({"a": b"abc", "b": b""}) == [{"a": b"abc", "b": b""}]


def test_a_state_counts_again_after_a_mark():
    log: list[Event] = [A, Wrote(1, 0, b"x"), Synced(1), Synced(1)]
    found = list(durable_states({"a": b"x"}, log, 0, marks=[3]))
    assert [(state.number, state.files.content("a")) for state in found] == [(0, b"x"), (3, b"x")]


def test_a_write_is_there_or_not_until_it_is_synced():
    assert contents(b"..", Wrote(1, 0, b"x")) == [b"..", b"x."]
    assert contents(b"..", Wrote(1, 0, b"x"), Synced(1), Wrote(1, 1, b"y")) == [b"..", b"x.", b"xy"]


def test_a_few_writes_are_tried_in_every_combination():
    log = [Wrote(1, index, b"x") for index in range(4)]
    assert len(contents(b"....", *log)) == 16


def test_of_many_writes_some_combinations_are_tried_and_each_alone_and_each_missing():
    log = [Wrote(1, index, b"x") for index in range(30)]
    found = set(contents(b"." * 30, *log))
    for cut in range(5, 31):
        whole = b"x" * cut + b"." * (30 - cut)
        assert whole in found
        for index in range(cut):
            assert whole[:index] + b"." + whole[index + 1 :] in found
            assert b"." * index + b"x" + b"." * (29 - index) in found
    assert len(found) <= 2**4 + sum(2 + 2 * cut + RANDOM_COUNT for cut in range(5, 31))
    assert len(found) > sum(range(5, 31))


def test_a_pointer_without_its_data_is_found_when_no_sync_parts_them():
    data, pointer = Wrote(1, 1000, b"DATA"), Wrote(1, 0, b"->")
    bad = [each for each in contents(bytes(1004), data, pointer) if each[:2] == b"->" and each[1000:] != b"DATA"]
    assert bad
    good = contents(bytes(1004), data, Synced(1), pointer)
    assert all(each[1000:] == b"DATA" for each in good if each[:2] == b"->")


def test_a_sync_of_another_file_helps_nothing():
    log = [A, Opened("b", 2), Wrote(1, 0, b"x"), Wrote(2, 0, b"y"), Synced(2), Wrote(2, 1, b"z")]
    found = states({"a": b".", "b": b"."}, *log)
    assert {"a": b".", "b": b"yz"} in found
    assert {"a": b".", "b": b".z"} not in found


def test_the_last_write_is_torn_at_sectors():
    found = contents(bytes(2048), Wrote(1, 100, b"x" * 1500))
    torn = {len(each.strip(b"\0")) for each in found}
    assert torn == {0, 1500, 412, 924, 1436, 1088, 576, 64}
    # Sectors reach the disk in any order.
    assert bytes(512) + b"x" * 1088 + bytes(448) in found


def test_what_went_before_a_torn_write_may_be_there_or_not():
    found = contents(bytes(1536), Wrote(1, 1024, b"x" * 512), Wrote(1, 0, b"y" * 1024))
    assert b"y" * 512 + bytes(512) + b"x" * 512 in found
    assert b"y" * 512 + bytes(1024) in found


def test_a_write_within_a_sector_is_never_torn():
    assert len(contents(bytes(1024), Wrote(1, 512, b"x" * 512))) == 2


def test_a_write_that_was_not_last_is_torn_when_it_was():
    found = contents(bytes(1024), Wrote(1, 0, b"x" * 1024), Wrote(1, 0, b"y"))
    assert b"x" * 512 + bytes(512) in found


def test_zeroes_and_ends_are_lost_like_writes():
    assert contents(b"abc", Zeroed(1, 1, 1)) == [b"a\0c", b"abc"]
    assert contents(b"abc", Truncated(1, 1), Wrote(1, 2, b"x")) == [b"a", b"a\0x", b"abc", b"abx"]


def test_without_a_sync_of_the_folder_a_name_is_lost():
    log: list[Event] = [Created("new", 1), Wrote(1, 0, b"x"), Synced(1), Renamed("new", "a", 1)]
    found = states({"a": b"old"}, *log)
    assert {"a": b"old"} in found
    assert {"a": b"x"} in found
    after_sync: list[Event] = [*log, FolderSynced("."), Opened("b", 2), Wrote(2, 0, b"y")]
    ended = [state for state in durable_states({"a": b"old", "b": b""}, after_sync, 0) if "after 7" in state.how]
    assert [state.files.content("a") for state in ended] == [b"x"]


def test_a_new_name_without_its_content_is_found():
    log = [Created("new", 1), Wrote(1, 0, b"x"), Renamed("new", "a", 1), FolderSynced(".")]
    assert {"a": b""} in states({"a": b"old"}, *log)
    synced = [log[0], log[1], Synced(1), *log[2:]]
    assert {"a": b""} not in states({"a": b"old"}, *synced)


def test_only_the_folder_that_was_synced_is_durable():
    names = [Opened("x/a", 1), Opened("y/b", 2), Unlinked("x/a", 1), Unlinked("y/b", 2)]
    found = states({"x/a": b"", "y/b": b"", "c": b""}, *names, FolderSynced("x"), Opened("c", 3), Wrote(3, 0, b"!"))
    late = [state for state in found if state["c"]]
    assert late == [{"c": b"!", "y/b": b""}, {"c": b"!"}]


def test_a_file_whose_name_is_lost_takes_its_content_along():
    found = states({}, Created("a", 1), Wrote(1, 0, b"x"), Synced(1))
    assert found == [{}, {"a": b""}, {"a": b"x"}]


def test_each_state_comes_once_and_says_how_it_came_about():
    log: list[Event] = [A, Wrote(1, 0, b"x"), Wrote(1, 0, b"x"), Wrote(1, 1, b"y" * 600)]
    found = list(durable_states({"a": b"...."}, log, 0))
    snapshots = [state.files.content("a") for state in found]
    assert len(set(snapshots)) == len(snapshots)
    assert [state.how for state in found[:2]] == [
        "the power goes after 0 of 4 events",
        "the power goes after 2 of 4 events",
    ]
    assert (
        "the power goes after 4 of 4 events\n"
        "event 1 is lost: Wrote(1, 0+1)\n"
        "event 2 is lost: Wrote(1, 0+1)\n"
        "of Wrote(1, 1+600) only Wrote(1, 1+511)"
    ) in [state.how for state in found]


def test_what_is_not_durable_at_the_end_is_named():
    log: list[Event] = [
        A,
        Wrote(1, 0, b"x"),
        Synced(1),
        Wrote(1, 1, b"y"),
        Renamed("a", "b", 1),
        Renamed("b", "x/c", 1),
    ]
    assert find_undurable(log) == log[3:]
    assert find_undurable([*log, Synced(1), FolderSynced(".")]) == log[5:]
    assert find_undurable([*log, Synced(1), FolderSynced("."), FolderSynced("x")]) == []


def test_a_link_is_there_or_not_and_a_replaced_name_never_misses():
    log: list[Event] = [Opened("old", 1), Opened("new", 2), Linked("kept", 1), Renamed("new", "old", 2)]
    states = [sorted(state.files.snapshot().items()) for state in durable_states({"old": b"o", "new": b"n"}, log, 0)]
    before, after, kept = [("new", b"n"), ("old", b"o")], [("old", b"n")], ("kept", b"o")
    assert sorted(states) == sorted([before, [kept, *before], after, [kept, *after]])


def test_the_same_seed_gives_the_same_states():
    log: list[Event] = [A]
    log += [Wrote(1, 1000 * index, b"x" * 1000) for index in range(12)]
    once, again, other = ([state.how for state in durable_states({"a": b""}, log, seed)] for seed in (1, 1, 2))
    assert once == again != other


def test_a_recorded_run_ends_as_it_did_and_a_state_can_be_written():
    inner = MemoryFiles({"a": b"abc"})
    files = RecordingFiles(inner)
    file = files.open("a", Access.WRITE)
    file.pwrite(1, b"X" * 10)
    file.truncate(5)
    file.flush()
    files.rename("a", "b")
    files.sync_folder(".")
    *_, last = durable_states({"a": b"abc"}, files.log, 0)
    assert last.files.snapshot() == inner.snapshot() == {"b": b"aXXXX"}
    state = next(iter(durable_states({"a": b"abc"}, files.log, 0)))
    state.files.open("a", Access.WRITE).pwrite(0, b"!")
    assert inner.snapshot() == {"b": b"aXXXX"}
    assert next(iter(durable_states({"a": b"abc"}, files.log, 0))).files.content("a") == b"abc"


def test_forty_events_on_an_image_of_a_mebibyte_take_a_moment():
    choose = random.Random(0)
    log: list[Event] = [A]
    for index in range(40):
        log.append(Wrote(1, choose.randrange(1 << 20), choose.randbytes(choose.choice([8, 512, 65536]))))
        if index % 10 == 9:
            log.append(Synced(1))
    begin = time.process_time()
    count = sum(1 for _ in durable_states({"a": bytes(1 << 20)}, log, 0))
    assert count > 500
    assert time.process_time() - begin < 4
