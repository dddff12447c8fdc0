"""Changing what an image is: its version, the width of its counts, its switches, its size.

Each amendment is whole on disk before the next one begins, and a stop leaves the image before or after one of them, or
with the dirty bit on; the same call on what it left completes the work.

- Counts of another width are all written where nothing is yet, with a refcount table of their own. One sector of the
  header then says that these count, and since they count only themselves, what they replace is free at once.
- An image that goes back to version 2 loses its zero clusters first: with a backing file they become data.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Final

import numpy as np

from cowtree import extents as ex
from cowtree.chain import load
from cowtree.chain.gate import Layer
from cowtree.chain.view import Chain, layer_extents, open_chain, resolve, windows
from cowtree.errors import Refused, WrongUse
from cowtree.execute.run import run
from cowtree.execute.writer import LayerWriter, refuse_what_we_cannot_write
from cowtree.monitor import Monitor, Silent
from cowtree.operations.check import refuse_damage, repair_counts
from cowtree.operations.count import Count
from cowtree.operations.mend import Mender, load_rows
from cowtree.operations.merge import trusted
from cowtree.operations.resize import resize
from cowtree.plan import amend as plan
from cowtree.plan.amend import Asked
from cowtree.plan.put import Wish
from cowtree.qcow2 import header as qcow2
from cowtree.qcow2 import header_writes, mend, refcounts, tables, writes
from cowtree.qcow2.check import References
from cowtree.qcow2.header import Header
from cowtree.qcow2.image import Image
from cowtree.qcow2.tables import Entries, Tables
from cowtree.steps import Flush, Step, Write
from cowtree.storage.contract import Access, FileSystem

WORDS_PER_WINDOW: Final = 1 << 18
COUNTS_PER_WINDOW: Final = 1 << 18


def amend(
    files: FileSystem, path: str, image_format: str | None = None, *, asked: Asked, monitor: Monitor | None = None
) -> None:
    """Make the image what is asked.
    Raises: Refused before anything changes, and what opening and writing raise.
    """
    with ExitStack() as stack:
        chain = open_chain(files, path, image_format, Access.WRITE)
        stack.callback(chain.close)
        amend_chain(chain, asked, monitor)


def amend_chain(chain: Chain, asked: Asked, monitor: Monitor | None = None) -> None:
    """The same for the top of a chain, which is open for writing."""
    image = chain.images[0]
    if image is None:
        raise WrongUse(reason=f"Format driver '{chain.top.format}' does not support option amendment")
    goes_down = asked.version is not None and asked.version < image.header.version
    _survey(chain, image, asked, goes_down=goes_down)
    chain = trusted(chain, 0)
    chain = _rewrite(_lengthen_entries(chain, asked), lambda header: plan.amended(header, asked))
    chain = _change_width(chain, asked.refcount_order)
    if asked.size_bytes:
        resize(chain, asked.size_bytes)
        chain = _reload(chain)
    if goes_down:
        chain = _without_zeroes(chain, monitor or Silent())
        _rewrite(chain, plan.downgraded)


def _survey(chain: Chain, image: Image, asked: Asked, *, goes_down: bool) -> None:
    """Refuse all that can be told before. Raises: Refused."""
    refuse_what_we_cannot_write(image)
    plan.check(image.header, asked)
    cluster = chain.top.file.pread(0, image.geometry.cluster_size_bytes)
    header_writes.rewrite(image, cluster, plan.amended(image.header, asked))
    if goes_down:
        plan.check_downgrade(image, asked)
        is_packed = bool(image.header.incompatible & qcow2.COMPRESSION_TYPE)
        if is_packed and any(_kinds(image, held, ex.COMPRESSED) for held in _tables(chain.top, image, _all_l1(image))):
            raise Refused(reason=plan.PACKED)
        snapshots = _tables(chain.top, image, list(image.snapshot_l1s)) if len(chain.layers) > 1 else iter(())
        if any(plan.zero_entries(image.geometry, held).any() for held in snapshots):
            raise Refused(reason=plan.SNAPSHOTS, hint="delete the snapshots that hold zero clusters")
    if asked.refcount_order not in (None, image.header.refcount_order):
        plan.check_width(image, _count(chain.top, image), asked.refcount_order or 0)


def _kinds(image: Image, held: Tables, kind: int) -> bool:
    return bool((tables.classify(image.geometry, held.entries) == kind).any())


def _all_l1(image: Image) -> list[Entries]:
    return [image.l1, *image.snapshot_l1s]


def _tables(layer: Layer, image: Image, l1s: list[Entries]) -> Iterator[Tables]:
    """The L2 tables that these L1 tables name, each once."""
    offsets = np.unique(np.concatenate([np.empty(0, np.int64), *(tables.table_offsets(l1) for l1 in l1s)]))
    offsets = offsets[offsets > 0]
    step = max(WORDS_PER_WINDOW * 8 // image.geometry.cluster_size_bytes, 1)
    for first in range(0, len(offsets), step):
        part = offsets[first : first + step]
        yield load_rows(layer.file, image, np.arange(len(part)), part)


def _count(layer: Layer, image: Image) -> References:
    """Count all references. Raises: BrokenTable when the image is damaged."""
    count = Count(layer, image, refuse_damage(image.path))
    count.count()
    return count.references


def _reload(chain: Chain) -> Chain:
    """The chain as its top stands on disk now."""
    top = chain.top
    size_bytes = 1 << top.header.cluster_bits if top.header else 0
    header = qcow2.parse(top.path, top.file.pread(0, size_bytes), top.file.size_bytes)
    layer = top._replace(header=header, size_bytes=header.size_bytes)
    return chain.with_layer(0, layer).with_image(0, load.load_image(layer))


def _top_image(chain: Chain) -> Image:
    image = chain.images[0]
    if image is None:
        raise AssertionError("a raw image has nothing to amend")
    return image


def _run(chain: Chain, steps: list[Step]) -> None:
    run(steps, chain.top.file, chain, Silent())


def _rewrite(chain: Chain, change: Callable[[Header], Header]) -> Chain:
    """Let the header say something else. A dirty bit goes with it, since counts are right by now."""
    image = _top_image(chain)
    header = change(image.header._replace(incompatible=image.header.incompatible & ~qcow2.DIRTY))
    if header == image.header:
        return chain
    cluster = chain.top.file.pread(0, image.geometry.cluster_size_bytes)
    _run(chain, [Flush(), *header_writes.rewrite(image, cluster, header)])
    return _reload(chain)


def _lengthen_entries(chain: Chain, asked: Asked) -> Chain:
    """Let the snapshot table say all that version 3 wants to know, when that is asked for."""
    image = _top_image(chain)
    if asked.version is None or asked.version <= image.header.version or not plan.needs_longer_entries(image):
        return chain
    mender = Mender(chain.top, image, _count(chain.top, image))
    mender.replace_snapshots(image.snapshots)
    mender.finish(all_is_right=True)
    return _reload(chain)


def _change_width(chain: Chain, order: int | None) -> Chain:
    """Let counts have another width."""
    image, file = _top_image(chain), chain.top.file
    if order is None or order == image.header.refcount_order:
        return chain
    references = _count(chain.top, image)
    plan.check_width(image, references, order)
    target = image._replace(header=image.header._replace(refcount_order=order))
    references.geometry = target.geometry
    new = mend.with_blocks(target, references, anew=True)
    index = np.flatnonzero(new.refcount_table)
    step = max(COUNTS_PER_WINDOW // new.geometry.refcount_block_entry_count, 1)
    for first in range(0, len(index), step):
        counts = mend.true_counts(new, references, index[first : first + step])
        rows = zip(counts.host_offset.tolist(), counts.counts, strict=True)
        run([Write(at, refcounts.encode(new.geometry, row)) for at, row in rows], file, chain, Silent())
    header = new.header._replace(autoclear=new.header.autoclear & qcow2.KNOWN_AUTOCLEAR)
    table = Write(header.refcount_table_offset, tables.encode_words(new.refcount_table))
    _run(chain, [table, *writes.switch(header)])
    chain = _reload(chain)
    writer = LayerWriter(chain, 0)
    writer.give_back()
    writer.flush()
    return _reload(chain)


def _without_zeroes(chain: Chain, monitor: Monitor) -> Chain:
    """Let no entry say that a cluster reads as zeroes, and the guest see the same."""
    if len(chain.layers) > 1:
        chain = _fill(chain, monitor)
    image = _top_image(chain)
    if not any(_has_zeroes(image, held) for held in _tables(chain.top, image, _all_l1(image))):
        return chain
    steps, image = writes.begin_tables(image)
    _run(chain, steps)
    for held in _tables(chain.top, image, _all_l1(image)):
        _run(chain, writes.entry_writes(held, plan.without_zeroes(image.geometry, held)))
    chain = _reload(chain)
    chain = chain.with_image(0, repair_counts(chain.top, _top_image(chain)))
    _run(chain, writes.finish(_top_image(chain))[0])
    return _reload(chain)


def _has_zeroes(image: Image, held: Tables) -> bool:
    return bool(plan.zero_entries(image.geometry, held).any())


def _fill(chain: Chain, monitor: Monitor) -> Chain:
    """Turn the zero clusters of the disk into data."""
    writer = LayerWriter(chain, 0, monitor)
    spans = list(windows(chain, chain.size_bytes))
    for start, stop in spans:
        writer.survey(_zero_wish(writer.chain, start, stop), start, stop)
    for start, stop in spans:
        writer.put(_zero_wish(writer.chain, start, stop), start, stop)
    writer.finish()
    return _reload(writer.chain)


def _zero_wish(chain: Chain, start: int, stop: int) -> Wish:
    zeroes = layer_extents(chain, 0, start, stop).of_kind(*ex.ZEROES)
    shown = resolve(chain, start, stop)
    return Wish(zeroes, shown, shown, has_backing_after=True, fills=True)
