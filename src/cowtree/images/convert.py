"""Convert: one or several disks, joined one behind the other, into one image.

A new image is written once, in guest order, under a temporary name: while one page of guest data is looked through for
zeroes and written, the next one is read. Pages that are zeroes leave holes. An image that is there already, or whose
clusters were allocated beforehand, is filled in place, in the order that keeps it valid.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Final, NamedTuple, Protocol

import numpy as np

from cowtree import extents as ex
from cowtree.chain import gate, load
from cowtree.chain.view import Chain, open_chain, resolve, through_snapshot
from cowtree.errors import ChainError, ImageError, Refused, WrongUse
from cowtree.execute.copier import write_pieces
from cowtree.execute.read import Page, ahead, pages
from cowtree.execute.run import run
from cowtree.extents import Extents, Mask, Offsets, Ranges
from cowtree.images import bitmap
from cowtree.images.create import NEW_MODE, OVERLAY_MODE, new_file, write_new
from cowtree.images.encryption import furnish
from cowtree.images.joined import CELL_BYTES_MAX, NO_CHAIN, Grain, Joined, grain_of
from cowtree.images.overwrite import Fit, overwrite
from cowtree.images.tally import Tally
from cowtree.luks.volume import AES
from cowtree.monitor import Monitor, Silent
from cowtree.plan import convert as plan
from cowtree.plan.convert import Filled
from cowtree.plan.create import OFF, NewImage, raw_steps
from cowtree.qcow2.compression import deflate
from cowtree.qcow2.geometry import round_up
from cowtree.qcow2.tables import COPIED, Entries, encode_words
from cowtree.storage.contract import Access, FileSystem, Storage
from cowtree.storage.encrypted import EncryptedFile, EncryptedVolume, SectorCipher
from cowtree.units import SECTOR_BYTES

THREAD_COUNT: Final = 2
TOLD_COUNT_MAX: Final = 1 << 18


class Manner(NamedTuple):
    """How an image is converted. `sparse_bytes` is how long a run of zeroes must be to become a hole; 0 writes all of
    the disk out. `access` is how the sources are opened. `snapshot` names an internal snapshot of the first source, as
    `through_snapshot` takes it; without it the disk of now is converted. `mode` are a new file's permission bits.
    `span` says which bytes of a single source are converted; without it all of them are. Persistent bitmaps are copied
    too if that is said; broken ones are then refused, or else left out. `is_target_zero` is the caller's word that a
    disk which is written over shows zeroes. With `top_only` what the source's own backing file shows is not written,
    for the target has another one that shows the same; a new image with a backing file is always made so. `warn` is
    told what may not be as it was meant. With `salvage`, which is told of it, what cannot be read is taken for zeroes.
    """

    is_compressed: bool = False
    sparse_bytes: int = 4096
    access: str = Access.READ
    snapshot: Sequence[tuple[str | None, str | None]] = ()
    mode: int | None = None
    span: tuple[int, int] | None = None
    copies_bitmaps: bool = False
    skips_broken_bitmaps: bool = False
    is_target_zero: bool = False
    top_only: bool = False
    salvage: Callable[[str], None] | None = None
    warn: Callable[[str], None] = lambda text: None


DEFAULT_MANNER: Final = Manner()


class Salvage:
    """Tells once of each sector of a disk that cannot be read; of very many, perhaps more than once."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._told: set[int] = set()

    def __call__(self, offset: int, reason: str) -> None:
        """Tell, in QEMU's words."""
        if len(self._told) >= TOLD_COUNT_MAX:
            self._told.clear()
        if offset not in self._told:
            self._told.add(offset)
            self._tell(f"error while reading offset {offset}: {reason}")


