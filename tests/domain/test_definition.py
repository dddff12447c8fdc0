"""Owns the proof that a guest is read from libvirt's XML as libvirt reads it, and that the rest of the text stays."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowtree.domain.definition import (
    Definition,
    Disk,
    System,
    letters,
    make,
    parse,
    unknown,
)
from cowtree.errors import BrokenXml, WrongUse

UUID = "6236e2e8-2923-40bb-ae9c-6483cf848ccc"

# As `virsh dumpxml` of libvirt 9.0 prints a guest.
STOCK = """\
<domain type='qemu'>
  <name>f17vm1</name>
  <uuid>6236e2e8-2923-40bb-ae9c-6483cf848ccc</uuid>
  <memory unit='KiB'>131072</memory>
  <currentMemory unit='KiB'>131072</currentMemory>
  <vcpu placement='static'>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type>
    <kernel>/vm/guest/vmlinuz</kernel>
    <initrd>/vm/guest/init.gz</initrd>
    <cmdline>console=ttyS0 quiet panic=-1 w.delay=1000</cmdline>
    <boot dev='hd'/>
  </os>
  <features>
    <acpi/>
  </features>
  <cpu mode='custom' match='exact' check='none'>
    <model fallback='forbid'>qemu64</model>
  </cpu>
  <clock offset='utc'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' discard='unmap'/>
      <source file='/vm/images/f17vm1.qcow2'/>
      <target dev='vda' bus='virtio'/>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x02' function='0x0'/>
    </disk>
    <controller type='usb' index='0' model='piix3-uhci'>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x01' function='0x2'/>
    </controller>
    <serial type='file'>
      <source path='/vm/log/f17vm1.serial' append='on'/>
      <target type='isa-serial' port='0'>
        <model name='isa-serial'/>
      </target>
    </serial>
    <memballoon model='none'/>
  </devices>
</domain>
"""

# By hand: what people keep in their definitions, in the form in which they write it.
LIVELY = """\
<?xml version="1.0" encoding="utf-8"?>
<!-- the shop's guest; ask Ann before you change it -->
<domain xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0" type="kvm">
    <name>shop &amp; "more"</name>
    <title>The shop</title>
    <description>Two lines,
  and what is &lt;in&gt; them</description>
    <uuid>6236E2E8292340bbae9c6483cf848ccc</uuid>
    <metadata>
        <libosinfo:libosinfo xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0">
            <libosinfo:os id="http://debian.org/debian/12"/>
        </libosinfo:libosinfo>
    </metadata>
    <memory unit="GiB">4</memory><currentMemory unit="MB">2000</currentMemory>
    <vcpu placement="static" current="2">8</vcpu>
    <os firmware="efi">
        <type arch="x86_64" machine="q35">hvm</type>
        <loader readonly="yes" type="pflash">/usr/share/OVMF/OVMF_CODE.fd</loader>
        <nvram>/var/lib/libvirt/qemu/nvram/shop_VARS.fd</nvram>
        <boot dev="cdrom"/>
        <boot dev="hd"/>
    </os>
    <features><acpi/><apic/><vmport state="off"/></features>
    <cpu mode="host-passthrough"/>
    <devices>
        <emulator>/usr/bin/qemu-system-x86_64</emulator>
        <!-- the system -->
        <disk type="file" device="disk" snapshot="external">
            <driver name="qemu" type="qcow2" cache="none"/>
            <source file="/vm/images/sn1.qcow2" index="2"><seclabel model="dac" relabel="no"/></source>
            <backingStore type="file" index="1">
                <format type="qcow2"/>
                <source file="/vm/images/base.qcow2"/>
                <backingStore/>
            </backingStore>
            <target dev="vda" bus="virtio"/>
            <iotune><total_iops_sec>500</total_iops_sec></iotune>
            <alias name="virtio-disk0"/>
        </disk>
        <disk type="block" device="lun"><driver name="qemu" type="raw"/><source dev="/dev/vg/data"/>
            <target dev="sda" bus="scsi"/><shareable/></disk>
        <disk type="file" device="cdrom"><target dev="hdc" bus="ide"/></disk>
        <disk type="network"><source protocol="rbd" name="pool/image"><host name="mon"/></source>
            <target dev="vdb"/><readonly/></disk>
        <disk type="volume" snapshot="no"><source pool="default" volume="v"/><target dev="vdc"/></disk>
        <interface type="network"><source network="default"/></interface>
        <hostdev mode="subsystem" type="pci" managed="yes"><source>
            <address domain="0x0000" bus="0x06" slot="0x12" function="0x5"/></source></hostdev>
        <hostdev mode="subsystem" type="usb"/>
        <tpm model="tpm-crb"><backend type="emulator" version="2.0"/></tpm>
    </devices>
    <qemu:commandline>
        <qemu:arg value="-cpu"/><qemu:arg value="host,+'x'"/>
    </qemu:commandline>
