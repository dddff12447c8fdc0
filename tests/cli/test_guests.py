"""Merges that are asked for by file keep what is known of guests true."""

import signal
from pathlib import Path

import pytest

from cowtree.cli.main import main
from tests.cli.running import Ran
from tests.cli.test_merge import kill_once
from tests.qemu import qemu_img, qemu_io

NAMES = ("one", "two", "three")


@pytest.fixture
def folder(tmp_path, capsys):
    """base <- one <- two <- three, external snapshots of a guest that writes something after each."""
    base = tmp_path / "base.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", base, "1M")
    assert main(["cowtree", "adopt", "guest", str(base)]) == 0
    for number, name in enumerate(NAMES):
        words = ("--disk-only", "--diskspec", f"vda,file={tmp_path}/{name}.qcow2")
        assert Ran(capsys, "snapshot-create-as", "guest", name, *words).status == 0
        qemu_io(tmp_path / f"{name}.qcow2", f"write -P {number + 1} {number * 64}k 64k")
    return tmp_path


def test_what_a_commit_takes_from_snapshots_is_told_and_noted(folder, capsys):
    ran = Ran(capsys, "commit", str(folder / "two.qcow2"))
    assert ran.status == 0
    assert (
        f"snapshot 'two' of domain 'guest' will not hold disk vda any more: what lies over {folder}/one.qcow2"
        in ran.err
    )
    assert Ran(capsys, "domblklist", "guest").err == ""
    # What the snapshot 'three' shows is in the file in which two was merged.
    assert Ran(capsys, "snapshot-revert", "guest", "three").status == 0
    active = Ran(capsys, "domblklist", "guest").out.split()[-1]
    assert str(folder / "one.qcow2") in qemu_img("info", active)
    ran = Ran(capsys, "snapshot-revert", "guest", "two")
    assert ran.status != 0
    assert "merged into" in ran.err


def test_the_guest_goes_on_where_its_disk_is_after_a_merge(folder, capsys):
    assert Ran(capsys, "commit", str(folder / "three.qcow2"), "--base", str(folder / "base.qcow2")).status == 0
    ran = Ran(capsys, "domblklist", "guest")
    assert (ran.err, Path(ran.out.split()[-1]).name) == ("", "base.qcow2")


def test_a_dry_run_notes_nothing(folder, capsys):
    before = Ran(capsys, "snapshot-dumpxml", "guest", "two").out
    ran = Ran(capsys, "commit", str(folder / "two.qcow2"), "--dry-run")
    assert "will not hold disk vda any more" in ran.err
    assert Ran(capsys, "snapshot-dumpxml", "guest", "two").out == before
    assert Ran(capsys, "catalog", "check").status == 0


@pytest.mark.parametrize("words", [["recover", "."], ["commit", "two.qcow2"]], ids=["recover", "the same"])
def test_a_merge_that_is_completed_is_noted_too(folder, capsys, monkeypatch, words):
    monkeypatch.chdir(folder)
    assert kill_once(["commit", "two.qcow2"], folder, 0.0) == -signal.SIGKILL
    assert list(folder.glob("*.cowtree-merge"))
    assert Ran(capsys, *words).status == 0
    ran = Ran(capsys, "snapshot-revert", "guest", "three")
    assert (ran.status, ran.err) == (0, "warning: what was active is kept as snapshot 'three-tip'\n")
    assert str(folder / "one.qcow2") in qemu_img("info", Ran(capsys, "domblklist", "guest").out.split()[-1])


@pytest.mark.parametrize("words", [["commit", "one.qcow2"], ["img", "commit", "-d", "one.qcow2"]])
def test_an_overlay_of_a_guest_in_another_folder_is_not_ruined(folder, capsys, monkeypatch, tmp_path_factory, words):
    other = tmp_path_factory.mktemp("other") / "overlay.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", folder / "base.qcow2", "-F", "qcow2", other)
    assert Ran(capsys, "adopt", "second", str(other)).status == 0
    monkeypatch.chdir(folder)
    ran = Ran(capsys, *words)
    assert ran.status != 0
    assert str(other) in ran.err
