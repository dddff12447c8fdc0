"""Owns the proof that bench sends the requests that it says, and that what it writes is as safe as any other change."""

import numpy as np
import pytest

from cowtree.chain.view import open_chain
from cowtree.errors import Refused
from cowtree.images import bench
from cowtree.images.bench import Load
from cowtree.storage.contract import Access
from cowtree.storage.recording import RecordingFiles, Synced
from tests.crash import (
    Trial,
    assert_sound,
    cut_power_everywhere,
    fail_everywhere,
    guest_view,
    kill_everywhere,
)
from tests.pictures import CLUSTER_BYTES, Family, family


def offsets_of(load: Load, size_bytes: int) -> list[list[int]]:
    """The offsets of each batch."""
    return [each.tolist() for each in load.batches(size_bytes)]


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        (Load(5, 2, 10, 0, 10), [[0, 10], [20, 30], [40]]),
        (Load(5, 9, 10, 80, 10), [[80, 90, 0, 10, 20]]),
        (Load(3, 1, 10, 90, 30), [[90], [20], [50]]),
        (Load(7, 2, 0, 5, 0, 0, 3), [[5, 5], [5], [5, 5], [5], [5]]),
        (Load(2, 0, 10, 0, 200), [[0], [0]]),
        (Load(0), []),
    ],
)
def test_requests_follow_each_other_round_the_disk(load: Load, expected: list[list[int]]):
    assert offsets_of(load, 100) == expected


@pytest.mark.parametrize(
    ("load", "size_bytes"), [(Load(2, 2, 60, 0, 60), 100), (Load(1, 1, 1, 200, 1), 100), (Load(1), 0)]
)
def test_no_request_reaches_past_the_end(load: Load, size_bytes: int):
    with pytest.raises(Refused, match="Failed request: Input/output error"):
        offsets_of(load, size_bytes)


def test_a_request_reads_what_the_guest_sees():
    made = family("A-0-a-bB", "BC-D--EE", "------FF")
    view = guest_view(made.files, made.top)
    chain = open_chain(made.files, made.top)
    reader, offsets = bench._Reader(chain, 700), np.arange(0, len(view) - 700, 100)
    assert {offset: bytes(reader.read((offset, parts))) for offset, parts in reader.plan(offsets)} == {
        offset: view[offset : offset + 700] for offset in offsets.tolist()
    }
    bench.read(chain, Load(17, 8, 600, 100, 200))
    chain.close()


def test_requests_may_cross_the_windows_in_which_tables_are_read(monkeypatch):
    monkeypatch.setattr(bench, "windows", lambda chain, stop: [(0, 1024), (1024, 2048), (2048, stop)])
    test_a_request_reads_what_the_guest_sees()


def written(made: Family, load: Load, files=None) -> None:
    """Send writes to the top of a family."""
    chain = open_chain(files or made.files, made.top, None, Access.WRITE)
    try:
        bench.write(chain, load)
    finally:
        chain.close()


def test_writes_write_the_byte_that_is_asked_for_and_keep_the_rest():
    made = family("A-0-a-bB", "BC-D--EE")
    view = bytearray(guest_view(made.files, made.top))
    written(made, Load(3, 2, 700, 500, 1024, 33))
    for offset in (500, 1524, 2548):
        view[offset : offset + 700] = b"!" * 700
    assert guest_view(made.files, made.top) == view
    assert_sound(made.files, made.top, is_done=True)


def test_long_and_overlapping_requests_are_written_whole(monkeypatch):
    monkeypatch.setattr(bench, "INK_BYTES_MAX", 100)
    made = family("A-0-a-bB")
    written(made, Load(3, 3, 3000, 0, 300, 90))
    assert guest_view(made.files, made.top) == b"Z" * 3600 + b"B" * (8 * CLUSTER_BYTES - 3600)


def test_nothing_is_written_by_requests_of_no_length():
    made = family("A-0-")
    before = made.files.snapshot()
    written(made, Load(9, 2, 0, 0, 0))
    assert made.files.snapshot() == before


def test_what_lies_far_apart_is_written_by_calls_of_its_own():
    offsets = np.array([9 << 20, 0, 4096, 64 << 20, 66 << 20])
    groups = [ranges.start.tolist() for ranges in bench._groups(offsets, 4096)]
    assert groups == [[0], [9 << 20], [64 << 20, 66 << 20]]


def test_writes_are_made_durable_as_often_as_is_asked_for():
    counts = []
    for interval in (0, 2, 6):
        made = family("ABCDEF")
        files = RecordingFiles(made.files)
        written(made, Load(6, 1, 512, 0, 512, 33, interval), files)
        counts.append(len([event for event in files.log if isinstance(event, Synced)]))
    assert [count - counts[0] for count in counts] == [0, 3, 1]


def test_a_failed_request_leaves_the_image_clean():
    made = family("A--D", "EFGH")
    with pytest.raises(Refused):
        written(made, Load(9, 1, 700, 0, 700, 33))
    assert_sound(made.files, made.top, is_done=True)


@pytest.mark.slow
def test_writes_can_be_stopped_everywhere():
    made = family("A-0-a", "BC-DE")
    old = guest_view(made.files, made.top)
    new = b"!" * 2048 + old[2048:]

    def check(files, is_done):
        assert_sound(files, made.top, is_done=is_done)
        view = guest_view(files, made.top)
        assert all(byte in (ord("!"), before) for byte, before in zip(view, old, strict=True))
        assert not is_done or view == new

    def operation(files):
        written(made, Load(2, 1, 1024, 0, 1024, 33), files)

    trial = Trial(made.files.snapshot(), operation, check)
    kill_everywhere(trial)
    cut_power_everywhere(trial)
    fail_everywhere(trial)
