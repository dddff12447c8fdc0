"""What is noted down of a snapshot, changed in an editor."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.domain.guest import Guest
from tests.cli.running import Ran

Make = Callable[..., Guest]
SCRIPT = "import sys; path = sys.argv[-1]; text = open(path).read(); open(path, 'w').write(text.replace({!r}, {!r}))"


class Editing:
    """A guest with one external snapshot, `one`, and an editor that replaces one text by another."""

    def __init__(self, vm: Guest, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.vm, self._monkeypatch = vm, monkeypatch
        monkeypatch.setenv("TMPDIR", str(folder))
        monkeypatch.setattr("tempfile.tempdir", None)
        monkeypatch.delenv("VISUAL", raising=False)
        vm.out("snapshot-create-as", "vm", "one", "first", "--disk-only")

    def run(self, old: str, new: str, *words: str) -> Ran:
        self._monkeypatch.setenv("EDITOR", shlex.join([sys.executable, "-c", SCRIPT.format(old, new)]))
        return self.vm.run("snapshot-edit", "vm", *words)


@pytest.fixture
def editing(guest: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Editing:
    folder = tmp_path / "edited"
    folder.mkdir()
    return Editing(guest("vm"), monkeypatch, folder)


def left(editing: Editing) -> list[Path]:
    return list((editing.vm.folder / "edited").iterdir())


def test_a_description_is_changed(editing: Editing):
    ran = editing.run(">first<", ">second &amp; third<", "one")
    assert (ran.status, ran.out, ran.err) == (0, "Snapshot one edited.\n\n", "")
    assert left(editing) == []
    assert "<description>second &amp; third</description>" in editing.vm.out("snapshot-dumpxml", "vm", "one")


def test_nothing_changed_is_said(editing: Editing):
    for words in (["one"], ["--current"]):
        ran = editing.run("@", "@@", *words)
        assert (ran.status, ran.out) == (0, "Snapshot one XML configuration not changed.\n\n")
    assert left(editing) == []


def test_the_named_one_becomes_current_when_that_is_asked_for(editing: Editing):
    editing.vm.out("snapshot-create-as", "vm", "two", "--disk-only")
    assert editing.run("@", "@@", "one", "--current").out == "Snapshot one edited.\n\n"
    assert editing.vm.out("snapshot-current", "vm", "--name") == "one\n"


def test_a_name_is_changed_when_that_is_asked_for(editing: Editing):
    ran = editing.run("<name>one<", "<name>two<", "one")
    assert (ran.status, ran.out) == (15, "\n")
    assert ran.err.startswith("error: must use --rename or --clone to change one to two. Try: what was written is kept")
    assert editing.run("<name>one<", "<name>two<", "one", "--rename").out == "Snapshot two edited.\n\n"
    assert editing.vm.out("snapshot-list", "vm", "--name") == "two\n\n"
    assert editing.vm.out("snapshot-current", "vm", "--name") == "two\n"


def test_a_copy_gets_another_name(editing: Editing):
    assert editing.run("<name>one<", "<name>two<", "one", "--clone").out == "Snapshot one cloned to two.\n\n"
    assert editing.vm.out("snapshot-list", "vm", "--name") == "one\ntwo\n\n"
    assert editing.vm.run("snapshot-revert", "vm", "two").status == 0
    assert editing.run("x", "y", "one", "--clone", "--rename").status == 2


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("<state>shutoff", "<state>running", "snapshot 'one' was taken as it is: state cannot be changed"),
        ("vm.one", "vm.other", "snapshot 'one' was taken as it is: disks cannot be changed"),
        ("<vcpu>1", "<vcpu>2", "snapshot 'one' was taken as it is: domain cannot be changed"),
        ("<name>one</name>", "", "XML error: a redefined snapshot must have a name"),
        ("</domainsnapshot>", "", "XML error: line "),
        ("<name>one<", "<name>a/b<", "XML error: invalid snapshot name 'a/b'"),
    ],
)
def test_what_was_taken_cannot_be_changed(editing: Editing, old: str, new: str, complaint: str):
    before = editing.vm.out("snapshot-dumpxml", "vm", "one")
    ran = editing.run(old, new, "one", "--rename")
    assert (ran.status != 0, ran.out) == (True, "\n")
    (kept,) = left(editing)
    assert ran.err.startswith(f"error: {complaint}")
    assert ran.err.endswith(f"Try: what was written is kept in {kept}\n")
    assert kept.read_text() == before[:-1].replace(old, new)
    assert editing.vm.out("snapshot-dumpxml", "vm", "one") == before


def test_an_internal_snapshot_keeps_the_name_that_it_has_in_the_image(editing: Editing):
    editing.vm.out("snapshot-create-as", "vm", "inside")
    ran = editing.run("<name>inside<", "<name>x<", "inside", "--rename")
    assert ran.status == 15
    assert ran.err.startswith("error: snapshot 'inside' lies in an image under this name")


def test_a_name_that_is_taken_is_refused(editing: Editing):
    editing.vm.out("snapshot-create-as", "vm", "two", "--disk-only")
    ran = editing.run("<name>one<", "<name>two<", "one", "--rename")
    assert ran.err.startswith("error: operation failed: domain moment two already exists")


def test_an_editor_that_fails_is_one_sentence(editing: Editing, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EDITOR", "/nowhere/editor")
    ran = editing.vm.run("snapshot-edit", "vm", "one")
    complaint = "error: cannot run editor '/nowhere/editor': No such file or directory. Try: EDITOR=nano\n"
    assert (ran.status, ran.err) == (1, complaint)
    monkeypatch.setenv("VISUAL", "false")
    assert editing.vm.run("snapshot-edit", "vm", "one").err.startswith("error: the editor ended with status 1. Try: ")
    assert editing.vm.run("snapshot-edit", "vm", "nosuch").status == 24
    assert editing.vm.run("snapshot-edit", "vm").status == 2
    monkeypatch.setenv("VISUAL", '"vi')
    complaint = "error: cannot run editor '\"vi': No closing quotation. Try: EDITOR=nano\n"
    assert editing.vm.run("snapshot-edit", "vm", "one").err == complaint
