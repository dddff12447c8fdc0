"""A disk that is served."""

import errno
import random
import threading

import pytest

from cowtree.chain import gate
from cowtree.chain.view import open_chain
from cowtree.errors import CowtreeError, RequestFailed, StorageFailed
from cowtree.live.disk import Disk
from cowtree.nbd.wire import BASE_ALLOCATION
from cowtree.storage.contract import Access, Storage
from cowtree.storage.faults import Fault, FaultyFiles
from cowtree.storage.memory import MemoryFiles
from cowtree.storage.passing import PassingFile
from cowtree.units import KIB
from tests.crash import assert_sound, guest_view
from tests.live.guests import TOP, act_on, act_on_array, make, random_acts, serving
from tests.pictures import CLUSTER_BYTES, Family, family

THREAD_COUNT = 4
PART_BYTES = 128 * KIB


def test_several_threads_each_see_what_they_wrote(seed: int):
    choose = random.Random(seed)
    kinds: list[dict[str, object]] = [{}, {"has_subclusters": True, "cluster_bits": 14}, {"cluster_bits": 16}]
    files = make(choose, THREAD_COUNT * PART_BYTES, **kinds[seed % 3])
    model, wrong = bytearray(guest_view(files, TOP)), list[str]()

    def guest(disk: Disk, number: int) -> None:
        chance, start = random.Random(f"{seed} {number}"), number * PART_BYTES
        try:
            for act in random_acts(chance, PART_BYTES, 40):
                moved = act._replace(offset=act.offset + start)
                act_on(disk, moved)
                act_on_array(model, moved, disk)
                begin = start + chance.randrange(PART_BYTES)
                end = min(begin + 20_000, start + PART_BYTES)
                if disk.read(begin, end - begin) != model[begin:end]:
                    wrong.append(f"thread {number} after {moved}")
                    return
        except CowtreeError as error:
            wrong.append(str(error))

    with serving(files) as disk:
        threads = [threading.Thread(target=guest, args=(disk, number)) for number in range(THREAD_COUNT)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert disk.read(0, disk.size_bytes) == model
    assert guest_view(files, TOP) == model
    assert_sound(files, TOP, is_done=True)


def test_a_drain_holds_what_comes():
    made = family("A---")
    with serving(made.files, made.top) as disk:
        thread = threading.Thread(target=lambda: disk.write(0, memoryview(b"X"), is_durable=False))
        with disk.drain():
            thread.start()
            thread.join(0.05)
            assert thread.is_alive()
        thread.join()
        assert disk.read(0, 2) == b"XA"


def test_nobody_writes_to_what_is_read_only():
    made = family("A-", "BB")
    before = made.files.content(made.top)
    disk = Disk(open_chain(made.files, made.top), is_read_only=True)
    assert disk.read(0, 2 * CLUSTER_BYTES) == b"A" * CLUSTER_BYTES + b"B" * CLUSTER_BYTES
    with pytest.raises(RequestFailed) as caught:
        disk.write(0, memoryview(b"x"), is_durable=False)
    assert caught.value.facts["errno"] == errno.EPERM
    disk.flush()
    disk.close()
    assert made.files.content(made.top) == before
    assert not made.files.held()


def test_what_is_only_read_is_not_changed():
    made = family("A-", "BB")
    before = made.files.snapshot()
    with serving(made.files, made.top) as disk:
        disk.read(0, disk.size_bytes)
        disk.cache(0, disk.size_bytes)
        disk.status(BASE_ALLOCATION, 0, disk.size_bytes)
        disk.flush()
    assert made.files.snapshot() == before


def test_a_closed_disk_may_be_closed_again():
    made = family("A-")
    with serving(made.files, made.top) as disk:
        disk.write(0, memoryview(b"x"), is_durable=False)
        disk.close()
        disk.close()
    assert made.seen() == "?0"


def test_zeroes_that_must_be_written_out_are_not_fast():
    made = family("A" * 4096, "B" * 4096, version=2)
    with serving(made.files, made.top) as disk:
        with pytest.raises(RequestFailed) as caught:
            disk.write_zeroes(0, disk.size_bytes, may_trim=True, is_fast=True, is_durable=False)
        assert caught.value.facts["errno"] == errno.EOPNOTSUPP


@pytest.mark.parametrize("number", range(2, 8))
def test_a_full_disk_is_told_and_nothing_is_lost(number: int):
    made = family("A-----", "BBBBBB")
    codes = []
    with serving(FaultyFiles(made.files, Fault(number, errno.ENOSPC)), made.top) as disk:
        for index in range(1, 6):
            try:
                disk.write(index * CLUSTER_BYTES, memoryview(b"X" * CLUSTER_BYTES), is_durable=False)
            except StorageFailed as error:
                codes.append(error.facts["errno"])
        seen = bytes(disk.read(0, disk.size_bytes))
        disk.flush()
    assert codes == [errno.ENOSPC]
    assert guest_view(made.files, made.top) == seen
    assert seen.count(b"X") == 4 * CLUSTER_BYTES
    # The first of these calls raises a count; when it fails nobody knows how much was counted.
    assert is_dirty(made) == (number == 2)
    with serving(made.files, made.top) as disk:
        disk.write(0, memoryview(b"A"), is_durable=False)
    assert_sound(made.files, made.top, is_done=True)


def is_dirty(made: Family) -> bool:
    """Whether an image says that it was not closed well."""
    layer = gate.open_layer(made.files, made.top)
    layer.close()
    return bool(layer.header and layer.header.is_dirty)


def test_random_acts_on_a_raw_image_end_as_in_a_plain_array():
    files = MemoryFiles({"disk": bytes(PART_BYTES)})
    model = bytearray(PART_BYTES)
    with serving(files, "disk", "raw") as disk:
        for act in random_acts(random.Random(1), PART_BYTES, 50, unit=1):
            act_on(disk, act)
            act_on_array(model, act, disk)
    assert files.content("disk") == model


class HeldUp(PassingFile):
    """A file whose next read waits in the middle of it."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.is_armed, self.reached, self.go_on = False, threading.Event(), threading.Event()

    def pread(self, offset: int, length: int) -> bytes:
        """Read, but wait first when it is armed."""
        if self.is_armed:
            self.is_armed = False
            self.reached.set()
            self.go_on.wait(10)
        return super().pread(offset, length)


def test_what_is_being_read_is_not_given_to_another():
    made = family("AAAA----")
    chain = open_chain(made.files, made.top, "qcow2", Access.WRITE)
    file = HeldUp(chain.top.file)
    disk = Disk(chain.with_layer(0, chain.top._replace(file=file)), is_read_only=False)
    disk.read(0, disk.size_bytes)
    found = list[bytes]()
    reader = threading.Thread(target=lambda: found.append(bytes(disk.read(0, CLUSTER_BYTES))))
    file.is_armed = True
    reader.start()
    file.reached.wait(10)
    disk.trim(0, 4 * CLUSTER_BYTES, is_durable=True)
    for _ in range(3):
        disk.write(4 * CLUSTER_BYTES, memoryview(b"X" * CLUSTER_BYTES * 4), is_durable=True)
        disk.trim(4 * CLUSTER_BYTES, 4 * CLUSTER_BYTES, is_durable=True)
    file.go_on.set()
    reader.join(10)
    assert found == [b"A" * CLUSTER_BYTES]
    disk.close()
    assert_sound(made.files, made.top, is_done=True)
