"""`cowtree trim` on the command line."""

import json
import os
from pathlib import Path

import pytest

from cowtree.cli.main import main
from cowtree.errors import ImageLocked, MissingImage, NotAnImage, Refused, WrongUse
from cowtree.storage.contract import Access
from cowtree.storage.file import LocalFiles
from tests.qemu import content, qemu_img, qemu_io


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, and an overlay that holds 64 KiB of the same, 64 KiB of zeroes, and 64 KiB that hide something."""
    monkeypatch.chdir(tmp_path)
    qemu_img("create", "-q", "-f", "qcow2", "base.qcow2", "1M")
    qemu_io(Path("base.qcow2"), "write -P 1 0 192k")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2")
    qemu_io(Path("top.qcow2"), "write -P 1 0 64k", "write -P 0 64k 64k", "write -P 2 128k 64k")
    return tmp_path


def trim(*words: str) -> int:
    return main(["cowtree", "trim", *words])


def test_it_says_what_goes_and_what_came_free(folder: Path, capsys: pytest.CaptureFixture[str]):
    view, blocks = content(Path("top.qcow2")), os.stat("top.qcow2").st_blocks
    assert trim("top.qcow2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "top.qcow2: drops 64 KiB the same as its base and 64 KiB zero; frees 131072 bytes (128 KiB) on disk",
        "freed 131072 bytes (128 KiB)",
    ]
    assert (blocks - os.stat("top.qcow2").st_blocks) * 512 == 131072
    assert content(Path("top.qcow2")) == view


def test_a_dry_run_says_it_and_stops(folder: Path, capsys: pytest.CaptureFixture[str]):
    before = [Path(name).read_bytes() for name in ("top.qcow2", "base.qcow2")]
    assert trim("--dry-run", "--hidden", "top.qcow2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[1].endswith(
        "base.qcow2: drops 128 KiB hidden by its only reader; frees 131072 bytes (128 KiB) on disk"
    )
    assert lines[2].endswith("base.qcow2: shows something else afterwards when it is opened alone")
    assert [Path(name).read_bytes() for name in ("top.qcow2", "base.qcow2")] == before


def test_json_says_the_same(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert trim("--dry-run", "--output=json", "top.qcow2") == 0
    dry = json.loads(capsys.readouterr().out)
    assert trim("--output=json", "top.qcow2") == 0
    done = json.loads(capsys.readouterr().out)
    assert dry["freed-bytes"] is None
    assert done["freed-bytes"] == dry["frees"] == 131072
    assert dry["images"] == done["images"]
    assert done["images"][0] == {
        "filename": "top.qcow2",
        "format": "qcow2",
        "base": False,
        "same": 65536,
        "zero": 65536,
        "frees": 131072,
    }


def test_readers_in_pools_count(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
):
    pool = tmp_path_factory.mktemp("pool")
    qemu_img("create", "-q", "-f", "qcow2", "-b", folder / "base.qcow2", "-F", "qcow2", pool / "other.qcow2")
    assert trim("--hidden", "--pool", str(pool), "top.qcow2") == Refused.exit_status
    assert "other.qcow2 as well" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ([], WrongUse.exit_status),
        (["nowhere"], MissingImage.exit_status),
        (["."], MissingImage.exit_status),
        (["top.qcow2", "base.qcow2"], WrongUse.exit_status),
        (["--output=xml", "top.qcow2"], WrongUse.exit_status),
        (["-f", "qcow2", "noise"], NotAnImage.exit_status),
        (["--hidden", "--pool", "nowhere", "top.qcow2"], MissingImage.exit_status),
    ],
)
def test_bad_words_end_with_a_sentence(folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], status: int):
    Path("noise").write_bytes(b"noise")
    assert trim(*words) == status
    printed = capsys.readouterr()
    assert printed.err.startswith("cowtree: ")
    assert "freed" not in printed.out


def test_an_image_in_use_is_named(folder: Path, capsys: pytest.CaptureFixture[str]):
    file = LocalFiles().open("top.qcow2", Access.WRITE)
    assert trim("top.qcow2") == ImageLocked.exit_status
    file.close()
    assert "top.qcow2" in capsys.readouterr().err


@pytest.mark.parametrize("name", [" ", "new\nline", os.fsdecode(b"\xff\xfe"), "-o"])
def test_odd_names_are_escaped_and_work(folder: Path, capsys: pytest.CaptureFixture[str], name: str):
    os.rename("top.qcow2", name)
    assert trim("--", name) == 0
    printed = capsys.readouterr()
    assert printed.out.endswith("freed 131072 bytes (128 KiB)\n")
    assert len(printed.out.splitlines()) == 2


def test_readers_in_pools_that_are_remembered_count_and_one_that_is_not_there_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    for name in ("pool", "gone"):
        (folder / name).mkdir()
        assert main(["cowtree", "pool", "add", name]) == 0
    (folder / "gone").rmdir()
    name = f"json:{{'driver':'qcow2','file.filename':'{folder}/base.qcow2'}}"
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", "qcow2", "pool/other.qcow2", "1M")
    assert trim("--hidden", "top.qcow2") == Refused.exit_status
    said = capsys.readouterr().err
    assert said.startswith(f"cowtree: {folder}/gone: this pool is not there")
    assert f"{folder}/pool/other.qcow2" in said


def test_an_image_that_cannot_be_read_may_be_a_reader(folder: Path, capsys: pytest.CaptureFixture[str]):
    Path("odd").write_bytes(Path("top.qcow2").read_bytes()[:4] + b"\0\0\0\x09" + bytes(600))
    assert trim("--hidden", "top.qcow2") == Refused.exit_status
    assert f"these could not be read: {folder}/odd" in capsys.readouterr().err
    assert trim("top.qcow2") == 0
