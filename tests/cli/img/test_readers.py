"""What an image shows is not changed under those that lie on it, unless qemu-img's users rely on that."""

from pathlib import Path

import pytest

from cowtree.cli.main import main
from tests.cli.img.differential import Result, content_of, run_cowtree
from tests.qemu import content, qemu_img, qemu_io

COWTREE = ("cowtree", "img")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base with an internal snapshot, which shows something else, an overlay of it, and one of that."""
    place = tmp_path / "images"
    place.mkdir()
    qemu_img("create", "-q", "-f", "qcow2", place / "base", "4M")
    qemu_io(place / "base", "write -P 1 0 4M")
    qemu_img("snapshot", "-c", "one", place / "base")
    qemu_io(place / "base", "write -P 2 0 4M")
    for name, below in (("top", "base"), ("leaf", "top")):
        qemu_img("create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", place / name)
    qemu_img("create", "-q", "-f", "qcow2", place / "other", "4M")
    return place


def refused(folder: Path, call: str, start: tuple[str, ...] = COWTREE) -> Result:
    before = content_of(folder)
    result = run_cowtree(folder, *call.split(), start=start)
    assert (result.status, result.stdout) == (1, "")
    assert content_of(folder) == before
    return result


@pytest.mark.parametrize("call", ["snapshot -a one base", "resize --shrink base 1M"])
def test_who_reads_an_image_that_would_show_something_else_is_named(folder: Path, call: str):
    said = refused(folder, call).stderr
    assert f"base would change, and {folder}/top, {folder}/leaf read it" in said
    assert f"Try: cowtree img rebase -b '' {folder}/top; " in said
    assert "would change, and" in refused(folder, call, ("qemu-img",)).stderr
    assert run_cowtree(folder, "rebase", "-b", "", "top").status == 0
    assert run_cowtree(folder, *call.split()).status == 0


@pytest.mark.parametrize("call", ["snapshot -a one base", "resize --shrink base 1M"])
def test_a_reader_in_a_pool_is_named(folder: Path, tmp_path: Path, call: str):
    (folder / "top").unlink()
    (tmp_path / "pool").mkdir()
    qemu_img("create", "-q", "-f", "qcow2", "-b", folder / "base", "-F", "qcow2", tmp_path / "pool/far")
    assert main(["cowtree", "pool", "add", str(tmp_path / "pool")]) == 0
    assert f"{tmp_path}/pool/far reads it" in refused(folder, call).stderr


@pytest.mark.parametrize(
    "call", ["snapshot -a one base", "resize --shrink base 1M", "rebase -u -b other -F qcow2 leaf"]
)
def test_what_nobody_reads_is_changed_in_silence(folder: Path, call: str):
    if call.endswith("base") or "resize" in call:
        (folder / "top").unlink()
    result = run_cowtree(folder, *call.split(), start=COWTREE)
    assert (result.status, result.stderr) == (0, "")


@pytest.mark.parametrize(
    "call", ["snapshot -c two base", "snapshot -d one base", "resize base 8M", "snapshot -a one leaf"]
)
def test_what_changes_nothing_for_a_reader_is_no_reason_to_refuse(folder: Path, call: str):
    qemu_img("snapshot", "-c", "one", folder / "leaf")
    view = content(folder / "top")
    assert run_cowtree(folder, *call.split(), start=COWTREE).status == 0
    assert content(folder / "top") == view


def test_an_overlay_that_ends_before_what_is_cut_off_is_not_in_the_way(folder: Path):
    (folder / "leaf").unlink()
    (folder / "top").unlink()
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", folder / "short", "1M")
    view = content(folder / "short")
    assert run_cowtree(folder, "resize", "--shrink", "base", "1M").status == 0
    assert content(folder / "short") == view
    assert f"{folder}/short reads it" in refused(folder, "resize --shrink base 512k").stderr


def test_another_base_by_name_only_warns_of_those_that_lie_on_the_image(folder: Path):
    call = ("rebase", "-u", "-b", "other", "-F", "qcow2", "top")
    said = f"cowtree img: warning: {folder}/leaf will show what top shows on its new base\n"
    result = run_cowtree(folder, *call, start=COWTREE)
    assert (result.status, result.stdout, result.stderr) == (0, "", said)
    assert run_cowtree(folder, *call, start=COWTREE).stderr == ""
    assert run_cowtree(folder, "rebase", "-u", "-b", "base", "-F", "qcow2", "top").stderr == ""


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A base, an image with a data file on it, and an overlay elsewhere that lies on the data file."""
    place = tmp_path / "images"
    (tmp_path / "far").mkdir()
    place.mkdir()
    make = ("create", "-q", "-f", "qcow2")
    qemu_img(*make, "-o", f"data_file={tmp_path}/far/data,data_file_raw=on", place / "image", "1M")
    qemu_io(place / "image", "write -P 1 0 64k")
    qemu_img(*make, "-b", place / "image", "-F", "qcow2", place / "top")
    qemu_io(place / "top", "write -P 2 64k 64k")
    qemu_img(*make, "-b", tmp_path / "far/data", "-F", "raw", tmp_path / "far/reader")
    qemu_io(tmp_path / "far/reader", "write -P 3 128k 64k")
    return place


def test_an_overlay_that_lies_on_the_data_file_of_an_image_is_a_reader_of_it(shared: Path):
    reader = shared.parent / "far/reader"
    for call in ("commit top", "resize --shrink image 64k"):
        said = refused(shared, call).stderr
        assert "image would change, and " in said
        assert str(reader) in said.partition("Try: ")[0]
    view = content(reader)
    # There is a way that leaves the data file as it is.
    assert main(["cowtree", "commit", str(shared / "top"), "--base", str(shared / "image")]) == 0
    assert content(reader) == view


def test_an_image_is_a_reader_of_its_data_file(shared: Path):
    assert main(["cowtree", "pool", "add", str(shared)]) == 0
    result = refused(shared.parent / "far", "commit reader")
    assert f"data would change, and {shared}/image, {shared}/top read it" in result.stderr
    view = content(shared / "top")
    assert main(["cowtree", "flatten", str(shared.parent / "far/reader"), "--delete"]) == 0
    assert (shared.parent / "far/data").exists()
    assert content(shared / "top") == view
