"""Owns the proof that a merge of a million clusters takes little memory."""

import random
from pathlib import Path

import numpy as np
import pytest

from cowtree.chain import gate
from cowtree.images import merge
from cowtree.images.create import create
from cowtree.plan.create import NewImage
from cowtree.qcow2.tables import COPIED, HOST_OFFSET, encode_words
from cowtree.storage.contract import Access
from cowtree.storage.file import LocalFiles
from cowtree.units import MIB, TIB
from tests.qemu import assert_clean, qemu_img, qemu_io
from tests.sparse import MEMORY_MIB_MAX, peak_memory_mib, sparse_image

FILES = LocalFiles()
EXTENDED = "cluster_size=16k,extended_l2=on"
MERGE = """
import sys
from cowtree.images import family, merge
from cowtree.storage.file import LocalFiles
files, (verb, path) = LocalFiles(), sys.argv[1:]
more = {"into": merge.Into(family.permit_commit(files, path))} if verb == "commit" else {}
getattr(merge, verb)(files, path, **more)
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


def mixed_image(path: Path, cluster_count: int) -> Path:
    """Make an image of 64 GiB whose first clusters hold every other subcluster of 512 bytes."""
    qemu_img("create", "-q", "-f", "qcow2", "-o", EXTENDED, "-b", "base", "-F", "qcow2", path, "64G")
    layer = gate.open_layer(FILES, str(path), "qcow2", Access.WRITE)
    header = layer.header
    assert header is not None
    table_count = -(-cluster_count // header.geometry.l2_entry_count)
    hosts = (np.arange(table_count + cluster_count, dtype=np.uint64) + np.uint64(1 << 14)) << np.uint64(14) | COPIED
    words = np.zeros((table_count * header.geometry.l2_entry_count, 2), np.uint64)
    words[:cluster_count, 0] = hosts[table_count:]
    words[:cluster_count, 1] = 0x55555555
    layer.file.pwrite(header.l1_table_offset, encode_words(hosts[:table_count]))
    layer.file.pwrite(int(hosts[0] & HOST_OFFSET), encode_words(words.ravel()))
    layer.file.truncate(int(hosts[-1] & HOST_OFFSET) + (1 << 14))
    layer.close()
    qemu_img("check", "-q", "-r", "all", path)
    return path


@pytest.mark.slow
def test_clusters_of_mixed_subclusters(tmp_path: Path):
    qemu_img("create", "-q", "-f", "qcow2", "-o", EXTENDED, tmp_path / "base", "64G")
    top = mixed_image(tmp_path / "top", 30_000)
    assert peak_memory_mib(MERGE, "commit", top) < MEMORY_MIB_MAX // 2
    assert_clean(tmp_path / "base")
    assert_clean(top)
