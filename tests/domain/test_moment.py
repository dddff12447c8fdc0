"""Owns the proof that snapshots are described as stock describes them, and that contradictions are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowtree.domain.moment import DiskRequest, Memory, Request, dump, parse, request_text, settled
from cowtree.domain.specs import disk_spec, memory_spec
from cowtree.errors import BrokenXml

GUEST = "<domain type='qemu'>\n  <name>f17-base</name>\n  <description>a\nb</description>\n</domain>\n"

# As `virsh snapshot-create-as --print-xml` of libvirt 9.0 prints one, but for the empty lines behind it.
PRINTED = """\
<domainsnapshot>
  <name>snap2</name>
  <disks>
    <disk name='vda' snapshot='external'>
      <source file='/vm/images/other.qcow2'/>
    </disk>
  </disks>
</domainsnapshot>
"""

# As `virsh snapshot-dumpxml` prints two, with a smaller guest.
INTERNAL = """\
<domainsnapshot>
  <name>snap2</name>
  <description>snap2-desc</description>
  <state>running</state>
  <parent>
    <name>snap1</name>
  </parent>
  <creationTime>1795401059</creationTime>
  <memory snapshot='internal'/>
  <disks>
    <disk name='vda' snapshot='internal'/>
  </disks>
  <domain type='qemu'>
    <name>f17-base</name>
    <description>a\nb</description>
  </domain>
</domainsnapshot>
"""
EXTERNAL = """\
<domainsnapshot>
  <name>cp1</name>
  <description>ext checkpoint</description>
  <state>running</state>
  <creationTime>1795401700</creationTime>
  <memory snapshot='external' file='/vm/images/cp1.mem'/>
  <disks>
    <disk name='vda' snapshot='external' type='file'>
      <driver type='qcow2'/>
      <source file='/vm/images/cp1.qcow2'/>
    </disk>
    <disk name='vdb' snapshot='no'/>
  </disks>
  <domain type='qemu'>
    <name>f17-base</name>
    <description>a\nb</description>
  </domain>
