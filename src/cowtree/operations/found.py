"""What images tell of guests by themselves: the files that are found, and the moments that their headers keep.

Nothing that an image says is believed before it is looked at: a name must be one, a moment is true of the link that it
was written for, and a copy of an image is not the image.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from cowtree.catalog import domains
from cowtree.catalog.store import Identity
from cowtree.chain import gate
from cowtree.chain.aside import is_aside
from cowtree.chain.forest import Forest, survey
from cowtree.chain.lists import read_snapshots
from cowtree.domain.definition import parse
from cowtree.domain.moment import refuse_name
from cowtree.errors import BrokenXml, CowtreeError, WrongUse
from cowtree.operations.host import Host
from cowtree.qcow2.moment import Moment, find_moment
from cowtree.qcow2.snapshots import Snapshot as Entry
from cowtree.storage.contract import Access, is_there


class File(NamedTuple):
    """One qcow2 image. `base` and `base_format` are what it lies on; its moment `is_true` when nothing was merged since
    it was written; it `is_ours` when it is the very file that was made then, under this name.
    """

    path: str
    identity: Identity
    mtime_ns: int
    base: str | None
    base_format: str | None
    insides: tuple[Entry, ...]
    moment: Moment | None
    is_true: bool
    is_ours: bool = False


def gather(host: Host, folders: Sequence[str]) -> dict[str, File]:
    """All qcow2 images below folders, in the pools, and around the disks of known guests; by path, each base before
    what lies on it. What cannot be read is told.
    Raises: MissingImage when a folder is not there, WrongUse when nobody says where to look.
    """
    places = [*map(os.path.abspath, folders), *filter(os.path.isdir, host.catalog.pools()), *_sources(host)]
    if not places:
        hint = "cowtree catalog rebuild FOLDER"
        raise WrongUse(reason="no folder is named, and the catalogue knows neither pools nor domains", hint=hint)
    forest = survey(host.files, places)
    found = {each.path: each for each in _files(host, forest)}
    return {path: _judged(host, found, file) for path, file in found.items()}


def _sources(host: Host) -> Iterator[str]:
    for domain in domains.everyone(host.catalog):
        with suppress(CowtreeError):
            for disk in parse(domain.xml).disks:
                if disk.source is not None and is_there(host.files, disk.source):
                    yield disk.source


def _files(host: Host, forest: Forest) -> Iterator[File]:
    for node in forest.nodes:
        if node.format != gate.QCOW2 or is_aside(node.path):
            continue
        base = None if node.parent is None else forest.nodes[node.parent].path
        try:
            layer = gate.open_alone(host.files, node.path, gate.QCOW2, Access.PROBE)
            try:
                header = layer.header
                entries = read_snapshots(layer, header)[0] if header else ()
                moment, is_true = find_moment(header) if header else (None, False)
            finally:
                layer.close()
            identity, times = host.files.identity(node.path), host.files.times(node.path)
        except CowtreeError as error:
            host.tell(f"it cannot be told what this image is: {error.message}")
            continue
        is_true = is_true and base is not None and node.problem is None
        declared = node.backing[1] if node.backing else None
        base_format = declared or (None if node.parent is None else forest.nodes[node.parent].format)
        yield File(node.path, identity, times.mtime_ns, base, base_format, entries, moment, is_true)


def _judged(host: Host, found: dict[str, File], file: File) -> File:
    """The file, and whether it is the one that its moment was written for. A copy tells of nothing."""
    if file.moment is None:
        return file
    with suppress(CowtreeError):
        if is_there(host.files, file.moment.path):
            identity = host.files.identity(file.moment.path)
            if identity == file.identity:
                return file._replace(is_ours=True)
            if any(each.identity == identity and each.moment == file.moment for each in found.values()):
                host.tell(f"{file.path} is a copy of {file.moment.path}: it belongs to nobody")
                return file._replace(moment=None, is_true=False)
    return file


def line(found: dict[str, File], path: str | None) -> Iterator[File]:
    """The images of a chain that are qcow2, from this one down."""
    seen = set[str]()
    while path is not None and path in found and path not in seen:
        seen.add(path)
        yield found[path]
        path = found[path].base


def refuse_text(moment: Moment) -> str | None:
    """Why what a moment says cannot be true; None when it can."""
    try:
        for name in (moment.name, moment.parent):
            if name:
                refuse_name(name)
    except BrokenXml as error:
        return error.reason
    return None
