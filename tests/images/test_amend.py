"""Amendments of whole images in memory."""

from pathlib import Path

import pytest

from cowtree.errors import Refused, WrongUse
from cowtree.images.amend import amend
from cowtree.monitor import Counting
from cowtree.plan.amend import Asked
from cowtree.storage.memory import MemoryFiles
from tests.crash import assert_sound, guest_view
from tests.images.test_safety_amend import IMAGE, make, through_snapshots
from tests.qemu import assert_clean, content, qemu_img, run


def test_all_widths_lead_to_each_other(tmp_path: Path) -> None:
    files = MemoryFiles(make(tmp_path, "cluster_size=512", "plain"))
    before = guest_view(files, IMAGE)
    for order in (0, 6, 1, 5, 2, 3, 4):
        amend(files, IMAGE, asked=Asked(refcount_order=order))
        assert_sound(files, IMAGE, is_done=True)
        assert guest_view(files, IMAGE) == before


def test_what_is_so_already_changes_no_byte(tmp_path: Path) -> None:
    initial = make(tmp_path, "cluster_size=4k", "backed")
    files = MemoryFiles(initial)
    amend(files, IMAGE, asked=Asked(version=3, refcount_order=4, lazy_refcounts=False))
    assert files.snapshot() == initial


def test_a_count_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    initial = make(tmp_path, "cluster_size=4k", "snapshots")
    files = MemoryFiles(initial)
    with pytest.raises(Refused, match="Cannot decrease refcount entry width to 1 bits: Cluster at offset 0x"):
        amend(files, IMAGE, asked=Asked(version=3, refcount_order=0, lazy_refcounts=True))
    assert files.snapshot() == initial


def test_a_raw_image_has_nothing_to_amend() -> None:
    with pytest.raises(WrongUse, match="Format driver 'raw' does not support option amendment"):
        amend(MemoryFiles({"raw": bytes(512)}), "raw", "raw", asked=Asked(version=3))


def test_zero_clusters_of_snapshots_share_clusters_of_zeroes(tmp_path: Path) -> None:
    initial = make(tmp_path, "cluster_size=4k", "snapshots over a base")
    files = MemoryFiles(initial)
    seen = through_snapshots(files)
    counting = Counting()
    amend(files, IMAGE, asked=Asked(version=2), monitor=counting)
    assert_sound(files, IMAGE, is_done=True)
    assert through_snapshots(files) == seen
    assert counting.total_bytes == counting.moved_bytes > 0
    (tmp_path / IMAGE).write_bytes(files.snapshot()[IMAGE])
    assert_clean(tmp_path / IMAGE)
    for name, data in seen.items():
        qemu_img("snapshot", "-a", name, tmp_path / IMAGE)
        assert content(tmp_path / IMAGE) == data
        assert_clean(tmp_path / IMAGE)


def test_with_a_version_bitmaps_go_that_it_does_not_know(tmp_path: Path) -> None:
    files = MemoryFiles(make(tmp_path, "cluster_size=4k", "bitmaps"))
    before = guest_view(files, IMAGE)
    amend(files, IMAGE, asked=Asked(version=2))
    assert_sound(files, IMAGE, is_done=True)
    assert guest_view(files, IMAGE) == before
    (tmp_path / IMAGE).write_bytes(files.snapshot()[IMAGE])
    assert "bitmap" not in run("qemu-img", "info", tmp_path / IMAGE).stderr
    assert_clean(tmp_path / IMAGE)