</domain>
"""


def domain(inner: str) -> Definition:
    return parse(f"<domain>\n<name>a</name>\n{inner}</domain>")


def with_disks(*disks: str) -> str:
    return f"<devices>{''.join(disks)}</devices>"


def disk(target: str = "vda", *, inner: str = "", **attributes: str) -> str:
    said = "".join(f" {name}='{value}'" for name, value in attributes.items())
    return f"<disk{said}>{inner}<target dev='{target}'/></disk>\n"


def disk_part(text: str) -> str:
    return text[text.index("    <disk") : text.index("    </disk>")]


def test_a_definition_of_stock_comes_back_as_it_was():
    found = parse(STOCK)
    assert found.text == STOCK
    assert found._replace(text="") == Definition(
        *("", "f17vm1", UUID, None, 131072, 131072, 1),
        System(
            *("hvm", "x86_64", "pc-i440fx-7.2", None, "/vm/guest/vmlinuz", "/vm/guest/init.gz"),
            *("console=ttyS0 quiet panic=-1 w.delay=1000", ("hd",)),
        ),
        (Disk("vda", "disk", "file", "/vm/images/f17vm1.qcow2", "qcow2", "virtio", False, False, None),),
    )


def test_a_lively_definition_is_understood():
    found = parse(LIVELY)
    assert (found.name, found.uuid, found.title) == ('shop & "more"', UUID, "The shop")
    assert (found.memory_kib, found.current_memory_kib, found.vcpu) == (4 << 20, 1953125, 8)
    assert (found.os.loader, found.os.boot) == ("/usr/share/OVMF/OVMF_CODE.fd", ("cdrom", "hd"))
    assert found.disks == (
        Disk("vda", "disk", "file", "/vm/images/sn1.qcow2", "qcow2", "virtio", False, False, "external"),
        Disk("sda", "lun", "block", "/dev/vg/data", "raw", "scsi", False, True, None),
        Disk("hdc", "cdrom", "file", None, None, "ide", True, False, None),
        Disk("vdb", "disk", "network", None, None, None, True, False, None),
        Disk("vdc", "disk", "volume", None, None, None, False, False, "no"),
    )


def test_what_is_not_understood_is_kept_and_named():
    found = parse(LIVELY)
    assert unknown(found) == [
        *("os/nvram", "devices/disk/source/seclabel", "devices/disk/iotune", "devices/disk/source/host"),
        *("devices/interface", "devices/hostdev", "devices/tpm", "qemu:commandline"),
    ]
    for kept in (
        "<!-- the shop's guest; ask Ann before you change it -->\n<domain type='kvm' xmlns:qemu",
        "  <description>Two lines,\n  and what is &lt;in&gt; them</description>\n",
        "    <!-- the system -->\n    <disk type='file' device='disk' snapshot='external'>\n",
        "    <libosinfo:libosinfo xmlns:libosinfo='http://libosinfo.org/xmlns/libvirt/domain/1.0'>\n",
        f"  <uuid>{UUID}</uuid>\n",
        "  <qemu:commandline>\n    <qemu:arg value='-cpu'/>\n    <qemu:arg value='host,+&apos;x&apos;'/>\n",
        "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\n",
        "        <address domain='0x0000' bus='0x06' slot='0x12' function='0x5'/>\n",
    ):
        assert kept in found.text
    assert unknown(parse(STOCK)) == ["devices/controller", "devices/serial", "devices/memballoon"]


@pytest.mark.parametrize("text", [STOCK, LIVELY])
def test_what_was_laid_out_once_is_not_changed_again(text: str):
    found = parse(text)
    assert parse(found.text) == found
    assert parse(found.text.encode()) == found


def test_a_disk_gets_another_file_and_loses_what_was_said_of_the_layers_below():
    found = parse(LIVELY)
    changed = found.with_source("vda", "/vm/it's.qcow2")
    assert disk_part(changed.text) == disk_part(
        """\
    <disk type='file' device='disk' snapshot='external'>
      <driver name='qemu' type='qcow2' cache='none'/>
      <source file='/vm/it&apos;s.qcow2'>
        <seclabel model='dac' relabel='no'/>
      </source>
      <target dev='vda' bus='virtio'/>
      <iotune>
        <total_iops_sec>500</total_iops_sec>
      </iotune>
      <alias name='virtio-disk0'/>
    </disk>
