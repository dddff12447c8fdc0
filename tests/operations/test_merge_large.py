"""Owns the proof that a merge of a million clusters takes little memory."""

import random
from pathlib import Path

import pytest

from cowtree.operations import merge
from cowtree.operations.create import create
from cowtree.plan.create import NewImage
from cowtree.storage.file import LocalFiles
from cowtree.units import MIB, TIB
from tests.qemu import assert_clean, qemu_img, qemu_io
from tests.sparse import MEMORY_MIB_MAX, peak_memory_mib, sparse_image

FILES = LocalFiles()
MERGE = """
import sys
from cowtree.operations import merge
from cowtree.storage.file import LocalFiles
getattr(merge, sys.argv[1])(LocalFiles(), sys.argv[2])
"""


@pytest.mark.slow
def test_a_terabyte_of_zeroes_over_a_million_scattered_clusters(tmp_path: Path):
    base, top = sparse_image(tmp_path / "base", 1_000_000, 1), tmp_path / "top"
    create(FILES, NewImage(str(top), "qcow2", TIB, 21, backing_file="base", backing_format="qcow2"))
    qemu_io(top, *(f"write -z {start}G 1G" for start in range(1024)))
    assert peak_memory_mib(MERGE, "commit", top) < MEMORY_MIB_MAX
    assert_clean(base)
    assert_clean(top)
    assert qemu_img("map", base).count("\n") == 1


@pytest.mark.slow
def test_a_million_clusters_side_by_side(tmp_path: Path):
    base, top = tmp_path / "base", tmp_path / "top"
    base.write_bytes(random.Random(1).randbytes(MIB) * 512)
    create(FILES, NewImage(str(top), "qcow2", 512 * MIB, 9, backing_file="base", backing_format="raw"))
    assert peak_memory_mib(MERGE, "pull", top) < MEMORY_MIB_MAX
    assert_clean(top)
    qemu_img("compare", base, top)
    # And back again, into an image that holds none of them yet.
    create(FILES, NewImage(str(base), "qcow2", 512 * MIB, 9))
    merge.relink(FILES, str(top), backing=("base", "qcow2"))
    assert peak_memory_mib(MERGE, "commit", top) < MEMORY_MIB_MAX
    assert_clean(base)
    assert_clean(top)
