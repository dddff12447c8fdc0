"""Snapshots of disks that are served: an overlay becomes the layer that is written, and what was written is frozen.

    1  the overlays are made, whole and durable, and opened                clients read and write
    2  what was written so far is made durable
    3  all disks are drained; the rest is made durable                     clients wait
    4  every disk gets its overlay on top, and the old tops are held       nothing fails here
       under a reader's locks

Several disks are frozen at one moment: what a client was told of before on one of them is below, or nothing of what it
was told of later on another is. Before step 4 nothing has changed, and the overlays are removed when something fails.
After a stop either the old tops or the overlays may be opened, as long as nobody has been told that it is done.
"""

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import NamedTuple

from cowtree.chain import gate
from cowtree.chain.gate import Layer
from cowtree.chain.load import load_image
from cowtree.errors import CowtreeError, ImageLocked, Refused, WrongUse
from cowtree.images.create import OVERLAY_MODE, create
from cowtree.live.disk import Disk
from cowtree.live.locks import relock
from cowtree.plan.create import NewImage
from cowtree.qcow2.image import Image
from cowtree.storage.contract import Access, FileSystem, is_there


class Frozen(NamedTuple):
    """What a snapshot has done: the paths that were on top, and how long clients waited."""

    paths: tuple[str, ...]
    pause_s: float


class _New(NamedTuple):
    """An overlay that is open; `below` is the number of the layer that it was made for."""

    below: int
    layer: Layer
    image: Image | None


def snapshot(files: FileSystem, disks: Sequence[Disk], overlays: Sequence[str]) -> Frozen:
    """Put a new overlay on each disk, on all of them at one moment or on none. A file that is there is not replaced.
    Raises: WrongUse, Refused, and what making an image raises; StorageFailed when a disk cannot be made durable.
    """
    _check(files, disks, overlays)
    made: list[str] = []
    with ExitStack() as opened:
        opened.callback(_remove, files, made)
        new = []
        for disk, path in zip(disks, overlays, strict=True):
            below = disk.layers.numbers[0]
            made.append(path)
            try:
                make_overlay(files, disk, path)
            except ImageLocked:
                # Somebody else makes it, and keeps it.
                made.remove(path)
                raise
            new.append(_open(files, path, below))
            opened.callback(new[-1].layer.close)
        old, pause_s = _swap(disks, new)
        opened.pop_all()
    return Frozen(tuple(layer.path for layer in old), pause_s)


def _check(files: FileSystem, disks: Sequence[Disk], overlays: Sequence[str]) -> None:
    """Refuse what cannot be meant. Raises: WrongUse, Refused."""
    if not disks or len(disks) != len(overlays):
        raise WrongUse(reason="a snapshot needs one overlay for each disk")
    if len(set(map(id, disks))) != len(disks) or len(set(map(os.path.abspath, overlays))) != len(overlays):
        raise WrongUse(reason="a disk or an overlay is named twice")
    for disk, path in zip(disks, overlays, strict=True):
        if disk.is_read_only:
            raise Refused(reason=f"{disk.description} is served for reading only, and needs no snapshot")
        if disk.layers.chain.top.is_encrypted:
            raise Refused(reason=f"{disk.description} is encrypted, and an overlay of it would not be")
        if is_there(files, path):
            raise Refused(reason=f"{path} is there already", hint="another name for the overlay")


def make_overlay(files: FileSystem, disk: Disk, path: str) -> None:
    """Make an empty overlay of what is on top of a disk. Raises: what making an image raises."""
    top = disk.layers.chain.top
    name = top.name
    if name == top.path:
        # Images in one folder stay together when that is moved.
        is_relative = os.path.dirname(path) == os.path.dirname(top.path)
        name = gate.name_for(files, path, top.path, is_relative=is_relative)
    new = NewImage(path, gate.QCOW2, disk.size_bytes, backing_file=name, backing_format=top.format)
    create(files, new, OVERLAY_MODE)


def _open(files: FileSystem, path: str, below: int) -> _New:
    layer = gate.open_layer(files, path, gate.QCOW2, Access.WRITE)
    try:
        return _New(below, layer, load_image(layer))
    except BaseException:
        layer.close()
        raise


def _swap(disks: Sequence[Disk], new: Sequence[_New]) -> tuple[list[Layer], float]:
    """Freeze all disks at one moment. Returns: what was on top of them, and how long that took."""
    for disk in disks:
        disk.flush()
    start_s = time.monotonic()
    with ExitStack() as drained:
        # Always in the same order, so that no two wait for each other.
        for disk in sorted(disks, key=id):
            drained.enter_context(disk.drain())
        _settle(disks, new)
        old = [disk.layers.chain.top for disk in disks]
        for disk, each in zip(disks, new, strict=True):
            disk.layers.add(each.layer, each.image)
            disk.changed()
        for layer in old:
            relock(layer, Access.READ)
    return old, time.monotonic() - start_s


def _settle(disks: Sequence[Disk], new: Sequence[_New]) -> None:
    """Let every top be as if it were closed. Raises: Refused, StorageFailed; then all disks go on with them."""
    for disk, each in zip(disks, new, strict=True):
        if disk.layers.numbers[0] != each.below:
            raise Refused(reason=f"{disk.description} has got another overlay meanwhile", hint="the same again")
    settled: list[Disk] = []
    try:
        for disk in disks:
            disk.settle()
            settled.append(disk)
    except BaseException:
        for disk in settled:
            disk.changed()
        raise


def _remove(files: FileSystem, paths: Sequence[str]) -> None:
    """Remove overlays that nobody needs."""
    for path in paths:
        with suppress(CowtreeError):
            files.unlink(path)
            files.sync_folder(os.path.dirname(path) or ".")
