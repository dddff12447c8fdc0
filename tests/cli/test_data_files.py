"""Merges of images with external data files: these go when their images go, and only then."""

import shutil
from pathlib import Path

import pytest

from cowtree.images import wish
from tests.cli.running import Ran
from tests.qemu import content, qemu_img, qemu_io


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base with a data file in another folder, which holds little, and an overlay, which holds much."""
    place = tmp_path / "images"
    place.mkdir()
    (tmp_path / "far").mkdir()
    monkeypatch.chdir(place)
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path}/far/data", "base", "4M")
    qemu_io(Path("base").absolute(), "write -P 1 0 64k")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top")
    qemu_io(Path("top").absolute(), "write -P 2 64k 1M")
    return tmp_path


@pytest.mark.parametrize("words", [("flatten", "top"), ("commit", "top"), ("flatten", "top", "--verify")])
def test_the_data_file_of_a_removed_image_is_removed(
    folder: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
):
    view = content(Path("top"))
    ran = Ran(capsys, *words, "--delete")
    assert ran.status == 0, ran.err
    assert f"their data files, which --delete removes with them: {folder}/far/data\n" in ran.out
    assert not (folder / "far/data").exists()
    (left,) = Path().iterdir()
    assert content(left) == view


@pytest.mark.parametrize("other", ["a copy", "an overlay"])
def test_it_stays_when_another_image_names_it(folder: Path, capsys: pytest.CaptureFixture[str], other: str):
    if other == "a copy":
        shutil.copy("base", "other")
    else:
        qemu_img("create", "-q", "-f", "qcow2", "-b", folder / "far/data", "-F", "raw", folder / "far/other")
    ran = Ran(capsys, "flatten", "top", "--delete")
    assert ran.status == 0, ran.err
    assert "data files" not in ran.out
    assert (folder / "far/data").exists()
    assert not Path("base").exists()


@pytest.mark.parametrize("ending", [(), ("--keep",)])
def test_it_stays_with_an_image_that_is_set_aside_or_kept(
    folder: Path, capsys: pytest.CaptureFixture[str], ending: tuple[str, ...]
):
    view = content(Path("base"))
    assert Ran(capsys, "flatten", "top", *ending).status == 0
    assert (folder / "far/data").exists()
    if not ending:
        assert Ran(capsys, "undo").status == 0
    assert content(Path("base")) == view


def test_another_file_in_its_place_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wish, "remove_aside", stop)
        assert Ran(capsys, "flatten", "top", "--delete", "--verify").status == 130
    kept = (folder / "far/data").rename(folder / "far/kept")
    (folder / "far/data").write_bytes(b"!")
    assert Ran(capsys, "recover").status == 0
    assert (folder / "far/data").read_bytes() == b"!"
    assert kept.exists()
