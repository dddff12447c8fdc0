"""What the headers of an image and of its chain say."""

import os
import shutil
from pathlib import Path

import pytest

from cowtree.errors import ChainError, ChainTooDeep, ImageLocked, LoopInChain, MissingImage, NotAnImage
from cowtree.images.info import chain_info, image_info
from cowtree.storage.contract import Access
from cowtree.storage.file import LocalFiles
from tests.qemu import qemu_img

FILES = LocalFiles()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A chain of three, and the process inside its folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    qemu_img("create", "-q", "base.raw", "1001")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "../base.raw", "-F", "raw", "sub/middle")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "middle", "-F", "qcow2", "sub/top", "1M")
    qemu_img("snapshot", "-c", "now", "sub/top")
    qemu_img("bitmap", "--add", "sub/top", "b")
    return tmp_path


def test_an_image_is_described_from_its_header(folder: Path):
    info = image_info(FILES, "sub/top")
    assert (info.path, info.format, info.size_bytes, info.backing_path) == ("sub/top", "qcow2", 1 << 20, "sub/middle")
    assert info.own_size_bytes == (folder / "sub/top").stat().st_blocks * 512
    assert [each.name for each in info.snapshots] == ["now"]
    assert [each.name for each in info.bitmaps] == ["b"]
    assert info.header is not None


def test_a_raw_image_has_whole_sectors_and_no_header(folder: Path):
    info = image_info(FILES, "base.raw")
    assert (info.format, info.size_bytes, info.header, info.backing_path) == ("raw", 1024, None, None)
    assert image_info(FILES, "sub/top", "raw").header is None


def test_a_chain_is_described_from_the_top(folder: Path):
    found = list(chain_info(FILES, "sub/top"))
    assert [(each.path, each.format) for each in found] == [
        *(("sub/top", "qcow2"), ("sub/middle", "qcow2"), ("sub/../base.raw", "raw"))
    ]


def test_the_declared_format_of_a_backing_file_counts(folder: Path):
    shutil.copy("sub/middle", "base.raw")
    assert [each.format for each in chain_info(FILES, "sub/top")] == ["qcow2", "qcow2", "raw"]
    (folder / "base.raw").write_bytes(b"no image")
    with pytest.raises(NotAnImage):
        image_info(FILES, "base.raw", "qcow2")


def test_what_an_image_names_is_not_opened_for_itself(folder: Path):
    qemu_img("create", "-q", "-f", "qcow2", "-o", "data_file=data", "outside", "1M")
    for name in ("data", "base.raw", "sub/middle"):
        (folder / name).unlink()
    assert image_info(FILES, "outside").own_size_bytes == (folder / "outside").stat().st_blocks * 512
    assert image_info(FILES, "sub/top").backing_path == "sub/middle"
    with pytest.raises(MissingImage) as caught:
        list(chain_info(FILES, "sub/top"))
    assert caught.value.facts["overlay"] == "sub/top"


def test_an_address_is_shown_and_not_followed(folder: Path):
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", "nbd://host/x", "-F", "raw", "far", "1M")
    assert image_info(FILES, "far").backing_path == "nbd://host/x"
    with pytest.raises(ChainError, match="is an address"):
        list(chain_info(FILES, "far"))


def test_a_loop_and_a_bottomless_chain_end(folder: Path):
    qemu_img("rebase", "-u", "-b", "top", "-F", "qcow2", "sub/middle")
    with pytest.raises(LoopInChain):
        list(chain_info(FILES, "sub/top"))
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", "deep000", "-F", "qcow2", "deep", "1M")
    pattern = (folder / "deep").read_bytes()
    for index in range(260):
        (folder / f"deep{index:03}").write_bytes(pattern.replace(b"deep000", f"deep{index + 1:03}".encode()))
    with pytest.raises(ChainTooDeep):
        list(chain_info(FILES, "deep"))


def test_an_image_in_use_is_described_only_when_shared(folder: Path):
    file = FILES.open("sub/middle", Access.WRITE)
    try:
        with pytest.raises(ImageLocked):
            list(chain_info(FILES, "sub/top"))
        assert len(list(chain_info(FILES, "sub/top", None, Access.SHARED))) == 3
    finally:
        file.close()


def test_nothing_stays_open(folder: Path):
    before = len(os.listdir("/proc/self/fd"))
    list(chain_info(FILES, "sub/top"))
    (folder / "base.raw").unlink()
    with pytest.raises(MissingImage):
        list(chain_info(FILES, "sub/top"))
    assert len(os.listdir("/proc/self/fd")) == before
