"""Changing what an image is: its version, the width of its counts, its switches, its size.

Each amendment is whole on disk before the next one begins, and a stop leaves the image before or after one of them, or
with the dirty bit on; the same call on what it left completes the work.

- Counts of another width are all written where nothing is yet, with a refcount table of their own. One sector of the
  header then says that these count, and since they count only themselves, what they replace is free at once.
- An image that goes back to version 2 loses its bitmaps, and then its zero clusters: with a backing file they become
  data. Those of snapshots, which nobody writes to, share a few clusters of zeroes.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Final

import numpy as np

from cowtree import extents as ex
from cowtree.chain import gate, load
from cowtree.chain.gate import Layer
from cowtree.chain.view import Chain, layer_extents, open_chain, resolve, windows
from cowtree.errors import Refused, WrongUse
from cowtree.execute.run import run
from cowtree.execute.writer import LayerWriter
from cowtree.extents import Offsets
from cowtree.images import bitmap
from cowtree.images.check import refuse_damage, repair_counts, trusted
from cowtree.images.count import Count
from cowtree.images.keyslots import change_steps, outer_file
from cowtree.images.mend import Mender, load_rows
from cowtree.images.resize import resize
from cowtree.monitor import Monitor, Silent
from cowtree.plan import amend as plan
from cowtree.plan.amend import Asked
from cowtree.plan.put import Wish
from cowtree.qcow2 import header as qcow2
from cowtree.qcow2 import header_writes, mend, refcounts, tables, writes
from cowtree.qcow2.check import References
from cowtree.qcow2.geometry import ceil_div
from cowtree.qcow2.header import Header
from cowtree.qcow2.image import Image, refuse_what_we_cannot_write
from cowtree.qcow2.tables import Entries, Tables
from cowtree.steps import Flush, Step, Write, Zero
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
        amend_chain(files, chain, asked, monitor)


def amend_chain(files: FileSystem, chain: Chain, asked: Asked, monitor: Monitor | None = None) -> None:
    """The same for the top of a chain, which is open for writing."""
    image = chain.images[0]
    if image is not None:
        _survey(chain, image, asked)
    elif chain.top.format != gate.LUKS:
        raise WrongUse(reason=f"Format driver '{chain.top.format}' does not support option amendment")
    # Last, for to do the rest twice is to do it once.
    keys = [] if asked.keys is None else change_steps(files, chain.top, asked.keys)
    if image is not None:
        _amend_image(chain, image, asked, monitor or Silent())
    run(keys, outer_file(chain.top), chain, Silent())


def _amend_image(chain: Chain, image: Image, asked: Asked, monitor: Monitor) -> None:
    """Change all but keys."""
    chain = trusted(chain, 0)
    chain = _rewrite(_lengthen_entries(chain, asked), lambda header: plan.amended(header, asked))
    chain = _change_width(chain, asked.refcount_order, monitor)
    if asked.size_bytes:
        resize(chain, asked.size_bytes)
        chain = _reload(chain)
    if _goes_down(image, asked):
        bitmap.store(chain.top, _top_image(chain), ())
        chain = _without_zeroes(_reload(chain), monitor)
        _rewrite(chain, plan.downgraded)


def _goes_down(image: Image, asked: Asked) -> bool:
    return asked.version is not None and asked.version < image.header.version


def _survey(chain: Chain, image: Image, asked: Asked) -> None:
    """Refuse all that can be told before. Raises: Refused."""
    refuse_what_we_cannot_write(image)
    plan.check(image.header, asked)
    cluster = chain.top.file.pread(0, image.geometry.cluster_size_bytes)
    header_writes.rewrite(image, cluster, plan.amended(image.header, asked))
    if _goes_down(image, asked):
        plan.check_downgrade(image, asked)
        is_packed = bool(image.header.incompatible & qcow2.COMPRESSION_TYPE)
        if is_packed and any(_kinds(image, held, ex.COMPRESSED) for held in _tables(chain.top, image, _all_l1(image))):
            raise Refused(reason=plan.PACKED)
    if asked.refcount_order not in (None, image.header.refcount_order):
        plan.check_width(image, _count(chain.top, image), asked.refcount_order or 0)


def _kinds(image: Image, held: Tables, kind: int) -> bool:
    return bool((tables.classify(image.geometry, held.entries) == kind).any())


def _all_l1(image: Image) -> list[Entries]:
    return [image.l1, *image.snapshot_l1s]


def _tables(layer: Layer, image: Image, l1s: list[Entries]) -> Iterator[Tables]:
    """The L2 tables that these L1 tables name, each once."""
    offsets = ex.distinct(np.concatenate([np.empty(0, np.int64), *(tables.table_offsets(l1) for l1 in l1s)]))
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


def _change_width(chain: Chain, order: int | None, monitor: Monitor) -> Chain:
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
    monitor.expect(len(index) << image.header.cluster_bits)
    for first in range(0, len(index), step):
        counts = mend.true_counts(new, references, index[first : first + step])
        rows = zip(counts.host_offset.tolist(), counts.counts, strict=True)
        run([Write(at, refcounts.encode(new.geometry, row)) for at, row in rows], file, chain, Silent())
        monitor.advance(len(counts.host_offset) << image.header.cluster_bits)
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
    if len(chain.layers) > 1:
        _share_zeroes(chain, image)
    else:
        for held in _tables(chain.top, image, _all_l1(image)):
            _run(chain, writes.entry_writes(held, plan.without_zeroes(image.geometry, held)))
    chain = _reload(chain)
    chain = chain.with_image(0, repair_counts(chain.top, _top_image(chain)))
    _run(chain, writes.finish(_top_image(chain))[0])
    return _reload(chain)


def _share_zeroes(chain: Chain, image: Image) -> None:
    """Let the zero clusters of snapshots lie in clusters of zeroes, which are counted as often as can be beforehand."""
    layer, geometry, l1s = chain.top, image.geometry, list(image.snapshot_l1s)
    references = _count(layer, image)

    def users_of(held: Tables) -> Offsets:
        return references.uses(held.host_offset >> geometry.cluster_bits).astype(np.int64)

    found = [plan.zero_users(geometry, held, users_of(held)) for held in _tables(layer, image, l1s)]
    room = geometry.refcount_max + 1 - max(most for _, most in found)
    count = ceil_div(sum(total for total, _ in found), room)
    pool = plan.Pool(references.take_run(count), room)
    offset = np.arange(pool.first_cluster, pool.first_cluster + count) << geometry.cluster_bits
    references.use(offset, 1, np.full(count, geometry.refcount_max - 1))
    Mender(layer, image, references).mend()
    zeroes = Zero(int(offset[0]), count << geometry.cluster_bits, is_data=True)
    run([zeroes, Flush()], layer.file, chain, Silent(), layer.data_file)
    for held in _tables(layer, image, l1s):
        new, pool = plan.from_pool(geometry, held, users_of(held), pool)
        _run(chain, writes.entry_writes(held, new))


def _has_zeroes(image: Image, held: Tables) -> bool:
    return bool(plan.zero_entries(image.geometry, held).any())


def _fill(chain: Chain, monitor: Monitor) -> Chain:
    """Turn the zero clusters of the disk into data."""
    writer = LayerWriter(chain, 0, monitor)
    spans = list(windows(chain, chain.size_bytes))
    for start, stop in spans:
        monitor.expect(writer.survey(_zero_wish(writer.chain, start, stop), start, stop).moved_bytes)
    for start, stop in spans:
        writer.put(_zero_wish(writer.chain, start, stop), start, stop)
    writer.finish()
    return _reload(writer.chain)


def _zero_wish(chain: Chain, start: int, stop: int) -> Wish:
    zeroes = layer_extents(chain, 0, start, stop).of_kind(*ex.ZEROES)
    shown = resolve(chain, start, stop)
    return Wish(zeroes, shown, shown, has_backing_after=True, fills=True)
