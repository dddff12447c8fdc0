"""`cowtree recover`, and the same command again, on merges that were stopped."""

import json
import os
import shutil
from pathlib import Path

import pytest

from cowtree.cli.main import main
from cowtree.images import wish
from cowtree.images.act import Act
from tests.cli.running import Ran
from tests.disktrees import NAMES, DiskTree, plant
from tests.qemu import qemu_img

BROKEN, REFUSED, MISSING = 21, 15, 11


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DiskTree:
    folder = tmp_path / "images"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return plant(folder, (None, 0, 1), ("AAAA", "-B--", "--CC"), ("base", "middle", "top"))


def begin(*words: str, phase: str = "link_overlays") -> str:
    """Begin a merge and stop it before a phase. Returns: its journal."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Act, phase, stop)
        assert main(["cowtree", *words]) == 130
    (journal,) = (name for name in os.listdir(".") if name.endswith(".cowtree-merge"))
    return os.path.abspath(journal)


PHASES = ("give_name", "link_overlays", "leave")


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    "words", [("commit", "top"), ("delete", "base"), ("flatten", "top"), ("commit", "top", "--delete")]
)
def test_the_same_command_again_completes_it_and_says_so(
    tree: DiskTree, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], phase: str
):
    shown = tree.digests()[tree.paths[2]]
    begin(*words, phase=phase)
    assert shown in tree.digests().values()
    dry = Ran(capsys, *words, "--dry-run")
    assert (dry.status, dry.out) == (0, "this merge was begun and is not done: it would be completed\n")
    ran = Ran(capsys, *words)
    assert ran.status == 0
    assert ran.out.startswith("this merge was begun and is not done: it is completed\nmoved ")
    assert shown in tree.digests().values()
    assert not [name for name in tree.names() if "cowtree" in name]
    assert Ran(capsys, "recover").out == "nothing was left half-done\n"


def test_the_same_command_completes_it_when_the_name_is_gone(tree: DiskTree, capsys: pytest.CaptureFixture[str]):
    shown = tree.digests()[tree.paths[2]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wish, "record_bases", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(["cowtree", "commit", "top", "--base", "middle"]) == 130
    assert not os.path.exists("top")
    ran = Ran(capsys, "commit", "./top", "--base", "middle", "--output=json")
    assert (ran.status, json.loads(ran.out)["verb"]) == (0, "commit")
    assert tree.digests()[tree.paths[1]] == shown
    assert Ran(capsys, "commit", "top", "--base", "middle").status == MISSING


def test_another_merge_of_the_family_has_to_wait(tree: DiskTree, capsys: pytest.CaptureFixture[str]):
    journal = begin("commit", "top")
    for words in (("flatten", "top"), ("plan", "flatten", "top")):
        ran = Ran(capsys, *words)
        assert ran.status == REFUSED
        assert f"cowtree commit {tree.paths[2]}" in ran.err
        assert f"Try: cowtree recover {journal}" in ran.err


@pytest.mark.parametrize("place", ["journal", "image", "gone", "folder", "above", "pool", ""])
def test_a_merge_is_found_by_its_journal_an_image_a_folder_and_a_pool(
    tree: DiskTree, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: str
):
    shown = tree.digests()[tree.paths[2]]
    journal = begin("delete", "base", phase="leave")
    places = {"journal": [journal], "image": [tree.paths[2]], "gone": [str(tree.folder / "nothing")]}
    places |= {"folder": [str(tree.folder)], "above": [str(tree.folder.parent)], "pool": [], "": []}
    if place == "pool":
        assert main(["cowtree", "pool", "add", str(tree.folder)]) == 0
    if place != "":
        monkeypatch.chdir("/")
    listed = Ran(capsys, "recover", "--list", *places[place]) if place != "pool" else None
    if listed:
        assert listed.out == f"{journal}: cowtree delete {tree.paths[0]}\n"
        assert os.path.exists(journal)
    if place == "pool":
        elsewhere = tree.folder.parent / "elsewhere"
        elsewhere.mkdir()
        monkeypatch.chdir(elsewhere)
    ran = Ran(capsys, "recover", *places[place])
    assert ran.status == 0, ran.err
    assert "completed; moved " in ran.out
    assert shown in tree.digests().values()
    assert not os.path.exists(journal)


def test_what_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("nowhere/at/all", ".x.cowtree-merge"):
        ran = Ran(capsys, "recover", str(tmp_path / name))
        assert ran.status == MISSING
        assert name in ran.err


def test_what_cannot_be_understood_does_not_hide_the_rest(tree: DiskTree, capsys: pytest.CaptureFixture[str]):
    begin("commit", "top")
    Path(".x.cowtree-merge").write_bytes(b"{}")
    Path(".y.cowtree-merge").symlink_to("/etc/passwd")
    ran = Ran(capsys, "recover", ".")
    assert ran.status == BROKEN
    assert "completed; moved " in ran.out
    assert ran.err.count("this is no journal of a merge") == 2


def test_a_journal_that_was_carried_elsewhere_changes_nothing(
    tree: DiskTree, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    journal = begin("commit", "top", phase="leave")
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(journal, other)
    before = {name: (tree.folder / name).read_bytes() for name in tree.names()}
    ran = Ran(capsys, "recover", str(other))
    assert ran.status == BROKEN
    assert "it belongs beside" in ran.err
    assert {name: (tree.folder / name).read_bytes() for name in tree.names()} == before


def test_the_word_of_another_user_is_not_followed(tree: DiskTree, capsys: pytest.CaptureFixture[str]):
    journal = begin("commit", "top", phase="leave")
    os.chown(journal, 12345, 12345)
    assert Ran(capsys, "recover", ".").status == BROKEN
    assert set(NAMES[:3]) & set(tree.names())


def test_a_journal_that_the_catalogue_does_not_know_is_explained_and_followed_only_when_it_is_named(
    tree: DiskTree, capsys: pytest.CaptureFixture[str], catalog: Path
):
    shown = tree.digests()[tree.paths[2]]
    journal = begin("commit", "top", phase="leave")
    for path in catalog.parent.iterdir():
        path.unlink()
    before = tree.names()
    for words in (("recover",), ("commit", "top"), ("recover", "--trust", f"{journal}x.cowtree-merge")):
        ran = Ran(capsys, *words)
        assert ran.status == (MISSING if "--trust" in words else REFUSED)
        assert tree.names() == before
        if "--trust" not in words:
            assert f"Try: if you began it: cowtree recover --trust {journal}" in ran.err
    ran = Ran(capsys, "recover", "--list")
    assert ran.status == 0
    assert f"  pull {tree.paths[1]} into {tree.paths[2]}, which then takes the place of {tree.paths[1]}\n" in ran.out
    assert f"  rename what is not needed then: {tree.paths[1]}\n" in ran.out
    ran = Ran(capsys, "recover", "--trust", journal)
    assert (ran.status, ran.err) == (0, "")
    assert shown in tree.digests().values()
    assert not os.path.exists(journal)


@pytest.mark.parametrize("change", ["stamp", "token", "gone"])
def test_a_journal_that_says_something_else_than_the_catalogue_is_not_followed(
    tree: DiskTree, capsys: pytest.CaptureFixture[str], change: str
):
    journal = Path(begin("commit", "top", phase="leave"))
    content = json.loads(journal.read_text())
    content[change] = [0] if change == "gone" else "other"
    journal.write_text(json.dumps(content))
    before = tree.names()
    assert Ran(capsys, "recover").status == REFUSED
    assert tree.names() == before


def forge(journal: str, path: Path) -> None:
    """Let a journal at its last phase name another file for the base that it removes."""
    content = json.loads(Path(journal).read_text())
    content["members"][0][0] = str(path)
    Path(journal).write_text(json.dumps(content))


def test_a_trusted_journal_removes_no_file_but_those_that_were_merged(
    tree: DiskTree, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    journal = begin("flatten", "top", "--delete", phase="leave")
    precious = tmp_path / "precious"
    precious.write_bytes(b"!")
    forge(journal, precious)
    assert Ran(capsys, "recover", "--trust", journal).status == 0
    assert not os.path.exists(tree.paths[1])
    assert precious.read_bytes() == b"!"


def test_no_journal_gives_another_base_to_the_overlay_of_another_family(
    tree: DiskTree, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    journal = begin("delete", "middle", phase="link_overlays")
    other = tmp_path / "other"
    other.mkdir()
    stranger = plant(other, (None, 0), ("DDDD", "E---"), ("base", "top"))
    shown = stranger.digests()
    content = json.loads(Path(journal).read_text())
    heads = [each for each, member in enumerate(content["members"]) if member[3] == content["acts"][0][0][0]]
    for head in heads or [2]:
        content["members"][head][0] = stranger.paths[1]
    content["progress"][1] = 2
    Path(journal).write_text(json.dumps(content))
    Ran(capsys, "recover", "--trust", journal)
    assert stranger.digests() == shown


def test_an_overlay_that_was_made_meanwhile_is_not_ruined(tree: DiskTree, capsys: pytest.CaptureFixture[str]):
    journal = begin("commit", "top", phase="leave")
    qemu_img("create", "-q", "-f", "qcow2", "-b", tree.paths[2], "-F", "qcow2", "late")
    ran = Ran(capsys, "recover", journal)
    assert ran.status == REFUSED
    assert f"{tree.folder}/late" in ran.err
    assert os.path.exists("top")
    assert Ran(capsys, "img", "rebase", "-b", "", "late").status == 0
    assert Ran(capsys, "recover", journal).status == 0
