"""What is printed of snapshots, held against what was recorded of virsh 9.0."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.snapshots import LIST_S_MAX, NAME, SNAPSHOT_COUNT, fill
from cowtree.catalog import domains, intents, snapshots
from cowtree.catalog.snapshots import EXTERNAL, INTERNAL, NO, SHUTOFF, Held, Snapshot
from cowtree.catalog.store import open_catalog
from tests.cli.domain.guest import Guest

Make = Callable[..., Guest]
# 02:30:45, 02:30:59 and 02:31:05 of the recording.
TIMES_S = (1795401045, 1795401059, 1795401065)

TABLE = """\
 Name    Creation Time               State
----------------------------------------------
 snap1   2026-11-23 02:30:45 +0000   shutoff
 snap2   2026-11-23 02:30:59 +0000   running
 snap3   2026-11-23 02:31:05 +0000   running

"""
PARENTS = """\
 Name    Creation Time               State     Parent
-------------------------------------------------------
 snap1   2026-11-23 02:30:45 +0000   shutoff   .
 snap2   2026-11-23 02:30:59 +0000   running   snap1
 snap3   2026-11-23 02:31:05 +0000   running   snap2

""".replace(".\n", "\n")
TREE = """\
snap1
  |
  +- snap2
      |
      +- snap3
        .

""".replace(".\n", "\n")
NOTHING = """\
 Name   Creation Time   State
-------------------------------

"""
NO_PARENTS = """\
 Name   Creation Time   State   Parent
----------------------------------------

"""
INFO = """\
Name:           snap2
Domain:         f17vm1
Current:        no
State:          running
Location:       internal
Parent:         snap1
Children:       1
Descendants:    1
Metadata:       yes

"""
CURRENT_INFO = """\
Name:           snap3
Domain:         f17vm1
Current:        yes
State:          running
Location:       internal
Parent:         snap2
Children:       0
Descendants:    0
Metadata:       yes

"""
FIRST_INFO = """\
Name:           off1
Domain:         f17-base
Current:        no
State:          shutoff
Location:       external
Parent:         -
Children:       1
Descendants:    1
Metadata:       yes

"""
OFFLINE = """\
 Name   Creation Time               State     Parent
------------------------------------------------------
 off1   2026-11-23 02:30:45 +0000   shutoff   .
 off3   2026-11-23 02:30:45 +0000   shutoff   off1

""".replace(".\n", "\n")
MOMENT = """\
<domainsnapshot>
  <name>snap1</name>
  <description>snap1-desc</description>
  <state>disk-snapshot</state>
  <creationTime>1795401107</creationTime>
  <memory snapshot='no'/>
  <disks>
    <disk name='vda' snapshot='external' type='file'>
      <driver type='qcow2'/>
      <source file='/vm/images/sn1-of-f17-base.qcow2'/>
    </disk>
  </disks>
  <domain type='qemu'>
    <name>f17-base</name>
"""
CHECKPOINT = """\
<domainsnapshot>
  <name>snap3</name>
  <description>third one</description>
  <state>running</state>
  <parent>
    <name>snap2</name>
  </parent>
  <creationTime>1795401065</creationTime>
  <memory snapshot='internal'/>
  <disks>
    <disk name='vda' snapshot='internal'/>
  </disks>
  <domain type='qemu'>
