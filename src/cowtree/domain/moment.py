"""What a snapshot is asked to hold, and what one holds: libvirt's `<domainsnapshot>` XML as a frozen value.

`--diskspec` and `--memspec` say less than the XML can, and what nobody said is None; `settled` fills in what follows
from the rest, and refuses what does not fit together. Source: libvirt, "Snapshot XML format".
"""

import re
from collections import Counter
from typing import Final, NamedTuple

from cowtree.domain import definition, markup
from cowtree.domain.definition import BLOCK, FILE, MODES, PATHS
from cowtree.domain.markup import STEP, Node, attribute_at, element, text_at
from cowtree.errors import BrokenXml

ROOT: Final = "domainsnapshot"
NO, INTERNAL, EXTERNAL, MANUAL = MODES
STATES: Final = (
    *("nostate", "running", "blocked", "paused", "shutdown", "shutoff", "crashed", "pmsuspended", "disk-snapshot"),
)


class Memory(NamedTuple):
    """Whether the guest's memory is held, and in which file."""

    mode: str | None = None
    file: str | None = None


class DiskRequest(NamedTuple):
    """What becomes of one disk. `name` is its target or its source; `file`, of this format, is what goes on when the
    snapshot is external; `type` says whether that is a file or a block device.
    """

    name: str
    mode: str | None = None
    file: str | None = None
    format: str | None = None
    type: str | None = None


class Request(NamedTuple):
    """A snapshot as it is asked for; when one is described that was made, also its state and parent, when it was made,
    and the guest as it was then. Units: seconds since 1970.
    """

    name: str | None
    description: str | None = None
    memory: Memory | None = None
    disks: tuple[DiskRequest, ...] = ()
    state: str | None = None
    parent: str | None = None
    created_s: int | None = None
    domain: str | None = None


def parse(text: bytes | str) -> Request:
    """The snapshot that a text asks for. Raises: BrokenXml."""
    root = markup.parse(text, ROOT)
    node = root.find("domain")
    created = text_at(root, "creationTime")
    if created is not None and not re.fullmatch("[0-9]{1,18}", created.strip()):
        raise BrokenXml(line=root.find("creationTime").sourceline, reason=f"<creationTime> '{created}' is no time")
    memory = root.find("memory")
    return settled(
        Request(
            *(text_at(root, "name"), text_at(root, "description")),
            memory=None if memory is None else Memory(memory.get("snapshot"), memory.get("file")),
            disks=tuple(_disk(each) for each in root.iterfind("disks/disk")),
            state=text_at(root, "state"),
            parent=text_at(root, "parent/name"),
            created_s=None if created is None else int(created),
            domain=None if node is None else definition.read(node).text,
        )
    )


def _disk(node: Node) -> DiskRequest:
    name = node.get("name")
    if not name:
        raise BrokenXml(line=node.sourceline, reason="missing name from disk snapshot element")
    type_ = node.get("type", FILE)
    if type_ not in PATHS:
        raise BrokenXml(line=node.sourceline, reason=f"unknown disk snapshot type '{type_}'; known are file, block")
    file = attribute_at(node, "source", PATHS[type_]) or None
    return DiskRequest(name, node.get("snapshot"), file, attribute_at(node, "driver", "type"), node.get("type"))


def settled(request: Request) -> Request:
    """The request with what follows from it: memory or a disk for which a file is named is held externally.
    Raises: BrokenXml for what does not fit together.
    """
    if request.name is not None:
        refuse_name(request.name)
    memory = None if request.memory is None else _settled_memory(request.memory)
    disks = tuple(_settled_disk(disk) for disk in request.disks)
    for name, count in Counter(disk.name for disk in disks).items():
        if count > 1:
            raise BrokenXml(reason=f"disk '{name}' specified twice")
    if request.state not in (None, *STATES):
        raise BrokenXml(reason=f"Invalid state '{request.state}' in domain snapshot XML")
    return request._replace(memory=memory, disks=disks)


