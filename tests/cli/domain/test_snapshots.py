"""Taking snapshots and reverting to them, in virsh's words; and what stock does badly, done well."""

from collections.abc import Callable

import pytest

from tests.cli.domain.guest import Guest
from tests.qemu import assert_clean, qemu_img, qemu_io

Make = Callable[..., Guest]

REQUEST = """\
<domainsnapshot>
  <name>snap2</name>
  <disks>
    <disk name='vda' snapshot='external'>
      <source file='/vm/images/other.qcow2'/>
    </disk>
  </disks>
</domainsnapshot>


"""


def test_an_internal_snapshot_is_taken_and_reverted_to(guest: Make):
    vm = guest()
    vm.write(1)
    assert vm.out("snapshot-create-as", "f17vm1", "snap1", "snap1-desc") == "Domain snapshot snap1 created\n"
    assert " snap1 " in qemu_img("snapshot", "-l", vm.folder / "f17vm1.qcow2")
    vm.write(2)
    assert vm.out("snapshot-revert", "--domain", "f17vm1", "snap1") == "Domain snapshot snap1 reverted\n\n"
    assert vm.sources() == ["f17vm1.qcow2"]
    assert vm.shows("f17vm1.qcow2", 1)


def test_an_external_snapshot_is_taken_as_the_document_does(guest: Make):
    vm = guest("f17-base")
    path = vm.folder / "sn1-of-f17-base.qcow2"
    spec = f"vda,snapshot=external,file={path}"
    words = ("--domain", "f17-base", "snap1", "snap1-desc", "--disk-only", "--diskspec", spec, "--atomic")
    assert vm.out("snapshot-create-as", *words) == "Domain snapshot snap1 created\n"
    assert vm.sources() == [path.name]
    assert f"backing file: {vm.folder / 'f17-base.qcow2'}\n" in qemu_img("info", path)


def test_an_overlay_is_named_as_stock_does(guest: Make):
    vm = guest()
    vm.out("snapshot-create-as", "f17vm1", "one", "--disk-only")
    vm.out("snapshot-create-as", "f17vm1", "two", "auto named", "--disk-only")
    assert vm.sources() == ["f17vm1.two"]


def test_a_snapshot_without_a_name_gets_the_time(guest: Make):
    vm = guest()
    name = vm.out("snapshot-create", "f17vm1").split()[2]
    assert vm.out("snapshot-list", "f17vm1", "--name") == f"{name}\n\n"
    assert name.isdigit()
    assert vm.out("snapshot-create-as", "f17vm1", "--disk-only", "--name", "x") == "Domain snapshot x created\n"


def test_what_would_be_done_is_printed_as_recorded(guest: Make):
    vm = guest()
    words = ("--print-xml", "--diskspec", "vda,snapshot=external,file=/vm/images/other.qcow2")
    assert vm.out("snapshot-create-as", "--domain", "f17vm1", "snap2", "--disk-only", *words) == REQUEST
    assert vm.out("snapshot-list", "f17vm1", "--name") == "\n"
    vm.xml.write_text(REQUEST)
    assert vm.out("snapshot-create", "f17vm1", str(vm.xml), "--print-xml") == REQUEST


def test_a_snapshot_is_taken_from_xml(guest: Make):
    vm = guest("vm", "a", "b")
    text = REQUEST.replace("/vm/images/other.qcow2", str(vm.folder / "new"))
    vm.xml.write_text(text.replace("<disks>", "<disks><disk name='vdb' snapshot='no'/>"))
    assert vm.out("snapshot-create", "vm", str(vm.xml)) == f"Domain snapshot snap2 created from '{vm.xml}'\n"
    assert vm.sources() == ["new", "b"]
    assert "snap2" not in qemu_img("snapshot", "-l", vm.folder / "b")


