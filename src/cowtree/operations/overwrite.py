"""Writing a disk over the start of another one, in the order that keeps that one valid at every moment."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, NamedTuple

import numpy as np

from cowtree import extents as ex
from cowtree.chain.view import ALIGNMENT_BYTES, Chain, resolve
from cowtree.errors import Refused
from cowtree.execute.compare import differing
from cowtree.execute.read import Page, ahead, pages
from cowtree.execute.writer import LayerWriter
from cowtree.extents import Extents, Ranges
from cowtree.operations.joined import CELL_BYTES_MAX, NO_CHAIN, Joined, find_solid, grain_of
from cowtree.operations.merge import Tally, trusted
from cowtree.plan.put import Wish
from cowtree.qcow2.compression import deflate
from cowtree.qcow2.geometry import round_up

THREAD_COUNT: Final = 2


class Fit(NamedTuple):
    """How one disk is written over another. `sparse_bytes` are as for `Grain`; `hides` says that the target may show
    something where the source shows zeroes. Where the source shows what `backing` shows nothing is written.
    """

    sparse_bytes: int
    hides: bool = False
    is_compressed: bool = False
    backing: Chain = NO_CHAIN


def overwrite(target: Chain, source: Joined, fit: Fit, tally: Tally) -> Chain:
    """Write the source over the start of a disk. Returns: the target as it then is.
    Raises: Refused when it cannot be compressed there; what was written before stays.
    """
    count = len(target.layers)
    both = Chain(target.layers + source.chain.layers, target.images + source.chain.images)
    writer = LayerWriter(trusted(both, 0), 0, tally)
    try:
        for start, end in source.windows(target):
            seen, where = _look(target, source, fit, (start, end))
            wanted = ex.cut(seen, find_solid(source, seen, grain_of(fit.sparse_bytes, CELL_BYTES_MAX)))
            tally.expect(wanted.total_bytes)
            wanted = wanted._replace(layer=(wanted.layer + count).astype(np.int16))
            zero = ex.fill(where, ex.ZERO) if fit.hides else ex.empty()
            if fit.is_compressed and writer.image is not None:
                whole = ex.widen(wanted.ranges, writer.image.geometry.cluster_size_bytes)
                wanted, zero = _compress(writer, source, seen, wanted), ex.cut(zero, ex.subtract(where, whole))
            # The last cluster may reach past the end of the sources.
            stop = min(round_up(end, ALIGNMENT_BYTES), target.size_bytes)
            _put(writer, ex.over(wanted, zero), (start, stop), count)
        writer.finish()
    except Refused:
        writer.finish()
        raise
    return writer.chain


def _look(target: Chain, source: Joined, fit: Fit, window: tuple[int, int]) -> tuple[Extents, Ranges]:
    """What the source shows in a window, and where it must be written: where it differs, in the target's units."""
    seen, where, header = source.data(*window), ex.one_range(*window), target.top.header
    if fit.backing.layers and header is not None:
        where = differing(source.chain, fit.backing, where, header.geometry.subcluster_size_bytes)
    return ex.cut(seen, where), where


def _put(writer: LayerWriter, wanted: Extents, window: tuple[int, int], count: int) -> None:
    shown = resolve(writer.chain, *window, last=count)
    writer.put(Wish(wanted, shown, shown, count > 1), *window)


def _compress(writer: LayerWriter, source: Joined, seen: Extents, wanted: Extents) -> Extents:
    """Write all clusters that hold something of what is wanted, compressed. Returns: what of it must be written as it
    is, because it does not become shorter.
    """
    image = writer.image
    if image is None:
        return wanted
    size, kept = image.geometry.cluster_size_bytes, [ex.empty()]
    for page in ahead(pages(source.chain, seen, ex.widen(wanted.ranges, size))):
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
