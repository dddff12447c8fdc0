"""Failing on purpose: where it was asked for, and nowhere else."""

import errno

import pytest

from cowtree.errors import StorageFailed
from cowtree.storage.contract import Access
from cowtree.storage.faults import AFTER, BEFORE, MIDDLE, Fault, FaultyFiles, Killed
from cowtree.storage.memory import MemoryFiles


def work(files):
    """One call of each kind that changes something."""
    file = files.create("new", 0o600)
    try:
        file.pwrite(0, b"abcdef")
        file.write_zeroes(1, 2)
        file.allocate(0, 8)
        file.truncate(7)
        file.flush()
        files.rename("new", "a")
        files.sync_folder(".")
        files.copy_rights("b", "a")
        files.link("a", "c")
        files.unlink("b")
    finally:
        file.close()


CALLS = [
    "create",
    "pwrite",
    "write_zeroes",
    "allocate",
    "truncate",
    "flush",
    "rename",
    "sync_folder",
    "copy_rights",
    "link",
    "unlink",
]
# What the files hold when the first so many calls took effect.
STAGES = [
    {"a": b"old", "b": b"bbb"},
    {"a": b"old", "b": b"bbb", "new": b""},
    {"a": b"old", "b": b"bbb", "new": b"abcdef"},
    {"a": b"old", "b": b"bbb", "new": b"a\0\0def"},
    {"a": b"old", "b": b"bbb", "new": b"a\0\0def\0\0"},
    {"a": b"old", "b": b"bbb", "new": b"a\0\0def\0"},
    {"a": b"old", "b": b"bbb", "new": b"a\0\0def\0"},
    {"a": b"a\0\0def\0", "b": b"bbb"},
    {"a": b"a\0\0def\0", "b": b"bbb"},
    {"a": b"a\0\0def\0", "b": b"bbb"},
    {"a": b"a\0\0def\0", "b": b"bbb", "c": b"a\0\0def\0"},
    {"a": b"a\0\0def\0", "c": b"a\0\0def\0"},
]


def start(fault=None):
    inner = MemoryFiles(STAGES[0])
    return inner, FaultyFiles(inner, fault)


def test_without_a_fault_every_call_passes_and_is_counted():
    inner, files = start()
    work(files)
    assert inner.snapshot() == STAGES[-1]
    assert [call.name for call in files.calls] == CALLS
    assert str(files.calls[1]) == "pwrite new 0+6"


@pytest.mark.parametrize("call", range(len(CALLS)), ids=CALLS)
@pytest.mark.parametrize("moment", [BEFORE, AFTER])
def test_a_process_dies_before_or_after_the_call_took_effect(call, moment):
    inner, files = start(Fault(call, moment=moment))
    with pytest.raises(Killed):
        work(files)
    assert inner.snapshot() == STAGES[call + (moment == AFTER)]


@pytest.mark.parametrize(("code", "error"), [(None, Killed), (errno.EIO, StorageFailed)])
def test_a_write_stops_in_the_middle_at_a_border_of_sectors(code, error):
    inner, files = start(Fault(1, code, MIDDLE))
    file = files.create("new", 0o600)
    with pytest.raises(error):
        file.pwrite(100, b"x" * 2000)
    assert inner.content("new") == bytes(100) + b"x" * 924


def test_a_write_within_a_sector_has_no_middle():
    inner, files = start(Fault(1, moment=MIDDLE))
    file = files.create("new", 0o600)
    with pytest.raises(Killed):
        file.pwrite(600, b"x" * 100)
    assert inner.content("new") == b""


def test_a_dead_process_does_nothing_more_but_its_files_are_closed():
    inner, files = start(Fault(1))
    file = files.create("new", 0o600)
    for act in (
        lambda: file.pwrite(0, b"x"),
        lambda: file.pwrite(0, b"x"),
        file.flush,
        lambda: file.pread(0, 1),
        lambda: file.preadv(0, [memoryview(bytearray(1))]),
        lambda: files.unlink("a"),
        lambda: files.open("a", Access.READ),
        lambda: files.create("c", 0o600),
        lambda: files.identity("a"),
    ):
        with pytest.raises(Killed):
            act()
    assert inner.snapshot() == STAGES[1]
    file.close()
    inner.open("new", Access.WRITE).close()


def test_death_is_no_error_that_somebody_handles():
    assert not issubclass(Killed, Exception)


@pytest.mark.parametrize("call", range(len(CALLS)), ids=CALLS)
def test_an_error_comes_once_and_says_what_failed(call):
    inner, files = start(Fault(call, code=errno.ENOSPC))
    with pytest.raises(StorageFailed, match="No space left on device") as caught:
        work(files)
    assert caught.value.facts["errno"] == errno.ENOSPC
    assert caught.value.facts["action"] == CALLS[call]
    assert inner.snapshot() == STAGES[call]
    files.unlink("b" if call < 9 else "a")


def test_a_sticky_error_comes_again_at_every_call():
    inner, files = start(Fault(2, code=errno.EIO, is_sticky=True))
    with pytest.raises(StorageFailed):
        work(files)
    for act in (lambda: files.unlink("new"), lambda: files.sync_folder("."), lambda: files.create("c", 0o600)):
        with pytest.raises(StorageFailed, match="Input/output error"):
            act()
    assert inner.snapshot() == STAGES[2]


def test_a_full_disk_stays_full_but_can_be_tidied():
    inner, files = start(Fault(2, code=errno.ENOSPC, is_sticky=True))
    with pytest.raises(StorageFailed):
        work(files)
    with pytest.raises(StorageFailed):
        files.create("c", 0o600)
    files.unlink("new")
    files.sync_folder(".")
    assert inner.snapshot() == STAGES[0]


def test_a_flush_that_failed_once_is_never_believed_again():
    _, files = start(Fault(2, code=errno.EIO))
    file = files.create("new", 0o600)
    file.pwrite(0, b"abc")
    for _ in range(2):
        with pytest.raises(StorageFailed, match="Input/output error"):
            file.flush()
    assert len(files.calls) == 3
    file.close()


def test_a_fault_says_what_it_is():
    assert str(Fault(3)) == "death before call 3"
    assert str(Fault(3, code=errno.EIO, moment=MIDDLE)) == "EIO in the middle of call 3"
    assert str(Fault(3, code=errno.ENOSPC, is_sticky=True)) == "ENOSPC for ever before call 3"