def test_the_description_of_one_that_was_taken_asks_for_another_one_like_it(guest: Make):
    vm = guest("vm", "a", "b")
    vm.out("snapshot-create-as", "vm", "one", "--diskspec", "vdb,snapshot=no")
    vm.xml.write_text(vm.out("snapshot-dumpxml", "vm", "one").replace("<name>one<", "<name>two<", 1))
    vm.out("snapshot-create", "vm", str(vm.xml))
    assert vm.out("snapshot-parent", "vm", "two") == "one\n"
    assert "two" in qemu_img("snapshot", "-l", vm.folder / "a")
    assert "two" not in qemu_img("snapshot", "-l", vm.folder / "b")


def test_without_metadata_nothing_is_noted_down(guest: Make):
    vm = guest()
    vm.out("snapshot-create-as", "f17vm1", "snap3", "--disk-only", "--no-metadata")
    assert vm.sources() == ["f17vm1.snap3"]
    assert vm.out("snapshot-list", "f17vm1", "--name") == "\n"


def test_all_disks_or_none_and_each_as_it_is_asked_for(guest: Make):
    vm = guest("vm", "a", "b", "c")
    words = ("--diskspec", "vda,snapshot=external", "--diskspec", "vdc,snapshot=no")
    vm.out("snapshot-create-as", "vm", "s", *words)
    assert vm.sources() == ["a.s", "b", "c"]
    (vm.folder / "b.t").write_text("keep me")
    before = sorted(path.name for path in vm.folder.iterdir())
    assert vm.run("snapshot-create-as", "vm", "t", "--disk-only").status == 15
    assert sorted(path.name for path in vm.folder.iterdir()) == before
    assert vm.sources() == ["a.s", "b", "c"]


def test_wishes_are_refused_in_stock_words(guest: Make):
    vm = guest()
    exists = vm.folder / "exists.txt"
    exists.write_text("keep me")
    vm.out("snapshot-create-as", "f17vm1", "snap1")
    disk_error = (
        "unsupported configuration: external snapshot file for disk vda already exists and is not a block device"
    )
    cases = {
        ("snap1",): "operation failed: domain moment snap1 already exists\n",
        ("s", "--disk-only", "--diskspec", f"vda,file={exists}"): f"{disk_error}: {exists}",
        ("s", "--disk-only", "--diskspec", "vdz,file=/x"): "unsupported configuration: no disk named 'vdz'\n",
        ("s", "--disk-only", "--diskspec", "vda,file=x"): "XML error: disk snapshot image path 'x' must be absolute",
        ("s", "--disk-only", "--diskspec", "vda,foo=x"): "unable to parse diskspec: vda,foo=x",
        ("s", "--live"): "unsupported configuration: live snapshot creation is supported only during full system ",
        ("s", "--disk-only", "--quiesce"): "Requested operation is not valid: domain is not running",
        (
            "s",
            "--disk-only",
            "--diskspec",
            "vda,file=/no/other",
        ): "failed to create image file '/no/other': No such file or ",
        ("a/b",): "XML error: invalid snapshot name 'a/b': name can't contain '/'",
        ("s", "--memspec", "snapshot=external"): "XML error: external memory snapshots require a filename",
    }
    for words, complaint in cases.items():
        ran = vm.run("snapshot-create-as", "f17vm1", *words)
        assert (ran.status != 0, ran.out) == (True, "\n"), words
        assert ran.err.startswith(f"error: {complaint}"), ran.err
    assert exists.read_text() == "keep me"
    assert vm.out("snapshot-list", "f17vm1", "--name") == "snap1\n\n"


def test_a_memory_file_is_never_overwritten(guest: Make):
    """Stock empties it; a guest that is shut off has no memory to be held."""
    vm = guest()
    memory = vm.folder / "memory"
    memory.write_text("keep me")
    ran = vm.run("snapshot-create-as", "f17vm1", "s", "--memspec", f"file={memory}")
    assert ran.status == 15
    assert ran.err.startswith("error: XML error: memory state cannot be saved with offline or disk-only snapshot")
    assert memory.read_text() == "keep me"


