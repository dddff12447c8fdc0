"""Convert: one or several disks, joined one behind the other, into one image.

A new image is written once, in guest order, under a temporary name: while one page of guest data is looked through for
zeroes and written, the next one is read. Pages that are zeroes leave holes. An image that is there already, or whose
clusters were allocated beforehand, is filled in place, in the order that keeps it valid.
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Final, NamedTuple, Protocol

import numpy as np

from cowtree import extents as ex
from cowtree.chain import gate, load
from cowtree.chain.view import ALIGNMENT_BYTES, Chain, open_chain, resolve, through_snapshot, windows
from cowtree.errors import Refused, WrongUse
from cowtree.execute.compare import differing
from cowtree.execute.copier import write_pieces
from cowtree.execute.read import Page, ahead, pages
from cowtree.execute.run import run
from cowtree.execute.writer import LayerWriter
from cowtree.extents import Extents, Mask, Offsets, Ranges
from cowtree.monitor import Monitor, Silent
from cowtree.operations import map as mapping
from cowtree.operations.create import NEW_MODE, OVERLAY_MODE, new_file, write_new
from cowtree.operations.merge import Tally, trusted
from cowtree.plan import convert as plan
from cowtree.plan.convert import Filled
from cowtree.plan.create import OFF, NewImage, raw_steps
from cowtree.plan.put import Wish
from cowtree.qcow2.compression import deflate
from cowtree.qcow2.geometry import round_up
from cowtree.qcow2.tables import COPIED, Entries, encode_words
from cowtree.storage.contract import Access, FileSystem, Storage

# Runs of zeroes are looked for in cells of this size, or of the sparse size when that is smaller.
CELL_BYTES_MAX: Final = 4096
THREAD_COUNT: Final = 2
NO_CHAIN: Final = Chain((), ())


class Manner(NamedTuple):
    """How an image is converted. `sparse_bytes` is how long a run of zeroes must be to become a hole; 0 writes all of
    the disk out. `access` is how the sources are opened. `snapshot` names an internal snapshot of the first source, as
    `through_snapshot` takes it; without it the disk of now is converted. `mode` are a new file's permission bits.
    """

    is_compressed: bool = False
    sparse_bytes: int = 4096
    access: str = Access.READ
    snapshot: Sequence[tuple[str | None, str | None]] = ()
    mode: int | None = None


DEFAULT_MANNER: Final = Manner()


class Joined:
    """Disks one behind the other, as one chain whose layers know where their disk begins."""

    def __init__(self, chains: Sequence[Chain]) -> None:
        self._parts: list[tuple[Chain, int, int]] = []
        self._hollow = [mapping.hollow_layers(chain) for chain in chains]
        layers: list[gate.Layer] = []
        self.size_bytes = 0
        for chain in chains:
            self._parts.append((chain, self.size_bytes, len(layers)))
            layers += [layer._replace(origin=self.size_bytes) for layer in chain.layers]
            self.size_bytes += chain.size_bytes
        self.chain = Chain(tuple(layers), tuple(image for chain in chains for image in chain.images))

    def data(self, start: int, stop: int) -> Extents:
        """Where the joined disk holds data, between two of its offsets."""
        found = []
        for (chain, origin, first_layer), hollow in zip(self._parts, self._hollow, strict=True):
            low, high = max(start - origin, 0), min(stop - origin, chain.size_bytes)
            if low < high:
                seen = mapping.data(chain, low, high, hollow)
                layer = (seen.layer + first_layer).astype(np.int16)
                found.append(seen._replace(start=seen.start + origin, layer=layer))
        return ex.concatenate(found)

    def windows(self, beside: Chain = NO_CHAIN) -> Iterator[tuple[int, int]]:
        """Windows of the joined disk; `beside` is a chain that is looked at in the same windows."""
        borders = {round_up(stop, ALIGNMENT_BYTES) for _, stop in windows(beside, self.size_bytes)}
        for chain, origin, _ in self._parts:
            borders.update(round_up(origin + stop, ALIGNMENT_BYTES) for _, stop in windows(chain, chain.size_bytes))
        start = 0
        for border in sorted(borders):
            stop = min(border, self.size_bytes)
            if start < stop:
                yield start, stop
            start = stop


@contextmanager
def _open_sources(files: FileSystem, sources: Sequence[tuple[str, str | None]], manner: Manner) -> Iterator[Joined]:
    with ExitStack() as stack:
        chains = []
        for path, image_format in sources:
            chains.append(open_chain(files, path, image_format, manner.access))
            stack.callback(chains[-1].close)
        if manner.snapshot:
            chains[0] = through_snapshot(chains[0], manner.snapshot)
        yield Joined(chains)


def convert(
    files: FileSystem,
    sources: Sequence[tuple[str, str | None]],
    new: NewImage,
    manner: Manner = DEFAULT_MANNER,
    monitor: Monitor | None = None,
) -> int:
    """Make a new image that shows what the sources (path, format or None) show; its size is theirs, not that of `new`.
    With a backing file only what differs from it is written. Returns: how many bytes of guest data were moved.
    Raises: WrongUse, Refused, ImageLocked, and what opening, reading and writing raise; then the target is as it was.
    """
    _check(sources, new, manner)
    tally = Tally(monitor)
    with ExitStack() as stack:
        source = stack.enter_context(_open_sources(files, sources, manner))
        new = new._replace(size_bytes=source.size_bytes)
        backing = NO_CHAIN
        if new.backing_file is not None:
            path = gate.resolve_name(new.path, new.backing_file)
            backing = open_chain(files, path, new.backing_format, manner.access)
            stack.callback(backing.close)
        mode = manner.mode
        if mode is None:
            mode = NEW_MODE if new.backing_file is None else OVERLAY_MODE
        file = stack.enter_context(new_file(files, new.path, mode))
        if new.data_file is not None:
            # It gets its name first, so that the image never names a file that is not there.
            data = stack.enter_context(new_file(files, gate.data_file_path(new.path, new.data_file), mode))
            run(raw_steps(new.size_bytes, new.preallocation), data, NO_CHAIN, tally)
            _write_out(source, backing, _with_data_file(file, data, new, manner), tally)
        elif new.format == gate.RAW:
            write_new(file, new)
            _write_out(source, backing, _Raw(file, manner), tally)
        elif new.preallocation == OFF:
            _write_out(source, backing, _Qcow2(file, new, manner), tally)
        else:
            write_new(file, new)
            _fill(_alone(file, new), source, manner, tally)
        return tally.moved_bytes


def convert_into(
    files: FileSystem,
    sources: Sequence[tuple[str, str | None]],
    target: tuple[str, str | None],
    manner: Manner = DEFAULT_MANNER,
    monitor: Monitor | None = None,
) -> int:
    """Write what the sources show over the start of a disk that is there; what lies behind it stays.
    Returns: how many bytes of guest data were moved.
    Raises: Refused when the target is too small, and what opening, reading and writing raise.
    """
    if manner.is_compressed:
        raise Refused(reason="Compressed clusters cannot be written over an image that is there", hint="leave out -n")
    tally = Tally(monitor)
    with ExitStack() as stack:
        source = stack.enter_context(_open_sources(files, sources, manner))
        chain = open_chain(files, *target, Access.WRITE)
        stack.callback(chain.close)
        if chain.size_bytes < source.size_bytes:
            raise Refused(reason="output file is smaller than input file", hint="make it larger, or leave out -n")
        _fill(chain, source, manner, tally, hides=True)
        return tally.moved_bytes


def _check(sources: Sequence[tuple[str, str | None]], new: NewImage, manner: Manner) -> None:
    """Refuse what makes no sense together, before anything is opened."""
    if not sources:
        raise WrongUse(reason="Must specify image file name")
    if len(sources) > 1 and new.backing_file is not None:
        reason = "Having a backing file for the target makes no sense when concatenating multiple input images"
        raise WrongUse(reason=reason)
    if manner.is_compressed and new.format == gate.RAW:
        raise WrongUse(reason="Compression not supported for this file format")
    if manner.is_compressed and new.preallocation != OFF:
        raise WrongUse(reason="Compression and preallocation not supported at the same time")
    if manner.is_compressed and new.data_file is not None:
        raise WrongUse(reason="Compressed clusters cannot lie in an external data file")
    if new.format == gate.QCOW2 and new.preallocation != OFF and (new.backing_file or new.has_subclusters):
        raise WrongUse(reason="Preallocation cannot be used together with a backing file or extended L2 entries here")


def _alone(file: Storage, new: NewImage) -> Chain:
    """The new image that was written to a file which has no name yet."""
    header = gate.read_header(new.path, file)
    layer = gate.Layer(new.path, gate.QCOW2, file, header.size_bytes, header, None, was_probed=False)
    return Chain((layer,), (load.load_image(layer),))


class _Target(Protocol):
    """A new image. Pages come in guest order, each of whole units."""

    unit_bytes: int
    grain: "_Grain"

    def put(self, page: Page, used: Mask) -> None:
        """Write the page; `used` says which of its cells are more than zeroes."""

    def finish(self) -> None:
        """Complete the file; it is not durable yet."""


class _Grain(NamedTuple):
    """How finely zeroes are looked for: in cells, and a run of them becomes a hole when it is `hole_bytes` long."""

    cell_bytes: int
    hole_bytes: int

    def used(self, page: Page) -> Mask:
        """Which cells of a page must be written."""
        cells = np.frombuffer(page.data, np.uint64).reshape(-1, self.cell_bytes // 8)
        used: Mask = np.logical_or.reduce(cells, axis=1) if self.hole_bytes else np.ones(len(cells), np.bool_)
        return used

    def solid(self, page: Page, used: Mask) -> Ranges:
        """The guest ranges of a page that must be written, short runs of zeroes among them."""
        start = page.guest_offset(np.flatnonzero(used) * self.cell_bytes)
        reach = max(self.hole_bytes, 1) - 1
        close = ex.merge_ranges(Ranges(start, start + self.cell_bytes + reach))
        return ex.intersect(close._replace(stop=close.stop - reach), page.ranges)


def _grain(manner: Manner, unit_bytes: int) -> _Grain:
    return _Grain(min(math.gcd(manner.sparse_bytes, CELL_BYTES_MAX), unit_bytes), manner.sparse_bytes)


def _write_out(source: Joined, backing: Chain, target: _Target, tally: Tally) -> None:
    unit = target.unit_bytes
    for start, stop in source.windows(backing):
        seen = source.data(start, stop)
        if backing.layers:
            where = differing(source.chain, backing, ex.one_range(start, stop), unit)
        else:
            where = seen.ranges if target.grain.hole_bytes else ex.one_range(start, stop)
        where = ex.merge_ranges(Ranges(where.start // unit * unit, -(-where.stop // unit) * unit))
        tally.expect(where.total_bytes)
        for page in ahead(pages(source.chain, seen, where)):
            target.put(page, target.grain.used(page))
            tally.advance(len(page.data))
    target.finish()


class _Raw:
    """A raw image, or the data file of an image whose tables are there already: guest offset is host offset."""

    def __init__(self, file: Storage, manner: Manner) -> None:
        self.unit_bytes = CELL_BYTES_MAX
        self.grain = _grain(manner, self.unit_bytes)
        self._file = file

    def put(self, page: Page, used: Mask) -> None:
        """Write what is not zero; holes are there already."""
        solid = self.grain.solid(page, used)
        # The last unit may reach past the end of the disk; what is there is zero.
        stop = np.minimum(solid.stop, self._file.size_bytes)
        write_pieces(self._file, solid.start, (page.position_of(solid.start), stop - solid.start), page.data)

    def finish(self) -> None:
        """The file has its length from the start."""


class _Qcow2:
    """A qcow2 image whose clusters are taken as they are needed; `data` is its data file, perhaps an external one."""

    def __init__(self, file: Storage, new: NewImage, manner: Manner, data: Storage | None = None) -> None:
        self._header, self._layout = plan.begin(new)
        self.unit_bytes = new.geometry.cluster_size_bytes
        self.grain = _grain(manner, self.unit_bytes)
        self._file, self._data = file, data or file
        self._is_external, self._is_compressed = data is not None, manner.is_compressed
        self._hides = new.backing_file is not None
        self._l1 = np.zeros(self._header.l1_entry_count, np.uint64)
        self._shared: list[Offsets] = []

    def put(self, page: Page, used: Mask) -> None:
        """Give clusters their places, write what they hold, and enter them; a cluster of zeroes needs an entry only to
        hide a backing file.
        """
        geometry = self._layout.geometry
        is_data: Mask = np.logical_or.reduce(used.reshape(-1, self.unit_bytes // self.grain.cell_bytes), axis=1)
        position = np.arange(len(is_data)) * self.unit_bytes
        cluster = page.guest_offset(position) >> geometry.cluster_bits
        if self._hides and geometry.version < 3:
            is_data[:] = True
        if self._is_compressed:
            words = self._put_packed(page, position[is_data])
        else:
            words = self._put_plain(page, cluster[is_data], self.grain.solid(page, used))
        entered, all_words = cluster[is_data], words
        if self._hides:
            all_words = plan.zero_words(geometry, len(cluster))
            entered, all_words[is_data] = cluster, words
        if len(entered):
            filled, self._layout = plan.enter(self._layout, entered, all_words)
            self._write_tables(filled)

    def _put_plain(self, page: Page, cluster: Offsets, solid: Ranges) -> Entries:
        bits = self._layout.geometry.cluster_bits
        host = cluster << bits
        if not self._is_external:
            host, self._layout = plan.take(self._layout, len(cluster))
        count, length = len(cluster), np.full(len(cluster), self.unit_bytes, np.int64)
        clusters = Extents(cluster << bits, length, np.full(count, ex.DATA, np.uint8), np.zeros(count, np.int16), host)
        pieces = ex.cut(ex.coalesce(clusters), solid)
        write_pieces(self._data, pieces.host_offset, (page.position_of(pieces.start), pieces.length), page.data)
        return plan.data_words(self._layout.geometry, host)

    def _put_packed(self, page: Page, position: Offsets) -> Entries:
        plain = [page.data[start : start + self.unit_bytes] for start in position.tolist()]
        with ThreadPoolExecutor(THREAD_COUNT) as threads:
            packed = list(threads.map(self._deflate, plain))
        length = np.array([len(each) for each in packed], np.int64)
        offset, shared, self._layout = plan.pack(self._layout, length.tolist())
        self._shared.append(shared)
        goes_on = offset[1:] == offset[:-1] + length[:-1]
        for run_of in np.split(np.arange(len(packed)), np.flatnonzero(~goes_on) + 1) if packed else ():
            first, last = int(run_of[0]), int(run_of[-1]) + 1
            self._file.pwrite(int(offset[first]), b"".join(packed[first:last]))
        return plan.packed_words(self._layout.geometry, offset, length)

    def _deflate(self, plain: memoryview) -> bytes | memoryview:
        """The compressed cluster, or the cluster itself where that is not shorter."""
        packed = deflate(plain, self._header.compression_type)
        return packed if len(packed) < len(plain) else plain

    def _write_tables(self, filled: Filled) -> None:
        count, bits = len(filled.l1_index), self._header.cluster_bits
        clusters = np.arange(filled.first_cluster, filled.first_cluster + count, dtype=np.uint64)
        self._l1[filled.l1_index] = clusters << np.uint64(bits) | COPIED
        if count:
            self._file.pwrite(filled.first_cluster << bits, encode_words(filled.words))

    def finish(self) -> None:
        """Write the last table, the counts, the L1 table and the header."""
        filled, self._layout = plan.close(self._layout)
        self._write_tables(filled)
        shared = np.concatenate([np.empty(0, np.int64), *self._shared])
        run(plan.finish(self._layout, self._header, self._l1, shared), self._file, NO_CHAIN, Silent())
        if self._is_external:
            self._data.truncate(self._header.size_bytes)


def _with_data_file(file: Storage, data: Storage, new: NewImage, manner: Manner) -> _Target:
    if new.preallocation == OFF:
        return _Qcow2(file, new, manner, data)
    write_new(file, new)
    return _Raw(data, manner)


def _fill(target: Chain, source: Joined, manner: Manner, tally: Tally, *, hides: bool = False) -> None:
    """Write the sources over the start of a disk; `hides` says that it may show something where they show zeroes."""
    count = len(target.layers)
    both = Chain(target.layers + source.chain.layers, target.images + source.chain.images)
    writer = LayerWriter(trusted(both, 0), 0, tally)
    grain = _grain(manner, CELL_BYTES_MAX)
    for start, end in source.windows(target):
        seen = source.data(start, end)
        wanted = ex.cut(seen, _find_solid(source, seen, grain))
        tally.expect(wanted.total_bytes)
        wanted = wanted._replace(layer=(wanted.layer + count).astype(np.int16))
        if hides:
            wanted = ex.over(wanted, ex.single(start, end, ex.ZERO))
        # The last cluster may reach past the end of the sources.
        stop = min(round_up(end, ALIGNMENT_BYTES), target.size_bytes)
        shown = resolve(writer.chain, start, stop, last=count)
        writer.put(Wish(wanted, shown, shown, count > 1), start, stop)
    writer.finish()


def _find_solid(source: Joined, seen: Extents, grain: _Grain) -> Ranges:
    """The parts of the data that are more than zeroes; all of it is read."""
    if not grain.hole_bytes:
        return ex.merge_ranges(seen.ranges)
    cell = grain.cell_bytes
    where = ex.merge_ranges(Ranges(seen.start // cell * cell, -(-seen.stop // cell) * cell))
    found = [grain.solid(page, grain.used(page)) for page in ahead(pages(source.chain, seen, where))]
    if not found:
        return ex.one_range(0, 0)
    return ex.merge_ranges(Ranges._make(np.concatenate(column) for column in zip(*found, strict=True)))
