"""Merges on XFS and btrfs, where data goes from file to file without being copied: everybody sees what he saw, no block
is taken for it, who writes later changes nobody else's data, and a stop is no worse than elsewhere.
"""

from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import NamedTuple

import pytest

from cowtree.images.merge import pull, rebase
from cowtree.storage.contract import FileSystem
from cowtree.storage.faults import AFTER, BEFORE, Call, Fault, FaultyFiles, Killed
from cowtree.storage.file import LocalFiles
from cowtree.units import MIB
from tests.crash import assert_sound, guest_view
from tests.mounts import KINDS, mounted, mounted_image, used_bytes, without_power
from tests.permits import Into, commit
from tests.qemu import assert_clean, content, qemu_img, qemu_io, random_chain, run, run_well

pytestmark = pytest.mark.slow

DATA_BYTES = 16 * MIB
# Tables and counts, and what a file system needs to remember.
TABLE_BYTES_MAX = MIB
BASE, TOP, OTHER = Path("base.qcow2"), Path("top.qcow2"), Path("other.qcow2")


class Merge(NamedTuple):
    """A merge of TOP, and which of BASE and TOP it reads and which it writes."""

    operation: Callable[[FileSystem], object]
    source: Path
    target: Path


MERGES = {
    "commit": Merge(lambda files: commit(files, str(TOP), into=Into(empties_top=False)), TOP, BASE),
    "pull": Merge(lambda files: pull(files, str(TOP)), BASE, TOP),
    "rebase to nothing": Merge(lambda files: rebase(files, str(TOP), backing=None), BASE, TOP),
    "rebase": Merge(lambda files: rebase(files, str(TOP), backing=(str(OTHER), "qcow2")), BASE, TOP),
}


@pytest.fixture(params=KINDS, scope="module")
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def place(kind, tmp_path_factory):
    with mounted(kind, tmp_path_factory.mktemp(kind)) as found:
        yield found


@pytest.fixture
def folder(place):
    """An empty folder on the file system, which is the current one."""
    found = place / "test"
    found.mkdir()
    with chdir(found):
        yield found
    run_well("rm", "-r", found)


def make(source: Path = TOP, size: str = "24M", data_bytes: int = DATA_BYTES, options: str = "cluster_size=64k"):
    """A base, an overlay and another base; one of the first two holds much data."""
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, BASE, size)
    qemu_img("create", "-q", "-f", "qcow2", OTHER, size)
    qemu_io(BASE, "write -P 1 0 300k", "write -P 2 3M 5k")
    if source == BASE:
        qemu_io(BASE, f"write -P 3 1M {data_bytes}")
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, "-b", BASE, "-F", "qcow2", TOP)
    qemu_io(TOP, "write -P 4 100k 300k", "write -z 2M 70k", "write -P 5 777k 1k")
    if source == TOP:
        qemu_io(TOP, f"write -P 6 1M {data_bytes}", "write -P 7 2M 300k")


@pytest.mark.parametrize("merge", MERGES.values(), ids=MERGES)
def test_a_merge_takes_no_new_blocks(place, folder, merge):
    make(merge.source)
    seen, before = content(TOP), used_bytes(place)
    merge.operation(LocalFiles())
    assert used_bytes(place) - before < TABLE_BYTES_MAX
    for image in (BASE, TOP):
        assert_clean(image)
    assert content(TOP) == seen


def test_a_commit_gives_the_space_back_that_the_top_took_alone(place, folder):
    make()
    seen, before = content(TOP), used_bytes(place)
    assert commit(LocalFiles(), str(TOP)).moved_bytes >= DATA_BYTES
    assert used_bytes(place) - before < TABLE_BYTES_MAX
    assert TOP.stat().st_blocks * 512 < MIB
    assert content(TOP) == content(BASE) == seen
    qemu_io(BASE, f"discard 0 {len(seen)}")
    assert before - used_bytes(place) > DATA_BYTES - 2 * TABLE_BYTES_MAX


@pytest.mark.parametrize("merge", MERGES.values(), ids=MERGES)
def test_who_writes_after_a_merge_changes_nobody_elses_data(place, folder, merge):
    make(merge.source, data_bytes=2 * MIB)
    source = content(merge.source)
    merge.operation(LocalFiles())
    for written, kept in ((merge.target, merge.source), (merge.source, merge.target)):
        # What lies below is cut away: a top shows of its base what it has not got itself.
        qemu_img("rebase", "-u", "-b", "", "-f", "qcow2", TOP)
        before = content(kept)
        qemu_io(written, "write -P 99 1M 1M", "write -P 98 2M 512", "discard 2500k 500k", "write -z 300k 64k")
        assert content(kept) == before
        assert content(written) != source
        assert_clean(written)