def test_an_overlay_that_lies_on_something_else_is_not_reused(guest: Make):
    """Stock takes it, and the guest sees one disk and every other tool another one."""
    vm = guest()
    pre = vm.folder / "pre.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", vm.folder / "f17vm1.qcow2", "-F", "qcow2", pre)
    reuse = ("--disk-only", "--reuse-external", "--diskspec", f"vda,file={pre}")
    vm.out("snapshot-create-as", "f17vm1", "s1", "--disk-only")
    ran = vm.run("snapshot-create-as", "f17vm1", "s2", *reuse)
    assert ran.status == 15
    assert ran.err.startswith(f"error: {pre} lies on {vm.folder / 'f17vm1.qcow2'}, not on {vm.folder / 'f17vm1.s1'}")
    assert vm.sources() == ["f17vm1.s1"]
    qemu_img("rebase", "-u", "-f", "qcow2", "-b", vm.folder / "f17vm1.s1", "-F", "qcow2", pre)
    vm.out("snapshot-create-as", "f17vm1", "s2", *reuse)
    assert vm.sources() == ["pre.qcow2"]


def test_an_internal_snapshot_below_overlays_is_reverted_to_and_they_stay_what_they_are(guest: Make):
    """Stock applies it in place, and what lies on the image becomes a mix."""
    vm = guest()
    vm.write(1)
    vm.out("snapshot-create-as", "f17vm1", "inside")
    vm.write(2)
    vm.out("snapshot-create-as", "f17vm1", "outside", "--disk-only")
    qemu_io(vm.folder / "f17vm1.outside", "write -P 3 0 64k")
    assert vm.run("snapshot-revert", "f17vm1", "inside").status == 0
    assert vm.shows(vm.sources()[0], 1)
    assert vm.shows("f17vm1.qcow2", 2)
    assert "failed" not in qemu_io(vm.folder / "f17vm1.outside", "read -P 3 0 64k", "read -P 2 64k 960k")


def test_an_external_snapshot_is_reverted_to_back_and_forth(guest: Make):
    """Stock refuses every revert to one."""
    vm = guest()
    vm.write(1)
    vm.out("snapshot-create-as", "f17vm1", "one", "--disk-only")
    vm.write(2)
    vm.out("snapshot-create-as", "f17vm1", "two", "--disk-only")
    vm.write(3)
    assert vm.run("snapshot-revert", "f17vm1", "one").out == "Domain snapshot one reverted\n\n"
    for name, sign in (("two", 2), ("one", 1), ("two-tip", 3), ("two", 2)):
        assert vm.run("snapshot-revert", "f17vm1", name, "--force").status == 0
        assert vm.shows(vm.sources()[0], sign)
    assert_clean(vm.folder / vm.sources()[0])


def test_what_is_active_is_dropped_when_that_is_asked_for(guest: Make):
    vm = guest()
    vm.out("snapshot-create-as", "f17vm1", "one", "--disk-only")
    vm.write(3)
    assert vm.out("snapshot-revert", "f17vm1", "--current", "--discard") == "Domain snapshot one reverted\n\n"
    assert vm.out("snapshot-list", "f17vm1", "--name") == "one\n\n"
    assert not (vm.folder / "f17vm1.one").exists()
    assert vm.shows(vm.sources()[0], 0)


def test_a_revert_that_fails_changes_nothing(guest: Make):
    """Stock leaves the guest with a definition that names a file it has removed."""
    vm = guest("vm", "a", "b")
    vm.out("snapshot-create-as", "vm", "s", "--disk-only")
    vm.write(2)
    (vm.folder / "b").rename(vm.folder / "moved")
    text, files = vm.run("dumpxml", "vm").out, sorted(vm.folder.iterdir())
    ran = vm.run("snapshot-revert", "vm", "s")
    assert (ran.status, ran.out) == (11, "\n")
    first, second = ran.err.splitlines()[-2:]
    assert first == "error: Failed to revert snapshot s"
    assert second.startswith(f"error: {vm.folder / 'b'}: snapshot 's' holds disk vdb in it, and it is not there")
    assert (vm.run("dumpxml", "vm").out, sorted(vm.folder.iterdir())) == (text, files)
    (vm.folder / "moved").rename(vm.folder / "b")
    assert vm.run("snapshot-revert", "vm", "s").status == 0
    assert vm.shows(vm.sources()[0], 0)


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (["nosuch"], 24, "Domain snapshot not found: no domain snapshot with matching name 'nosuch'"),
        ([], 2, "--snapshotname or --current is required"),
        (["x", "--current"], 2, "--snapshotname and --current are mutually exclusive"),
        (["--current"], 24, "Domain snapshot not found: the domain does not have a current snapshot"),
        (["--running", "x"], 2, "command 'snapshot-revert' doesn't support option --running"),
    ],
)
def test_what_is_not_there_is_not_reverted_to(guest: Make, words: list[str], status: int, complaint: str):
    ran = guest("vm").run("snapshot-revert", "vm", *words)
    assert (ran.status, ran.err.startswith(f"error: {complaint}")) == (status, True)


