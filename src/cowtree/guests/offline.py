"""A guest that is shut off: nobody has its disks open, and QEMU's locks hold that."""

import os
from collections.abc import Sequence
from typing import Any, Final

from cowtree.chain import gate
from cowtree.chain.lists import read_snapshots
from cowtree.chain.load import load_image
from cowtree.errors import ImageError, MissingImage, Refused
from cowtree.guests.driver import Copy, Inside, Overlay
from cowtree.images import convert, snapshot
from cowtree.images.create import OVERLAY_MODE, create, temporary_name
from cowtree.images.lineage import noted
from cowtree.images.wish import Manner, Planned, grant
from cowtree.plan.create import NewImage
from cowtree.qcow2.header import Header
from cowtree.qcow2.moment import Moment, find_moment
from cowtree.storage.contract import Access, FileSystem, is_there

NANOSECONDS: Final = 1_000_000_000


class Offline:
    """Does by itself what is asked for, with the files as they are."""

    def __init__(self, files: FileSystem) -> None:
        self._files = files

    def go_on(self, overlays: Sequence[Overlay]) -> None:
        """Make the overlays, one after the other: no guest can write in between."""
        for each in overlays:
            if each.is_reused or (is_there(self._files, each.path) and is_empty_overlay(self._files, each)):
                continue
            refuse_taken(self._files, each)
            self._make(each)

    def _make(self, overlay: Overlay) -> None:
        source = gate.open_alone(self._files, overlay.source, overlay.format, Access.SHARED)
        size_bytes = source.size_bytes
        source.close()
        new = NewImage(
            overlay.path,
            gate.QCOW2,
            size_bytes,
            backing_file=os.path.abspath(overlay.source),
            backing_format=overlay.format,
            moment=None if overlay.moment is None else Moment(**overlay.moment, path=overlay.path),
        )
        create(self._files, noted(self._files, new), OVERLAY_MODE)
        self._files.copy_rights(overlay.source, overlay.path)

    def take_back(self, overlays: Sequence[Overlay]) -> None:
        """Remove the overlays if all of them are as they were made."""
        made = [each for each in overlays if not each.is_reused and is_there(self._files, each.path)]
        for each in made:
            if not is_empty_overlay(self._files, each):
                reason = f"{each.path} was to be removed again, but somebody has written to it since it was made"
                raise Refused(reason=reason, hint=f"see what it holds: cowtree img info --backing-chain {each.path}")
        for each in made:
            self._files.unlink(each.path)
        # What was being made when the run was cut short has no other name yet.
        for path in (temporary_name(each.path) for each in overlays if not each.is_reused):
            if is_there(self._files, path):
                self._files.unlink(path)
        for folder in sorted({os.path.dirname(each.path) or "." for each in overlays if not each.is_reused}):
            # Where there is no folder nothing was made.
            if is_there(self._files, folder):
                self._files.sync_folder(folder)

    def keep(self, disks: Sequence[Inside]) -> list[Inside]:
        """Take them one after the other: no guest can write in between."""
        taken = []
        for each in disks:
            made = snapshot.create(self._files, each.source, each.format, name=each.name, time_ns=each.created_ns)
            taken.append(each._replace(id=made.id))
        return taken

    def forget(self, disks: Sequence[Inside]) -> None:
        """Delete them one after the other."""
        for each in disks:
            for entry in snapshot.list_snapshots(self._files, each.source, each.format):
                created_ns = entry.time_s * NANOSECONDS + entry.time_ns
                if entry.name == each.name and (entry.id == each.id or (not each.id and created_ns == each.created_ns)):
                    snapshot.delete(self._files, each.source, each.format, name=entry.name, entry_id=entry.id)

    def return_to(self, disks: Sequence[Inside]) -> None:
        """Apply them one after the other."""
        for each in disks:
            snapshot.apply(self._files, each.source, each.format, wanted=each.id or each.name)

    def copy_out(self, copies: Sequence[Copy]) -> None:
        """Convert the snapshots; a file gets its name when it is whole."""
        for inside, path, told in copies:
            if is_there(self._files, path):
                continue
            layer = gate.open_alone(self._files, inside.source, inside.format, Access.SHARED)
            header, entries = layer.header, read_snapshots(layer, layer.header)[0] if layer.header else ()
            layer.close()
            entry = next((each for each in entries if each.id == inside.id), None)
            if header is None or entry is None:
                raise Refused(reason=f"{inside.source} has no internal snapshot '{inside.name}' any more")
            backing = header.backing_file and os.path.abspath(gate.locate(inside.source, header.backing_file))
            size_bytes = entry.size_bytes if entry.has_size else header.size_bytes
            new = NewImage(path, gate.QCOW2, size_bytes, backing_file=backing, backing_format=header.backing_format)
            new = new._replace(moment=None if told is None else _inherited(header, told, path))
            manner = convert.Manner(snapshot=((entry.id, None),), mode=OVERLAY_MODE)
            convert.convert(self._files, [(inside.source, inside.format)], new, manner)
            self._files.copy_rights(inside.source, path)

    def merge(self, planned: Planned, words: Sequence[str], manner: Manner) -> int:
        """Merge the files."""
        return grant(self._files, planned, words, manner)


def _inherited(header: Header, told: dict[str, Any], path: str) -> Moment:
    """What a file tells that lies on the same as another one; nothing of what lies below when nobody knows that."""
    known, is_true = find_moment(header)
    if known is None or not is_true:
        known = Moment("", "", "", "", "", "", 0, 0)
    return known._replace(**told, path=path)


def refuse_taken(files: FileSystem, overlay: Overlay) -> None:
    """Raises: Refused when there is something where an overlay is to be made."""
    if is_there(files, overlay.path):
        reason = (
            f"unsupported configuration: external snapshot file for disk {overlay.target} already exists and is not a "
            f"block device: {overlay.path}"
        )
        raise Refused(reason=reason, hint="name another file; or --reuse-external, if it is to be used as it is")


def is_empty_overlay(files: FileSystem, overlay: Overlay) -> bool:
    """Whether a file is an overlay of what it shall lie on, and nobody has written to it.
    Raises: what opening an image raises.
    """
    try:
        layer = gate.open_alone(files, overlay.path, gate.QCOW2, Access.READ)
    except (MissingImage, ImageError):
        return False
    try:
        image = load_image(layer)
        if image is None or image.header.backing_file is None or image.snapshots or image.l1.any():
            return False
        base = gate.locate(overlay.path, image.header.backing_file)
        return files.identity(base) == files.identity(overlay.source)
    finally:
        layer.close()