@contextmanager
def _open_sources(files: FileSystem, sources: Sequence[tuple[str, str | None]], manner: Manner) -> Iterator[Joined]:
    with ExitStack() as stack:
        chains = []
        for path, image_format in sources:
            salvage = Salvage(manner.salvage) if manner.salvage else None
            chains.append(open_chain(files, path, image_format, manner.access, salvage))
            stack.callback(chains[-1].close)
        if manner.snapshot:
            chains[0] = through_snapshot(chains[0], manner.snapshot)
        if manner.copies_bitmaps:
            bitmap.refuse_copy(chains[0].top, chains[0].images[0], skips_broken=manner.skips_broken_bitmaps)
        yield Joined(chains, manner.span, top_only=manner.top_only)


def _open_backing(files: FileSystem, new: NewImage, source: Joined, manner: Manner) -> Chain:
    """Open what backs the new image, if something does, and warn when it is not what backs the source."""
    if new.backing_file is None:
        return NO_CHAIN
    path = gate.locate(new.path, new.backing_file)
    try:
        backing = open_chain(files, path, new.backing_format, manner.access)
    except (ChainError, ImageError) as error:
        error.facts.setdefault("overlay", new.path)
        raise
    own = source.chain.layers
    if len(own) > 1 and not gate.is_same(files, own[1].path, backing.top.path):
        why = "what the source shows of its own backing file is not copied"
        manner.warn(f"'{new.backing_file}' is not what backs '{own[0].path}': {why}")
    return backing


def _copy_bitmaps(source: Chain, target: Chain) -> None:
    image, own = source.images[0], target.images[0]
    if image is not None and own is not None:
        bitmap.copy((source.top, image), (target.top, own))


def convert(
    files: FileSystem,
    sources: Sequence[tuple[str, str | None]],
    new: NewImage,
    manner: Manner = DEFAULT_MANNER,
    monitor: Monitor | None = None,
) -> int:
    """Make a new image that shows what the sources (path, format or None) show; its size is theirs, not that of `new`.
    With a backing file only what the source's top layer itself holds is written, as QEMU does it: the backing file
    should show what backs the source. Returns: how many bytes of guest data were moved.
    Raises: WrongUse, Refused, ImageLocked, and what opening, reading and writing raise; then the target is as it was.
    """
    _check(sources, new, manner)
    manner = manner._replace(top_only=new.backing_file is not None)
    tally, new = Tally(monitor), furnish(files, new)
    with ExitStack() as stack:
        source = stack.enter_context(_open_sources(files, sources, manner))
        new = new._replace(size_bytes=round_up(source.size_bytes, SECTOR_BYTES))
        backing = _open_backing(files, new, source, manner)
        stack.callback(backing.close)
        mode = manner.mode
        if mode is None:
            mode = NEW_MODE if new.backing_file is None else OVERLAY_MODE
        file = stack.enter_context(new_file(files, new.path, mode))
        data = None
        if new.data_file is not None:
            # It gets its name first, so that the image never names a file that is not there.
            data = stack.enter_context(new_file(files, gate.data_file_path(new.path, new.data_file), mode))
            run(raw_steps(new.size_bytes, new.preallocation), data, NO_CHAIN, tally)
        _write_new(source, backing, _Files(file, data, _cipher_of(new)), (new, manner), tally)
        if manner.copies_bitmaps:
            _copy_bitmaps(source.chain, _alone(_Files(file), new))
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
    check_sources(sources, has_backing=manner.top_only)
    tally = Tally(monitor)
    with ExitStack() as stack:
        source = stack.enter_context(_open_sources(files, sources, manner))
        chain = open_chain(files, *target, Access.WRITE)
        stack.callback(chain.close)
        if chain.size_bytes < source.size_bytes:
            raise Refused(reason="output file is smaller than input file", hint="make it larger, or leave out -n")
        if manner.copies_bitmaps:
            bitmap.refuse_target(chain.top.format, chain.top.header.version if chain.top.header else 0)
        if manner.is_compressed and chain.top.header is None:
            raise WrongUse(reason="Compression not supported for this file format")
        fit = Fit(manner.sparse_bytes, hides=not manner.is_target_zero, is_compressed=manner.is_compressed)
        chain = overwrite(chain, source, fit, tally)
        if manner.copies_bitmaps:
            _copy_bitmaps(source.chain, chain)
        return tally.moved_bytes


