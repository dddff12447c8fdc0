"""What a guest is: libvirt's `<domain>` XML as a frozen value.

`text` is all of it, laid out as libvirt prints it, with whatever cowtree does not understand; the other fields are read
from it. A change is made in the text and gives a new value. Source: libvirt, "Domain XML format".
"""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from cowtree.domain import markup
from cowtree.domain.markup import Node, attribute_at, text_at
from cowtree.errors import BrokenXml, WrongUse

ROOT: Final = "domain"
DEVICES: Final = ("disk", "cdrom", "floppy", "lun")
TYPES: Final = ("file", "block", "dir", "network", "volume", "nvme", "vhostuser", "vhostvdpa")
MODES: Final = ("no", "internal", "external", "manual")
FILE, BLOCK = "file", "block"
# Which attribute of <source> is a path; the other types name no file of this machine.
PATHS: Final = {FILE: "file", BLOCK: "dev"}
# A guest that was adopted without XML gets what `virsh define` asks for; cowtree needs none of it.
MADE_MEMORY_KIB: Final = 1 << 20

UNITS: Final = {
    **{"b": 1, "bytes": 1, "kb": 10**3, "k": 1 << 10, "kib": 1 << 10, "mb": 10**6, "m": 1 << 20, "mib": 1 << 20},
    **{"gb": 10**9, "g": 1 << 30, "gib": 1 << 30, "tb": 10**12, "t": 1 << 40, "tib": 1 << 40},
    **{"pb": 10**15, "p": 1 << 50, "pib": 1 << 50, "eb": 10**18, "e": 1 << 60, "eib": 1 << 60},
}

# What cowtree uses or knows to mean nothing for disks; a star stands for whatever lies below.
UNDERSTOOD: Final = {
    *("name", "uuid", "title", "description", "metadata/*", "memory", "currentMemory", "vcpu", "features/*", "cpu/*"),
    *("clock/*", "on_poweroff", "on_reboot", "on_crash", "on_lockfailure", "os", "os/type", "os/loader", "os/kernel"),
    *("os/initrd", "os/cmdline", "os/boot", "devices", "devices/emulator", "devices/disk", "devices/disk/driver"),
    *("devices/disk/source", "devices/disk/target", "devices/disk/readonly", "devices/disk/shareable"),
    *("devices/disk/backingStore/*", "devices/disk/address/*", "devices/disk/alias", "devices/disk/boot"),
    *("devices/disk/serial", "devices/disk/wwn", "devices/disk/vendor", "devices/disk/product"),
}


# What disks hang on when only their targets are known.
BUSES: Final = {"vd": "virtio", "sd": "scsi", "hd": "ide"}


class Disk(NamedTuple):
    """One drive of a guest. `source` is the path of its file or block device: None when it is empty or elsewhere;
    `format` is None when nothing is said of it; `snapshot` is what a snapshot does with the drive when nothing else is
    asked for: no, internal, external or manual.
    """

    target: str
    device: str
    type: str
    source: str | None
    format: str | None
    bus: str | None
    is_readonly: bool
    is_shareable: bool
    snapshot: str | None


class System(NamedTuple):
    """What a guest is started from; `boot` names kinds of devices, the first one first."""

    type: str | None = None
    arch: str | None = None
    machine: str | None = None
    loader: str | None = None
    kernel: str | None = None
    initrd: str | None = None
    cmdline: str | None = None
    boot: tuple[str, ...] = ()


class Definition(NamedTuple):
    """One guest. `uuid` is None when none is given; memory is 0 when nothing is said of it. Units: KiB."""

    text: str
    name: str
    uuid: str | None
    title: str | None
    memory_kib: int
    current_memory_kib: int
    vcpu: int
    os: System
    disks: tuple[Disk, ...]

    def disk(self, word: str) -> Disk:
        """The disk of this target or, as virsh has it, of this source. Raises: WrongUse."""
        named = [disk for disk in self.disks if disk.target == word]
        named += [disk for disk in self.disks if disk.source == word]
        if not named:
            raise _no_disk(word)
        return named[0]

    def with_name(self, name: str) -> "Definition":
        """The same guest under another name. Raises: BrokenXml."""
        return self._changed(lambda root: _set_text(root, "name", name, place=0))

    def with_uuid(self, uuid: str) -> "Definition":
        """The same guest under another number. Raises: BrokenXml."""
        return self._changed(lambda root: _set_text(root, "uuid", uuid, place=1))

    def with_source(self, target: str, path: str, format: str | None = None, *, type: str = FILE) -> "Definition":
        """The same guest with another file, or with the type `block` another device, in one of its disks. What the XML
        says of the layers below is true no more and goes: whoever starts the guest looks at the images for them.
        Raises: WrongUse, BrokenXml.
        """
        return self._changed(lambda root: _set_source(root, target, _Source(path, format, type)))

    def _changed(self, change: Callable[[Node], None]) -> "Definition":
        root = markup.parse(self.text, ROOT)
        change(root)
        return read(root)


