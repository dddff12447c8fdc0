"""`cowtree digest` on the command line."""

from pathlib import Path

import pytest

from cowtree.cli.main import main
from cowtree.errors import MissingImage, NotAnImage
from tests.qemu import qemu_img, qemu_io


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A chain, the same disk as one raw file, and another disk."""
    monkeypatch.chdir(tmp_path)
    qemu_img("create", "-q", "-f", "raw", "base.img", "1M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.img", "-F", "raw", "top.qcow2")
    qemu_io(Path("base.img"), "write -P 1 0 300k", image_format="raw")
    qemu_io(Path("top.qcow2"), "write -P 2 200k 300k")
    qemu_img("convert", "-O", "raw", "top.qcow2", "plain.img")
    return tmp_path


def test_one_line_for_each_image(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["cowtree", "digest", "top.qcow2", "plain.img", "base.img"]) == 0
    printed = capsys.readouterr()
    found = {name: digest for digest, name in (line.split("  ") for line in printed.out.splitlines())}
    assert list(found) == ["top.qcow2", "plain.img", "base.img"]
    assert found["top.qcow2"] == found["plain.img"] != found["base.img"]
    assert all(each.startswith("cowtree1:") for each in found.values())
    assert printed.err == ""


def test_the_format_may_be_named(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["cowtree", "digest", "-f", "raw", "top.qcow2"]) == 0
    assert main(["cowtree", "digest", "-f", "qcow2", "plain.img"]) == NotAnImage.exit_status
    printed = capsys.readouterr()
    assert printed.out.endswith("  top.qcow2\n")
    assert printed.err.startswith("cowtree: plain.img: Image is not in qcow2 format. Try: ")


def test_the_others_are_digested_when_one_fails(folder: Path, capsys: pytest.CaptureFixture[str]):
    Path("broken.qcow2").write_bytes(Path("top.qcow2").read_bytes()[:100])
    words = ["nowhere", "top.qcow2", "broken.qcow2", "plain.img"]
    assert main(["cowtree", "digest", *words]) == MissingImage.exit_status
    printed = capsys.readouterr()
    assert [line.split("  ")[1] for line in printed.out.splitlines()] == ["top.qcow2", "plain.img"]
    complaints = printed.err.splitlines()
    assert [line.split(":")[1] for line in complaints] == [" nowhere", " broken.qcow2"]
    assert all(". Try: " in line for line in complaints)
