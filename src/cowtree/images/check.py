"""Checking a qcow2 image as `qemu-img check` does, and mending what can be mended in place.

    layer = open_to_check(files, path)
    report = check(layer, tell=found.append)             # what is wrong is told as it is found, as `Finding`s
    report = check(layer, LEAKS, tell)                   # frees leaked clusters; the layer is open for writing
    report = check(layer, ALL, tell)                     # and mends counts and COPIED flags

Damage inside the image never raises: it is told, and counted in the report. As qemu-img does, whoever repaired
something checks again to say what is left.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, NoReturn

import numpy as np

from cowtree.chain import gate
from cowtree.chain.address import parse
from cowtree.chain.gate import Layer
from cowtree.chain.view import Chain
from cowtree.errors import BrokenTable
from cowtree.execute.run import run
from cowtree.images import snapshot_table
from cowtree.images.count import IO_ERROR, Count, OnDisk, Stopped, Tell
from cowtree.images.mend import Mender, active_windows
from cowtree.images.snapshot_table import FILE_TOO_LARGE
from cowtree.monitor import Silent
from cowtree.qcow2 import bitmaps, tables, writes
from cowtree.qcow2 import check as rules
from cowtree.qcow2 import header as qcow2
from cowtree.qcow2.check import Counted, References, Statistics
from cowtree.qcow2.findings import (
    BLOCK_OUTSIDE,
    CORRUPTION,
    CORRUPTION_FIXED,
    INTERNAL,
    LEAK,
    LEAK_FIXED,
    REMARK,
    Finding,
    remark,
)
from cowtree.qcow2.header import Header
from cowtree.qcow2.image import Image, check_layout, refuse_what_we_cannot_write
from cowtree.qcow2.mend import structure_clusters
from cowtree.storage.contract import Access, FileSystem

NOTHING: Final = "nothing"
LEAKS: Final = "leaks"
ALL: Final = "all"

# QEMU counts clusters in 31 bits here.
CLUSTER_COUNT_MAX: Final = (1 << 31) - 1


class Report(NamedTuple):
    """What a check found, in the numbers that `qemu-img check --output=json` prints under like names.

    - `failure`: why the check could not go to its end, as the system words such an error; None when it did. The
      other fields are then of no use; qemu-img says "Check failed: ..." and exits with 1.
    - `internal_error_count`: errors of the check itself ("check-errors"); exit status 1.
    - `corruption_count`, `leak_count`: what is wrong and was not repaired; exit status 2, else 3.
    - `corruption_fixed_count`, `leak_fixed_count`: what was repaired. When there is some, check again for what is left.
    - `image_end_bytes`: where the last cluster that is used or counted ends ("image-end-offset").
    - `total_cluster_count`: guest clusters of the disk; of these are allocated, fragmented, compressed:
      `allocated_cluster_count`, `fragmented_cluster_count`, `compressed_cluster_count`.
    """

    failure: str | None
    internal_error_count: int
    corruption_count: int
    leak_count: int
    corruption_fixed_count: int
    leak_fixed_count: int
    image_end_bytes: int
    total_cluster_count: int
    allocated_cluster_count: int
    fragmented_cluster_count: int
    compressed_cluster_count: int

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong."""
        wrong = self.internal_error_count, self.corruption_count, self.leak_count
        return self.failure is None and not any(wrong)


def open_to_check(files: FileSystem, name: str, image_format: str | None = None, access: str = Access.READ) -> Layer:
    """Open one image alone whose tables may lie anywhere; its data file, if it has one, stays closed.
    Raises: what opening raises, and what `header.parse_fields` raises.
    """
    address = parse(name)
    path, image_format = address.path, address.format if image_format is None else image_format
    if image_format not in (None, gate.QCOW2) or address.inner:
        return gate.open_layer(files, name, image_format, access)
    file = gate.open_file(files, address, access)
    try:
        if image_format is None and (found := gate.probe(file)) != gate.QCOW2:
            return Layer(path, found, file, file.size_bytes, None, None, True, address=address)
        data = file.pread(0, qcow2.first_cluster_bytes(file.pread(0, 24)))
        header = qcow2.parse_fields(path, data, file.size_bytes)
        address.check(gate.QCOW2)
        return Layer(path, gate.QCOW2, file, header.size_bytes, header, None, image_format is None, address=address)
    except BaseException:
        file.close()
        raise


