"""Host clusters that are counted ahead."""

import numpy as np
import pytest

from cowtree.chain import load
from cowtree.chain.view import open_chain
from cowtree.errors import StorageFailed
from cowtree.images.create import create
from cowtree.live.room import AHEAD_COUNT_MIN, Room
from cowtree.plan.create import NewImage
from cowtree.storage.contract import Access
from cowtree.storage.faults import Fault, FaultyFiles
from cowtree.storage.memory import MemoryFiles
from tests.crash import assert_sound


def room_of(files) -> Room:
    """The room of an empty image with clusters of 512 bytes."""
    chain = open_chain(files, "image", "qcow2", Access.WRITE)
    image = chain.images[0]
    assert image is not None
    return Room(chain.top.file, image)


@pytest.fixture
def files() -> MemoryFiles:
    """An empty image."""
    found = MemoryFiles()
    create(found, NewImage("image", "qcow2", 1 << 20, 9))
    return found


def counts(room: Room, clusters: list[int]) -> list[int]:
    """What the file counts."""
    wanted = np.array(clusters)
    return [int(count) for count in load.load_counts(room._file, room.image, wanted, 0).get(wanted)]


def test_what_is_taken_is_counted_once(files: MemoryFiles):
    room = room_of(files)
    taken = room.take(3) + room.take(1000)
    assert len(set(taken)) == 1003
    assert set(counts(room, taken)) == {1}


def test_clusters_are_counted_ahead_and_given_back(files: MemoryFiles):
    room = room_of(files)
    first = room.take(1)[0]
    ahead = list(range(first, first + AHEAD_COUNT_MIN))
    assert counts(room, ahead) == [1] * AHEAD_COUNT_MIN
    room.put_back([first])
    room.give_back()
    assert counts(room, ahead) == [0] * AHEAD_COUNT_MIN
    room._file.close()
    assert_sound(files, "image", is_done=True)


def test_what_was_put_back_is_taken_next(files: MemoryFiles):
    room = room_of(files)
    taken = room.take(5)
    room.put_back(taken[1:3])
    assert room.take(2) == taken[1:3]


def test_what_nobody_uses_any_more_becomes_a_hole(files: MemoryFiles):
    room = room_of(files)
    taken = room.take(2)
    for cluster in taken:
        room._file.pwrite(cluster << 9, b"x" * 512)
    room.release(np.array(taken[:1]))
    assert [room._file.pread(cluster << 9, 1) for cluster in taken] == [b"\0", b"x"]
    assert room.take(1) == taken[:1]
    assert room.is_hole(taken[0])


def test_what_was_never_written_is_known_once(files: MemoryFiles):
    room = room_of(files)
    cluster = room.take(1)[0]
    assert room.is_hole(cluster)
    assert not room.is_hole(cluster)
    assert not room.is_hole(0)


def test_a_failure_leaves_doubt():
    files = MemoryFiles()
    create(files, NewImage("image", "qcow2", 1 << 20, 9))
    room = room_of(FaultyFiles(files, Fault(0, 28)))
    with pytest.raises(StorageFailed):
        room.take(1)
    assert room.is_doubtful
    assert room.take(1)


def test_more_than_is_needed_is_not_kept(files: MemoryFiles, monkeypatch):
    monkeypatch.setattr("cowtree.live.room.AHEAD_BYTES_MAX", 4 << 9)
    room = room_of(files)
    taken = room.take(20)
    room.release(np.array(taken))
    assert sorted(counts(room, taken)) == [0] * 16 + [1] * 4
