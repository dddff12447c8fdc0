"""How guests become known and are forgotten, in virsh's words."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.domain.guest import UUID, Guest, definition, disk
from tests.cli.running import Ran
from tests.qemu import qemu_img

Make = Callable[..., Guest]


def test_a_guest_is_defined_dumped_and_undefined(guest: Make):
    vm = guest()
    assert vm.out("define", str(vm.xml)) == f"Domain 'f17vm1' defined from {vm.xml}\n\n"
    text = vm.out("dumpxml", "f17vm1")
    assert text == vm.xml.read_text() + "\n"
    assert vm.out("dumpxml", "--inactive", "f17vm1") == text
    assert vm.out("undefine", "f17vm1") == "Domain 'f17vm1' has been undefined\n\n"
    assert vm.run("dumpxml", "f17vm1").status == 23
    assert (vm.folder / "f17vm1.qcow2").exists()


def test_a_guest_is_found_by_its_uuid(guest: Make):
    assert guest().out("domstate", UUID.upper()) == "shut off\n\n"


def test_the_same_name_and_uuid_redefine(guest: Make):
    vm = guest()
    vm.xml.write_text(vm.xml.read_text().replace("131072", "262144"))
    vm.out("define", str(vm.xml))
    assert "Max memory:     262144 KiB\n" in vm.out("dominfo", "f17vm1")


@pytest.mark.parametrize(
    ("name", "uuid", "complaint"),
    [
        ("f17vm1", UUID.replace("6", "7"), f"domain 'f17vm1' already exists with uuid {UUID}"),
        ("other", UUID, f"domain 'f17vm1' is already defined with uuid {UUID}"),
    ],
)
def test_half_of_a_name_and_uuid_is_refused(guest: Make, name: str, uuid: str, complaint: str):
    vm = guest()
    vm.xml.write_text(definition(name, uuid=uuid))
    ran = vm.run("define", str(vm.xml))
    assert (ran.status, ran.out) == (15, "\n")
    assert ran.err.startswith(f"error: operation failed: {complaint}. Try: ")
    assert vm.sources() == ["f17vm1.qcow2"]


def test_a_uuid_is_made_when_there_is_none(guest: Make):
    vm = guest()
    vm.xml.write_text(definition("other").replace(f"  <uuid>{UUID}</uuid>\n", ""))
    vm.out("define", str(vm.xml))
    first, second = vm.out("list", "--all", "--uuid").split()
    assert first == UUID != second
    assert vm.out("dumpxml", second).count(f"<uuid>{second}</uuid>") == 1


def test_what_is_not_understood_is_kept_and_named_once(guest: Make):
    vm = guest()
    text = vm.xml.read_text().replace("<devices>", "<devices>\n    <hostdev/>\n    <hostdev/>\n    <tpm model='x'/>")
    vm.xml.write_text(text)
    ran = vm.run("define", str(vm.xml))
    assert (ran.status, ran.err) == (0, "warning: kept, but not understood: devices/hostdev, devices/tpm\n")
    assert vm.out("dumpxml", "f17vm1") == text + "\n"


def test_a_disk_of_which_nothing_is_said_and_that_is_no_raw_one_is_told(guest: Make):
    vm = guest()
    vm.xml.write_text(vm.xml.read_text().replace("<driver name='qemu' type='qcow2'/>\n", ""))
    ran = vm.run("define", str(vm.xml))
    assert ran.status == 0
    assert ran.err.startswith("warning: disk vda is raw, for no <driver type=.../> says more; but ")
    assert ran.err.endswith("f17vm1.qcow2 looks like qcow2\n")


@pytest.mark.parametrize(
    ("text", "status", "complaint"),
    [
        ("<domain><name>x</name>", 26, "error: XML error: line 1: "),
        ("<domain/>", 26, "error: XML error: line 1: the domain has no name"),
        ("<!DOCTYPE a><domain/>", 26, "error: XML error: line 1: there is a DOCTYPE"),
        ("", 26, "error: XML error: there is no element in it"),
        ("x" * (1 << 20) + "x", 26, "error: XML error: "),
    ],
)
def test_a_text_that_is_no_guest_is_one_sentence(guest: Make, text: str, status: int, complaint: str):
    vm = guest()
    vm.xml.write_text(text)
    ran = vm.run("define", str(vm.xml))
    assert (ran.status, ran.out, ran.err.count("\n")) == (status, "\n", 1)
    assert ran.err.startswith(complaint)


def test_a_file_that_cannot_be_read_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    ran = Ran(capsys, "define", "/nowhere.xml")
    complaint = "error: Failed to open file '/nowhere.xml': No such file or directory\n"
    assert (ran.status, ran.out, ran.err) == (1, "\n", complaint)
    assert Ran(capsys, "define", str(tmp_path)).err == f"error: Failed to open file '{tmp_path}': Is a directory\n"


def test_a_guest_with_snapshots_is_not_undefined_unasked(guest: Make):
    """Stock drops what it knows of the snapshots without a word."""
    vm = guest()
    vm.out("snapshot-create-as", "f17vm1", "snap1")
    ran = vm.run("undefine", "f17vm1")
    assert (ran.status, ran.out) == (15, "\n")
    words = "Requested operation is not valid: cannot delete inactive domain with 1 snapshots"
    assert ran.err.startswith(f"error: {words}. Try: --snapshots-metadata ")
    assert vm.out("snapshot-list", "f17vm1", "--name") == "snap1\n\n"
    vm.out("undefine", "f17vm1", "--snapshots-metadata")
    assert "snap1" in qemu_img("snapshot", "-l", vm.folder / "f17vm1.qcow2")


def test_images_are_adopted_and_their_formats_stated(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    first, second = disk(tmp_path / "a"), tmp_path / "b"
    second.write_bytes(bytes(1 << 20))
    ran = Ran(capsys, "adopt", "vm", str(first), str(second))
    assert ran.status == 0
    guessed = f"warning: {second} is taken for raw, for it begins like nothing else that is known: "
    assert ran.err == f"{guessed}--format raw says so\n"
    rows = [line.split() for line in ran.out.splitlines()]
    assert rows[0] == ["Domain", "'vm'", "adopted"]
    assert rows[3:5] == [["vda", "qcow2", str(first)], ["vdb", "raw", str(second)]]
    text = Ran(capsys, "dumpxml", "vm").out
    assert text.index("type='qcow2'") < text.index(str(first)) < text.index("type='raw'") < text.index(str(second))
    ran = Ran(capsys, "adopt", "other", "--format", "raw", str(tmp_path / "c"))
    assert (ran.status, ran.out) == (11, "\n")


def test_a_format_that_is_said_is_not_warned_of(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    (tmp_path / "b").write_bytes(bytes(1 << 20))
    assert Ran(capsys, "adopt", "vm", "--format", "raw", str(tmp_path / "b")).err == ""
    ran = Ran(capsys, "adopt", "vm2", "--format", "qcow2", str(tmp_path / "b"))
    assert (ran.status, "Image is not in qcow2 format" in ran.err) == (4, True)
    assert Ran(capsys, "adopt", "vm2", "--format", "nonsense", str(tmp_path / "b")).err.count("\n") == 1


def test_what_is_not_to_be_adopted(guest: Make):
    vm = guest()
    own, other = str(vm.folder / "f17vm1.qcow2"), str(disk(vm.folder / "other"))
    (vm.folder / "link").symlink_to(own)
    for path in (own, str(vm.folder / "link")):
        ran = vm.run("adopt", "vm", path)
        assert (ran.status, ran.out) == (15, "\n")
        assert ran.err.startswith(f"error: {path} is disk vda of domain 'f17vm1' already")
    assert vm.run("adopt", "vm", other, other).status == 2
    assert "already exists with uuid" in vm.run("adopt", "f17vm1", other).err
    assert vm.run("adopt", "a/b", other).status == 26
    assert vm.run("adopt", "vm").status == 2
    assert vm.out("list", "--all", "--name") == "f17vm1\n\n"


def test_images_that_lie_on_one_that_is_adopted_are_told(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    base = disk(tmp_path / "base")
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", tmp_path / "overlay")
    ran = Ran(capsys, "adopt", "vm", str(base))
    assert ran.status == 0
    assert ran.err == f"warning: {tmp_path / 'overlay'} would be ruined as soon as the guest writes to {base}\n"


def test_snapshots_that_are_held_in_one_that_is_adopted_are_told(guest: Make):
    vm = guest("vm")
    vm.out("snapshot-create-as", "vm", "one", "--disk-only")
    ran = vm.run("adopt", "other", str(vm.folder / "vm.qcow2"))
    told = f"{vm.folder / 'vm.one'}, snapshot 'one' of domain 'vm' would be ruined as soon as the guest writes to "
    assert (ran.status, ran.err) == (0, f"warning: {told}{vm.folder / 'vm.qcow2'}\n")