def check_bitmaps(layer: Layer, header: Header) -> None:
    """Look whether the persistent bitmaps could be loaded, as QEMU does before it checks anything.
    Raises: BrokenTable.
    """
    directory = bitmaps.directory(layer.path, header)
    if directory is None:
        return
    data = layer.file.pread(directory.offset, directory.length_bytes)
    for each in bitmaps.parse(layer.path, header, data, directory.bitmap_count):
        reason = ""
        if each.extra_data:
            reason = "Bitmap extra data is not supported"
        elif each.flags & bitmaps.EXTRA_DATA_COMPATIBLE:
            reason = f"Bitmap '{each.name}' doesn't satisfy the constraints"
        elif not each.is_in_use:
            table = tables.decode_words(layer.file.pread(each.table_offset, each.table_entry_count * 8))
            if rules.wrong_bitmap_entries(header.geometry, table).any():
                reason = f"Could not read bitmap_table table from image for bitmap '{each.name}': Invalid argument"
        if reason:
            raise BrokenTable(path=layer.path, reason=reason)


def check(layer: Layer, repair: str = NOTHING, tell: Tell = lambda finding: None) -> Report | None:
    """Check a layer, and repair NOTHING, LEAKS or ALL of it. None when its format cannot be checked.
    Raises: StorageFailed, and BrokenTable when a header extension breaks a rule.
    """
    if layer.header is None:
        return None
    checking = _Run(layer, layer.header, tell)
    failure = None
    try:
        checking.check(repair)
    except Stopped as stopped:
        failure = str(stopped)
    return checking.report(failure)


def repair_counts(layer: Layer, image: Image) -> Image:
    """Mend the counts and COPIED flags that a stopped run may have left wrong; the layer is open for writing.
    Returns: the image as it then is; the dirty bit stays for the caller. Nothing is written when all is right.
    Raises: BrokenTable when the image is damaged in any other way; then nothing is written.
    """
    refuse_what_we_cannot_write(image)
    count = Count(layer, image, refuse_damage(image.path))
    count.count()
    shared = rules.data_in_tables(image.metadata_clusters(), count.use, count.references)
    if len(shared):
        reason = f"guest data lies in host cluster {shared[0]}, which holds a table"
        raise BrokenTable(path=image.path, reason=reason)
    mender = Mender(layer, image, count.references)
    mender.mend()
    mender.finish(all_is_right=False)
    return mender.image


def trusted(chain: Chain, index: int, *, is_filled: bool = True) -> Chain:
    """Make counts right that a stopped run may have left wrong; only then may a free cluster be trusted to be free."""
    layer, image = chain.layers[index], chain.images[index]
    # Version 2 has no bit that would tell.
    if image is None or not (image.header.is_dirty or (is_filled and image.header.version < 3)):
        return chain
    return chain.with_image(index, repair_counts(layer, image))


def refuse_damage(path: str) -> Tell:
    """Whoever is told of damage refuses to go on."""

    def tell(finding: Finding) -> None:
        sentence = next(finding.sentences(), "").removeprefix("ERROR").lstrip(": ")
        if sentence and finding.kind.counts_as in (CORRUPTION, INTERNAL):
            raise BrokenTable(path=path, reason=sentence)

    return tell