class _Source(NamedTuple):
    path: str
    format: str | None
    type: str


def parse(text: bytes | str) -> Definition:
    """The guest that a text describes. Raises: BrokenXml."""
    return read(markup.parse(text, ROOT))


def read(root: Node) -> Definition:
    """The guest that a `<domain>` element describes. Raises: BrokenXml."""
    name, uuid = _name(root), _uuid(root)
    if uuid is not None:
        _set_text(root, "uuid", uuid, place=1)
    memory_kib = _memory_kib(root, "memory")
    current_kib = _memory_kib(root, "currentMemory") or memory_kib
    text, title = markup.layout(root), text_at(root, "title")
    return Definition(text, name, uuid, title, memory_kib, current_kib, _vcpu(root), _system(root), _disks(root))


def make(name: str, uuid: str, disks: Sequence[tuple[str, str]], targets: Sequence[str] = ()) -> Definition:
    """A guest of whom nothing is known but the paths and formats of its disks, which become vda, vdb and so on unless
    their targets are known too. Raises: BrokenXml.
    """
    drawn: list[str] = []
    for index, (path, format) in enumerate(disks):
        source, driver = markup.element("source", file=path), markup.element("driver", name="qemu", type=format)
        name_of_disk = targets[index] if targets else f"vd{letters(index)}"
        target = markup.element("target", dev=name_of_disk, bus=BUSES.get(name_of_disk[:2], "virtio"))
        drawn.append(f"<disk type='file' device='disk'>{driver}{source}{target}</disk>")
    said = [
        *(markup.element("name", name), markup.element("uuid", uuid)),
        *(markup.element("memory", str(MADE_MEMORY_KIB), unit="KiB"), markup.element("vcpu", "1")),
        *("<os><type>hvm</type></os>", "<devices>", *drawn, "</devices>"),
    ]
    return parse(f"<domain type='qemu'>{''.join(said)}</domain>")


def letters(index: int) -> str:
    """How disks are counted: a, b, ... z, aa, ab and so on."""
    text = ""
    index += 1
    while index:
        index, digit = divmod(index - 1, 26)
        text = chr(ord("a") + digit) + text
    return text


def unknown(definition: Definition) -> list[str]:
    """The elements that are kept and not used, as paths such as `devices/hostdev`, each once, in the order of the text.
    What lies in such an element is not named again.
    """
    return list(dict.fromkeys(_unknown(markup.parse(definition.text, ROOT), "")))


def _unknown(node: Node, path: str) -> Iterator[str]:
    for child in markup.elements(node):
        below = f"{path}{markup.qualified(child)}"
        if below in UNDERSTOOD:
            yield from _unknown(child, f"{below}/")
        elif f"{below}/*" not in UNDERSTOOD:
            yield below


def _name(root: Node) -> str:
    node = root.find("name")
    name = "" if node is None else markup.text_of(node)
    line = (root if node is None else node).sourceline
    if not name.strip():
        raise BrokenXml(line=line, reason="the domain has no name")
    if "/" in name:
        raise BrokenXml(line=line, reason=f"name {name} cannot contain '/'")
    if "\n" in name:
        raise BrokenXml(line=line, reason=f"name {name!r} cannot contain a line break")
    return name


def _uuid(root: Node) -> str | None:
    node = root.find("uuid")
    if node is None:
        return None
    text = markup.text_of(node).strip()
    digits = text.replace("-", "").lower()
    if not re.fullmatch("[0-9a-f]{32}", digits):
        raise BrokenXml(line=node.sourceline, reason=f"malformed uuid element: '{text}' has not 32 hexadecimal digits")
    ends = (0, 8, 12, 16, 20, 32)
    return "-".join(digits[start:end] for start, end in pairwise(ends))


def _number(node: Node, *, minimum: int) -> int:
    text = markup.text_of(node).strip()
    # Longer numbers are none that anybody means, and int() refuses them in its own words.
    if not re.fullmatch("[0-9]{1,18}", text) or int(text) < minimum:
        reason = f"<{node.tag}> holds '{text[:40]}', which is no whole number from {minimum} on"
        raise BrokenXml(line=node.sourceline, reason=reason)
    return int(text)


