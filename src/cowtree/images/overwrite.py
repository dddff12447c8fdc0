"""Writing a disk over the start of another one, in the order that keeps that one valid at every moment."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, NamedTuple

import numpy as np

from cowtree import extents as ex
from cowtree.chain.view import ALIGNMENT_BYTES, Chain, resolve
from cowtree.errors import Refused
from cowtree.execute.read import Page, ahead, pages
from cowtree.execute.writer import LayerWriter
from cowtree.extents import Extents, Ranges
from cowtree.images.check import trusted
from cowtree.images.joined import CELL_BYTES_MAX, Joined, find_solid, grain_of
from cowtree.images.tally import Tally
from cowtree.plan.put import Wish
from cowtree.qcow2.compression import deflate
from cowtree.qcow2.geometry import round_up

THREAD_COUNT: Final = 2


class Fit(NamedTuple):
    """How one disk is written over another. `sparse_bytes` are as for `Grain`; `hides` says that the target may show
    something where the source shows zeroes.
    """

    sparse_bytes: int
    hides: bool = False
    is_compressed: bool = False

    @property
    def is_full(self) -> bool:
        """Whether zeroes are written out, too."""
        return not self.sparse_bytes


def overwrite(target: Chain, source: Joined, fit: Fit, tally: Tally) -> Chain:
    """Write the source over the start of a disk. Returns: the target as it then is.
    Raises: Refused when it cannot be compressed there; what was written before stays.
    """
    count = len(target.layers)
    both = Chain(target.layers + source.chain.layers, target.images + source.chain.images)
    writer = LayerWriter(trusted(both, 0), 0, tally)
    try:
        for start, end in source.windows(target):
            where = source.held(start, end)
            size = writer.image.geometry.cluster_size_bytes if writer.image is not None else 0
            if fit.is_compressed and size:
                # What is compressed is written whole.
                where = ex.intersect(ex.widen(where, size), ex.one_range(start, end))
            seen = ex.cut(source.data(start, end), where)
            wanted = ex.cut(seen, find_solid(source, seen, grain_of(fit.sparse_bytes, CELL_BYTES_MAX)))
            tally.expect(wanted.total_bytes)
            wanted = wanted._replace(layer=(wanted.layer + count).astype(np.int16))
            zero = ex.fill(where, ex.ZERO) if fit.hides or fit.is_full else ex.empty()
            if fit.is_compressed and size:
                whole = ex.widen(where if fit.is_full else wanted.ranges, size)
                wanted, zero = _compress(writer, source, (seen, whole), wanted), ex.cut(zero, ex.subtract(where, whole))
            # The last cluster may reach past the end of the sources.
            stop = min(round_up(end, ALIGNMENT_BYTES), target.size_bytes)
            shown = resolve(writer.chain, start, stop, last=count)
            writer.put(Wish(ex.over(wanted, zero), shown, shown, count > 1, fills=fit.is_full), start, stop)
        writer.finish()
    except Refused:
        writer.finish()
        raise
    return writer.chain


def _compress(writer: LayerWriter, source: Joined, what: tuple[Extents, Ranges], wanted: Extents) -> Extents:
    """Write whole clusters of what is seen, compressed. Returns: what is wanted and must be written as it is, because
    its cluster does not become shorter.
    """
    image, (seen, whole) = writer.image, what
    if image is None:
        return wanted
    size, kept = image.geometry.cluster_size_bytes, [ex.empty()]
    for page in ahead(pages(source.chain, seen, whole)):
        start = page.guest_offset(np.arange(0, len(page.data), size))
        with ThreadPoolExecutor(THREAD_COUNT) as threads:
            packed = list(threads.map(partial(_deflate, image.header.compression_type), _cut(page, size)))
        is_short = np.array([len(each) < size for each in packed])
        if is_short.any():
            short = [each for each in packed if len(each) < size]
            writer.put_packed(start[is_short] >> image.header.cluster_bits, short)
        long = start[~is_short]
        kept.append(ex.cut(wanted, ex.merge_ranges(Ranges(long, long + size))))
    return ex.concatenate(kept)


def _cut(page: Page, size: int) -> list[memoryview]:
    return [page.data[at : at + size] for at in range(0, len(page.data), size)]


def _deflate(compression_type: int, plain: memoryview) -> bytes:
    return bytes(deflate(plain, compression_type))
