"""Trim: an image, and the bases that nobody else reads, give back the space of what they need not hold.

First everything is looked at and nothing changed: the plan says exactly what goes. Then each layer is written in the
order of the plan, and at every moment all that reads it sees the same:

- The image goes first: what it still holds then is what it hides of its base.
- Of the bases the lowest goes first, so that each is judged by what its reader holds, whatever that will lose.

What goes in a base was hidden by its only reader, and by each snapshot in that. So only the base itself, opened alone,
shows something else afterwards. After a stop the same call plans what is left, and completes it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Final, NamedTuple

import numpy as np

from cowtree import extents as ex
from cowtree.chain import gate, load
from cowtree.chain.forest import Forest
from cowtree.chain.view import Chain, layer_extents, open_chain, resolve, through_snapshot, windows
from cowtree.errors import Refused
from cowtree.execute.compare import sift
from cowtree.execute.writer import LayerWriter
from cowtree.extents import Extents, Ranges
from cowtree.images import lineage
from cowtree.images import map as mapping
from cowtree.images.check import trusted
from cowtree.images.merge import open_for_writing
from cowtree.monitor import Monitor, Silent
from cowtree.plan import empty, trim
from cowtree.plan.trim import BLOCK_BYTES, Loose, Lost
from cowtree.qcow2 import lineage as records
from cowtree.qcow2 import refcounts
from cowtree.qcow2.image import Image, refuse_what_we_cannot_write
from cowtree.storage.contract import Access, FileSystem, Storage

Span = tuple[int, int]
Look = Callable[[Sequence[str]], Forest]
NOTHING: Final = Chain((), ())


class Asked(NamedTuple):
    """How an image is trimmed. `look` surveys the image and all below some folders, and is called when the image is
    locked; without it nobody else is known to read anything. With `hides` bases lose what their only reader hides. A
    dry run plans and changes nothing.
    """

    image_format: str | None = None
    look: Look | None = None
    hides: bool = False
    is_dry: bool = False


class Part(NamedTuple):
    """What one layer loses. `freed_bytes` of its files come free on disk, which take `disk_bytes` now. `same_bytes` and
    `zero_bytes` of guest data go: what its base shows as well, or, in a base, what nobody sees; and what is zero.
    """

    layer: int
    path: str
    format: str
    windows: tuple[tuple[int, int, Loose], ...]
    same_bytes: int
    zero_bytes: int
    freed_bytes: int
    disk_bytes: int

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.windows and not self.freed_bytes


class Plan(NamedTuple):
    """What goes, layer by layer in the order in which it is done; `kept` are the bases that others read as well, and
    by which names these go.
    """

    parts: tuple[Part, ...]
    kept: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def freed_bytes(self) -> int:
        """What comes free on disk."""
        return sum(part.freed_bytes for part in self.parts)

    @property
    def altered(self) -> tuple[str, ...]:
        """The bases that show something else afterwards when they are opened alone."""
        return tuple(part.path for part in self.parts if part.layer and part.windows)


def trim_image(
    files: FileSystem, path: str, asked: Asked, tell: Callable[[Plan], None], monitor: Monitor | None = None
) -> int:
    """Plan, `tell` the plan, and do it unless that is not asked for. Returns: how many bytes came free on disk.
    Raises: Refused before anything changes, and what opening and writing raise.
    """
    monitor = monitor or Silent()
    with ExitStack() as stack:
        chain = open_chain(files, path, asked.image_format, Access.READ if asked.is_dry else Access.WRITE)
        stack.callback(chain.close)
        folders = dict.fromkeys(_folder_of(layer.path) for layer in chain.layers)
        forest = asked.look(list(folders)) if asked.look else Forest((), (), (), ())
        alone, kept = _own_bases(files, chain, forest) if asked.hides and len(chain.layers) > 1 else ([], ())
        for index in [] if asked.is_dry else alone:
            chain = open_for_writing(files, stack, chain, index)
        chain = _ready(chain, [0, *alone], is_dry=asked.is_dry)
        plan = _plan(chain, alone, monitor)._replace(kept=kept)
        tell(plan)
        if asked.is_dry:
            return 0
        overlays = [each for part in plan.parts for each in _recorded(files, chain, part, forest)]
        chain = _without_records(files, chain, overlays, [0, *alone])
        freed_bytes = _carry_out(chain, plan)
    for overlay in overlays:
        lineage.record(files, overlay, gate.QCOW2)
    return freed_bytes


def _recorded(files: FileSystem, chain: Chain, part: Part, forest: Forest) -> Iterator[str]:
    """The overlays of a layer that keep a record of what it holds, which is true now and will have to be made anew."""
    if not part.windows:
        return
    above = chain.layers[part.layer - 1].path if part.layer else None
    for overlay in _readers(files, forest, part.path) if above is None else [above]:
        layer = gate.open_alone(files, overlay, gate.QCOW2, Access.SHARED)
        layer.close()
        if layer.header is None or records.find_record(layer.header)[0] is None:
            continue
        if lineage.compare(files, overlay, layer.header).state in (lineage.UNCHANGED, lineage.TOUCHED):
            yield overlay


def _without_records(files: FileSystem, chain: Chain, overlays: list[str], written: list[int]) -> Chain:
    """Let these overlays keep no record until all is done: after a stop theirs would be wrong. Those of the chain are
    open, and `written` says which of them for writing.
    """
    for overlay in overlays:
        same = (index for index, layer in enumerate(chain.layers) if gate.is_same(files, layer.path, overlay))
        index = next(same, None)
        if index is None:
            layer = gate.open_alone(files, overlay, gate.QCOW2, Access.WRITE)
            try:
                lineage.forget(layer)
            finally:
                layer.close()
        elif index in written:
            layer = chain.layers[index]
            lineage.forget(layer)
            layer = layer._replace(header=gate.read_header(layer.path, layer.file))
            chain = chain.with_layer(index, layer).with_image(index, load.load_image(layer))
    return chain


def _ready(chain: Chain, indices: list[int], *, is_dry: bool) -> Chain:
    """Refuse what cannot be written, and only then mend counts that a stopped run left wrong."""
    for index in indices:
        image = chain.images[index]
        if image is not None:
            refuse_what_we_cannot_write(image)
    for index in [] if is_dry else indices:
        chain = trusted(chain, index)
    return chain


def _own_bases(
    files: FileSystem, chain: Chain, forest: Forest
) -> tuple[list[int], tuple[tuple[str, tuple[str, ...]], ...]]:
    """The bases that only the layer above them reads, the lowest first, and the others with all that reads them.
    Raises: Refused when it cannot be known, or when there is none.
    """
    _refuse_doubt(forest)
    alone, kept = [], []
    for index in range(1, len(chain.layers)):
        readers = _readers(files, forest, chain.layers[index].path)
        others = tuple(each for each in readers if not gate.is_same(files, each, chain.layers[index - 1].path))
        if len(readers) == len(others):
            reason = f"{chain.layers[index].path} is not found among the images that were looked at"
            raise Refused(reason=reason, hint=f"cowtree tree {chain.layers[index].path}")
        if others:
            kept.append((chain.layers[index].path, others))
        else:
            alone.append(index)
    if not alone:
        names = ", ".join(dict.fromkeys(name for _, others in kept for name in others))
        reason = f"no base of {chain.top.path} is read by one image only: they are read by {names} as well"
        raise Refused(reason=reason, hint=f"cowtree trim {chain.top.path} without --hidden")
    return alone[::-1], tuple(kept)


def _folder_of(path: str) -> str:
    return path.rpartition("/")[0] or ("/" if path.startswith("/") else ".")


def _readers(files: FileSystem, forest: Forest, path: str) -> list[str]:
    """The images that read a file, or its external data file, by name."""
    for index, (node, children) in enumerate(zip(forest.nodes, forest.children, strict=True)):
        if gate.is_same(files, node.path, path):
            found = [*children, *(each for each, other in enumerate(forest.nodes) if other.data == index)]
            if node.data is not None:
                found += forest.children[node.data]
                found += [each for each, other in enumerate(forest.nodes) if other.data == node.data and each != index]
            return [forest.nodes[each].path for each in found]
    return []


def _refuse_doubt(forest: Forest) -> None:
    """Refuse when an image may read a base and nobody can tell. Raises: Refused."""
    doubtful = [node.path for node in forest.nodes if node.problem and node.parent is None and node.format is not None]
    doubtful += forest.doubtful
    if doubtful:
        names = ", ".join(dict.fromkeys(doubtful))
        reason = f"which bases have other readers is not known, for these could not be read: {names}"
        raise Refused(reason=reason, hint="mend or move these first, or the same without --hidden")


def _plan(chain: Chain, alone: list[int], monitor: Monitor) -> Plan:
    """Look at every layer that shall be trimmed."""
    spans = list(windows(chain, max(layer.size_bytes for layer in chain.layers)))
    top = _survey(chain, 0, spans, _Top(chain, monitor).loose)
    parts = [_survey(chain, index, spans, _Base(chain, index, top).loose) for index in alone]
    return Plan((top, *parts))


def _unit(image: Image | None) -> int:
    return BLOCK_BYTES if image is None else image.geometry.subcluster_size_bytes


class _Top:
    """Finds what the image need not hold."""

    def __init__(self, chain: Chain, monitor: Monitor) -> None:
        self._chain = chain
        # What a hole of an encrypted file reads as is not zero.
        plain = [not (layer.header and layer.header.crypt_method) for layer in chain.layers]
        self._hollow = [index for index in mapping.hollow_layers(chain) if plain[index]]
        self._monitor = monitor

    def loose(self, span: Span) -> Loose:
        """What goes in a window. Reads what the image holds there, and what its base shows at the same place."""
        chain = self._chain
        own, below = layer_extents(chain, 0, *span), resolve(chain, *span, first=1)
        if chain.images[0] is None:
            own = own.of_kind(ex.DATA)
        unit = _unit(chain.images[0])
        for index in self._hollow:
            marked = mapping.mark_hollow(chain.layers[index], index, below if index else own)
            own, below = (own, marked) if index else (marked, below)
        own = _mark_quiet(own, below, unit)
        data = ex.merge_ranges(own.take(~np.isin(own.kind, ex.ZEROES)).ranges)
        self._monitor.expect(data.total_bytes)
        left, right = (each.of_kind(*ex.BYTES) for each in (own, below))
        return trim.loose(own, below, sift((chain, left), (chain, right), data, unit, self._monitor), unit)


def _mark_quiet(own: Extents, below: Extents, unit: int) -> Extents:
    """Take whole units that are holes of the file for zeroes where nothing below holds bytes: there is nothing to read
    on either side.
    """
    hollow, hiding = own.of_kind(mapping.HOLLOW), ex.widen(below.of_kind(*ex.BYTES).ranges, unit)
    holes = ex.subtract(ex.merge_ranges(hollow.ranges), hiding)
    read = ex.widen(ex.subtract(ex.merge_ranges(own.ranges), holes), unit)
    quiet = ex.cut(hollow, ex.subtract(holes, read))
    return ex.over(quiet._replace(kind=np.full(len(quiet.start), ex.ZERO, np.uint8)), own)


class _Base:
    """Finds what the only reader of a base hides."""

    def __init__(self, chain: Chain, index: int, top: Part) -> None:
        self._chain = chain
        self._index = index
        self._top = top

    def loose(self, span: Span) -> Loose:
        """What goes in a window. Reads tables only."""
        chain, index = self._chain, self._index
        own = layer_extents(chain, index, *span)
        if chain.images[index] is None:
            own = own.of_kind(ex.DATA)
        hiding = self._hiding(chain, span)
        image = chain.images[index - 1]
        for snapshot in image.snapshots if image else ():
            view = through_snapshot(chain.below(index - 1), [(snapshot.id, None)])
            hiding = ex.intersect(hiding, _held(view, 0, span))
        return trim.hidden(own, hiding, span, _unit(chain.images[index]))

    def _hiding(self, chain: Chain, span: Span) -> Ranges:
        held = _held(chain, self._index - 1, span)
        if self._index > 1:
            return held
        gone = [loose.same for start, stop, loose in self._top.windows if (start, stop) == span]
        return ex.subtract(held, ex.merge_ranges(gone[0])) if gone else held


def _held(chain: Chain, index: int, span: Span) -> Ranges:
    """Where a layer answers itself; past its end it does, with zeroes."""
    held = ex.merge_ranges(layer_extents(chain, index, *span).ranges)
    return ex.union(held, ex.one_range(max(span[0], chain.layers[index].size_bytes), span[1]))


class _Survey:
    """Adds up what one layer loses, on its tables in memory."""

    def __init__(self, chain: Chain, index: int) -> None:
        self.image = chain.images[index]
        self.layer = chain.layers[index]
        self.windows: list[tuple[int, int, Loose]] = []
        self.same_bytes = self.zero_bytes = 0
        # Without a base what goes shows zeroes; of a base it does not matter what it shows.
        self._has_base = index > 0 or len(chain.layers) > 1
        self._lost: list[Lost] = []
        self._outside: list[Ranges] = []

    def add(self, span: Span, loose: Loose) -> None:
        """Take note of what goes in a window, if anything does."""
        if self.image is None:
            gone = trim.whole_blocks(ex.union(*loose))
            if len(gone.start):
                self.windows.append((*span, Loose(gone, gone)))
                self._outside.append(gone)
                self.zero_bytes += 0 if self._has_base else gone.total_bytes
                self.same_bytes += gone.total_bytes if self._has_base else 0
            return
        if len(loose.same.start) or len(loose.zero.start):
            self._add_entries(self.image, span, loose)

    def _add_entries(self, image: Image, span: Span, loose: Loose) -> None:
        held = load.load_tables(self.layer.file, image, *span)
        if not len(held.l1_index):
            return
        first = int(held.l1_index[0]) * image.geometry.l2_span_bytes
        # A table may reach over windows; what went in those before is still on disk.
        held = trim.after(image, held, trim.join([each for _, stop, each in self.windows if stop > first]))
        new = trim.after(image, held, loose)
        lost = trim.released(image, held, new)
        is_changed = trim.is_changed(held, new)
        if not len(lost) and not is_changed.any():
            return
        self.windows.append((*span, loose))
        self._lost.append(trim.count_lost(lost))
        self._outside.append(trim.data_ranges(image, held, new))
        is_flagged = is_changed & ((new.entries != 0) | ((new.bitmaps != 0) if new.bitmaps.shape[1] else False))
        bits = image.header.cluster_bits
        flagged_bytes, changed_bytes = (int(which.sum()) << bits for which in (is_flagged, is_changed))
        self.zero_bytes += flagged_bytes if self._has_base else changed_bytes
        self.same_bytes += changed_bytes - flagged_bytes if self._has_base else 0
        self.image = trim.forget(image, new)

    def freed_bytes(self) -> int:
        """What comes free on disk."""
        freed = sum(data_bytes(self.layer.data_file, trim.whole_blocks(each)) for each in self._outside)
        if self.image is None:
            return freed
        file, bits = self.layer.file, self.image.header.cluster_bits
        used = self._used_runs(self.image)
        size_bytes = file.size_bytes
        free = ex.gaps(Ranges(used.start << bits, used.stop << bits), 0, size_bytes)
        return freed + data_bytes(file, trim.whole_blocks(free, size_bytes))

    def _used_runs(self, image: Image) -> Ranges:
        """The runs of host clusters that are counted in the end."""
        none = np.empty(0, np.int64)
        runs = [Ranges(none, none)]
        for block_index in load.block_windows(image):
            counts = load.read_blocks(self.layer.file, image, block_index)
            for lost in self._lost:
                counts = _count_down(counts, lost)
            runs.append(empty.used_runs(counts))
        used = Ranges._make(np.concatenate(column) for column in zip(*runs, strict=True))
        spare = empty.spare_blocks(image, used)
        hosts = np.sort(refcounts.block_offsets(image.refcount_table)[spare]) >> image.header.cluster_bits
        return ex.subtract(used, ex.merge_ranges(Ranges(hosts, hosts + 1)))


def _count_down(counts: refcounts.Counts, lost: Lost) -> refcounts.Counts:
    """The counts without the users that went, as far as these blocks have them."""
    per_block = counts.counts.shape[1]
    here = ex.merge_ranges(Ranges(counts.block_index * per_block, (counts.block_index + 1) * per_block))
    parts = ex.intersect(here, lost.runs)
    cluster = ex.integers(parts)
    if not len(cluster):
        return counts
    times = lost.times[np.searchsorted(lost.runs.start, cluster, "right") - 1]
    now = counts.get(cluster).astype(np.int64)
    return counts.put(cluster, np.maximum(now - times, 0).astype(counts.counts.dtype))


def data_bytes(file: Storage, ranges: Ranges) -> int:
    """How much of some ranges of a file is not a hole, in whole blocks."""
    columns = ranges.start.tolist(), (ranges.stop - ranges.start).tolist()
    found = [
        (span.start, span.start + span.length)
        for start, length in zip(*columns, strict=True)
        for span in file.extents(start, length)
        if span.is_data
    ]
    start, stop = np.array(found, np.int64).reshape(-1, 2).T
    return ex.widen(Ranges(start, stop), BLOCK_BYTES).total_bytes


def _survey(chain: Chain, index: int, spans: list[Span], loose_of: Callable[[Span], Loose]) -> Part:
    layer, survey = chain.layers[index], _Survey(chain, index)
    for start, stop in spans:
        if start < layer.size_bytes:
            survey.add((start, stop), loose_of((start, stop)))
    return Part(
        layer=index,
        path=layer.path,
        format=layer.format,
        windows=tuple(survey.windows),
        same_bytes=survey.same_bytes,
        zero_bytes=survey.zero_bytes,
        freed_bytes=survey.freed_bytes(),
        disk_bytes=_disk_bytes(layer),
    )


def _disk_bytes(layer: gate.Layer) -> int:
    """What the files of a layer hold that is no hole."""
    return sum(data_bytes(file, ex.one_range(0, file.size_bytes)) for file in _files_of(layer))


def _files_of(layer: gate.Layer) -> Iterator[Storage]:
    yield layer.file
    if layer.header is not None and layer.header.geometry.has_data_file and layer.data is not None:
        yield layer.data


def _carry_out(chain: Chain, plan: Plan) -> int:
    freed_bytes = 0
    for part in plan.parts:
        writer = LayerWriter(chain, part.layer, records=part.layer > 0)
        for start, stop, loose in part.windows:
            writer.drop(loose, start, stop)
        if not part.is_empty:
            writer.give_back()
        writer.finish()
        chain = writer.chain
        freed_bytes += part.disk_bytes - _disk_bytes(chain.layers[part.layer])
    return freed_bytes
