"""Owns the proof that an atomic merge over a million clusters takes little memory."""

from pathlib import Path

import pytest

from cowtree.images.create import create
from cowtree.plan.create import NewImage
from cowtree.storage.file import LocalFiles
from cowtree.units import TIB
from tests.qemu import assert_clean, qemu_img, qemu_io
from tests.sparse import MEMORY_MIB_MAX, peak_memory_mib, sparse_image

# Not the command: that would take the cheaper way, the other direction.
MERGE = """
import sys
from cowtree.plan.family import Family, Member, Merge
from cowtree.storage.file import LocalFiles
from tests.trees import carry_out
members = [Member(path, "qcow2", 1 << 40, parent) for path, parent in zip(sys.argv[1:], (1, None))]
carry_out(LocalFiles(), Family(tuple(members)), [Merge((0, 1), 1, 1)], is_atomic=True)
"""


@pytest.mark.slow
def test_a_million_scattered_clusters_are_given_back_when_an_atomic_commit_has_switched(tmp_path: Path):
    base, top = sparse_image(tmp_path / "base", 1_000_000, 1), tmp_path / "top"
    create(LocalFiles(), NewImage(str(top), "qcow2", TIB, 21, backing_file="base", backing_format="qcow2"))
    qemu_io(top, *(f"write -z {start}G 1G" for start in range(1024)))
    assert peak_memory_mib(MERGE, top, base) < MEMORY_MIB_MAX
    assert_clean(base)
    assert qemu_img("map", base).count("\n") == 1