"""
    )
    assert changed.disks == (found.disks[0]._replace(source="/vm/it's.qcow2"), *found.disks[1:])
    assert changed.text.partition("</disk>")[2] == found.text.partition("</disk>")[2]
    assert changed.with_source("vda", "/vm/images/sn1.qcow2").disks == found.disks


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("sda", "<driver name='qemu' type='qcow2'/>\n      <source file='/n'/>\n      <target dev='sda' bus='scsi'/>"),
        ("hdc", "<driver name='qemu' type='qcow2'/>\n      <source file='/n'/>\n      <target dev='hdc' bus='ide'/>"),
        (
            "vdb",
            "<disk type='file'>\n      <driver name='qemu' type='qcow2'/>\n      <source file='/n'/>\n      <target",
        ),
        ("vdc", "<source file='/n'/>\n      <target dev='vdc'/>"),
    ],
)
def test_a_drive_of_any_kind_can_get_a_file(target: str, expected: str):
    changed = parse(LIVELY).with_source(target, "/n", "qcow2")
    assert expected in changed.text
    found = changed.disk(target)
    assert (found.type, found.source, found.format) == ("file", "/n", "qcow2")


def test_a_drive_can_get_a_device():
    changed = parse(STOCK).with_source("vda", "/dev/vg/a", "raw", type="block")
    assert "<disk type='block' device='disk'>\n" in changed.text
    assert "<source dev='/dev/vg/a'/>" in changed.text
    assert changed.disk("vda").type == "block"


def test_a_mirror_and_a_slice_of_the_old_file_go_with_it():
    inner = "<source file='/a' startupPolicy='optional'><slices/></source><mirror type='file'/>"
    changed = domain(with_disks(disk(inner=inner))).with_source("vda", "/b")
    assert "mirror" not in changed.text
    assert "<source startupPolicy='optional' file='/b'/>" in changed.text


def test_a_disk_is_found_by_its_target_or_its_source():
    found = parse(LIVELY)
    assert found.disk("sda") == found.disk("/dev/vg/data") == found.disks[1]
    for ask in (lambda: found.disk("vdz"), lambda: found.with_source("vdz", "/a"), lambda: found.disk("")):
        with pytest.raises(WrongUse, match=r"unsupported configuration: no disk named '(vdz)?'"):
            ask()


def test_a_guest_gets_another_name_and_number():
    found = parse(STOCK)
    changed = found.with_name("<b>").with_uuid("0" * 32)
    assert (changed.name, changed.uuid) == ("<b>", "00000000-0000-0000-0000-000000000000")
    assert changed.with_name(found.name).with_uuid(UUID) == found
    assert domain("<vcpu>1</vcpu>").with_uuid(UUID).text == (
        f"<domain>\n  <name>a</name>\n  <uuid>{UUID}</uuid>\n  <vcpu>1</vcpu>\n</domain>\n"
    )
    assert parse("<domain><name>a<!-- b -->c</name></domain>").with_name("d").text.count("b") == 0


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        *(("", 3000), (" unit='b'", 3), (" unit='bytes'", 3), (" unit='KB'", 2930), (" unit='k'", 3000)),
        *((" unit='KiB'", 3000), (" unit='MB'", 2929688), (" unit='M'", 3072000), (" unit='MiB'", 3072000)),
        *(
            (" unit='G'", 3000 << 20),
            (" unit='GiB'", 3000 << 20),
            (" unit='TB'", 2929687500000),
            (" unit='TiB'", 3000 << 30),
        ),
    ],
)
def test_memory_is_counted_in_the_units_of_libvirt(unit: str, expected: int):
    found = domain(f"<memory{unit}>3000</memory>")
    assert (found.memory_kib, found.current_memory_kib) == (expected, expected)


def test_what_is_not_said_has_a_value():
    found = domain("")
    assert (found.uuid, found.title, found.memory_kib, found.vcpu, found.disks) == (None, None, 0, 1, ())
    assert found.os == System()
    assert domain(with_disks(disk())).disks == (
        Disk("vda", "disk", "file", None, None, None, is_readonly=False, is_shareable=False, snapshot=None),
    )


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        ("<uuid>12</uuid>", "line 3: malformed uuid element: '12' has not 32 hexadecimal digits"),
        ("<memory unit='ell'>1</memory>", "line 3: unknown suffix 'ell'"),
        ("<memory>much</memory>", "line 3: <memory> holds 'much', which is no whole number from 0 on"),
        ("<memory>" + "9" * 5000 + "</memory>", "line 3: <memory> holds '99999"),
        ("<vcpu>0</vcpu>", "line 3: <vcpu> holds '0', which is no whole number from 1 on"),
        (with_disks(disk(type="tape")), "line 3: unknown disk type 'tape'; known are file, block, dir"),
        (with_disks(disk(device="tape")), "line 3: unknown disk device 'tape'; known are disk, cdrom, floppy, lun"),
        (with_disks(disk(snapshot="yes")), "line 3: unknown disk snapshot setting 'yes'; known are no, internal"),
        (with_disks(disk(), disk("../a")), "line 4: Invalid harddisk device name: ../a"),
        (with_disks("<disk/>"), "line 3: a disk has no target"),
        (with_disks(disk(inner="<source file='a'/>")), "line 3: source 'a' of disk vda must be an absolute path"),
        (
            with_disks(disk(inner="<source file='/a'/>"), disk("vdb"), disk(inner="<source file='/b'/>")),
            "line 5: target 'vda' duplicated for disk sources '/a' and '/b'",
        ),
    ],
)
def test_a_broken_rule_is_told_with_its_line(inner: str, expected: str):
    with pytest.raises(BrokenXml) as caught:
        domain(inner)
    assert f"XML error: {expected}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", "line 1: the domain has no name"),
        ("<name> </name>", "line 1: the domain has no name"),
        ("<name>a/b</name>", "line 1: name a/b cannot contain '/'"),
        ("<name>" + "/" * 9000 + "</name>", "/// ... ///"),
        ("<name>a\nb</name>", r"line 1: name 'a\nb' cannot contain a line break"),
    ],
)
def test_a_guest_has_a_name(name: str, expected: str):
    with pytest.raises(BrokenXml) as caught:
        parse(f"<domain>{name}</domain>")
    assert expected in str(caught.value)
    assert caught.value.exit_status == 26


def test_a_guest_is_made_of_its_disks():
    made = make("a & b", UUID, [("/vm/a,'b'.qcow2", "qcow2"), ("/vm/c.img", "raw")])
    assert made.text.startswith("<domain type='qemu'>\n  <name>a &amp; b</name>\n  <uuid>6236e2e8")
    assert [each[:6] for each in made.disks] == [
        ("vda", "disk", "file", "/vm/a,'b'.qcow2", "qcow2", "virtio"),
        ("vdb", "disk", "file", "/vm/c.img", "raw", "virtio"),
    ]
    assert unknown(made) == []
    assert make("a", UUID, []).disks == ()


def test_disks_are_counted_by_letters():
    assert [letters(index) for index in (0, 25, 26, 51, 52, 701, 702)] == ["a", "z", "aa", "az", "ba", "zz", "aaa"]
    assert [each.target for each in make("a", UUID, [("/a", "raw")] * 28).disks[-2:]] == ["vdaa", "vdab"]


XML_LETTERS = st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff/")


@given(st.text(XML_LETTERS, min_size=1, max_size=30).filter(str.strip), st.text(XML_LETTERS, max_size=30))
def test_any_name_and_any_path_come_back(name: str, path: str):
    changed = parse(STOCK).with_name(name).with_source("vda", f"/{path}")
    assert parse(changed.text) == changed
    assert (changed.name, changed.disks[0].source) == (name, f"/{path}")


@pytest.mark.soak
def test_a_damaged_text_is_understood_or_refused(seed: int):
    chance = random.Random(seed)
    for _ in range(20):
        data = bytearray(chance.choice((STOCK, LIVELY)).encode())
        for _ in range(chance.randrange(1, 5)):
            start = chance.randrange(len(data))
            end = start + chance.randrange(40)
            other = chance.randrange(len(data))
            data[start:end] = chance.choice((b"", bytes([chance.randrange(256)]), data[other : other + 40], b"<", b"'"))
        try:
            found = parse(bytes(data))
        except BrokenXml:
            continue
        assert parse(found.text) == found


@pytest.mark.parametrize("path", ["/a\udcff", "/a\x1b", "/\0"])
def test_a_path_that_no_xml_can_hold_is_refused(path: str):
    for ask in (lambda: parse(STOCK).with_source("vda", path), lambda: make("a", UUID, [(path, "raw")])):
        with pytest.raises(BrokenXml, match="which no XML may hold"):
            ask()