class _Run:
    """One check: tells what it finds, and adds it up."""

    def __init__(self, layer: Layer, header: Header, tell: Tell) -> None:
        self._layer, self._header = layer, header
        self._tell = tell
        self._sums: Counter[str] = Counter()
        self._snapshot_sums: Counter[str] = Counter()
        self._statistics = Statistics()
        self._image_end_bytes = 0

    def check(self, repair: str) -> None:
        """Check, and repair. Raises: Stopped."""
        found = self._read_snapshots(repair)
        image = self._load(found)
        count = Count(self._layer, image, self._say, mends=repair == ALL)
        if count.references.cluster_count > CLUSTER_COUNT_MAX:
            self._stop("ERROR the file has too many clusters", FILE_TOO_LARGE)
        count.count()
        self._statistics = count.statistics
        before = self._sums.copy()
        on_disk = OnDisk(self._layer.file, image)
        is_lost = self._compare(on_disk, count.references)
        self._image_end_bytes = on_disk.used_end << self._header.cluster_bits
        if repair == NOTHING:
            self._say_all(self._wrong_flags(image, on_disk))
            return
        if repair == ALL:
            self._check_tables(image, count)
        elif is_lost or count.blocks.is_broken:
            self._stop("ERROR need to rebuild refcount structures", IO_ERROR)
        anew = is_lost or count.must_rebuild
        if repair == ALL and anew:
            self._say_rebuilt(count, before)
        elif self._sums[CORRUPTION] or self._sums[LEAK]:
            # What was said of the counts so far is repaired now, and said again.
            self._sums = before
            self._compare(on_disk, count.references, repair)
        if repair == ALL:
            self._mend_all(count, anew=anew)
        else:
            self._free_leaks(count)

    def report(self, failure: str | None) -> Report:
        """What was found."""
        sums = self._sums + self._snapshot_sums
        size_bytes = self._header.size_bytes // rules.SECTOR_BYTES * rules.SECTOR_BYTES
        return Report(
            failure=failure,
            internal_error_count=sums[INTERNAL],
            corruption_count=sums[CORRUPTION],
            leak_count=sums[LEAK],
            corruption_fixed_count=sums[CORRUPTION_FIXED],
            leak_fixed_count=sums[LEAK_FIXED],
            image_end_bytes=self._image_end_bytes,
            total_cluster_count=self._header.geometry.cluster_count(size_bytes),
            allocated_cluster_count=self._statistics.allocated,
            fragmented_cluster_count=self._statistics.fragmented,
            compressed_cluster_count=self._statistics.compressed,
        )

    def _say(self, finding: Finding) -> None:
        self._sums[finding.kind.counts_as] += finding.error_count
        if finding.error_count:
            self._tell(finding)

    def _say_all(self, found: Iterable[Finding]) -> None:
        for finding in found:
            self._say(finding)

    def _stop(self, sentence: str, failure: str) -> NoReturn:
        self._say(remark(INTERNAL, sentence))
        raise Stopped(failure)

    def _read_snapshots(self, repair: str) -> snapshot_table.Found:
        """The snapshot table, and what is wrong with it. A repair lets the header count no more than it may at once,
        for what comes later relies on that; the rest of the table is written anew at its end.
        """
        header, mends = self._header, repair == ALL
        found = snapshot_table.read(self._layer, header, mends=mends)
        if found.failure is not None:
            sentence, advice, failure = found.failure
            self._say(remark(INTERNAL, f"qemu-img: {sentence}"))
            if advice:
                self._say(remark(REMARK, advice))
            raise Stopped(failure)
        for sentence in found.remarks:
            self._say(remark(REMARK, sentence))
        self._snapshot_sums[CORRUPTION] += found.cut_count
        if found.dropped_count:
            self._snapshot_sums[CORRUPTION_FIXED] += found.dropped_count
            self._header = header._replace(snapshot_count=len(found.snapshots))
            run(writes.switch(self._header), self._layer.file, Chain((), ()), Silent())
        for index, each in enumerate(found.snapshots):
            # Source: qcow2 specification, "Snapshots": version 3 demands the 64-bit state size and the disk size.
            if header.version >= 3 and not each.has_size:
                verb = "Repairing" if mends else "ERROR"
                self._tell(remark(CORRUPTION, f"{verb} snapshot table entry {index} is incomplete"))
                self._snapshot_sums[CORRUPTION] += 1
        return found

    def _load(self, found: snapshot_table.Found) -> Image:
        """The image, its tables wherever they lie; what is past the end of the file reads as zeroes."""
        path, header, file = self._layer.path, self._header, self._layer.file
        l1 = tables.decode_words(file.pread(header.l1_table_offset, header.l1_entry_count * 8))
        length = header.refcount_table_cluster_count << header.cluster_bits
        refcount_table = tables.decode_words(file.pread(header.refcount_table_offset, length))
        directory = bitmaps.directory(path, header)
        listed = found.snapshots, found.length_bytes
        return Image(path, header, l1, refcount_table, *listed, (), directory, (), file.size_bytes)

    def _compare(self, on_disk: OnDisk, references: References, repair: str = NOTHING) -> bool:
        """Say which counts are wrong. Returns: whether something in use is counted as free."""
        is_lost = False
        for wrong, unreadable in on_disk.windows(references):
            is_lost |= bool((wrong.counted == 0).any())
            self._say_all(wrong.findings(raises=repair == ALL, lowers=repair != NOTHING))
            if unreadable is not None and repair != ALL:
                self._say(unreadable)
        return is_lost

    def _wrong_flags(self, image: Image, counted: Counted) -> Iterator[Finding]:
        geometry = image.geometry
        yield rules.l1_flag_findings(
            geometry, image.l1, rules.find_wrong_l1_flags(geometry, image.l1, counted), counted
        )
        for held, times in active_windows(self._layer.file, image, counted):
            wrong = rules.find_wrong_flags(geometry, held.entries, counted)
            rows, columns = np.nonzero(wrong)
            yield rules.flag_findings(geometry, held.entries[rows, columns], times[rows], counted)

    def _check_tables(self, image: Image, count: Count) -> None:
        """Go no further when a repair could write into the wrong table."""
        header = image.header
        if count.must_rebuild:
            header = image.header._replace(refcount_table_cluster_count=0)
            image = image._replace(refcount_table=image.refcount_table[:0])
        # Only what a repair writes to matters; nothing is written to the tables of snapshots and bitmaps.
        image = image._replace(header=header, snapshots=(), snapshot_table_bytes=0, directory=None)
        try:
            check_layout(image)
        except BrokenTable as error:
            self._stop(f"ERROR {error.reason}", IO_ERROR)
        uses = count.references.uses(count.misplaced.offset >> header.cluster_bits)
        if (uses.astype(np.int64) != count.misplaced.times).any():
            self._stop("ERROR: Overlap check failed", IO_ERROR)

    def _say_rebuilt(self, count: Count, before: Counter[str]) -> None:
        """Say that all counts are right from here on, and what was wrong with them is repaired."""
        blocks = sum(each.error_count for each in count.blocks.findings if each.kind is not BLOCK_OUTSIDE)
        left = before[CORRUPTION] - blocks
        self._sums[CORRUPTION_FIXED] += self._sums[CORRUPTION] - left
        self._sums[LEAK_FIXED] += self._sums[LEAK]
        self._sums[CORRUPTION], self._sums[LEAK] = left, 0
        self._say(remark(REMARK, "Rebuilding refcount structure"))

    def _free_leaks(self, count: Count) -> None:
        image = count.image
        table = rules.readable_blocks(image.geometry, image.refcount_table, image.file_size_bytes)
        mender = Mender(self._layer, image._replace(refcount_table=table), count.references)
        mender.lower_counts()
        # What is wrong with the snapshot table does not make counts doubtful.
        wrong_count = self._sums[INTERNAL] + self._sums[CORRUPTION] + self._sums[LEAK]
        if not wrong_count:
            self._say_all(mender.mend_flags(sets=False) + mender.mend_flags(sets=True))
        else:
            on_disk = OnDisk(self._layer.file, mender.image)
            self._say_all(self._wrong_flags(mender.image, on_disk))
        mender.finish(all_is_right=not wrong_count and not self._snapshot_sums[CORRUPTION])

    def _mend_all(self, count: Count, *, anew: bool) -> None:
        mender = Mender(self._layer, count.image, count.references)
        mender.clear_misplaced(count.misplaced)
        old = structure_clusters(count.image, count.references) if anew else np.empty(0, np.int64)
        said = mender.mend(anew=anew)
        for cluster in np.unique(old[count.references.uses(old) == 0]).tolist():
            self._say(remark(REMARK, f"Repairing cluster {cluster} refcount=1 reference=0"))
        self._say_all(said)
        if self._snapshot_sums[CORRUPTION]:
            mender.replace_snapshots(count.image.snapshots)
            self._snapshot_sums[CORRUPTION_FIXED] += self._snapshot_sums.pop(CORRUPTION)
        mender.finish(all_is_right=not (self._sums[INTERNAL] or self._sums[CORRUPTION]))
