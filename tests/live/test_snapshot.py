"""Snapshots of disks that are served."""

import errno
import random
import threading
from pathlib import Path

import pytest

from cowtree.chain.view import open_chain
from cowtree.errors import ImageLocked, Refused, StorageFailed, WrongUse
from cowtree.images.check import trusted
from cowtree.images.create import create
from cowtree.live.disk import Disk
from cowtree.live.snapshot import snapshot
from cowtree.plan.create import NewImage
from cowtree.storage.contract import Access, FileSystem
from cowtree.storage.faults import Fault, FaultyFiles
from cowtree.storage.file import LocalFiles
from cowtree.storage.memory import MemoryFiles
from tests.crash import assert_sound, guest_view
from tests.live.guests import TOP, act_on, act_on_array, make, random_acts, serving
from tests.live.writers import busy, newest
from tests.pictures import CLUSTER_BYTES, family
from tests.qemu import assert_clean, content, qemu_img, qemu_io

SIZE_BYTES = 64 << 10
PAUSE_MAX_S = 2.0


def backing(files: FileSystem, path: str) -> list[str]:
    """The paths of a chain, the top first."""
    chain = open_chain(files, path)
    chain.close()
    return [layer.path for layer in chain.layers]


def disk_of(files: FileSystem, path: str) -> Disk:
    """A disk for writing."""
    return Disk(trusted(open_chain(files, path, "qcow2", Access.WRITE), 0), is_read_only=False)


def test_what_comes_before_is_below_and_what_comes_later_above():
    made = family("A---", "BBBB")
    with serving(made.files, made.top) as disk:
        disk.write(CLUSTER_BYTES, memoryview(b"X" * CLUSTER_BYTES), is_durable=False)
        done = snapshot(made.files, [disk], ["new"])
        assert done.paths == (made.top,)
        disk.write(2 * CLUSTER_BYTES, memoryview(b"Y" * CLUSTER_BYTES), is_durable=False)
        disk.write(0, memoryview(b"Z"), is_durable=False)
        seen = disk.read(0, disk.size_bytes)
    assert guest_view(made.files, "new") == seen
    assert seen[:2] == b"ZA"
    assert made.seen() == "AXBB"
    assert backing(made.files, "new")[:2] == ["new", made.top]
    for path in ("new", made.top):
        assert_sound(made.files, path, is_done=True)


def test_others_may_read_what_was_frozen_and_nobody_writes_it():
    made = family("A-", "BB")
    with serving(made.files, made.top) as disk:
        with pytest.raises(ImageLocked):
            made.files.open(made.top, Access.READ)
        disk.write(0, memoryview(b"x"), is_durable=False)
        snapshot(made.files, [disk], ["new"])
        made.files.open(made.top, Access.READ).close()
        with pytest.raises(ImageLocked):
            made.files.open(made.top, Access.WRITE)
        with pytest.raises(StorageFailed):
            disk.layers.chain.layers[1].file.pwrite(0, b"x")


def test_a_raw_disk_gets_an_overlay():
    files = MemoryFiles({"disk": b"a" * 4096})
    with serving(files, "disk", "raw") as disk:
        disk.write(0, memoryview(b"b" * 512), is_durable=False)
        snapshot(files, [disk], ["new"])
        disk.write(512, memoryview(b"c" * 512), is_durable=False)
    assert files.content("disk") == b"b" * 512 + b"a" * 3584
    assert guest_view(files, "new") == b"b" * 512 + b"c" * 512 + b"a" * 3072


def test_many_snapshots_between_random_acts(seed: int):
    choose = random.Random(seed)
    files = make(choose, SIZE_BYTES, **({"has_subclusters": True, "cluster_bits": 14} if seed % 2 else {}))
    model, path, frozen = bytearray(guest_view(files, TOP)), TOP, dict[str, bytes]()
    with serving(files) as disk:
        for number in range(6):
            for act in random_acts(choose, SIZE_BYTES, 12):
                act_on(disk, act)
                act_on_array(model, act, disk)
            frozen[path] = bytes(model)
            path = f"overlay{number}"
            snapshot(files, [disk], [path])
            assert disk.read(0, SIZE_BYTES) == model
    for each, expected in {**frozen, path: bytes(model)}.items():
        assert guest_view(files, each) == expected
        assert_sound(files, each, is_done=True)


def test_several_disks_are_frozen_together_or_not_at_all():
    files = MemoryFiles()
    for name in ("a", "b", "c"):
        create(files, NewImage(name, "qcow2", SIZE_BYTES, 12))
    faulty = FaultyFiles(files, None)
    disks = [disk_of(faulty, name) for name in ("a", "b", "c")]
    for disk in disks:
        disk.write(0, memoryview(b"1" * 512), is_durable=False)
    with pytest.raises(Refused):
        snapshot(faulty, disks, ["a1", "b", "c1"])
    count = len(faulty.calls)
    assert "a1" not in files.snapshot()
    snapshot(faulty, disks, ["a1", "b1", "c1"])
    assert len(faulty.calls) > count
    for disk in disks:
        disk.write(512, memoryview(b"2" * 512), is_durable=False)
        disk.close()
    assert [guest_view(files, name)[:1024] for name in ("a", "b1")] == [
        b"1" * 512 + bytes(512),
        b"1" * 512 + b"2" * 512,
    ]


