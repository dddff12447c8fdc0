"""`cowtree catalog`, as it is called and as it answers: check, and rebuild of what is lost or damaged."""

import json
import shutil

import pytest

from cowtree.catalog.store import open_catalog
from tests.cli.running import Ran
from tests.qemu import qemu_img, qemu_io


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: Ran(capsys, *words)


@pytest.fixture
def guest(run, tmp_path):
    """A guest with a snapshot."""
    qemu_img("create", "-q", "-f", "qcow2", "disk.qcow2", "1M")
    assert run("adopt", "vm", "disk.qcow2").status == 0
    assert run("snapshot-create-as", "vm", "first", "said so", "--disk-only").status == 0
    return "vm"


def test_check_is_silent_about_what_agrees(run, guest):
    for words in ((), (guest,)):
        ran = run("catalog", "check", *words)
        assert (ran.out, ran.err, ran.status) == ("the catalogue and the disk agree\n", "", 0)
    assert json.loads(run("catalog", "check", "--output", "json").out) == {"differences": [], "lost": []}


def test_check_lists_what_differs_and_changes_nothing(run, guest, tmp_path, catalog):
    qemu_io(tmp_path / "disk.qcow2", "write -P 1 0 64k")
    ran = run("catalog", "check")
    assert ran.status == 25
    assert ran.out.splitlines() == [
        f"domain 'vm': disk vda: {tmp_path}/disk.qcow2 was written to, although {tmp_path}/disk.first lies on it and "
        "relies on it",
        f"domain 'vm': snapshot 'first', disk vda: {tmp_path}/disk.qcow2 was written to since the snapshot of disk vda "
        "was taken",
    ]
    assert ran.err == "cowtree: 2 differences between the catalogue and the disk\n"
    told = json.loads(run("catalog", "check", "--output", "json").out)
    assert [each["kind"] for each in told["differences"]] == ["chain", "snapshot"]
    assert run("catalog", "check").out == ran.out


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["check", "a", "b"], 2, "check takes one domain"),
        (["check", "--dry-run"], 2, "check changes nothing, so it takes no --dry-run"),
        (["check", "nobody"], 23, "failed to get domain 'nobody'"),
        (["mend"], 2, "invalid choice: 'mend'"),
        (["rebuild"], 2, "no folder is named, and the catalogue knows neither pools nor domains"),
        (["rebuild", "nowhere"], 11, "nowhere"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(run, words, status, sentence):
    ran = run("catalog", *words)
    assert ran.status == status
    assert sentence in ran.err
    assert ran.err.count("\n") == 1
    assert "Try: " in ran.err


def test_rebuild_brings_back_what_was_lost(run, guest, tmp_path, catalog):
    before = run("snapshot-list", guest).out, run("domblklist", guest).out
    shutil.rmtree(catalog.parent)
    trial = run("catalog", "rebuild", "--dry-run", ".")
    assert not catalog.exists()
    done = run("catalog", "rebuild", ".")
    assert done.out == trial.out
    assert (done.err, done.status) == ("", 0)
    assert (run("snapshot-list", guest).out, run("domblklist", guest).out) == before
    assert "said so" in run("snapshot-dumpxml", guest, "first").out
    assert run("catalog", "check").status == 0
    assert run("catalog", "rebuild").out == "the catalogue knows all that the images tell\n"
    assert json.loads(run("catalog", "rebuild", "--output", "json").out) == []


@pytest.mark.parametrize("damage", ["header", "page", "table"])
def test_a_damaged_catalogue_is_moved_aside_and_made_anew(run, guest, catalog, damage):
    before = run("snapshot-list", guest).out
    data = bytearray(catalog.read_bytes())
    if damage == "header":
        data[:100] = bytes(100)
    elif damage == "page":
        data[4096:] = b"\xff" * (len(data) - 4096)
    else:
        with open_catalog(str(catalog)) as opened:
            opened.change("DROP TABLE made")
            opened.read("PRAGMA wal_checkpoint(TRUNCATE)")
        data = bytearray(catalog.read_bytes())
    catalog.write_bytes(data)
    without = run("catalog", "rebuild")
    assert without.status == 2
    assert "is damaged" in without.err
    assert catalog.read_bytes() == data
    trial = run("catalog", "rebuild", "-n", ".")
    assert "it would be moved aside" in trial.err
    assert catalog.read_bytes() == data
    done = run("catalog", "rebuild", ".")
    assert done.status == 0
    assert "it was moved to" in done.err
    (aside,) = (
        path for path in catalog.parent.glob("catalog.db.invalid-*") if not path.name.endswith(("-wal", "-shm"))
    )
    assert aside.read_bytes() == data
    assert run("snapshot-list", guest).out == before
    assert run("catalog", "check").status == 0


def test_a_file_that_was_named_by_mistake_stays_where_it_is(run, guest, tmp_path):
    ran = run("catalog", "rebuild", "--catalog", "disk.qcow2", ".")
    assert ran.status == 19
    assert "it is no catalogue, and it is not called like one" in ran.err
    assert (tmp_path / "disk.qcow2").exists()


def test_terminals_are_not_obeyed_by_what_images_say(run, guest, tmp_path):
    qemu_img("snapshot", "-c", "a\x1b[31mb", "disk.first")
    ran = run("catalog", "rebuild", ".")
    assert "\x1b" not in ran.out + ran.err
    assert "left out" in ran.out
    assert "\x1b" not in run("catalog", "check").out
