"""`cowtree pool`, and what other verbs do with pools."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cowtree.cli.main import main
from cowtree.cli.pool import find_pools
from tests.qemu import qemu_img


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    made = [tmp_path / name for name in ("a", "b")]
    for path in made:
        path.mkdir()
    return [str(path) for path in made]


def pool(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(["cowtree", "pool", *words])
    return status, *capsys.readouterr()


def test_pools_are_added_listed_and_removed(capsys: pytest.CaptureFixture[str], folders: list[str]):
    assert pool(capsys, "add", *folders) == (0, "", "")
    assert pool(capsys, "add", folders[0] + "/../a") == (0, "", "")
    assert pool(capsys, "list") == (0, "".join(f"{path}\n" for path in folders), "")
    assert pool(capsys, "remove", folders[0]) == (0, "", "")
    status, printed, _ = pool(capsys, "list", "--output=json")
    assert (status, json.loads(printed)) == (0, [{"folder": folders[1], "there": True}])


def test_a_pool_that_is_gone_is_told_and_can_be_removed(capsys: pytest.CaptureFixture[str], folders: list[str]):
    pool(capsys, "add", *folders)
    os.rmdir(folders[0])
    assert pool(capsys, "list")[1].splitlines()[0] == f"{folders[0]} (not there)"
    there, gone = find_pools(None)
    assert there == folders[1:]
    assert [each.facts["path"] for each in gone] == folders[:1]
    assert pool(capsys, "remove", folders[0]) == (0, "", "")
    assert pool(capsys, "list")[1] == f"{folders[1]}\n"


def test_nothing_is_made_to_look_at_no_pools(capsys: pytest.CaptureFixture[str], catalog: Path):
    assert pool(capsys, "list") == (0, "", "")
    assert pool(capsys, "remove", "/nowhere")[0] == 11
    assert not catalog.parent.exists()


@pytest.mark.parametrize("words", [["add"], ["remove"], ["list", "x"], ["grow"], []])
def test_wrong_words_are_one_sentence(capsys: pytest.CaptureFixture[str], words: list[str]):
    status, _, complaint = pool(capsys, *words)
    assert status == 2
    assert complaint.count("\n") == 1


def test_what_is_no_folder_is_told_and_the_others_are_added(capsys: pytest.CaptureFixture[str], folders: list[str]):
    status, _, complaint = pool(capsys, "add", "/nowhere", folders[0])
    assert (status, complaint.count("\n")) == (11, 1)
    assert complaint.startswith("cowtree: /nowhere: it is not a folder")
    assert pool(capsys, "list")[1] == f"{folders[0]}\n"


def test_the_catalogue_may_be_any_file(capsys: pytest.CaptureFixture[str], folders: list[str], tmp_path: Path):
    other = str(tmp_path / "other.db")
    assert pool(capsys, "add", folders[0], "--catalog", other)[0] == 0
    assert pool(capsys, "--catalog", other, "list")[1] == f"{folders[0]}\n"
    assert pool(capsys, "list")[1] == ""


def test_a_damaged_catalogue_is_one_sentence_with_a_status_of_its_own(
    capsys: pytest.CaptureFixture[str], catalog: Path
):
    catalog.parent.mkdir()
    catalog.write_bytes(b"no database" * 1000)
    for words in (["list"], ["add", "/"]):
        status, printed, complaint = pool(capsys, *words)
        assert (status, printed, complaint.count("\n")) == (19, "", 1)
        assert str(catalog) in complaint


def test_the_tree_draws_what_is_in_the_pools(capsys: pytest.CaptureFixture[str], folders: list[str]):
    assert main(["cowtree", "tree", "--pools"]) == 1
    assert "there are no pools. Try: cowtree pool add FOLDER" in capsys.readouterr().err
    pool(capsys, "add", *folders)
    for path in folders:
        qemu_img("create", "-q", "-f", "qcow2", Path(path) / "image.qcow2", "1M")
    assert main(["cowtree", "tree", "--pools", "--output=json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["path"] for each in found["images"]] == [f"{path}/image.qcow2" for path in folders]
    os.rename(folders[0], folders[0] + "x")
    assert main(["cowtree", "tree", "--pools"]) == 11
    printed = capsys.readouterr()
    assert "1 image, 1 leaf" in printed.out
    assert f"{folders[0]}: this pool is not there" in printed.err


def test_other_verbs_open_no_catalogue(folders: list[str], catalog: Path):
    catalog.parent.mkdir()
    catalog.write_bytes(b"no database")
    qemu_img("create", "-q", "-f", "qcow2", Path(folders[0]) / "image.qcow2", "1M")
    words = ("-X", "importtime", "-m", "cowtree", "tree", folders[0])
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "sqlite3" not in done.stderr
