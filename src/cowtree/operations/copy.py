"""Copying what a disk of a guest shows into another file, in which the guest may go on.

A new file gets its name when it is whole, so one that was not finished is not there, and nothing has changed. What is
written over a file or a device that is there already is begun anew after a stop.
"""

import os
import stat
from typing import Any, Final, NamedTuple

from cowtree.catalog import domains, intents, snapshots
from cowtree.catalog.intents import Intent
from cowtree.chain import gate
from cowtree.domain.definition import BLOCK, FILE
from cowtree.errors import CowtreeError, Refused
from cowtree.images import convert
from cowtree.images.create import OVERLAY_MODE, temporary_name
from cowtree.monitor import Monitor
from cowtree.operations.create import refuse_use
from cowtree.operations.host import Host, Subject
from cowtree.operations.layers import Stack, find_disk
from cowtree.plan.create import NewImage
from cowtree.storage.contract import Access, is_there

VERB: Final = "blockcopy"


class Copy(NamedTuple):
    """What somebody wants to be copied, and where to; `format` is that of the source when it is not given. A copy that
    `is_shallow` lies on what the source lies on; with `reuses` the file is there already.
    """

    path: str
    target: str
    format: str | None = None
    is_shallow: bool = False
    reuses: bool = False
    pivots: bool = False


class Copying(NamedTuple):
    """What there is to do for a disk: `base` with its format is what a new file lies on."""

    disk: str
    source: str
    source_format: str
    path: str
    format: str
    base: str | None
    base_format: str | None
    is_shallow: bool
    is_new: bool
    pivots: bool


def blockcopy(host: Host, subject: Subject, wanted: Copy, monitor: Monitor | None = None) -> int:
    """Copy. Returns: how many bytes were moved.
    Raises: WrongUse when there is no such disk, Refused when a file is there that is not to be reused, or is missing;
    and what reading and writing raise.
    """
    copying = _plan(host, find_disk(host, subject, wanted.path)[0], wanted)
    intent = intents.begin(host.catalog, subject.domain, VERB, copying._asdict())
    try:
        moved_bytes = _copy(host, copying, monitor)
    except (CowtreeError, KeyboardInterrupt):
        _take_back(host, copying)
        intents.end(host.catalog, intent)
        raise
    _finish(host, subject, intent, copying)
    return moved_bytes


def _plan(host: Host, stack: Stack, wanted: Copy) -> Copying:
    source, path = stack.paths[0], os.path.abspath(wanted.target)
    source_format = stack.disk.format or gate.RAW
    refuse_use(host, source, source_format)
    is_new = not is_there(host.files, path)
    if is_new and wanted.reuses:
        raise Refused(
            reason=f"missing destination file for disk {stack.target}: {path}", hint="without --reuse-external"
        )
    if is_new and not os.path.isdir(os.path.dirname(path)):
        raise Refused(reason="failed to create copy target: No such file or directory", hint=f"make its folder: {path}")
    if not is_new and not wanted.reuses and not stat.S_ISBLK(os.stat(path).st_mode):
        reason = f"external destination file for disk {stack.target} already exists and is not a block device: {path}"
        raise Refused(reason=f"unsupported configuration: {reason}", hint="another name; or --reuse-external")
    if not is_new and any(gate.is_same(host.files, path, each) for each in stack.paths):
        raise Refused(reason=f"{path} is an image of disk {stack.target} itself", hint="another name")
    base = _base(host, stack) if wanted.is_shallow else (None, None)
    image_format = wanted.format or (gate.QCOW2 if base[0] else source_format)
    if not is_new and base[0] is not None:
        _refuse_other_base(host, path, base[0])
    return Copying(
        *(stack.target, source, source_format, path, image_format, *base),
        *(base[0] is not None, is_new, wanted.pivots),
    )


def _base(host: Host, stack: Stack) -> tuple[str | None, str | None]:
    if len(stack.paths) == 1:
        return None, None
    layer = gate.open_alone(host.files, stack.paths[0], None, Access.SHARED)
    image_format = layer.header.backing_format if layer.header else None
    layer.close()
    return stack.paths[1], image_format


def _refuse_other_base(host: Host, path: str, base: str) -> None:
    layer = gate.open_alone(host.files, path, None, Access.SHARED)
    name = layer.header.backing_file if layer.header else None
    layer.close()
    if name is None or not gate.is_same(host.files, gate.locate(path, name), base):
        reason = f"{path} lies on {name or 'nothing'}, not on {base}, as the disk does"
        raise Refused(reason=reason, hint="without --shallow, or another file")


def _copy(host: Host, copying: Copying, monitor: Monitor | None) -> int:
    sources = [(copying.source, copying.source_format)]
    if not copying.is_new:
        manner = convert.Manner(top_only=copying.is_shallow)
        return convert.convert_into(host.files, sources, (copying.path, copying.format), manner, monitor)
    new = NewImage(copying.path, copying.format, 0, backing_file=copying.base, backing_format=copying.base_format)
    moved_bytes = convert.convert(host.files, sources, new, convert.Manner(mode=OVERLAY_MODE), monitor)
    host.files.copy_rights(copying.source, copying.path)
    return moved_bytes


def _take_back(host: Host, copying: Copying) -> None:
    """Remove what was begun of a new file."""
    for path in (copying.path, temporary_name(copying.path)):
        if copying.is_new and is_there(host.files, path):
            host.files.unlink(path)
            host.files.sync_folder(os.path.dirname(path))


def _finish(host: Host, subject: Subject, intent: Intent, copying: Copying) -> None:
    with host.catalog.together():
        if copying.pivots:
            kind = BLOCK if stat.S_ISBLK(os.stat(copying.path).st_mode) else FILE
            moved = subject.definition.with_source(copying.disk, copying.path, copying.format, type=kind)
            domains.redefine(host.catalog, subject.domain, moved.text)
            # A copy in which no guest goes on is the user's: nobody else knows what for.
            if copying.is_new:
                snapshots.note_made(host.catalog, copying.path, host.files.identity(copying.path))
        intents.end(host.catalog, intent)


def _read(content: dict[str, Any]) -> Copying:
    return Copying(**content)


def settle(host: Host, subject: Subject, intent: Intent) -> None:
    """Take back a copy that was cut short; one that is whole is what was wanted."""
    copying = _read(intent.content)
    if copying.is_new and is_there(host.files, copying.path):
        _finish(host, subject, intent, copying)
        host.tell(f"copying disk {copying.disk} was cut short: it was completed")
        return
    _take_back(host, copying)
    intents.end(host.catalog, intent)
    left = "nothing is left of it" if copying.is_new else f"{copying.path} holds a part of it"
    host.tell(f"copying disk {copying.disk} was cut short: {left}")
