"""Owns the proof that merging large images takes little memory, and planning it little time."""

from pathlib import Path

import pytest

from cowtree.operations import merge
from cowtree.operations.create import create
from cowtree.plan.create import NewImage
from cowtree.storage.file import LocalFiles
from cowtree.units import TIB
from tests.qemu import assert_clean, qemu_img, qemu_io
from tests.sparse import MEMORY_MIB_MAX, peak_memory_mib, sparse_image

CLUSTER_COUNT = 1_000_000
FILES = LocalFiles()
COMMIT = "import sys; from cowtree.operations.merge import *; from cowtree.storage.file import LocalFiles as F; "


@pytest.mark.slow
def test_a_commit_over_a_million_clusters_stays_below_256_mib(tmp_path: Path):
    base, top = sparse_image(tmp_path / "base", CLUSTER_COUNT, 1), tmp_path / "top"
    create(FILES, NewImage(str(top), "qcow2", TIB, 21, backing_file="base", backing_format="qcow2"))
    # A terabyte of zeroes over a million clusters: all of them are let go.
    qemu_io(top, *(f"write -z {start << 30} 1G" for start in range(1024)))
    assert peak_memory_mib(COMMIT + "commit(F(), sys.argv[1])", top) < MEMORY_MIB_MAX
    assert_clean(base)
    assert qemu_img("map", "-U", base).count("\n") == 1


@pytest.mark.slow
def test_a_million_clusters_of_data_are_moved_within_256_mib(tmp_path: Path):
    base, top = tmp_path / "base", sparse_image(tmp_path / "top", CLUSTER_COUNT, 2, 10 + 1)
    create(FILES, NewImage(str(base), "qcow2", TIB))
    merge.relink(FILES, str(top), backing=("base", "qcow2"))
    assert peak_memory_mib(COMMIT + "pull(F(), sys.argv[1])", top) < MEMORY_MIB_MAX
    assert_clean(top)
