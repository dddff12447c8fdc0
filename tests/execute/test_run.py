"""Owns the proof that steps are carried out as they stand."""

import numpy as np
import pytest

from cowtree import extents as ex
from cowtree.chain.view import Chain, open_chain
from cowtree.errors import StorageFailed
from cowtree.execute.run import run
from cowtree.monitor import Counting
from cowtree.steps import Allocate, Flush, Move, Step, Truncate, Write, Zero
from cowtree.storage.contract import Access
from cowtree.storage.memory import MemoryFiles
from cowtree.storage.recording import Opened, RecordingFiles, Synced, Truncated, Wrote, Zeroed


def test_each_step_is_one_change_of_the_file_in_its_order():
    files = RecordingFiles(MemoryFiles({"source": b"0123456789", "target": b""}))
    chain = open_chain(files, "source", "raw")
    source = ex.concatenate([ex.single(0, 4, ex.DATA, host_offset=6), ex.single(4, 6, ex.ZERO)])
    counting = Counting()
    target = files.open("target", Access.WRITE)
    steps: list[Step] = [
        Write(0, b"abcdef"),
        Zero(2, 2),
        Flush(),
        Move(source, np.array([10, 14])),
        Truncate(18),
        Allocate(0, 18),
        Flush(),
    ]
    run(steps, target, chain, counting)
    assert target.pread(0, 20) == b"ab\0\0ef" + bytes(4) + b"6789" + bytes(6)
    assert target.size_bytes == 18
    assert counting.moved_bytes == 6
    kinds = [type(event) for event in files.log if isinstance(event, Wrote | Zeroed | Synced | Truncated)]
    assert kinds[:3] == [Wrote, Zeroed, Synced]
    assert kinds[-1] == Synced
    assert kinds.index(Truncated) > kinds.index(Wrote, 3)
    chain.close()


def test_guest_data_goes_to_its_own_file_and_is_durable_before_what_follows():
    files = RecordingFiles(MemoryFiles({"source": b"0123", "target": b"", "data": b""}))
    chain = open_chain(files, "source", "raw")
    target, data = (files.open(name, Access.WRITE) for name in ("target", "data"))
    move = Move(ex.single(0, 4, ex.DATA), np.array([2]))
    run([move, Flush(), Write(0, b"table")], target, chain, Counting(), data)
    assert data.pread(0, 6) == bytes(2) + b"0123"
    assert target.pread(0, 8) == b"table" + bytes(3)
    number = {event.path: event.file for event in files.log if isinstance(event, Opened)}
    events = [(type(event), event.file) for event in files.log if isinstance(event, Wrote | Synced)]
    assert events[:2] == [(Wrote, number["data"]), (Synced, number["data"])]
    assert events[2:] == [(Synced, number["target"]), (Wrote, number["target"])]
    chain.close()


def test_nothing_is_done_behind_a_failure():
    files = MemoryFiles({"target": b"old"})
    target = files.open("target", Access.READ)
    with pytest.raises(StorageFailed):
        run([Write(0, b"new"), Truncate(0)], target, Chain((), ()), Counting())
    assert files.content("target") == b"old"
