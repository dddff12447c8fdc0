"""Snapshot tables and zero clusters that a repair makes anew: right afterwards, and no worse after a stop anywhere."""

import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from cowtree.images.check import ALL, NOTHING, Report, check, open_to_check
from cowtree.qcow2.tables import COPIED, HOST_OFFSET, encode_words
from cowtree.storage.contract import Access, FileSystem
from cowtree.storage.file import LocalFiles
from cowtree.storage.memory import MemoryFiles
from tests.crash import Trial, guest_view, snapshot_views, stop_everywhere
from tests.qemu import assert_clean, qemu_img, qemu_io
from tests.sparse import MEMORY_MIB_MAX, peak_memory_mib

CLUSTER = 4096
OFFSET = (1 << 56) - 512


def checked(files: FileSystem, path: str, repair: str = NOTHING) -> Report:
    """Check an image, and close it."""
    layer = open_to_check(files, path, "qcow2", Access.READ if repair == NOTHING else Access.WRITE)
    try:
        report = check(layer, repair)
        assert report is not None
        return report
    finally:
        layer.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An image with data, a zero cluster that has a host cluster, and two snapshots."""
    path = tmp_path / "disk"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={CLUSTER}", path, "1M")
    qemu_io(path, "write -P 1 0 16k", "write -z 4k 4k")
    for name in ("one", "two"):
        qemu_img("snapshot", "-c", name, path)
    qemu_io(path, "write -P 2 8k 4k")
    return path


def number(data: bytes, offset: int) -> int:
    """The 64-bit number that stands there."""
    return int.from_bytes(data[offset : offset + 8], "big")


def without_sizes(data: bytes) -> bytes:
    """The first snapshot says no more than version 2 does: its extra data goes, and what follows moves up."""
    table = number(data, 64)
    head, extra = data[table : table + 40], struct.unpack_from(">I", data, table + 36)[0]
    end = table + CLUSTER
    rest = data[table + 40 + extra : end] + bytes(extra)
    return data[:table] + head[:36] + bytes(4) + rest + data[end:]


def with_much_extra_data(data: bytes) -> bytes:
    """The second snapshot has 2000 bytes of extra data."""
    table = number(data, 64)
    first_end = table + 40 + 24 + len("1one")
    second = (first_end + 7) // 8 * 8
    head = data[second : second + 36] + struct.pack(">I", 2000)
    entry = head + data[second + 40 : second + 64] + b"x" * 1976 + data[second + 64 : second + 68]
    return data[:second] + entry + data[second + len(entry) :]


def with_a_zero_that_is_not_aligned(data: bytes) -> bytes:
    """The host cluster of the zero cluster lies half a cluster off."""
    entry = (number(data, number(data, 40)) & OFFSET) + 8
    return data[:entry] + struct.pack(">Q", number(data, entry) + 512) + data[entry + 8 :]


DAMAGES = {
    "a snapshot says too little": without_sizes,
    "a snapshot says too much": with_much_extra_data,
    "a zero cluster is not aligned": with_a_zero_that_is_not_aligned,
}


@pytest.mark.parametrize("name", DAMAGES)
def test_it_is_mended(path: Path, name: str):
    sound = path.read_bytes()
    before = guest_view(MemoryFiles({"disk": sound}), "disk")
    snapshots = snapshot_views(MemoryFiles({"disk": sound}), "disk")
    path.write_bytes(DAMAGES[name](sound))
    assert not checked(LocalFiles(), str(path)).is_clean
    report = checked(LocalFiles(), str(path), ALL)
    assert report.is_clean
    assert report.corruption_fixed_count
    assert_clean(path)
    files = LocalFiles()
    assert guest_view(files, str(path)) == before
    assert snapshot_views(files, str(path)) == snapshots


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGES)
def test_it_may_be_stopped_anywhere(path: Path, name: str):
    sound = path.read_bytes()
    data = DAMAGES[name](sound)
    before = guest_view(MemoryFiles({"disk": sound}), "disk")
    snapshots = snapshot_views(MemoryFiles({"disk": sound}), "disk")
    most = checked(MemoryFiles({"disk": data}), "disk").corruption_count

    def judge(files: MemoryFiles, is_done: bool) -> None:
        report = checked(files, "disk")
        assert report.failure is None or not is_done
        assert report.corruption_count <= most
        again = checked(files, "disk", ALL)
        assert again.is_clean
        assert checked(files, "disk").is_clean
        assert guest_view(files, "disk") == before
        assert snapshot_views(files, "disk") == snapshots

    stop_everywhere(Trial({"disk": data}, _repair, judge))


def _repair(files: FileSystem) -> None:
    checked(files, "disk", ALL)


CODE = """
import sys
from cowtree.images.check import check, open_to_check
from cowtree.storage.file import LocalFiles
report = check(open_to_check(LocalFiles(), sys.argv[1]))
assert report.is_clean
"""


def test_huge_holes_of_a_file_take_neither_time_nor_memory(tmp_path: Path):
    path = tmp_path / "disk"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path, "1M")
    os.truncate(path, 512 * ((1 << 31) - 1))
    began_s = time.process_time()
    assert checked(LocalFiles(), str(path)).is_clean
    assert time.process_time() - began_s < 2
    assert peak_memory_mib(CODE, path) < MEMORY_MIB_MAX


COUNT = """
import sys
from cowtree.images.check import check, open_to_check
from cowtree.storage.file import LocalFiles
report = check(open_to_check(LocalFiles(), sys.argv[1]))
assert (report.allocated_cluster_count, report.corruption_count > 200_000) == (200_000, True)
"""


@pytest.mark.slow
def test_references_scattered_over_a_terabyte_take_little_memory(tmp_path: Path):
    path, entry_count, table_count = tmp_path / "disk", 200_000, 3125
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path, "1G")
    os.truncate(path, 512 * ((1 << 31) - 1))
    step = ((1 << 31) - 200_000) // (entry_count + table_count)
    entries = ((np.arange(entry_count + table_count) * step + 100_000) * 512).astype(np.uint64) | COPIED
    with path.open("r+b") as file:
        file.seek(40)
        file.seek(int.from_bytes(file.read(8), "big"))
        file.write(encode_words(entries[:table_count]))
        for table, words in zip(entries[:table_count], entries[table_count:].reshape(table_count, 64), strict=True):
            file.seek(int(table & HOST_OFFSET))
            file.write(encode_words(words))
    assert peak_memory_mib(COUNT, path) < MEMORY_MIB_MAX