def test_what_lies_on_another_file_system_is_copied(place, folder, tmp_path):
    base = tmp_path / "base.raw"
    base.write_bytes(bytes(range(256)) * (DATA_BYTES // 256))
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", TOP)
    # Nothing is read through qemu-img before: XFS takes its time to forget a file that was removed.
    before = used_bytes(place)
    pull(LocalFiles(), str(TOP))
    assert used_bytes(place) - before > DATA_BYTES // 2
    assert content(TOP) == base.read_bytes()


def test_a_raw_base_of_an_odd_length_is_pulled(place, folder):
    Path("base.raw").write_bytes(bytes(range(1, 256)) * 5000)
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", TOP)
    seen = content(TOP)
    pull(LocalFiles(), str(TOP))
    assert content(TOP) == seen
    assert_clean(TOP)


@pytest.mark.soak
def test_random_chains_show_the_same_when_they_are_merged(place, folder, seed):
    chain = random_chain(folder, seed, layer_count=2 + seed % 3)
    seen = content(chain.top)
    if seed % 2:
        commit(LocalFiles(), str(chain.top), into=Into(empties_top=False))
    else:
        pull(LocalFiles(), str(chain.top))
    assert content(chain.top) == seen
    for image in (path for path in chain.paths if path.suffix == ".qcow2"):
        assert_clean(image)


def test_files_that_keep_no_sums_take_none_from_files_that_do(kind, place, folder):
    Path("base.raw").write_bytes(b"x" * 2 * MIB)
    Path("new.raw").touch()
    # Only btrfs knows the attribute.
    assert (run("chattr", "+C", "new.raw").returncode == 0) == (kind == "btrfs")
    files = LocalFiles()
    source, target = files.open("base.raw", "read"), files.open("new.raw", "write")
    assert target.clone_block_bytes(source) == (4096 if kind == "xfs" else 0)
    assert target.clone(source, 0, 0, 2 * MIB) == (kind == "xfs")
    source.close()
    target.close()


def stopped(operation: Callable[[FileSystem], object], number: int, moment: str = BEFORE) -> bool:
    """Run on real files up to this call. Returns: whether it got there."""
    try:
        operation(FaultyFiles(LocalFiles(), Fault(number, moment=moment)))
    except Killed:
        return True
    return False


def calls_of(operation: Callable[[FileSystem], object]) -> list[Call]:
    """Run on real files. Returns: the calls that change something."""
    files = FaultyFiles(LocalFiles())
    operation(files)
    assert "clone" in [call.name for call in files.calls]
    return files.calls


@pytest.mark.parametrize("merge", MERGES.values(), ids=MERGES)
def test_a_merge_that_is_killed_anywhere_is_completed_by_the_next_run(place, folder, merge):
    make(merge.source, "4M", MIB)
    seen, files = guest_view(LocalFiles(), str(TOP)), LocalFiles()
    run_well("cp", "-r", "--reflink=always", ".", "../before")
    for number in range(len(calls_of(merge.operation))):
        run_well("cp", "-r", "--reflink=always", "../before/.", ".")
        assert stopped(merge.operation, number)
        assert guest_view(files, str(TOP)) == seen
        merge.operation(files)
        assert guest_view(files, str(TOP)) == seen
        for image in (BASE, TOP):
            assert_sound(files, str(image), is_done=True)
    run_well("rm", "-r", "../before")


@pytest.mark.parametrize("name", ["commit", "pull"])
def test_what_was_flushed_survives_a_power_cut(kind, tmp_path, name):
    merge = MERGES[name]
    with mounted(kind, tmp_path) as place, chdir(place):
        make(merge.source, "4M", MIB)
        seen = content(TOP)
        run_well("sync", "-f", ".")
        start = without_power(tmp_path / f"{kind}.image", kind)
        calls = calls_of(merge.operation)
    assert calls[-1].name == "flush"
    for number, call in enumerate(calls):
        if call.name != "flush":
            continue
        disk = tmp_path / "disk.image"
        run_well("cp", "--sparse=always", start, disk)
        with mounted_image(disk, kind) as place, chdir(place):
            assert stopped(merge.operation, number, AFTER)
            flushed = Path(call.path).read_bytes()
            cut = without_power(disk, kind)
        with mounted_image(cut, kind) as place, chdir(place):
            assert Path(call.path).read_bytes() == flushed, number
            assert guest_view(LocalFiles(), str(TOP)) == seen, number
            for image in (BASE, TOP):
                assert_sound(LocalFiles(), str(image), is_done=number == len(calls) - 1)