def frozen_with(fault: Fault | None) -> tuple[MemoryFiles, FaultyFiles, list[bytes], bool]:
    """Two disks that are frozen together while something fails. Returns: also what they show, and whether it ended."""
    files = MemoryFiles()
    for name in ("a", "b"):
        create(files, NewImage(name, "qcow2", SIZE_BYTES, 12))
    faulty, is_done = FaultyFiles(files, fault), True
    disks = [disk_of(faulty, name) for name in ("a", "b")]
    for disk in disks:
        disk.write(0, memoryview(b"1" * 512), is_durable=False)
    try:
        snapshot(faulty, disks, ["a1", "b1"])
    except StorageFailed:
        is_done = False
    for disk in disks:
        disk.write(4096, memoryview(b"2" * 512), is_durable=False)
    seen = [bytes(disk.read(0, SIZE_BYTES)) for disk in disks]
    for disk in disks:
        disk.close()
    return files, faulty, seen, is_done


def test_whatever_fails_on_the_way_nothing_has_changed():
    _, whole, expected, _ = frozen_with(None)
    ended = []
    for number in range(len(whole.calls)):
        try:
            files, _, seen, is_done = frozen_with(Fault(number, errno.ENOSPC))
        except StorageFailed:
            # It was the test's own write, or the end, that failed.
            continue
        assert seen == expected, number
        ended.append(is_done)
        names = ("a1", "b1") if is_done else ("a", "b")
        assert is_done == ("a1" in files.snapshot()) == ("b1" in files.snapshot()), number
        assert [guest_view(files, name) for name in names] == expected, number
        for name in files.snapshot():
            assert_sound(files, name, is_done=False)
    assert ended.count(False) > 10


@pytest.mark.parametrize(
    ("names", "error"), [([], WrongUse), (["top"], Refused), (["new", "new"], WrongUse), (["base"], Refused)]
)
def test_what_cannot_be_meant_is_refused(names: list[str], error: type[Exception]):
    files = make(random.Random(1), SIZE_BYTES)
    before = set(files.snapshot())
    with serving(files) as disk:
        with pytest.raises(error):
            snapshot(files, [disk] * len(names), names)
        assert set(files.snapshot()) == before


def test_what_is_read_only_needs_no_snapshot():
    made = family("A")
    disk = Disk(open_chain(made.files, made.top), is_read_only=True)
    with pytest.raises(Refused):
        snapshot(made.files, [disk], ["new"])
    disk.close()


def test_two_at_once_make_one_chain():
    files = make(random.Random(2), SIZE_BYTES)
    ended = list[str]()

    def act(path: str) -> None:
        try:
            snapshot(files, [disk], [path])
            ended.append(path)
        except Refused:
            pass

    with serving(files) as disk:
        threads = [threading.Thread(target=act, args=(f"new{number}",)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ended
        paths = [layer.path for layer in disk.layers.chain.layers]
    assert backing(files, paths[0]) == paths
    assert {path for path in files.snapshot() if path.startswith("new")} == set(ended)


def test_a_client_that_never_pauses_loses_nothing(tmp_path: Path):
    files = LocalFiles()
    top = tmp_path / "top.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", top, "256M")
    qemu_io(top, "write -P 7 0 8M")
    paths = [str(top)]
    with busy(files, [str(top)]) as (disks, writer):
        for number in range(5):
            writer.wait_for_more(200)
            paths.insert(0, str(tmp_path / f"overlay{number}.qcow2"))
            assert snapshot(files, disks, paths[:1]).pause_s < PAUSE_MAX_S
        writer.wait_for_more(200)
    writer.check(content(Path(paths[0])))
    assert backing(files, paths[0]) == paths
    for path in paths:
        assert_clean(Path(path))


def test_three_disks_stop_at_one_moment(tmp_path: Path):
    files, names = LocalFiles(), ("a", "b", "c")
    paths = [str(tmp_path / f"{name}.qcow2") for name in names]
    for path in paths:
        qemu_img("create", "-q", "-f", "qcow2", path, "64M")
    with busy(files, paths) as (disks, writer):
        writer.wait_for_more(100)
        snapshot(files, disks, [f"{path}.new" for path in paths])
        writer.wait_for_more(100)
    for number, path in enumerate(paths):
        writer.check(content(Path(f"{path}.new")), number)
    # One client writes the same counter to a, then to b, then to c.
    counts = [newest(content(Path(path))) for path in paths]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] - counts[-1] <= 1