"""


@pytest.fixture
def vm(guest: Make, catalog: Path) -> Guest:
    """The guest of the recording: three snapshots in a line, of which two hold memory."""
    made = guest()
    with open_catalog(str(catalog)) as opened:
        domain = domains.find(opened, "f17vm1")
        parent = None
        for index, second in enumerate(TIMES_S):
            state, memory = (SHUTOFF, NO) if index == 0 else ("running", INTERNAL)
            words = ("snap1-desc", "snap2-desc", "third one")[index]
            new = Snapshot(0, f"snap{index + 1}", parent, words, second * 10**9, state, memory, None, domain.xml)
            held = Held("vda", INTERNAL, str(made.folder / "f17vm1.qcow2"), "qcow2", internal_id=str(index + 1))
            parent = snapshots.add(opened, domain, new, [held]).id
        domains.set_current(opened, domain, parent)
    return made


def test_lists_are_as_recorded(vm: Guest):
    assert vm.out("snapshot-list", "f17vm1") == TABLE
    assert vm.out("snapshot-list", "--internal", "f17vm1") == TABLE
    assert vm.out("snapshot-list", "f17vm1", "--parent") == PARENTS
    assert vm.out("snapshot-list", "f17vm1", "--tree") == TREE
    assert vm.out("snapshot-list", "f17vm1", "--name") == "snap1\nsnap2\nsnap3\n\n"
    assert vm.out("snapshot-list", "f17vm1", "--external") == NOTHING
    assert vm.out("snapshot-list", "f17vm1", "--external", "--parent") == NO_PARENTS
    roots, leaves = (vm.out("snapshot-list", "f17vm1", word).splitlines() for word in ("--roots", "--leaves"))
    assert (roots[2], leaves[2]) == (TABLE.splitlines()[2], TABLE.splitlines()[4])
    assert len(roots) == len(leaves) == 4


def test_a_tree_of_one_and_of_none_are_as_recorded(guest: Make):
    vm = guest()
    assert vm.out("snapshot-list", "f17vm1", "--tree") == "\n"
    vm.out("snapshot-create-as", "f17vm1", "off3")
    assert vm.out("snapshot-list", "f17vm1", "--tree") == "off3\n\n\n"


def test_times_are_those_of_the_place(vm: Guest, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    assert vm.out("snapshot-list", "f17vm1") == TABLE.replace("02:3", "03:3").replace("+0000", "+0100")


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("--from snap1", "snap2"),
        ("--from snap1 --descendants", "snap2 snap3"),
        ("--current", ""),
        ("--no-leaves", "snap1 snap2"),
        ("--leaves --no-leaves", "snap1 snap2 snap3"),
        ("--inactive", "snap1"),
        ("--active", "snap2 snap3"),
        ("--disk-only", ""),
        ("--inactive --disk-only", "snap1"),
        ("--internal --external", "snap1 snap2 snap3"),
        ("--metadata", "snap1 snap2 snap3"),
        ("--no-metadata", ""),
        ("--metadata --no-metadata", "snap1 snap2 snap3"),
        ("--topological", "snap1 snap2 snap3"),
        ("--roots --leaves", ""),
        ("--from snap2 --leaves", "snap3"),
    ],
)
def test_what_is_listed_can_be_chosen(vm: Guest, words: str, names: str):
    assert vm.out("snapshot-list", "f17vm1", "--name", *words.split()).split() == names.split()


def test_a_tree_can_begin_anywhere(vm: Guest):
    assert vm.out("snapshot-list", "f17vm1", "--tree", "--from", "snap1") == TREE
    assert vm.out("snapshot-list", "f17vm1", "--tree", "--from", "snap2") == "snap2\n  |\n  +- snap3\n    \n\n"
    assert vm.out("snapshot-list", "f17vm1", "--tree", "--current") == "snap3\n\n\n"


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        ("--tree --name", 2, "Options --tree and --name are mutually exclusive"),
        ("--parent --roots", 2, "Options --parent and --roots are mutually exclusive"),
        ("--tree --leaves", 2, "Options --leaves and --tree are mutually exclusive"),
        ("--roots --from snap1", 2, "Options --roots and --from are mutually exclusive"),
        ("--descendants", 2, "--descendants requires either --from or --current"),
        ("--from nosuch", 24, "Domain snapshot not found: no domain snapshot with matching name 'nosuch'"),
    ],
)
def test_what_does_not_go_together(vm: Guest, words: str, status: int, complaint: str):
    ran = vm.run("snapshot-list", "f17vm1", *words.split())
    assert (ran.status, ran.out) == (status, "\n")
    assert ran.err.startswith(f"error: {complaint}. Try: ")


def test_one_snapshot_is_described_as_recorded(vm: Guest):
    assert vm.out("snapshot-info", "f17vm1", "snap2") == INFO
    assert vm.out("snapshot-info", "f17vm1", "--current") == CURRENT_INFO
    ran = vm.run("snapshot-info", "f17vm1", "nosuch")
    complaint = "error: Domain snapshot not found: no domain snapshot with matching name 'nosuch'"
    assert (ran.status, ran.out) == (24, "\n")
    assert ran.err == f"{complaint}. Try: cowtree snapshot-list f17vm1\n"


def test_external_ones_are_described_as_recorded(guest: Make):
    vm = guest("f17-base")
    for name in ("off1", "off3"):
        vm.out("snapshot-create-as", "f17-base", name, "--disk-only")
    assert vm.recorded("snapshot-list", "f17-base", "--parent") == OFFLINE
    assert vm.out("snapshot-list", "f17-base", "--internal") == NOTHING
    assert vm.out("snapshot-info", "f17-base", "off1") == FIRST_INFO


def test_what_was_current_and_whose_child_it_is(vm: Guest):
    assert vm.out("snapshot-current", "f17vm1", "--name") == "snap3\n"
    assert vm.out("snapshot-parent", "f17vm1", "snap3") == "snap2\n"
    assert vm.out("snapshot-parent", "f17vm1", "--current") == "snap2\n"
    ran = vm.run("snapshot-parent", "f17vm1", "snap1")
    assert (ran.status, ran.out, ran.err) == (24, "\n", "error: snapshot 'snap1' has no parent\n")


def test_no_current_snapshot_is_said_in_stock_words(guest: Make):
    vm = guest()
    ran = vm.run("snapshot-current", "f17vm1")
    assert (ran.status, ran.out, ran.err) == (24, "\n", "error: domain 'f17vm1' has no current snapshot\n")
    assert vm.run("snapshot-list", "f17vm1", "--current").status == 24


def test_a_checkpoint_is_dumped_as_recorded(vm: Guest):
    text = vm.out("snapshot-dumpxml", "f17vm1", "snap3")
    assert text.startswith(CHECKPOINT)
    assert text.endswith("  </domain>\n</domainsnapshot>\n\n")
    assert vm.out("snapshot-current", "f17vm1") == text


def test_an_external_snapshot_is_dumped_as_recorded(guest: Make, catalog: Path):
    vm = guest("f17-base")
    path = vm.folder / "sn1-of-f17-base.qcow2"
    vm.out("snapshot-create-as", "f17-base", "snap1", "snap1-desc", "--diskspec", f"vda,file={path}")
    with open_catalog(str(catalog)) as opened:
        opened.change("UPDATE snapshot SET created_ns = ?, state = ?", 1795401107 * 10**9, "disk-snapshot")
    assert vm.recorded("snapshot-dumpxml", "f17-base", "snap1").startswith(MOMENT)
    held = snapshots_of(catalog, "f17-base")
    assert held == {"snap1": [(EXTERNAL, f"{vm.folder}/f17-base.qcow2", str(path))]}


def snapshots_of(catalog: Path, name: str) -> dict[str, list[tuple[str, str, str | None]]]:
    with open_catalog(str(catalog)) as opened:
        domain = domains.find(opened, name)
        return {
            row.name: [(held.mode, held.source, held.overlay) for held in snapshots.disks(opened, row.id)]
            for row in snapshots.rows(opened, domain)
        }


def test_a_disk_that_took_no_part_is_dumped_as_such(guest: Make):
    vm = guest("vm", "a", "b")
    vm.out("snapshot-create-as", "vm", "s", "--diskspec", "vdb,snapshot=no")
    text = vm.out("snapshot-dumpxml", "vm", "s")
    assert "    <disk name='vda' snapshot='internal'/>\n    <disk name='vdb' snapshot='no'/>\n" in text


def test_the_current_one_can_be_set_to_one_on_which_the_disks_lie(guest: Make):
    vm = guest("vm")
    for name in ("one", "two"):
        vm.out("snapshot-create-as", "vm", name, "--disk-only")
    assert vm.out("snapshot-current", "vm", "--snapshotname", "one") == "Snapshot one set as current\n"
    assert vm.out("snapshot-current", "vm", "--name") == "one\n"
    vm.out("snapshot-revert", "vm", "one", "--discard")
    ran = vm.run("snapshot-current", "vm", "--snapshotname", "two")
    assert (ran.status, ran.out) == (15, "\n")
    assert ran.err.startswith("error: disk vda does not lie on snapshot 'two', which ")
    assert vm.run("snapshot-current", "vm", "--name", "--snapshotname", "two").status == 2


def test_what_was_cut_short_is_told_by_the_next_command(guest: Make, catalog: Path):
    vm = guest("vm")
    with open_catalog(str(catalog)) as opened:
        domain = domains.find(opened, "vm")
        intents.begin(opened, domain, "snapshot-create", {"name": "s", "overlays": [], "insides": []})
    ran = vm.run("snapshot-list", "vm")
    assert (ran.status, ran.out) == (0, NOTHING)
    assert ran.err == "warning: snapshot 's' was cut short while it was taken: all of it was taken back\n"
    assert vm.out("snapshot-list", "vm") == NOTHING


@pytest.mark.slow
def test_ten_thousand_snapshots_are_drawn_in_a_second(guest: Make, catalog: Path, tmp_path: Path):
    """Of the processor's time, for others may use it as well; `make bench` tells the whole."""
    vm = guest("vm")
    with open_catalog(str(catalog)) as opened:
        fill(opened, vm.folder / "vm.qcow2", reach=100)
    with (tmp_path / "drawn").open("w") as drawn:
        command = [sys.executable, "-m", "cowtree", "snapshot-list", NAME, "--tree"]
        with subprocess.Popen(command, stdout=drawn) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert (tmp_path / "drawn").read_text().count("snap-") == SNAPSHOT_COUNT
    assert usage.ru_utime + usage.ru_stime < LIST_S_MAX
