"""Giving the disk of an image another size.

Growing: all that the larger disk shows is durable before its size changes. Shrinking: the size changes first, then what
lies past the end goes, and the file gives back its free end. A stop leaves the old size or the new one, and the same
call on what it left completes the work.
"""

from collections.abc import Iterator

from cowtree import extents as ex
from cowtree.chain.view import ALIGNMENT_BYTES, Chain, layer_extents, windows
from cowtree.chain.view import resolve as see
from cowtree.errors import Refused, StorageFailed
from cowtree.execute.run import run
from cowtree.execute.writer import LayerWriter
from cowtree.images.check import trusted
from cowtree.monitor import Silent
from cowtree.plan import resize as plan
from cowtree.plan.create import METADATA, OFF
from cowtree.plan.put import Wish
from cowtree.qcow2 import header as qcow2
from cowtree.qcow2.geometry import round_up
from cowtree.qcow2.image import Image
from cowtree.steps import Flush, Step, Truncate

# Sizes are counted in 63 bits, and the largest alignment of a request must fit.
SIZE_BYTES_MAX = (1 << 63) - (1 << 30)

Window = tuple[int, int]


def resize(chain: Chain, size_bytes: int, preallocation: str = OFF) -> None:
    """Give the disk of the top, which is open for writing, another size; what is new reads as zeroes.
    Raises: Refused, BrokenTable, MarkedCorrupt, before anything changes; StorageFailed.
    """
    if size_bytes > SIZE_BYTES_MAX:
        raise Refused(reason=f"offset({size_bytes}) exceeds maximum({SIZE_BYTES_MAX})")
    image = chain.images[0]
    if image is None:
        _resize_raw(chain, size_bytes, preallocation)
        return
    plan.refuse(image, size_bytes)
    if size_bytes > chain.size_bytes:
        _grow(chain, image, size_bytes, preallocation)
    else:
        _shrink(chain, image, size_bytes)


def _resize_raw(chain: Chain, size_bytes: int, preallocation: str) -> None:
    file = chain.top.file
    before = file.size_bytes
    if preallocation == METADATA:
        raise Refused(reason="Unsupported preallocation mode: metadata", hint="--preallocation=falloc")
    new = ex.single(before, max(size_bytes, before), ex.DATA, host_offset=before)
    try:
        run([Truncate(size_bytes)], file, chain, Silent())
        run(plan.fill_steps(new, preallocation), file, chain, Silent())
        run([Flush()], file, chain, Silent())
    except StorageFailed:
        if size_bytes > before:
            file.truncate(before)
        raise


def _grow(chain: Chain, image: Image, size_bytes: int, preallocation: str) -> None:
    LayerWriter(chain, 0).survey_growth(size_bytes)
    if preallocation in (OFF, METADATA) and len(chain.layers) > 1:
        plan.refuse_hiding(image, size_bytes, chain.layers[1].size_bytes)
    # What a plain data file reads as is what the disk reads as only where the tables say so.
    is_raw_too = bool(image.header.autoclear & qcow2.AUTOCLEAR_RAW_DATA)
    growth = _Growth(chain.size_bytes, size_bytes, fills=is_raw_too or preallocation != OFF)
    writer = LayerWriter(trusted(chain, 0), 0, records=False)
    spans = list(growth.spans(writer.chain))
    for span in spans:
        writer.survey(growth.wish(writer.chain, span), *span)
    writer.prepare_growth(size_bytes)
    for span in spans:
        writer.put(growth.wish(writer.chain, span), *span)
        found = ex.clip(layer_extents(growth.grown(writer.chain), 0, *span), chain.size_bytes, size_bytes)
        run(plan.fill_steps(found, preallocation), chain.top.data_file, chain, Silent())
    if preallocation != OFF:
        run([Flush()], chain.top.data_file, chain, Silent())
    writer.grow(size_bytes)
    writer.finish()


class _Growth:
    """A disk on its way from one size to a larger one."""

    def __init__(self, old_bytes: int, new_bytes: int, *, fills: bool) -> None:
        self._old_bytes = old_bytes
        self._new_bytes = new_bytes
        self._fills = fills

    def grown(self, chain: Chain) -> Chain:
        """The chain when the disk has its final size."""
        return chain.with_layer(0, chain.top._replace(size_bytes=self._new_bytes))

    def spans(self, chain: Chain) -> Iterator[Window]:
        """Windows of what is new, to the ends of clusters."""
        first = self._old_bytes // ALIGNMENT_BYTES * ALIGNMENT_BYTES
        for start, stop in windows(self.grown(chain), round_up(self._new_bytes, ALIGNMENT_BYTES)):
            if stop > self._old_bytes:
                yield max(start, first), stop

    def wish(self, chain: Chain, span: Window) -> Wish:
        """What the layer must hold in a window."""
        new = ex.one_range(max(span[0], self._old_bytes), min(span[1], self._new_bytes))
        views = see(chain, *span), see(self.grown(chain), *span)
        return plan.growth_wish(new, views, has_backing=len(chain.layers) > 1, fills=self._fills)


def _shrink(chain: Chain, image: Image, size_bytes: int) -> None:
    # Version 2 has no bit that would tell of a run that was stopped.
    is_known = size_bytes == chain.size_bytes and image.header.version > 2 and not image.header.is_dirty
    # A disk that has this size already may hold what a stopped run has left past its end.
    if is_known and not LayerWriter(chain, 0).survey_cut(size_bytes):
        data: list[Step] = [Truncate(size_bytes), Flush()]
        if chain.top.header and chain.top.header.incompatible & qcow2.EXTERNAL_DATA_FILE:
            run(data, chain.top.data_file, chain, Silent())
        return
    writer = LayerWriter(trusted(chain, 0), 0, records=False)
    writer.survey_cut(size_bytes)
    writer.shrink(size_bytes)
    writer.give_back()
    writer.finish()
