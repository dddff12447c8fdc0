"""Persistent dirty bitmaps of an image that nobody else has open: made, removed, cleared, switched, merged, copied.

Guest data is never touched. A stop at any point leaves the old bitmaps or the new ones.
"""

from collections.abc import Sequence
from contextlib import ExitStack

from cowtree.chain import gate
from cowtree.chain.gate import Layer
from cowtree.chain.load import load_image
from cowtree.chain.view import Chain
from cowtree.errors import Refused
from cowtree.execute.bitmaps import BitmapWriter
from cowtree.execute.run import run
from cowtree.images.check import repair_counts
from cowtree.monitor import Silent
from cowtree.plan import bitmap as plan
from cowtree.plan.bitmap import Action, Holder, Wanted
from cowtree.qcow2 import bitmaps, writes
from cowtree.qcow2.bitmaps import AUTO, IN_USE
from cowtree.qcow2.image import Image, refuse_what_we_cannot_write
from cowtree.steps import Flush
from cowtree.storage.contract import Access, FileSystem

Named = tuple[str, str | None]


def change(
    files: FileSystem,
    target: Named,
    name: str,
    actions: Sequence[Action],
    source: Named | None = None,
) -> None:
    """Do something to the bitmap `name` of an image, in order; what is merged comes from `source`, if there is one.
    As with QEMU, what was done before an action that must be refused stays done.
    Raises: Refused, and what opening and writing raise.
    """
    with ExitStack() as stack:
        layer, image = _open(files, stack, target, Access.WRITE)
        other = _open(files, stack, source, Access.READ) if source else None
        holder, beside = holder_of(layer, image), holder_of(*other) if other else None
        failure: Refused | None = None
        for action in actions:
            try:
                holder = plan.act(holder, name, action, beside)
            except Refused as error:
                reason = f"Operation {action.verb} on bitmap {name} failed: {error.reason}"
                failure = Refused(reason=reason, hint=error.advice)
                break
        if image is not None:
            store(layer, image, holder.wanted, (other[0], other[1]) if other and other[1] else None)
        if failure is not None:
            raise failure


def _open(files: FileSystem, stack: ExitStack, named: Named, access: str) -> tuple[Layer, Image | None]:
    layer = gate.open_readable(files, *named, access)
    stack.callback(layer.close)
    image = load_image(layer)
    if image is not None and access == Access.WRITE:
        refuse_what_we_cannot_write(image)
    return layer, image


def holder_of(layer: Layer, image: Image | None) -> Holder:
    """What an open layer has."""
    if image is None:
        return Holder(layer.path, None, layer.size_bytes)
    size_bytes = bitmaps.disk_size_bytes(image.header)
    return Holder(layer.path, image.header, size_bytes).with_bitmaps(image.bitmaps)


def store(layer: Layer, image: Image, wanted: Sequence[Wanted], source: tuple[Layer, Image] | None = None) -> None:
    """Give an image that is open for writing other bitmaps; nothing is written when it has them. What a stopped run
    left is mended first.
    Raises: BrokenTable, TruncatedImage, Refused, before a bitmap changes; StorageFailed.
    """
    if image.header.is_dirty:
        image = repair_counts(layer, image)
    flags = plan.flag_steps(image, wanted)
    if flags is None:
        BitmapWriter(layer, image, source).survey(wanted)
    elif not flags[0] and not image.header.is_dirty:
        return
    begin, image = writes.begin_tables(image)
    run(begin, layer.file, Chain((), ()), Silent())
    if flags is not None:
        run([*flags[0], Flush()], layer.file, Chain((), ()), Silent())
    else:
        writer = BitmapWriter(layer, image, source)
        writer.store(wanted)
        image = writer.image
    run(writes.finish(image)[0], layer.file, Chain((), ()), Silent())


def refuse_copy(layer: Layer, image: Image | None, *, skips_broken: bool) -> None:
    """Refuse an image whose bitmaps cannot all be copied. Raises: Refused in QEMU's words."""
    if image is None or image.header.version < 3:
        raise Refused(reason="Source lacks bitmap support", hint=f"cowtree img info {layer.path}")
    broken = [each.name for each in image.bitmaps if each.is_in_use]
    if broken and not skips_broken:
        hint = f"--skip-broken-bitmaps, or delete it: cowtree img bitmap --remove {layer.path} {broken[0]}"
        raise Refused(reason=f"Cannot copy inconsistent bitmap '{broken[0]}'", hint=hint)


def refuse_target(image_format: str, version: int) -> None:
    """Refuse an image that cannot have bitmaps. Raises: Refused in QEMU's words."""
    if image_format != gate.QCOW2 or version < 3:
        raise Refused(reason=f"Format driver '{image_format}' does not support bitmaps", hint="-O qcow2")


def copy(source: tuple[Layer, Image], target: tuple[Layer, Image]) -> None:
    """Give an image that is open for writing the bitmaps of another as well, but for those that are in use.
    As with QEMU, those behind one that must be refused are there already.
    Raises: Refused, and what `store` raises.
    """
    holder, other = holder_of(*target), holder_of(*source)
    old_count, failure = len(holder.wanted), None
    for each in reversed(other.wanted):
        if each.flags & IN_USE:
            continue
        step = "create"
        try:
            added = plan.add(holder, each.name, 1 << each.granularity_bits, is_auto=bool(each.flags & AUTO))
            step = "populate"
            holder = plan.merge(added, added.wanted[-1], other, each.name)
        except Refused as error:
            failure = Refused(reason=f"Failed to {step} bitmap {each.name}: {error.reason}", hint=error.advice)
            break
    store(*target, (*holder.wanted[:old_count], *reversed(holder.wanted[old_count:])), source)
    if failure is not None:
        raise failure
