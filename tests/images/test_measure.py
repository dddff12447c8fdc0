"""Owns the proof that clusters with data are counted once, whatever the clusters of the copy."""

from pathlib import Path

import pytest

from cowtree.chain.view import open_chain
from cowtree.images.measure import used_bytes
from cowtree.storage.file import LocalFiles
from tests.qemu import qemu_img, qemu_io

KIB, MIB = 1 << 10, 1 << 20


def used(path: Path, cluster: int) -> int:
    chain = open_chain(LocalFiles(), str(path))
    try:
        return used_bytes(chain, cluster)
    finally:
        chain.close()


@pytest.mark.parametrize(("cluster", "expected"), [(512, 3 * 4 * KIB), (4 * KIB, 3 * 4 * KIB), (64 * KIB, 128 * KIB)])
def test_a_cluster_counts_once(tmp_path: Path, cluster: int, expected: int):
    path = tmp_path / "disk"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", path, "16M")
    qemu_io(path, "write 0 4k", "write 8k 4k", "write 12M 4k", "write -z 1M 1M")
    assert used(path, cluster) == expected


def test_a_cluster_of_the_copy_may_be_as_long_as_many_windows(tmp_path: Path):
    path = tmp_path / "disk"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path, "600M")
    qemu_io(path, "write 255M 2M", "write 511M 2M")
    # Windows of an image with such clusters end at 256 MiB and at 512 MiB.
    assert used(path, 2 * MIB) == 8 * MIB
    assert used(path, 512) == 4 * MIB
