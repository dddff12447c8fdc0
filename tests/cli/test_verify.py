"""`cowtree verify` as people and programs see it, and the words of qemu-img that leave a record."""

import json
import os
from pathlib import Path

import pytest

from cowtree.cli.main import main
from tests.cli.running import Ran
from tests.qemu import qemu_img, qemu_io


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with a base."""
    path = tmp_path / "pool"
    path.mkdir()
    monkeypatch.chdir(path)
    qemu_img("create", "-q", "-f", "qcow2", "base", "1M")
    return path


def img(words: str) -> None:
    """Run our qemu-img, which must succeed."""
    assert main(["qemu-img", *words.split(" ")]) == 0


class Verified(Ran):
    """What `cowtree verify` said."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *words: str) -> None:
        super().__init__(capsys, "verify", *words)

    @property
    def states(self) -> dict[str, str]:
        """The state of each overlay, by its name."""
        return {os.path.basename(each["overlay"]): each["state"] for each in json.loads(self.out)["overlays"]}


WAYS = {
    "create": ("create -q -f qcow2 -b base -F qcow2 overlay",),
    "create with -o": ("create -q -f qcow2 -o backing_file=base,backing_fmt=qcow2 overlay",),
    "create of raw": ("create -q -f qcow2 -b base -F raw overlay",),
    "convert": ("convert -O qcow2 -B base -F qcow2 base overlay",),
    "convert -c": ("convert -c -O qcow2 -B base -F qcow2 base overlay",),
    "rebase": ("create -q -f qcow2 overlay 1M", "rebase -b base -F qcow2 overlay"),
    "rebase -u": ("create -q -f qcow2 overlay 1M", "rebase -u -b base -F qcow2 overlay"),
    "commit": ("create -q -f qcow2 -b base -F qcow2 overlay", "commit -q overlay"),
}


@pytest.mark.parametrize("way", WAYS)
def test_whatever_makes_an_overlay_leaves_a_record(capsys: pytest.CaptureFixture[str], folder: Path, way: str):
    for words in WAYS[way]:
        img(words)
    assert Verified(capsys, "--output=json", ".").states == {"overlay": "unchanged"}
    assert not (folder / "../state").exists()
    qemu_io(folder / "base", "write -P 1 0 64k")
    verified = Verified(capsys, "overlay", "--output=json")
    assert (verified.status, verified.states) == (20, {"overlay": "changed"})


def test_a_commit_through_our_words_alarms_only_for_the_others(capsys: pytest.CaptureFixture[str], folder: Path):
    for name in ("a", "b"):
        img(f"create -q -f qcow2 -b base -F qcow2 {name}")
    qemu_io(folder / "a", "write -P 1 0 64k")
    (folder / "away").mkdir()
    # Where nobody looks who commits.
    (folder / "b").rename("away/b")
    img("commit -q a")
    (folder / "away/b").rename("b")
    assert Verified(capsys, ".", "--output=json").states == {"a": "unchanged", "b": "changed"}


def test_a_base_that_nobody_may_open_leaves_no_record(capsys: pytest.CaptureFixture[str], folder: Path):
    img("create -q -u -f qcow2 -b base -F qcow2 overlay 1M")
    img("create -q -f qcow2 lost 1M")
    img("rebase -u -b nowhere -F qcow2 lost")
    verified = Verified(capsys, ".", "--output=json")
    assert verified.states == {"overlay": "unknown", "lost": "unread"}
    assert verified.status == 11


def test_a_stale_overlay_is_one_sentence_and_a_summary(capsys: pytest.CaptureFixture[str], folder: Path):
    img("create -q -f qcow2 -b base -F qcow2 overlay")
    img("create -q -f qcow2 -b overlay -F qcow2 top")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "other")
    qemu_io(folder / "base", "write -P 1 0 64k")
    os.utime(folder / "overlay", (1, 1))
    verified = Verified(capsys, ".")
    assert verified.status == 20
    assert verified.out.splitlines() == [
        f"{folder}/top: base was copied or touched since, but what was looked at of it is as it was: {folder}/overlay",
        f"3 overlays: 1 with a changed base, 1 with a touched base, 1 without a record. Looked in {folder} and below.",
    ]
    assert verified.err == (
        f"cowtree: {folder}/overlay: base was changed after this overlay was made: {folder}/base. "
        f"Try: look whether what it shows is still right, then: cowtree verify --accept {folder}/overlay\n"
    )


def test_records_are_made_and_accepted(capsys: pytest.CaptureFixture[str], folder: Path, catalog: Path):
    img("create -q -f qcow2 -b base -F qcow2 known")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "stranger")
    qemu_io(folder / "base", "write -P 1 0 64k")
    assert Verified(capsys, ".", "--record", "--output=json").states == {"known": "changed", "stranger": "recorded"}
    assert catalog.exists()
    verified = Verified(capsys, ".", "--accept", "--output=json")
    assert (verified.status, verified.states) == (0, {"known": "recorded", "stranger": "unchanged"})
    verified = Verified(capsys)
    assert verified.status == 0
    assert verified.out == f"2 overlays: 2 with an unchanged base. Looked in {folder} and below.\n"


def test_pools_are_looked_at_when_no_path_is_named(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
):
    img("create -q -f qcow2 -b base -F qcow2 overlay")
    monkeypatch.chdir("/")
    assert main(["cowtree", "pool", "add", str(folder), str(folder / "nowhere")]) == 11
    assert Verified(capsys, "--output=json").states == {"overlay": "unchanged"}
    folder.rename(folder.with_name("moved"))
    verified = Verified(capsys)
    assert verified.status == 11
    assert f"{folder}: this pool is not there" in verified.err


def test_a_damaged_catalogue_matters_only_where_it_is_needed(
    capsys: pytest.CaptureFixture[str], folder: Path, catalog: Path
):
    img("create -q -f qcow2 -b base -F qcow2 overlay")
    catalog.parent.mkdir()
    catalog.write_bytes(b"no database" * 1000)
    verified = Verified(capsys, ".", "--output=json")
    assert (verified.status, verified.states) == (0, {"overlay": "unchanged"})
    assert "not a catalogue" in verified.err
    verified = Verified(capsys)
    assert (verified.status, verified.out) == (19, "")
    assert verified.err.count("\n") == 1


def test_what_is_broken_is_told_as_in_a_tree(capsys: pytest.CaptureFixture[str], folder: Path):
    img("create -q -f qcow2 -b base -F qcow2 overlay")
    (folder / "base").unlink()
    verified = Verified(capsys, ".")
    assert verified.status == 11
    assert "1 overlay: 1 that could not be compared" in verified.out
    assert f"{folder}/base: No such file or directory (it backs {folder}/overlay)" in verified.err


def test_a_place_without_images_is_no_success(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    verified = Verified(capsys, str(tmp_path))
    assert verified.status == 1
    assert verified.out.startswith("0 overlays. Looked in ")


def test_names_from_strangers_do_nothing_to_the_terminal(capsys: pytest.CaptureFixture[str], folder: Path):
    img("create -q -f qcow2 -b base -F qcow2 a\x1b[31m\nb")
    qemu_io(folder / "base", "write -P 1 0 64k")
    verified = Verified(capsys, ".")
    assert "\x1b" not in verified.out + verified.err
    assert verified.err.count("\n") == 1