def _check(sources: Sequence[tuple[str, str | None]], new: NewImage, manner: Manner) -> None:
    """Refuse what makes no sense together, before anything is opened."""
    check_sources(sources, has_backing=new.backing_file is not None)
    if manner.copies_bitmaps:
        if len(sources) > 1:
            raise Refused(reason="Copying bitmaps only possible with single source")
        bitmap.refuse_target(new.format, new.version)
    if manner.is_compressed and new.format != gate.QCOW2:
        raise WrongUse(reason="Compression not supported for this file format")
    if manner.is_compressed and new.encryption is not None:
        raise WrongUse(reason="Compression and encryption not supported at the same time")
    if new.encryption is not None and new.encryption.format == AES:
        reason = "an image that is encrypted in the old way (AES-CBC) is read and no longer written"
        raise WrongUse(reason=reason, hint="encrypt.format=luks")
    if manner.is_compressed and new.preallocation != OFF and not new.is_data_file_raw:
        raise WrongUse(reason="Compression and preallocation not supported at the same time")
    if new.preallocation != OFF and new.backing_file is not None and not new.has_subclusters:
        reason = "Backing file and preallocation can only be used at the same time if extended_l2 is on"
        raise WrongUse(reason=reason)


def check_sources(sources: Sequence[tuple[str, str | None]], *, has_backing: bool) -> None:
    """Refuse sources that make no sense together. Raises: WrongUse."""
    if not sources:
        raise WrongUse(reason="Must specify image file name")
    if len(sources) > 1 and has_backing:
        reason = "Having a backing file for the target makes no sense when concatenating multiple input images"
        raise WrongUse(reason=reason)


class _Files(NamedTuple):
    """What a new image is written to: its file, its data file if it has one, and what encrypts its guest data."""

    file: Storage
    data: Storage | None = None
    cipher: SectorCipher | None = None

    @property
    def payload(self) -> Storage:
        """Where guest data goes."""
        inner = self.data or self.file
        return EncryptedFile(inner, self.cipher) if self.cipher else inner


def _cipher_of(new: NewImage) -> SectorCipher | None:
    wanted = new.encryption
    if wanted is None:
        return None
    from cowtree.luks.ciphers import SectorCipher as Ciphers  # noqa: PLC0415 # for encrypted images alone

    return Ciphers(wanted.suite, wanted.key)


def _alone(files: _Files, new: NewImage) -> Chain:
    """The new image that was written to a file which has no name yet."""
    header = gate.read_header(new.path, files.file)
    data = files.payload if files.data or files.cipher else None
    layer = gate.Layer(new.path, gate.QCOW2, files.file, header.size_bytes, header, data, was_probed=False)
    layer = layer._replace(is_unlocked=files.cipher is not None)
    return Chain((layer,), (load.load_image(layer),))


class _Target(Protocol):
    """A new image. Pages come in guest order, each of whole units."""

    unit_bytes: int
    grain: Grain
    is_compressed: bool

    def put(self, page: Page, used: Mask) -> None:
        """Write the page; `used` says which of its cells are more than zeroes."""

    def finish(self) -> None:
        """Complete the file; it is not durable yet."""


def _write_out(source: Joined, backing: Chain, target: _Target, tally: Tally) -> None:
    unit = target.unit_bytes
    both = Chain(source.chain.layers + backing.layers, source.chain.images + backing.images)
    hidden_bytes = backing.size_bytes if backing.layers else 0
    for start, stop in source.windows(backing):
        seen, where = source.data(start, stop), source.held(start, stop)
        if not target.is_compressed:
            seen = _above(ex.cut(seen, where), where, backing, len(source.chain.layers), (start, stop))
        if target.grain.hole_bytes or backing.layers:
            hiding = ex.intersect(where, ex.one_range(0, hidden_bytes))
            where = ex.union(hiding, ex.intersect(where, ex.merge_ranges(seen.ranges)))
        where = ex.widen(where, unit)
        tally.expect(where.total_bytes)
        for page in ahead(pages(both, seen, where)):
            target.put(page, target.grain.used(page))
            tally.advance(len(page.data))
    target.finish()