def _memory_kib(root: Node, name: str) -> int:
    """The memory that an element names, rounded up as libvirt does; 0 when there is no such element."""
    node = root.find(name)
    if node is None:
        return 0
    unit = node.get("unit", "KiB")
    if unit.lower() not in UNITS:
        raise BrokenXml(line=node.sourceline, reason=f"unknown suffix '{unit}'")
    return -(-_number(node, minimum=0) * UNITS[unit.lower()] // 1024)


def _vcpu(root: Node) -> int:
    node = root.find("vcpu")
    return 1 if node is None else _number(node, minimum=1)


def _system(root: Node) -> System:
    type_, loader, kernel, initrd, cmdline = (
        text_at(root, f"os/{name}") for name in ("type", "loader", "kernel", "initrd", "cmdline")
    )
    arch, machine = (attribute_at(root, "os/type", name) for name in ("arch", "machine"))
    boot = tuple(node.get("dev") for node in root.iterfind("os/boot") if node.get("dev"))
    return System(type_, arch, machine, loader, kernel, initrd, cmdline, boot)


def _disk(node: Node) -> Disk:
    device = _choice(node, "device", DEVICES, "unknown disk device")
    type_ = _choice(node, "type", TYPES, "unknown disk type")
    snapshot = _choice(node, "snapshot", MODES, "unknown disk snapshot setting") if "snapshot" in node.attrib else None
    target = attribute_at(node, "target", "dev") or ""
    # A target becomes a part of commands and of file names.
    if not re.fullmatch("[A-Za-z][A-Za-z0-9]*", target):
        reason = f"Invalid harddisk device name: {target}" if target else "a disk has no target"
        raise BrokenXml(line=node.sourceline, reason=reason)
    source = attribute_at(node, "source", PATHS[type_]) or None if type_ in PATHS else None
    if source is not None and not source.startswith("/"):
        raise BrokenXml(line=node.sourceline, reason=f"source '{source}' of disk {target} must be an absolute path")
    is_readonly = device == "cdrom" or node.find("readonly") is not None
    format_, bus = attribute_at(node, "driver", "type"), attribute_at(node, "target", "bus")
    is_shareable = node.find("shareable") is not None
    return Disk(target, device, type_, source, format_, bus, is_readonly, is_shareable, snapshot)


def _choice(node: Node, name: str, choices: tuple[str, ...], complaint: str) -> str:
    """The attribute, which is the first of the choices when it is missing. Raises: BrokenXml."""
    value = str(node.get(name, choices[0]))
    if value not in choices:
        raise BrokenXml(line=node.sourceline, reason=f"{complaint} '{value}'; known are {', '.join(choices)}")
    return value


def _disks(root: Node) -> tuple[Disk, ...]:
    """Raises: BrokenXml when two disks have one target."""
    disks: dict[str, Disk] = {}
    for node in root.iterfind("devices/disk"):
        disk = _disk(node)
        if first := disks.get(disk.target):
            sources = f"'{first.source}' and '{disk.source}'"
            reason = f"target '{disk.target}' duplicated for disk sources {sources}"
            raise BrokenXml(line=node.sourceline, reason=reason)
        disks[disk.target] = disk
    return tuple(disks.values())


def _no_disk(word: str) -> WrongUse:
    return WrongUse(reason=f"unsupported configuration: no disk named '{word}'")


def _set_text(root: Node, name: str, text: str, *, place: int) -> None:
    """Give an element of the domain another text; when there is none yet, it is put at this place."""
    node = root.find(name)
    if node is None:
        node = root.makeelement(name)
        root.insert(place, node)
    # A comment in it would be kept otherwise, and could not be told from the text.
    for child in list(node):
        node.remove(child)
    node.text = markup.require_xml(text)


def _set_source(root: Node, target: str, new: _Source) -> None:
    for node in root.iterfind("devices/disk"):
        if attribute_at(node, "target", "dev") == target:
            break
    else:
        raise _no_disk(target)
    stale = ["backingStore", "mirror", "source/slices"]
    if node.get("type") != new.type:
        stale += ["source/host", "source/config", "source/reservations", "source/address", "source/auth"]
    for path in stale:
        for child in node.findall(path):
            child.getparent().remove(child)
    node.set("type", new.type)
    source = node.find("source")
    if source is None:
        source = node.makeelement("source")
        node.insert(0 if node.find("driver") is None else node.index(node.find("driver")) + 1, source)
    for name in list(source.attrib):
        if name != "startupPolicy":
            del source.attrib[name]
    source.set(PATHS[new.type], markup.require_xml(new.path))
    if new.format is not None:
        driver = node.find("driver")
        if driver is None:
            driver = node.makeelement("driver", {"name": "qemu"})
            node.insert(0, driver)
        driver.set("type", markup.require_xml(new.format))
