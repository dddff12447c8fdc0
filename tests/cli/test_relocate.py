"""`cowtree relocate` on the command line."""

import json
import os
from pathlib import Path

import pytest

from cowtree.cli.main import main
from cowtree.errors import ImageLocked, MissingImage, Refused, WrongUse
from cowtree.images import relocate as module
from cowtree.storage.contract import Access
from cowtree.storage.file import LocalFiles
from tests.qemu import assert_clean, content, qemu_img, qemu_io


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base and an overlay in a folder of their own."""
    (tmp_path / "old").mkdir()
    monkeypatch.chdir(tmp_path / "old")
    qemu_img("create", "-q", "-f", "qcow2", "base.qcow2", "1M")
    qemu_io(Path("base.qcow2"), "write -P 1 0 64k")
    qemu_img("create", "-q", "-f", "qcow2", "-b", tmp_path / "old/base.qcow2", "-F", "qcow2", "top.qcow2")
    return tmp_path


def relocate(*words: str) -> int:
    return main(["cowtree", "relocate", *words])


def test_it_says_what_goes_where(folder: Path, capsys: pytest.CaptureFixture[str]):
    view = content(Path("top.qcow2"))
    assert relocate("top.qcow2", "--to", "../new") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{folder}/old/{name} -> {folder}/new/{name} (moved)" for name in ("base.qcow2", "top.qcow2")
    ]
    assert sorted(os.listdir(folder / "new")) == ["base.qcow2", "top.qcow2"]
    assert os.listdir(folder / "old") == []
    assert content(folder / "new/top.qcow2") == view
    assert_clean(folder / "new/top.qcow2")


def test_a_dry_run_and_json_say_the_same(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert relocate("--dry-run", "--output=json", "top.qcow2", "--to", "../new") == 0
    dry = json.loads(capsys.readouterr().out)
    assert os.listdir(folder) == ["old"]
    assert relocate("--output=json", "top.qcow2", "--to", "../new") == 0
    done = json.loads(capsys.readouterr().out)
    assert dry["files"] == done["files"]
    assert (dry["done"], done["done"]) == (False, True)
    assert done["files"][1]["to"] == str(folder / "new/top.qcow2")


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ([], WrongUse.exit_status),
        (["top.qcow2"], WrongUse.exit_status),
        (["--to", "../new"], WrongUse.exit_status),
        (["nowhere", "--to", "../new"], MissingImage.exit_status),
        (["top.qcow2", "--to", "base.qcow2"], Refused.exit_status),
        (["top.qcow2", "--to", "../new", "--pool", "nowhere"], MissingImage.exit_status),
        (["../empty", "--to", "../new"], Refused.exit_status),
    ],
)
def test_bad_words_end_with_a_sentence(folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], status: int):
    os.mkdir(folder / "empty")
    assert relocate(*words) == status
    assert capsys.readouterr().err.startswith("cowtree: ")
    assert sorted(os.listdir(folder / "old")) == ["base.qcow2", "top.qcow2"]
    assert not (folder / "new").exists()


def test_an_image_in_use_is_named(folder: Path, capsys: pytest.CaptureFixture[str]):
    file = LocalFiles().open("base.qcow2", Access.READ)
    assert relocate("top.qcow2", "--to", "../new") == ImageLocked.exit_status
    file.close()
    assert "base.qcow2" in capsys.readouterr().err
    assert not (folder / "new").exists()


@pytest.mark.parametrize("name", [" ", "a:b", "new\nline", os.fsdecode(b"\xff\xfe"), "-o"])
def test_odd_names_are_escaped_and_work(folder: Path, capsys: pytest.CaptureFixture[str], name: str):
    view = content(Path("top.qcow2"))
    os.rename("top.qcow2", f"./{name}")
    assert relocate("base.qcow2", "--to", f"../{name}") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert content(folder / name / name) == view


def test_an_image_in_a_remembered_pool_is_not_left_without_its_base(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (folder / "pool").mkdir()
    qemu_img("create", "-q", "-f", "qcow2", "-b", folder / "old/base.qcow2", "-F", "qcow2", folder / "pool/far.qcow2")
    assert main(["cowtree", "pool", "add", str(folder / "pool")]) == 0
    assert relocate("top.qcow2", "--to", "../new") == Refused.exit_status
    assert f"{folder}/pool/far.qcow2 reads {folder}/old/base.qcow2" in capsys.readouterr().err


@pytest.mark.parametrize("driver", ["raw", "qcow2"])
def test_an_overlay_that_names_its_base_by_an_address_moves_along(folder: Path, driver: str):
    name = f"json:{{'driver':'{driver}','file.filename':'{folder}/old/base.qcow2'}}"
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", driver, "named.qcow2", "1M")
    named = Path("named.qcow2")
    # Only the address says the format.
    named.write_bytes(named.read_bytes().replace(b"\xe2\x79\x2a\xca", b"\x12\x34\x56\x78"))
    view = content(named)
    assert relocate("base.qcow2", "--to", "../new") == 0
    assert content(folder / "new/named.qcow2") == view
    found = json.loads(qemu_img("info", "--output=json", folder / "new/named.qcow2"))
    assert (found["backing-filename"], found["backing-filename-format"]) == ("base.qcow2", driver)


def stop_half_way(*words: str) -> Path:
    """Begin a relocation and stop it when all files have both names. Returns: its journal."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_switch", stop)
        assert relocate(*words) == 130
    return Path("../new/.cowtree-relocate").resolve()


