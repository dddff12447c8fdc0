"""The harness itself: it lets a careful operation pass, and finds each kind of carelessness."""

import errno
from functools import partial

import pytest

from cowtree.errors import CowtreeError, StorageFailed
from cowtree.storage.contract import Access
from tests.crash import (
    Trial,
    cut_power_everywhere,
    fail_everywhere,
    kill_everywhere,
    run_through,
    stop_everywhere,
    trial_of_new,
)

INITIAL = {"file": bytes(8192)}
DATA, POINTER = b"data" * 128, b"->" * 256


def check(files, is_done):
    """The pointer is never there without the data; in the end both are."""
    content = files.content("file")
    assert len(content) == 8192
    assert content[:512] in (bytes(512), POINTER)
    if is_done or content[:512] == POINTER:
        assert content[:512] == POINTER
        assert content[4096:4608] == DATA


def operation_of(*steps):
    """An operation on the file, from letters: d(ata), p(ointer), f(lush)."""

    def operate(files):
        file = files.open("file", Access.WRITE)
        try:
            for step in steps:
                {
                    "d": lambda: file.pwrite(4096, DATA),
                    "p": lambda: file.pwrite(0, POINTER),
                    "f": file.flush,
                }[step]()
        finally:
            file.close()

    return operate


def trial(*steps):
    return Trial(INITIAL, operation_of(*steps), check)


def test_a_careful_operation_passes_everything():
    careful = trial(*"dfpf")
    stop_everywhere(careful)
    assert len(careful.states) == 4  # nothing, data, both, and both when it is done


def test_a_wrong_order_is_found_by_a_kill():
    with pytest.raises(AssertionError, match="killed before call 1 of 4: flush file"):
        kill_everywhere(trial(*"pfdf"))


@pytest.mark.parametrize("stop", [cut_power_everywhere, fail_everywhere])
def test_a_missing_flush_is_found_by_a_power_cut_and_not_by_a_kill(stop):
    kill_everywhere(trial(*"dpf"))
    with pytest.raises(AssertionError, match="the power goes after"):
        stop(trial(*"dpf"))


def test_an_end_that_is_not_durable_is_found():
    with pytest.raises(AssertionError, match="Wrote"):
        run_through(trial(*"dfp"))


def test_an_end_that_is_wrong_is_found():
    with pytest.raises(AssertionError, match="it ends well"):
        run_through(trial(*"df"))


def test_an_error_that_is_swallowed_is_found():
    def careless(files):
        try:
            operation_of(*"dfpf")(files)
        except StorageFailed:
            return

    with pytest.raises(AssertionError, match="ENOSPC before call 0 of 4: pwrite file 4096"):
        fail_everywhere(Trial(INITIAL, careless, check))


def test_a_flush_that_is_tried_again_and_believed_is_found():
    def careless(files):
        operation_of("d")(files)
        for _ in range(2):
            try:
                operation_of(*"fpf")(files)
            except StorageFailed as error:
                # A fresh handle would say yes now; the pages are lost all the same.
                if error.facts["errno"] == errno.EIO:
                    continue
                raise
            return

    with pytest.raises(AssertionError):
        fail_everywhere(Trial(INITIAL, careless, check))


def test_another_error_than_the_one_that_happened_is_found():
    def careless(files):
        try:
            operation_of(*"dfpf")(files)
        except StorageFailed as error:
            raise StorageFailed(path="file", action="write", reason="?", errno=errno.EPERM) from error

    with pytest.raises(AssertionError, match="ENOSPC before call 0"):
        fail_everywhere(Trial(INITIAL, careless, check))


def test_a_handler_that_writes_after_a_kill_changes_nothing():
    def tidy(files):
        try:
            operation_of(*"dfpf")(files)
        except BaseException:
            files.unlink("file")
            raise

    with pytest.raises(AssertionError, match="ENOSPC before call 0"):
        stop_everywhere(Trial(INITIAL, tidy, check))
    kill_everywhere(Trial(INITIAL, tidy, check))


def test_a_file_that_stays_open_is_found():
    def careless(files):
        file = files.open("file", Access.WRITE)
        file.pwrite(4096, DATA)
        file.close()
        files.open("file", Access.READ)

    with pytest.raises(AssertionError, match="still open"):
        run_through(Trial(INITIAL, careless, check))


def test_a_second_run_that_fails_is_found():
    def once(files):
        file = files.open("file", Access.READ)
        was_begun = file.pread(4096, 512) == DATA
        file.close()
        if was_begun:
            raise CowtreeError(reason="it has begun already")
        operation_of(*"dfpf")(files)

    with pytest.raises(AssertionError, match="and then it is run again"):
        kill_everywhere(Trial(INITIAL, once, check))


def make(files, steps):
    """Make the file `new`, from letters: c(reate), w(rite), f(lush), r(ename), s(ync the folder)."""
    file = files.create("temporary" if "r" in steps else "new", 0o600)
    try:
        for step in steps:
            {
                "w": lambda: file.pwrite(0, DATA),
                "f": file.flush,
                "r": lambda: files.rename("temporary", "new"),
                "s": lambda: files.sync_folder("."),
            }[step]()
    finally:
        file.close()


def test_a_partial_file_under_the_final_name_is_found():
    for careless in ("wfs", "wrfs"):
        with pytest.raises(AssertionError):
            cut_power_everywhere(trial_of_new({}, partial(make, steps=careless), ["new"]))


def test_a_name_that_is_not_durable_is_found():
    with pytest.raises(AssertionError, match="Renamed"):
        run_through(trial_of_new({}, lambda files: make(files, "wfr"), ["new"]))
