"""The log that the power cut replays."""

import pytest

from cowtree.errors import ImageLocked, StorageFailed
from cowtree.storage.contract import Access
from cowtree.storage.faults import Fault, FaultyFiles
from cowtree.storage.file import LocalFiles
from cowtree.storage.memory import MemoryFiles
from cowtree.storage.recording import (
    Created,
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


def test_everything_that_a_power_cut_could_undo_is_logged_in_order():
    files = RecordingFiles(MemoryFiles({"a": b"abc"}))
    file = files.open("./a", Access.WRITE)
    buffer = bytearray(b"xy")
    file.pwrite(1, memoryview(buffer))
    buffer[:] = b"!!"  # who wrote may use its buffer again
    file.write_zeroes(10, 5)
    file.allocate(0, 5)
    file.allocate(0, 20)
    file.truncate(12)
    file.flush()
    file.close()
    new = files.create("b", 0o600)
    new.flush()
    files.rename("b", "c")
    files.sync_folder(".")
    files.link("c", "d")
    files.unlink("a")
    assert files.log == [
        Opened("a", 1),
        Wrote(1, 1, b"xy"),
        Zeroed(1, 10, 5),
        Truncated(1, 20),
        Truncated(1, 12),
        Synced(1),
        Created("b", 2),
        Synced(2),
        Renamed("b", "c", 2),
        FolderSynced("."),
        Linked("d", 2),
        Unlinked("a", 1),
    ]


@pytest.mark.parametrize("make", [MemoryFiles, LocalFiles])
def test_a_file_keeps_its_number_and_a_new_one_gets_another(make, tmp_path):
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    make_once = make()
    files = RecordingFiles(make_once)
    files.create(a, 0o600).close()
    files.rename(a, b)
    files.open(b, Access.READ).close()
    files.unlink(b)
    files.create(a, 0o600).close()
    assert files.log == [Created(a, 1), Renamed(a, b, 1), Unlinked(b, 1), Created(a, 2)]


def test_emptying_a_leftover_is_no_new_name():
    files = RecordingFiles(MemoryFiles({"a": b"abc"}))
    files.create("a", 0o600).close()
    assert files.log == [Opened("a", 1), Truncated(1, 0)]


def test_reading_and_what_failed_leave_no_trace():
    inner = MemoryFiles({"a": b"abc"})
    files = RecordingFiles(inner)
    file = files.open("a", Access.READ)
    assert file.pread(0, 3) == b"abc"
    acts = (lambda: file.pwrite(0, b"x"), lambda: files.create("a", 0o600), lambda: files.unlink("b"))
    for act in (*acts, lambda: files.rename("b", "c")):
        with pytest.raises((StorageFailed, ImageLocked)):
            act()
    assert files.log == [Opened("a", 1)]
    assert inner.snapshot() == {"a": b"abc"}


def test_what_a_kill_cut_short_is_logged_as_far_as_it_went():
    recording = RecordingFiles(MemoryFiles({"a": b"abc"}))
    file = FaultyFiles(recording, Fault(0, code=28, moment="in the middle of")).open("a", Access.WRITE)
    with pytest.raises(StorageFailed):
        file.pwrite(0, b"x" * 1024)
    assert recording.log == [Opened("a", 1), Wrote(1, 0, b"x" * 512)]