def test_the_same_words_complete_what_the_catalogue_knows(folder: Path):
    view = content(Path("top.qcow2"))
    journal = stop_half_way("top.qcow2", "--to", "../new")
    assert relocate("top.qcow2", "--to", "../new") == 0
    assert content(folder / "new/top.qcow2") == view
    assert not journal.exists()


def test_a_journal_that_the_catalogue_does_not_know_is_followed_only_when_it_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], catalog: Path
):
    journal = stop_half_way("top.qcow2", "--to", "../new")
    catalog.unlink()
    assert relocate("top.qcow2", "--to", "../new") == Refused.exit_status
    said = capsys.readouterr().err
    assert f"{folder}/old/base.qcow2 to {folder}/new/base.qcow2" in said
    assert f"if you began it: the same with --trust {journal}" in said
    assert sorted(os.listdir("."))[:2] == ["base.qcow2", "top.qcow2"]
    assert relocate("top.qcow2", "--to", "../new", "--trust", "../new/.cowtree-relocate") == 0
    assert sorted(os.listdir(folder / "new")) == ["base.qcow2", "top.qcow2"]


@pytest.mark.parametrize("change", ["old", "new", "link", "owner"])
def test_a_journal_from_an_archive_moves_nothing_that_is_not_named_and_nothing_elsewhere(
    folder: Path, capsys: pytest.CaptureFixture[str], change: str
):
    journal = stop_half_way("top.qcow2", "--to", "../new")
    said = json.loads(journal.read_text())
    (folder / "precious").write_bytes(b"!")
    os.symlink(folder, folder / "new/away")
    if change == "old":
        place = {"old": f"{folder}/precious", "new": f"{folder}/new/precious"}
        said["members"].append({**said["members"][0], **place, "is_qcow2": False})
    elif change == "owner":
        os.chown(journal, 12345, 12345)
    else:
        said["members"][0]["new"] = f"{folder}/elsewhere" if change == "new" else f"{folder}/new/away/elsewhere"
    journal.write_text(json.dumps(said))
    assert relocate("top.qcow2", "--to", "../new", "--trust", str(journal)) == Refused.exit_status
    assert (folder / "precious").exists()
    assert not (folder / "elsewhere").exists()
    assert str(journal) in capsys.readouterr().err
