"""`snapshot-delete` as it is typed, and what it prints."""

import pytest

from tests.cli.domain.chains import chain, make_chain, path
from tests.cli.running import Ran
from tests.qemu import content, qemu_img


@pytest.fixture
def folder(tmp_path, capsys):
    return make_chain(tmp_path, capsys)


def test_deleting_by_the_document_s_methods(folder, capsys):
    shown = content(folder / "Active.qcow2")
    assert Ran(capsys, "snapshot-delete", "f17", "Snap-3", "--method", "1").status == 0
    assert chain(folder) == ["Active", "Snap-2", "Snap-1", "RootBase"]
    assert Ran(capsys, "snapshot-delete", "f17", "--snapshotname", "Active", "--method=pull").status == 0
    assert chain(folder) == ["Active", "Snap-1", "RootBase"]
    assert content(folder / "Active.qcow2") == shown
    ran = Ran(capsys, "snapshot-delete", "f17", "--current")
    assert ran.out == "Domain snapshot Snap-2 deleted\n\n"
    ran = Ran(capsys, "snapshot-delete", "f17", "nosuch")
    assert (ran.out, ran.status) == ("\n", 24)
    ran = Ran(capsys, "snapshot-delete", "f17", "Snap-1", "--method", "3")
    assert (ran.out, ran.status) == ("\n", 2)
    assert Ran(capsys, "snapshot-delete", "f17", "Snap-1", "--children-only").out.endswith("children deleted\n\n")
    assert Ran(capsys, "snapshot-delete", "f17", "Snap-1", "--children").status == 0
    assert [line for line in Ran(capsys, "snapshot-list", "f17", "--name").out.splitlines() if line] == []
    assert content(folder / "RootBase.qcow2") == shown


def test_a_refused_deletion_says_what_failed_and_why(folder, capsys):
    sibling = folder / "sibling.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", path(folder, "RootBase"), "-F", "qcow2", sibling)
    ran = Ran(capsys, "snapshot-delete", "f17", "Snap-1", "--method", "commit")
    assert ran.status == 15
    first, second = ran.err.splitlines()
    assert first == "error: Failed to delete snapshot Snap-1"
    assert "only one overlay can be merged into it. Try: --method pull" in second
