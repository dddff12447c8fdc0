"""`blockcommit`, `blockpull` and `blockjob` as they are typed, and what they print."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.cli.domain.chains import NAMES, chain, make_chain, make_pair, path
from tests.cli.running import Ran
from tests.qemu import assert_clean, content


@pytest.fixture
def folder(tmp_path, capsys):
    return make_chain(tmp_path, capsys)


CASES = {
    "1": ("RootBase", "Snap-3", ["Active", "RootBase"]),
    "2": ("RootBase", "Snap-2", ["Active", "Snap-3", "RootBase"]),
    "3": ("RootBase", "Snap-1", ["Active", "Snap-3", "Snap-2", "RootBase"]),
    "4": ("Snap-1", "Snap-2", ["Active", "Snap-3", "Snap-1", "RootBase"]),
    "5": ("Snap-2", "Snap-3", ["Active", "Snap-2", "Snap-1", "RootBase"]),
    "6": ("Snap-1", "Snap-3", ["Active", "Snap-1", "RootBase"]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_document_s_cases_of_blockcommit(folder, capsys, case):
    base, top, expected = CASES[case]
    shown, top_shown = content(folder / "Active.qcow2"), content(folder / f"{top}.qcow2")
    words = ("--base", path(folder, base), "--top", path(folder, top), "--wait", "--verbose")
    ran = Ran(capsys, "blockcommit", "--domain", "f17", "vda", *words)
    assert (ran.status, ran.out) == (0, "\nCommit complete\n")
    assert ran.err.endswith("\rBlock commit: [100 %]")
    assert chain(folder) == expected
    assert content(folder / "Active.qcow2") == shown
    assert content(folder / f"{base}.qcow2") == top_shown
    for name in expected:
        assert_clean(folder / f"{name}.qcow2")


def test_blockpull_as_the_document_has_it(folder, capsys):
    shown = content(folder / "Active.qcow2")
    words = ("--domain", "f17", "--path", path(folder, "Active"), "--base", path(folder, "RootBase"))
    ran = Ran(capsys, "blockpull", *words, "--wait", "--verbose")
    assert (ran.status, ran.out) == (0, "\nPull complete\n")
    assert ran.err.endswith("\rBlock Pull: [100 %]")
    assert chain(folder) == ["Active", "RootBase"]
    ran = Ran(capsys, "blockpull", "f17", path(folder, "Active"), "--wait", "--verbose")
    assert ran.out == "\nPull complete\n"
    assert chain(folder) == ["Active"]
    assert content(folder / "Active.qcow2") == shown
    for name in ("Snap-3", "Snap-2", "Snap-1"):
        ran = Ran(capsys, "snapshot-delete", "--domain", "f17", name, "--metadata")
        assert ran.out == f"Domain snapshot {name} deleted\n\n"
    assert all((folder / f"{name}.qcow2").exists() for name in ("RootBase", *NAMES))


def test_without_wait_it_is_said_to_be_started_and_is_done(folder, capsys):
    ran = Ran(capsys, "blockpull", "f17", "vda")
    assert (ran.status, ran.out, ran.err) == (0, "Block Pull started\n", "")
    assert chain(folder) == ["Active"]
    ran = Ran(capsys, "blockjob", "f17", "vda", "--info")
    assert (ran.status, ran.out) == (0, "No current block job for vda\n")


def test_an_active_commit_pivots_or_keeps_the_overlay(folder, capsys):
    shown = content(folder / "Active.qcow2")
    ran = Ran(capsys, "blockcommit", "f17", "vda", "--active", "--keep-overlay", "--wait", "--verbose")
    assert (ran.status, ran.out) == (0, "\nCommit complete, overlay image kept\n")
    assert len(chain(folder)) == 5
    assert content(folder / "RootBase.qcow2") == content(folder / "Active.qcow2") == shown
    ran = Ran(capsys, "blockcommit", "f17", "vda", "--shallow", "--active", "--pivot", "--verbose", "--delete")
    assert (ran.status, ran.out) == (0, "\nSuccessfully pivoted\n")
    assert path(folder, "Snap-3") in Ran(capsys, "domblklist", "f17").out
    assert not (folder / "Active.qcow2").exists()
    ran = Ran(capsys, "blockcommit", "f17", "vda", "--active")
    assert ran.out == "Active Block Commit started\n"
    assert path(folder, "RootBase") in Ran(capsys, "domblklist", "f17").out
    assert content(folder / "RootBase.qcow2") == shown


def test_errors_read_as_stock_s(folder, capsys):
    ran = Ran(capsys, "blockcommit", "f17", "vda", "--wait", "--verbose")
    assert ran.out == "\n"
    assert ran.err.startswith("error: invalid argument: commit of 'vda' active layer requires active flag")
    for words in ("--abort", "--pivot"):
        ran = Ran(capsys, "blockjob", "f17", "vda", words)
        assert ran.err.startswith("error: invalid argument: disk vda does not have an active block job")
    assert "disk 'vdq' not found in domain" in Ran(capsys, "blockjob", "f17", "vdq", "--info").err
    assert Ran(capsys, "blockcommit", "f17", "vda", "--pivot", "--keep-overlay").status == 2
    assert "malformed" in Ran(capsys, "blockpull", "f17", "vda", "--bandwidth", "much").err
    assert len(chain(folder)) == 5


def test_snapshots_that_a_commit_loses_are_named_and_can_be_deleted_then(folder, capsys):
    ran = Ran(capsys, "blockcommit", "f17", "vda", "--top", "vda[2]", "--delete")
    lost = [line.split("'")[1] for line in ran.err.splitlines()]
    assert lost == ["Snap-1", "Snap-2", "Snap-3"]
    assert {each.name for each in folder.iterdir() if each.is_file()} == {"Active.qcow2", "RootBase.qcow2"}
    for name in ("Snap-2", "Snap-3", "Snap-1"):
        ran = Ran(capsys, "snapshot-delete", "f17", name)
        assert (ran.status, ran.out, ran.err) == (0, f"Domain snapshot {name} deleted\n\n", "")
    assert "Active" in Ran(capsys, "snapshot-list", "f17", "--name").out
    # What the last one holds is what RootBase shows now: the guest goes on in it.
    ran = Ran(capsys, "snapshot-delete", "f17", "Active")
    assert ran.out == "Domain snapshot Active deleted\n\n"
    assert path(folder, "RootBase") in Ran(capsys, "domblklist", "f17").out


def begin_slow(*words):
    """A command of its own process, whose data is large enough to be stopped in the midst of it."""
    script = "import sys; from cowtree.cli.main import main; sys.exit(main(['cowtree', *sys.argv[1:]]))"
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", script, *words], stdout=pipe, stderr=pipe, text=True)


@pytest.fixture
def large(tmp_path, capsys):
    return make_pair(tmp_path, capsys, "64M", "write -P 1 0 48M", "write -P 2 8M 40M")


@pytest.mark.slow
def test_a_timeout_stops_it_and_the_same_command_goes_on(large, capsys):
    shown = content(large / "active.qcow2")
    words = ("blockcommit", "vm", "vda", "--active", "--pivot", "--verbose", "--bandwidth", "8")
    ran = Ran(capsys, *words, "--timeout", "1")
    assert (ran.status, ran.out) == (1, "\nCommit aborted\n")
    assert content(large / "active.qcow2") == shown
    ran = Ran(capsys, "blockjob", "vm", "vda", "--info")
    assert (ran.status, ran.out) == (0, "\n")
    assert "\rActive Block Commit: [" in ran.err
    ran = Ran(capsys, "blockjob", "vm", "vda", "--info", "--raw")
    assert ran.out.startswith(" type=Active Block Commit\n bandwidth=0\n cur=")
    # What moves, not the size of the disk.
    assert ran.out.endswith(f" end={40 << 20}\n\n")
    ran = Ran(capsys, "blockjob", "vm", "vda", "--abort")
    assert "has changed its base already" in ran.err
    ran = Ran(capsys, *words[:-2])
    assert (ran.status, ran.out) == (0, "\nSuccessfully pivoted\n")
    assert "it goes on" in ran.err
    assert content(large / "base.qcow2") == shown
    assert_clean(large / "base.qcow2")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_and_says_so(large, capsys, number):
    shown = content(large / "active.qcow2")
    process = begin_slow("blockpull", "vm", "vda", "--wait", "--verbose", "--bandwidth", "1")
    end_s = time.monotonic() + 30
    while not (large / ".active.qcow2.cowtree-merge").exists() and time.monotonic() < end_s:
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "\nPull aborted\n"), err
    assert content(large / "active.qcow2") == shown
    ran = Ran(capsys, "blockjob", "vm", "vda", "--abort")
    assert (ran.status, ran.out) == (0, "\n")
    assert Ran(capsys, "blockjob", "vm", "vda").out == "No current block job for vda\n"
    assert content(large / "active.qcow2") == shown


@pytest.mark.slow
def test_a_bandwidth_is_held(large, capsys):
    begin_s = time.monotonic()
    ran = Ran(capsys, "blockpull", "vm", "vda", "--bandwidth", "4M", "--bytes")
    assert ran.status == 0
    # 8 MiB move.
    assert 1.5 < time.monotonic() - begin_s < 8