def test_a_snapshot_is_noted_down_again(guest: Make):
    vm = guest("vm", "a", "b")
    vm.out("snapshot-create-as", "vm", "one", "first", "--disk-only", "--diskspec", "vdb,snapshot=internal")
    vm.out("snapshot-create-as", "vm", "two", "--disk-only")
    texts = {name: vm.out("snapshot-dumpxml", "vm", name) for name in ("one", "two")}
    definition = vm.out("dumpxml", "vm")
    vm.out("undefine", "vm", "--snapshots-metadata")
    vm.xml.write_text(definition)
    vm.out("define", str(vm.xml))
    vm.xml.write_text(texts["two"])
    ran = vm.run("snapshot-create", "vm", str(vm.xml), "--redefine")
    assert ran.err.startswith("error: XML error: parent one for snapshot two not found")
    for name, words in (("one", []), ("two", ["--current"])):
        vm.xml.write_text(texts[name])
        printed = vm.out("snapshot-create", "vm", str(vm.xml), "--redefine", *words)
        assert printed == f"Domain snapshot {name} created from '{vm.xml}'\n"
    assert {name: vm.out("snapshot-dumpxml", "vm", name) for name in texts} == texts
    assert vm.out("snapshot-current", "vm", "--name") == "two\n"
    vm.write(5)
    assert vm.run("snapshot-revert", "vm", "one").status == 0
    assert vm.shows(vm.sources()[0], 0)


def test_what_cannot_be_noted_down_again(guest: Make):
    vm = guest("vm", "a")
    vm.out("snapshot-create-as", "vm", "one", "--disk-only")
    text = vm.out("snapshot-dumpxml", "vm", "one")
    cases = {
        text.replace("<state>shutoff</state>", ""): "XML error: missing state from existing snapshot",
        text[: text.index("  <creationTime>")] + "</domainsnapshot>": "XML error: missing creationTime from existing ",
        text.replace("<name>one</name>", ""): "XML error: a redefined snapshot must have a name",
        text.replace("6236e2e8", "7236e2e8"): "XML error: definition for snapshot one must use uuid 6236e2e8-",
        text.replace(
            "<name>one</name>", "<name>x</name><parent><name>x</name></parent>"
        ): "XML error: cannot set snaps",
        text.replace(
            f"{vm.folder}/a'", f"{vm.folder}/a.one'"
        ): f"{vm.folder}/a.one is active: what it held of disk vda",
        text.replace(f"{vm.folder}/a'", "/nowhere'"): "/nowhere: snapshot 'one' held disk vda in it",
        text.replace("snapshot='external' type='file'>", "snapshot='internal'><x>").replace(
            "<driver type='qcow2'/>\n", "</x></disk><disk name='vdz'>"
        ): "",
    }
    for edited, complaint in cases.items():
        vm.xml.write_text(edited)
        ran = vm.run("snapshot-create", "vm", str(vm.xml), "--redefine")
        assert ran.status != 0
        assert ran.err.startswith(f"error: {complaint}"), ran.err
    assert vm.run("snapshot-create", "vm", "--redefine").status == 2
    assert vm.run("snapshot-create", "vm", str(vm.xml), "--current").status == 2
    assert vm.out("snapshot-dumpxml", "vm", "one") == text