</domainsnapshot>
"""


def test_a_request_is_printed_as_stock_prints_it():
    asked = Request("snap2", disks=(disk_spec("vda,snapshot=external,file=/vm/images/other.qcow2"),))
    assert request_text(asked) == PRINTED


def test_a_request_says_nothing_that_was_not_said():
    assert request_text(Request(None)) == "<domainsnapshot>\n</domainsnapshot>\n"
    asked = Request(
        "a<", "b&", memory_spec("/x"), (disk_spec("vda"), disk_spec("vdb,stype=block,driver=raw,file=/y,,"))
    )
    assert request_text(asked) == (
        "<domainsnapshot>\n  <name>a&lt;</name>\n  <description>b&amp;</description>\n  <memory file='/x'/>\n"
        "  <disks>\n    <disk name='vda'/>\n    <disk name='vdb' type='block'>\n      <driver type='raw'/>\n"
        "      <source dev='/y,'/>\n    </disk>\n  </disks>\n</domainsnapshot>\n"
    )


def test_a_snapshot_is_dumped_as_stock_dumps_it():
    made = Request("snap2", "snap2-desc", Memory("internal"), (DiskRequest("vda", "internal", "/a", "qcow2"),))
    assert dump(made._replace(state="running", parent="snap1", created_s=1795401059, domain=GUEST)) == INTERNAL
    disks = (DiskRequest("vda", "external", "/vm/images/cp1.qcow2", "qcow2"), DiskRequest("vdb", "no"))
    made = Request("cp1", "ext checkpoint", Memory("external", "/vm/images/cp1.mem"), disks)
    assert dump(made._replace(state="running", created_s=1795401700, domain=GUEST)) == EXTERNAL


def test_a_dump_says_that_no_memory_is_held():
    assert dump(Request("a")) == "<domainsnapshot>\n  <name>a</name>\n  <memory snapshot='no'/>\n</domainsnapshot>\n"


@pytest.mark.parametrize("text", [INTERNAL, EXTERNAL])
def test_a_dump_can_be_read_again(text: str):
    found = parse(text)
    assert found.domain == GUEST
    assert request_text(found) == dump(found) == text


def test_what_was_said_is_read():
    found = parse(EXTERNAL)
    assert found == Request(
        name="cp1",
        description="ext checkpoint",
        memory=Memory("external", "/vm/images/cp1.mem"),
        disks=(DiskRequest("vda", "external", "/vm/images/cp1.qcow2", "qcow2", "file"), DiskRequest("vdb", "no")),
        state="running",
        created_s=1795401700,
        domain=GUEST,
    )
    assert parse(INTERNAL).parent == "snap1"
    assert parse("<domainsnapshot/>") == Request(None)
    block = "<disk name='/dev/a' type='block'><source dev='/dev/b'/></disk>"
    found = parse(f"<domainsnapshot><disks>{block}</disks></domainsnapshot>")
    assert found.disks == (DiskRequest("/dev/a", "external", "/dev/b", None, "block"),)


def test_whatever_has_a_file_is_held_in_it():
    asked = Request(
        "a", None, Memory(None, "/m"), (DiskRequest("vda", None, "/a"), DiskRequest("vdb", None, None, "raw"))
    )
    found = settled(asked)
    assert found.memory == Memory("external", "/m")
    assert [disk.mode for disk in found.disks] == ["external", "external"]
    nothing = Request("a", None, Memory(), (DiskRequest("vda"),))
    assert settled(nothing) == nothing


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (Request(""), "invalid snapshot name '': name is empty"),
        (Request("a/b"), "invalid snapshot name 'a/b': name can't contain '/'"),
        (Request(".a"), "invalid snapshot name '.a': name can't start with '.'"),
        (Request("a\nb"), r"invalid snapshot name 'a\nb': name can't contain control characters"),
        (Request("a\udcff"), "which no XML may hold"),
        (Request("a", state="asleep"), "Invalid state 'asleep' in domain snapshot XML"),
        (Request("a", memory=Memory("yes")), "unknown memory snapshot setting 'yes'; known are no, internal, external"),
        (Request("a", memory=Memory("manual")), "unknown memory snapshot setting 'manual'"),
        (Request("a", memory=Memory("external")), "external memory snapshots require a filename"),
        (Request("a", memory=Memory("no", "/m")), "memory filename '/m' requires external snapshot"),
        (Request("a", memory=Memory(None, "m")), "memory snapshot file path (m) must be absolute"),
        (Request("a", disks=(DiskRequest("vda", "yes"),)), "unknown disk snapshot setting 'yes'; known are no,"),
        (
            Request("a", disks=(DiskRequest("vda", "internal", "/a"),)),
            "file '/a' for disk 'vda' requires use of external snapshot mode",
        ),
        (Request("a", disks=(DiskRequest("vda", None, "a"),)), "disk snapshot image path 'a' must be absolute"),
        (Request("a", disks=(DiskRequest("vda"), DiskRequest("vda", "no"))), "disk 'vda' specified twice"),
    ],
)
def test_what_does_not_fit_together_is_refused(asked: Request, expected: str):
    with pytest.raises(BrokenXml) as caught:
        settled(asked)
    assert f"XML error: {expected}" in str(caught.value) or expected in str(caught.value)


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        ("<name>a/b</name>", "invalid snapshot name 'a/b'"),
        ("<creationTime>yesterday</creationTime>", "line 2: <creationTime> 'yesterday' is no time"),
        ("<disks><disk/></disks>", "line 2: missing name from disk snapshot element"),
        ("<disks><disk name='a' type='network'/></disks>", "line 2: unknown disk snapshot type 'network'"),
        ("<disks><disk name='a' snapshot='x'/></disks>", "unknown disk snapshot setting 'x'"),
        ("<domain/>", "line 2: the domain has no name"),
        ("<!DOCTYPE a>", "line 2: StartTag: invalid element name"),
    ],
)
def test_a_broken_text_is_refused(inner: str, expected: str):
    with pytest.raises(BrokenXml) as caught:
        parse(f"<domainsnapshot>\n{inner}</domainsnapshot>")
    assert expected in str(caught.value)


def test_a_guest_is_not_a_snapshot():
    with pytest.raises(BrokenXml, match="unexpected root element <domain>, expecting <domainsnapshot>"):
        parse(GUEST)


XML_LETTERS = st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff/")


@given(
    st.text(XML_LETTERS, min_size=1).filter(lambda name: name.strip() and name[0] != "."),
    st.text(XML_LETTERS, min_size=1),
    st.text(XML_LETTERS),
)
def test_any_request_comes_back(name: str, description: str, path: str):
    disk = DiskRequest("vda", "external", f"/{path}", "qcow2", "file")
    asked = Request(name, description, Memory("external", f"/{path}"), (disk,), "shutoff", name, 5)
    assert parse(request_text(asked)) == asked


def test_many_disks_are_no_burden():
    disks = tuple(DiskRequest(f"vd{number}", "no") for number in range(20_000))
    assert settled(Request("a", disks=disks)).disks == disks
