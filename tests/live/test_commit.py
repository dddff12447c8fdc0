"""Merging layers below the one that is written."""

import errno
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cowtree.chain.view import open_chain
from cowtree.errors import ImageLocked, NotInChain, Refused, StorageFailed, WrongUse
from cowtree.images import fold
from cowtree.images.create import create
from cowtree.live.commit import Commit, Wanted
from cowtree.live.disk import Disk
from cowtree.live.snapshot import snapshot
from cowtree.monitor import Silent
from cowtree.plan.create import NewImage
from cowtree.plan.family import Family as Images
from cowtree.plan.permit import Permit
from cowtree.storage.contract import Access, FileSystem
from cowtree.storage.faults import Fault, FaultyFiles
from cowtree.storage.file import LocalFiles
from cowtree.storage.memory import MemoryFiles
from tests.crash import assert_sound, guest_view
from tests.live.guests import act_on, act_on_array, random_acts, serving
from tests.live.writers import busy, open_disk
from tests.permits import permit_for
from tests.pictures import CLUSTER_BYTES, family
from tests.qemu import assert_clean, content, qemu_img, qemu_io

SIZE_BYTES = 64 << 10


class Watching(Silent):
    """Does something whenever something has moved."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act

    def advance(self, moved_bytes: int) -> None:
        """Do it."""
        self._act()


def commit_of(files: FileSystem, disk: Disk, top: str, base: str, act: Callable[[], object] = int) -> Commit:
    """A job, with a permit."""
    return Commit(files, disk, Wanted(top, base, permit_for(files, top)), Watching(act))


def chain_of(files: FileSystem, path: str) -> list[str]:
    """The paths of a chain, the top first."""
    chain = open_chain(files, path)
    chain.close()
    return [layer.path for layer in chain.layers]


def random_files(choose: random.Random, count: int) -> tuple[MemoryFiles, list[str]]:
    """A chain of images with something in each, of clusters and sizes that differ. Returns: also its paths, the top
    first.
    """
    files, paths = MemoryFiles(), list[str]()
    for number in range(count):
        kind = choose.choice(({"cluster_bits": 9}, {"cluster_bits": 12}, {"has_subclusters": True, "cluster_bits": 14}))
        size_bytes = (
            SIZE_BYTES if number == count - 1 else choose.choice((SIZE_BYTES, SIZE_BYTES - 5 * 512, SIZE_BYTES // 2))
        )
        new = NewImage(f"layer{number}", "qcow2", size_bytes)._replace(**kind)  # type: ignore[arg-type]
        if paths:
            new = new._replace(backing_file=paths[0], backing_format="qcow2")
        create(files, new)
        paths.insert(0, new.path)
        with serving(files, new.path) as disk:
            for act in random_acts(choose, size_bytes, 10):
                act_on(disk, act)
    return files, paths


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [(1, 3, ["A---E", "DCBDE"]), (1, 2, ["A---E", "-CB--", "DDDDE"]), (2, 3, ["A---E", "--B--", "DCCDE"])],
)
def test_the_base_takes_over_what_the_others_show(first: int, last: int, expected: list[str]):
    made = family("A---E", "--B--", "-CC--", "DDDDE")
    paths = chain_of(made.files, made.top)
    with serving(made.files, made.top) as disk:
        disk.write(0, memoryview(b"x"), is_durable=False)
        seen = disk.read(0, disk.size_bytes)
        done = commit_of(made.files, disk, paths[first], paths[last]).run()
        assert done is not None
        assert list(done.paths) == paths[first:last]
        assert disk.read(0, disk.size_bytes) == seen
        assert len(disk.layers.numbers) == len(paths) - (last - first)
        made.files.open(paths[first], Access.WRITE).close()
        disk.write(1, memoryview(b"y"), is_durable=True)
    assert guest_view(made.files, made.top) == b"xy" + seen[2:]
    left = paths[:first] + paths[last:]
    assert chain_of(made.files, made.top) == left
    for path, picture in zip(left[1:], expected[1:], strict=True):
        alone = guest_view(made.files, path)
        for index, sign in enumerate(picture):
            if sign != "-":
                assert alone[index * CLUSTER_BYTES : (index + 1) * CLUSTER_BYTES] == sign.encode() * CLUSTER_BYTES
        assert_sound(made.files, path, is_done=True)


def test_random_chains_show_the_same_at_every_moment(seed: int):
    choose = random.Random(seed)
    files, paths = random_files(choose, 6)
    model = bytearray(guest_view(files, paths[0]))
    with serving(files, paths[0]) as disk:
        count = 0

        def act() -> None:
            nonlocal count
            count += 1
            for each in random_acts(choose, SIZE_BYTES, 2):
                act_on(disk, each)
                act_on_array(model, each, disk)
            assert disk.read(0, SIZE_BYTES) == model
            if not count % 4:
                paths.insert(0, f"new{count}")
                snapshot(files, [disk], paths[:1])

        while len(paths) > 3:
            first = choose.randrange(1, len(paths) - 1)
            last = choose.randrange(first + 1, len(paths))
            top, base = paths[first], paths[last]
            assert commit_of(files, disk, top, base, act).run() is not None
            del paths[paths.index(top) : paths.index(base)]
            assert disk.read(0, SIZE_BYTES) == model
    assert chain_of(files, paths[0]) == paths
    assert guest_view(files, paths[0]) == model
    for path in paths:
        assert_sound(files, path, is_done=True)


def test_what_the_base_lets_go_is_not_used_while_somebody_reads_it(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(fold, "MARK_BYTES", 1 << 20)
    raw, base, mid, top = (tmp_path / name for name in ("raw", "base.qcow2", "mid.qcow2", "top.qcow2"))
    count, size = 128, 64 << 10
    # A cluster that is packed takes more than half of one.
    noise = random.Random(1).randbytes(40 << 10)
    raw.write_bytes(b"".join((bytes([index + 1]) * 4096 + noise).ljust(size, b"x") for index in range(count)))
    qemu_img("convert", "-c", "-O", "qcow2", raw, base)
    qemu_img("create", "-q", "-f", "qcow2", "-o", "extended_l2=on", "-b", base, "-F", "qcow2", mid)
    qemu_io(mid, *(f"write -P 255 {index * size} 4k" for index in range(count)))
    qemu_img("create", "-q", "-f", "qcow2", "-b", mid, "-F", "qcow2", top)
    files, expected = LocalFiles(), content(top)
    disk = open_disk(files, str(top))
    assert disk.read(0, disk.size_bytes) == expected
    moments = []

    def act() -> None:
        disk.layers._inflated.clear()
        moments.append(disk.read(0, disk.size_bytes) == expected)

    assert commit_of(files, disk, str(mid), str(base), act).run() is not None
    disk.close()
    assert len(moments) > 2
    assert all(moments)
    assert content(top) == content(base) == expected
    for path in (base, top):
        assert_clean(path)


def test_a_base_that_is_shorter_grows(tmp_path: Path):
    base, mid, top = (tmp_path / name for name in ("base.raw", "mid.qcow2", "top.qcow2"))
    base.write_bytes(b"a" * (1 << 20))
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", mid, "4M")
    qemu_io(mid, "write -P 2 3M 64k")
    qemu_img("create", "-q", "-f", "qcow2", "-b", mid, "-F", "qcow2", top)
    expected, files = content(top), LocalFiles()
    disk = open_disk(files, str(top))
    commit_of(files, disk, str(mid), str(base)).run()
    assert disk.read(0, disk.size_bytes) == expected
    disk.close()
    assert content(top) == base.read_bytes() == expected


def test_a_job_that_is_stopped_leaves_all_as_it_was_and_completes_later(monkeypatch):
    made = family("A---", "BB--", "CCCC")
    paths = chain_of(made.files, made.top)
    with serving(made.files, made.top) as disk:
        seen = disk.read(0, disk.size_bytes)
        job = commit_of(made.files, disk, paths[1], paths[2])
        job.stop()
        assert job.run() is None
        assert disk.read(0, disk.size_bytes) == seen
        assert len(disk.layers.numbers) == 3
        made.files.open(paths[1], Access.READ).close()
        made.files.open(paths[2], Access.READ).close()
        assert commit_of(made.files, disk, paths[1], paths[2]).run() is not None
        assert disk.read(0, disk.size_bytes) == seen
    assert chain_of(made.files, made.top) == [paths[0], paths[2]]


def test_whatever_fails_every_layer_shows_what_it_showed():
    start, paths = random_files(random.Random(3), 4)
    expected, below = guest_view(start, paths[0]), guest_view(start, paths[1])

    def run(fault: Fault | None) -> tuple[MemoryFiles, FaultyFiles, bool]:
        files = start.copy()
        faulty, is_done = FaultyFiles(files, fault), True
        with serving(faulty, paths[0]) as disk:
            try:
                commit_of(faulty, disk, paths[1], paths[2]).run()
            except StorageFailed:
                is_done = False
            assert disk.read(0, SIZE_BYTES) == expected
        return files, faulty, is_done

    count, ended = len(run(None)[1].calls), list[bool]()
    assert count > 10
    for number in range(count):
        files, _, is_done = run(Fault(number, errno.EIO))
        ended.append(is_done)
        chain = chain_of(files, paths[0])
        assert chain in (paths, [paths[0], *paths[2:]]), number
        if not is_done:
            assert guest_view(files, paths[1]) == below, number
        assert guest_view(files, paths[0]) == expected, number
        for path in paths:
            assert_sound(files, path, is_done=False)
        # The same again completes it.
        if len(chain) == len(paths):
            with serving(files, paths[0]) as disk:
                assert commit_of(files, disk, paths[1], paths[2]).run() is not None
        assert guest_view(files, paths[0]) == expected, number
    assert False in ended


def test_two_jobs_do_not_work_on_one_layer():
    made = family("A", "B", "C", "D", "E")
    paths = chain_of(made.files, made.top)
    with serving(made.files, made.top) as disk:
        said = list[str]()

        def act() -> None:
            with pytest.raises(Refused) as caught:
                commit_of(made.files, disk, paths[1], paths[2]).run()
            said.append(caught.value.reason)

        commit_of(made.files, disk, paths[2], paths[3], act).run()
        assert said
        assert "another job" in said[0]


def test_a_base_that_others_read_is_not_changed():
    made = family("A", "B", "C")
    paths = chain_of(made.files, made.top)
    with serving(made.files, made.top) as disk:
        other = made.files.open(paths[2], Access.READ)
        before = made.files.content(paths[2])
        with pytest.raises(ImageLocked):
            commit_of(made.files, disk, paths[1], paths[2]).run()
        assert made.files.content(paths[2]) == before
        other.close()
        assert commit_of(made.files, disk, paths[1], paths[2]).run() is not None


@pytest.mark.parametrize(
    ("top", "base", "error"), [(0, 1, Refused), (2, 1, WrongUse), (1, 1, WrongUse), (1, None, NotInChain)]
)
def test_what_cannot_be_merged_is_refused(top: int, base: int | None, error: type[Exception]):
    made = family("A", "B", "C")
    paths = chain_of(made.files, made.top)
    with serving(made.files, made.top) as disk, pytest.raises(error):
        commit_of(made.files, disk, paths[top], "nowhere" if base is None else paths[base])


def test_nobody_commits_without_a_permit():
    made = family("A", "B", "C")
    paths = chain_of(made.files, made.top)
    with serving(made.files, made.top) as disk, pytest.raises(WrongUse):
        Commit(made.files, disk, Wanted(paths[1], paths[2], Permit(Images(()), ())))


def test_a_disk_that_is_closed_stops_its_jobs():
    made = family("A" * 8, "B" * 8, "C" * 8)
    paths = chain_of(made.files, made.top)
    disk = open_disk(made.files, made.top)
    reached, ended = threading.Event(), list[object]()

    def act() -> None:
        reached.set()
        time.sleep(0.05)

    job = threading.Thread(target=lambda: ended.append(commit_of(made.files, disk, paths[1], paths[2], act).run()))
    job.start()
    reached.wait(10)
    disk.close()
    assert not made.files.held() or job.is_alive()
    job.join(10)
    assert len(ended) == 1
    assert made.seen() == "A" * 8
    with pytest.raises(Refused):
        disk.settle()


def test_a_client_that_never_pauses_loses_nothing(tmp_path: Path):
    files, choose = LocalFiles(), random.Random(1)
    path = tmp_path / "layer0.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "64M")
    qemu_io(path, "write -P 7 0 48M")
    paths = [str(path)]
    with busy(files, [str(path)]) as (disks, writer):
        for number in range(1, 7):
            writer.wait_for_more(100)
            paths.insert(0, str(tmp_path / f"layer{number}.qcow2"))
            snapshot(files, disks, paths[:1])
        while len(paths) > 2:
            writer.wait_for_more(50)
            first = choose.randrange(1, len(paths) - 1)
            last = choose.randrange(first + 1, len(paths))
            assert commit_of(files, disks[0], paths[first], paths[last]).run() is not None
            del paths[first:last]
        writer.wait_for_more(100)
    writer.check(content(Path(paths[0])))
    assert [os.path.basename(each) for each in chain_of(files, paths[0])] == [os.path.basename(each) for each in paths]
    for each in paths:
        assert_clean(Path(each))