def _above(seen: Extents, where: Ranges, backing: Chain, count: int, window: tuple[int, int]) -> Extents:
    """What is shown where the source, of `count` layers, says only what it shows in some ranges, and lies over a
    backing file."""
    if not backing.layers:
        return seen
    below = resolve(backing, *window).of_kind(*ex.BYTES)
    below = ex.cut(below, ex.subtract(ex.merge_ranges(below.ranges), where))
    return ex.concatenate([seen, below._replace(layer=(below.layer + count).astype(np.int16))])


class _Raw:
    """A raw image, or the data file of an image whose tables are there already: guest offset is host offset."""

    is_compressed = False

    def __init__(self, file: Storage, manner: Manner) -> None:
        self.unit_bytes = CELL_BYTES_MAX
        self.grain = grain_of(manner.sparse_bytes, self.unit_bytes)
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

    def __init__(self, files: _Files, new: NewImage, manner: Manner) -> None:
        self._header, self._layout = plan.begin(new)
        self.unit_bytes = new.geometry.cluster_size_bytes
        self.grain = grain_of(manner.sparse_bytes, self.unit_bytes)
        self._file, self._data, self._is_encrypted = files.file, files.payload, files.cipher is not None
        self._is_external, self.is_compressed = files.data is not None, manner.is_compressed
        self._hides = new.backing_file is not None
        self._l1 = np.zeros(self._header.l1_entry_count, np.uint64)
        self._shared: list[Offsets] = []
        if new.encryption and self._header.encryption_header:
            self._file.pwrite(self._header.encryption_header[0], new.encryption.header)

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
        if self.is_compressed:
            words = self._put_packed(page, position[is_data])
        else:
            words = self._put_plain(page, cluster[is_data], self._solid(page, used))
        entered, all_words = cluster[is_data], words
        if self._hides:
            all_words = plan.zero_words(geometry, len(cluster))
            entered, all_words[is_data] = cluster, words
        if len(entered):
            filled, self._layout = plan.enter(self._layout, entered, all_words)
            self._write_tables(filled)

    def _solid(self, page: Page, used: Mask) -> Ranges:
        """What is written of the clusters that hold something: a hole in them would not read as zeroes decrypted. Over
        a backing file QEMU leaves none.
        """
        return page.ranges if self._is_encrypted or self._hides else self.grain.solid(page, used)

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
        if self._is_external and len(position):
            reason = f"error while writing at byte {page.guest_offset(position[:1])[0]}: Operation not supported"
            raise Refused(reason=reason, hint="the same without -c, or without data_file")
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


def _write_new(
    source: Joined,
    backing: Chain,
    files: _Files,
    what: tuple[NewImage, Manner],
    tally: Tally,
) -> None:
    """Write the new image to its file, and to its data file if it has one."""
    new, manner = what
    # Over a backing file some subclusters of a cluster may show through.
    is_mixed = new.has_subclusters and bool(backing.layers) and not manner.is_compressed
    if new.format == gate.QCOW2 and not is_mixed and (new.preallocation == OFF or manner.is_compressed):
        _write_out(source, backing, _Qcow2(files, new, manner), tally)
        return
    write_new(files.file, new)
    if new.format == gate.LUKS and new.encryption and files.cipher:
        volume = EncryptedVolume(files.file, files.cipher, new.encryption.header_bytes)
        _write_out(source, backing, _Raw(volume, manner._replace(sparse_bytes=0)), tally)
        return
    is_plain = files.cipher is None
    if new.format == gate.RAW or (files.data is not None and not new.has_subclusters and is_plain):
        _write_out(source, backing, _Raw(files.payload, manner), tally)
        return
    alone = _alone(files, new)
    target = Chain((*alone.layers, *backing.layers), (*alone.images, *backing.images))
    # What was never encrypted does not read as zeroes.
    hides = bool(backing.layers) or not is_plain
    overwrite(target, source, Fit(manner.sparse_bytes, hides), tally)
