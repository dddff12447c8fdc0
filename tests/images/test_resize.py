"""Disks of random images beside a plain model: cut, or filled with zeroes, whatever came before."""

import random
from pathlib import Path

import pytest

from cowtree.chain.view import open_chain
from cowtree.errors import Refused
from cowtree.images.resize import resize
from cowtree.storage.contract import Access, FileSystem
from cowtree.storage.file import LocalFiles
from cowtree.storage.memory import MemoryFiles
from tests.crash import assert_sound, guest_view, snapshot_views
from tests.qemu import SECTOR, qemu_img, random_chain

STEP_COUNT = 6


def do(files: FileSystem, path: str, size_bytes: int, preallocation: str = "off") -> None:
    """Resize an image."""
    chain = open_chain(files, path, None, Access.WRITE)
    try:
        resize(chain, size_bytes, preallocation)
    finally:
        chain.close()


@pytest.mark.soak
@pytest.mark.slow
def test_random_disks_follow_the_model(tmp_path: Path, seed: int):
    choose, chain, files = random.Random(seed), random_chain(tmp_path, seed, 2), LocalFiles()
    top, is_raw = str(chain.top), chain.formats[-1] == "raw"
    content = guest_view(files, top)
    kept = {} if is_raw else snapshot_views(files, top)
    can_hide = is_raw or chain.top.read_bytes()[7] > 2
    for _ in range(STEP_COUNT):
        size = SECTOR * choose.randint(1, 2 * len(content) // SECTOR + 1)
        how = choose.choice(["off", "metadata", "falloc", "full"][0 if can_hide and not is_raw else 2 :])
        if kept and not can_hide:
            with pytest.raises(Refused):
                do(files, top, size)
            continue
        do(files, top, size, how if size > len(content) else "off")
        content = content[:size].ljust(size, b"\0")
        assert guest_view(files, top) == content
        if not is_raw:
            assert snapshot_views(files, top) == kept
            assert_sound(files, top, is_done=True)


def test_a_second_time_changes_nothing(tmp_path: Path):
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    files = MemoryFiles({"image": path.read_bytes()})
    for size in (1 << 24, 1 << 18):
        do(files, "image", size)
        before = files.content("image")
        do(files, "image", size)
        assert files.content("image") == before
