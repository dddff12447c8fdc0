"""Tables and blocks of guests and their disks, held against what was recorded of virsh 9.0."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cowtree.catalog import domains, intents
from cowtree.catalog.store import open_catalog
from tests.cli.domain.guest import UUID, Guest
from tests.cli.running import Ran

Make = Callable[..., Guest]

TARGETS = """\
 Target   Source
------------------------------------
 vda      /vm/images/f17vm1.qcow2

"""
DETAILS = """\
 Type   Device   Target   Source
------------------------------------------------------
 file   disk     vda      /vm/images/f17-base.qcow2

"""
DOMAINS = """\
 Id   Name       State
---------------------------
 -    f17-base   shut off
 -    f17vm1     shut off

"""
NO_DOMAINS = """\
 Id   Name   State
--------------------

"""
INFO = f"""\
Id:             -
Name:           f17vm1
UUID:           {UUID}
OS Type:        hvm
State:          shut off
CPU(s):         1
Max memory:     131072 KiB
Used memory:    131072 KiB
Persistent:     yes
Autostart:      disable
Managed save:   no

"""


def test_disks_are_listed_as_recorded(guest: Make):
    assert guest().recorded("domblklist", "f17vm1") == TARGETS


def test_their_kinds_are_listed_as_recorded(guest: Make):
    vm = guest("f17-base")
    assert vm.recorded("domblklist", "f17-base", "--details") == DETAILS
    assert vm.recorded("domblklist", "--details", "--domain", "f17-base", "--inactive") == DETAILS


def test_a_drive_without_a_file_has_a_dash(guest: Make):
    vm = guest()
    drive = "<disk type='file' device='cdrom'><target dev='sda'/></disk>"
    vm.xml.write_text(vm.xml.read_text().replace("</devices>", f"{drive}</devices>"))
    vm.out("define", str(vm.xml))
    assert vm.out("domblklist", "f17vm1", "--details").splitlines()[3] == " file   cdrom    sda      -"
    assert vm.out("domblkinfo", "f17vm1", "--all").splitlines()[3].split() == ["sda", "-", "-", "-"]


def test_guests_are_listed_as_recorded(guest: Make):
    vm = guest()
    (vm.folder / "other.qcow2").touch()
    vm.xml.write_text(vm.xml.read_text().replace("f17vm1", "f17-base").replace(UUID, UUID.replace("6", "7")))
    assert vm.run("define", str(vm.xml)).status == 0
    for words in (["--all"], ["--inactive"], ["--all", "--inactive"]):
        assert vm.out("list", *words) == DOMAINS
    assert vm.out("list") == NO_DOMAINS
    assert vm.out("list", "--all", "--name") == "f17-base\nf17vm1\n\n"
    assert vm.out("list", "--name") == "\n"
    assert vm.run("list", "--name", "--uuid").err.startswith("error: Options --uuid and --name are mutually exclusive")


def test_a_guest_is_described(guest: Make):
    vm = guest()
    assert vm.out("dominfo", "f17vm1") == INFO
    assert vm.out("domstate", "f17vm1") == "shut off\n\n"
    assert vm.out("domstate", "f17vm1", "--reason") == "shut off (unknown)\n\n"


def test_sizes_of_a_disk(guest: Make):
    vm = guest("vm", "a", "b")
    vm.write(7)
    path = vm.folder / "a"
    stat = path.stat()
    shown = f"Capacity:       1048576\nAllocation:     {stat.st_blocks * 512}\nPhysical:       {stat.st_size}\n\n"
    assert vm.out("domblkinfo", "vm", "vda") == shown
    assert vm.out("domblkinfo", "vm", "--device", str(path)) == shown
    assert "Capacity:       1.000 MiB\n" in vm.out("domblkinfo", "vm", "vda", "--human")
    rows = [line.split() for line in vm.out("domblkinfo", "vm", "--all").splitlines()]
    assert rows[0] == ["Target", "Capacity", "Allocation", "Physical"]
    assert [row[:2] for row in rows[2:4]] == [["vda", "1048576"], ["vdb", "1048576"]]


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (["vm"], 2, "command 'domblkinfo' requires <device> option"),
        (["vm", "vdz"], 2, "unsupported configuration: no disk named 'vdz'"),
        (["vm", "vda", "--all"], 2, "Options --all and --device are mutually exclusive"),
        (["nobody", "vda"], 23, "failed to get domain 'nobody'"),
    ],
)
def test_sizes_of_what_is_not_there(guest: Make, words: list[str], status: int, complaint: str):
    ran = guest("vm").run("domblkinfo", *words)
    assert (ran.status, ran.err.startswith(f"error: {complaint}")) == (status, True)


def test_a_disk_that_is_gone_is_one_sentence(guest: Make):
    vm = guest("vm")
    (vm.folder / "vm.qcow2").unlink()
    ran = vm.run("domblkinfo", "vm", "vda")
    assert ran.status == 11
    assert ran.err.splitlines()[-1].startswith(f"error: {vm.folder / 'vm.qcow2'}: ")
    assert vm.run("domblklist", "vm").status == 0


def test_a_damaged_catalogue_is_one_sentence(capsys: pytest.CaptureFixture[str], catalog):
    catalog.parent.mkdir()
    catalog.write_bytes(b"no database" * 1000)
    ran = Ran(capsys, "list", "--all")
    assert (ran.status, ran.out, ran.err.count("\n")) == (19, "\n", 1)


def test_what_cannot_be_settled_hinders_nobody_from_looking(guest: Make, catalog: Path):
    vm = guest("vm")
    # Whether there is such a file cannot be told.
    new = vm.folder / ("x" * 300)
    overlay = ["vda", str(vm.folder / "vm.qcow2"), "qcow2", str(new)]
    with open_catalog(str(catalog)) as opened:
        content = {"name": "s", "overlays": [overlay], "insides": []}
        intents.begin(opened, domains.find(opened, "vm"), "snapshot-create", content)
    ran = vm.run("domstate", "vm")
    assert (ran.status, ran.out) == (0, "shut off\n\n")
    assert ran.err.startswith(f"warning: {new}: File name too long")
    ran = vm.run("snapshot-create-as", "vm", "t")
    assert (ran.status, ran.out) == (11, "\n")