def refuse_name(name: str) -> None:
    """Raises: BrokenXml for what cannot name a snapshot; it becomes a part of file names."""
    complaint = "is empty" if not name.strip() else ""
    complaint = complaint or ("can't contain '/'" if "/" in name else "")
    complaint = complaint or ("can't start with '.'" if name.startswith(".") else "")
    complaint = complaint or ("can't contain control characters" if re.search("[\0-\x1f\x7f]", name) else "")
    if complaint:
        raise BrokenXml(reason=f"invalid snapshot name {name!r}: name {complaint}", hint="another name")
    markup.require_xml(name)


def _settled_memory(memory: Memory) -> Memory:
    mode = memory.mode or (EXTERNAL if memory.file else None)
    if mode not in (None, NO, INTERNAL, EXTERNAL):
        raise BrokenXml(reason=f"unknown memory snapshot setting '{mode}'; known are no, internal, external")
    if mode == EXTERNAL and not memory.file:
        raise BrokenXml(reason="external memory snapshots require a filename")
    if memory.file and mode != EXTERNAL:
        raise BrokenXml(reason=f"memory filename '{memory.file}' requires external snapshot")
    if memory.file and not memory.file.startswith("/"):
        raise BrokenXml(reason=f"memory snapshot file path ({memory.file}) must be absolute")
    return Memory(mode, memory.file)


def _settled_disk(disk: DiskRequest) -> DiskRequest:
    mode = disk.mode or (EXTERNAL if disk.file or disk.format else None)
    if mode not in (None, *MODES):
        raise BrokenXml(reason=f"unknown disk snapshot setting '{mode}'; known are {', '.join(MODES)}")
    if disk.file and mode != EXTERNAL:
        raise BrokenXml(reason=f"file '{disk.file}' for disk '{disk.name}' requires use of external snapshot mode")
    if disk.file and not disk.file.startswith("/"):
        raise BrokenXml(reason=f"disk snapshot image path '{disk.file}' must be absolute")
    return disk._replace(mode=mode)


def request_text(request: Request) -> str:
    """The XML of a request, with nothing in it that was not said, as `--print-xml` shows it. Raises: BrokenXml."""
    lines = [
        element(name, said) for name, said in (("name", request.name), ("description", request.description)) if said
    ]
    lines += [element("state", request.state)] if request.state else []
    lines += ["<parent>", STEP + element("name", request.parent), "</parent>"] if request.parent else []
    lines += [] if request.created_s is None else [element("creationTime", str(request.created_s))]
    if request.memory is not None:
        lines.append(element("memory", snapshot=request.memory.mode, file=request.memory.file))
    if request.disks:
        lines += ["<disks>", *(STEP + line for disk in request.disks for line in _disk_lines(disk)), "</disks>"]
    inner = "".join(f"{STEP}{line}\n" for line in lines)
    domain = "" if request.domain is None else markup.layout(markup.parse(request.domain, definition.ROOT), STEP)
    return f"<{ROOT}>\n{inner}{domain}</{ROOT}>\n"


def _disk_lines(disk: DiskRequest) -> list[str]:
    opened = element("disk", name=disk.name, snapshot=disk.mode, type=disk.type)
    inner = [] if disk.format is None else [element("driver", type=disk.format)]
    if disk.file is not None:
        inner.append(element("source", dev=disk.file) if disk.type == BLOCK else element("source", file=disk.file))
    if not inner:
        return [opened]
    return [opened.removesuffix("/>") + ">", *(STEP + line for line in inner), "</disk>"]


def dump(request: Request) -> str:
    """The XML of a snapshot that was made, as `snapshot-dumpxml` shows it: it says of memory and of files what they
    are, even where nobody asked for anything. Raises: BrokenXml.
    """
    disks = tuple(
        disk._replace(type=disk.type or FILE) if disk.mode == EXTERNAL else DiskRequest(disk.name, disk.mode)
        for disk in request.disks
    )
    return request_text(request._replace(memory=request.memory or Memory(NO), disks=disks))
