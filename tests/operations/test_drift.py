"""What other tools do behind our back is told at the next command; guests' own writes are not."""

import shutil
from pathlib import Path

import pytest

from cowtree.errors import ChangedBehind
from cowtree.storage.file import LocalFiles
from tests.crash import write_more
from tests.lab import Lab
from tests.qemu import qemu_img


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path / "lab")
    lab.take("first")
    lab.take("second")
    return lab


def test_what_guests_write_is_no_surprise(lab):
    lab.write("vda", {0: b"more"})
    assert lab.settle() == []


def test_a_chain_that_was_made_shorter_is_drawn(lab):
    active, base = Path(lab.sources()["vda"]), lab.folder / "disk0.qcow2"
    qemu_img("rebase", "-b", base, "-F", "qcow2", active)
    (told,) = lab.settle()
    assert told == (
        f"disk vda: it was {base} <- {lab.folder}/disk0.first <- {active}, and another tool has made it "
        f"{base} <- {active}"
    )


def test_a_file_that_is_gone_is_told(lab):
    (lab.folder / "disk0.first").unlink()
    (told,) = lab.settle()
    assert told.startswith("disk vda: its chain cannot be read any more: ")
    assert "disk0.first" in told


def test_a_file_that_was_replaced_is_told(lab):
    shutil.copy(lab.folder / "disk0.first", lab.folder / "copy")
    (lab.folder / "copy").rename(lab.folder / "disk0.first")
    (told,) = lab.settle()
    assert told == f"disk vda: {lab.folder}/disk0.first was replaced by another file of the same name"


def test_a_frozen_file_that_was_written_to_is_told_and_not_reverted_to(lab):
    base = lab.folder / "disk0.qcow2"
    write_more(LocalFiles(), str(base), {0: b"changed"})
    (told,) = lab.settle()
    assert told == f"disk vda: {base} was written to, although {lab.folder}/disk0.first lies on it and relies on it"
    with pytest.raises(ChangedBehind, match="was written to since the snapshot of disk vda was taken"):
        lab.revert("first")
    lab.revert("first", is_forced=True)
    assert lab.view().disks["vda"][:7] == b"changed"


def test_what_was_told_to_a_verb_that_changes_things_is_how_it_is_from_then_on(lab):
    qemu_img("rebase", "-b", lab.folder / "disk0.qcow2", "-F", "qcow2", lab.sources()["vda"])
    lab.take("third")
    assert lab.settle() == []
