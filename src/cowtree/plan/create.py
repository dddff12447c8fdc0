"""New images: all the bytes of an empty one.

    header | refcount table | refcount blocks | L1 table | L2 tables | guest data | header of the encryption

Guest data and its tables are there only when clusters are allocated beforehand; with an external data file the guest
data is not there either. A LUKS volume begins with the header of the encryption. For common sizes each of the first
four is one cluster, and the file ends with the last L1 entry, or with the cluster in which the encryption's header
ends: what QEMU makes, byte for byte, but for random keys.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Final, NamedTuple

import numpy as np

from cowtree.errors import WrongUse
from cowtree.extents import Offsets
from cowtree.luks.volume import Encryption
from cowtree.qcow2 import header as qcow2
from cowtree.qcow2 import refcounts, tables
from cowtree.qcow2.geometry import L1_BYTES_MAX, L1_ENTRY_BYTES, REFCOUNT_TABLE_BYTES_MAX, Geometry, ceil_div
from cowtree.qcow2.header import Extension, Header
from cowtree.qcow2.lineage import BaseRecord, with_record
from cowtree.qcow2.moment import Moment, with_moment
from cowtree.steps import Allocate, Step, Truncate, Write
from cowtree.units import SECTOR_BYTES

# What is allocated beforehand: nothing, the tables, also the space on disk, or zeroes that are really written.
OFF, METADATA, FALLOC, FULL = PREALLOCATIONS = ("off", "metadata", "falloc", "full")
ENTRIES_PER_WINDOW: Final = 1 << 20
FILL_BYTES: Final = 1 << 20
FIRST_BLOCK_BYTES: Final = 4096
# Table entries have 56 bits for a host offset.
HOST_BYTES_MAX: Final = 1 << 56
_CRYPT_METHODS: Final = {name: number for number, name in qcow2.CRYPT_NAMES.items()}


class NewImage(NamedTuple):
    """What a new image shall be. Units: bytes; `data_file` is an external one, as the header shall name it."""

    path: str
    format: str
    size_bytes: int
    cluster_bits: int = 16
    version: int = 3
    refcount_order: int = 4
    lazy_refcounts: bool = False
    compression_type: int = qcow2.ZLIB
    backing_file: str | None = None
    backing_format: str | None = None
    preallocation: str = OFF
    has_subclusters: bool = False
    data_file: str | None = None
    is_data_file_raw: bool = False
    encryption: Encryption | None = None
    base_record: BaseRecord | None = None
    moment: Moment | None = None

    @property
    def geometry(self) -> Geometry:
        """The arithmetic of a new qcow2 image."""
        has_data_file = self.data_file is not None
        return Geometry(self.version, self.cluster_bits, self.refcount_order, self.has_subclusters, has_data_file)


class Layout(NamedTuple):
    """Where everything goes. Units: clusters, but bytes where the name says so; `data` is 0 in an external file."""

    refcount_table: int
    refcount_blocks: int
    l1: int
    l2: int
    data: int
    encryption: int
    end_bytes: int

    @property
    def l1_cluster(self) -> int:
        """The first cluster of the L1 table."""
        return 1 + self.refcount_table + self.refcount_blocks

    @property
    def data_cluster(self) -> int:
        """The first cluster of guest data."""
        return self.l1_cluster + self.l1 + self.l2

    @property
    def encryption_cluster(self) -> int:
        """The first cluster of the header of the encryption."""
        return self.data_cluster + self.data


def create_steps(new: NewImage) -> Iterator[Step]:
    """The steps that turn an empty file into the new image; the caller flushes.
    Raises: WrongUse, before the first step, when the image or the name would be too large.
    """
    if new.format != "qcow2":
        return chain(raw_steps(_header_bytes(new) + new.size_bytes, new.preallocation), _encryption_writes(new, 0))
    layout, geometry = _place(new), new.geometry
    try:
        first = qcow2.pack(_header(new, layout))
    except ValueError as error:
        raise WrongUse(reason="the backing file name does not fit into the first cluster") from error
    size = geometry.cluster_size_bytes
    head: list[Step] = [Truncate(layout.end_bytes), Write(0, first.ljust(size, b"\0"))]
    # Space on disk is reserved for the tables too, but only guest data is filled up.
    start = layout.data_cluster * size if new.preallocation == FULL else 0
    end = layout.encryption_cluster * size
    data = _fill(start, end - start, new.preallocation) if layout.data else ()
    rest = _encryption_writes(new, layout.encryption_cluster * size)
    refcount_writes, l1_writes = _refcount_writes(geometry, layout), _l1_writes(geometry, layout)
    return chain(head, refcount_writes, l1_writes, _l2_writes(new, layout), data, rest)


def raw_steps(size_bytes: int, preallocation: str) -> Iterator[Step]:
    """The steps that make an empty file a raw image, or an external data file. Its first block is there, as in those
    that QEMU makes, which finds out by it in which units the file can be read.
    """
    yield Truncate(size_bytes)
    if preallocation == OFF and size_bytes:
        yield Write(0, bytes(SECTOR_BYTES if size_bytes < FIRST_BLOCK_BYTES else FIRST_BLOCK_BYTES))
    yield from _fill(0, size_bytes, preallocation)


def _header_bytes(new: NewImage) -> int:
    """How long the header of the encryption is."""
    return new.encryption.header_bytes if new.encryption else 0


def _encryption_writes(new: NewImage, offset: int) -> Iterator[Step]:
    """The header of the encryption; the slots that hold no key stay zeroes."""
    if new.encryption and new.encryption.header:
        yield Write(offset, new.encryption.header)


def _fill(start: int, length: int, preallocation: str) -> Iterator[Step]:
    if preallocation == FALLOC and length:
        yield Allocate(start, length)
    if preallocation == FULL:
        zeroes = bytes(min(FILL_BYTES, length))
        for offset in range(0, length, FILL_BYTES):
            yield Write(start + offset, zeroes[: length - offset])


def _place(new: NewImage) -> Layout:
    geometry = new.geometry
    l1_bytes = geometry.l1_entry_count(new.size_bytes) * L1_ENTRY_BYTES
    is_filled = new.preallocation != OFF
    l1 = geometry.cluster_count(l1_bytes)
    l2 = geometry.l1_entry_count(new.size_bytes) if is_filled else 0
    data = geometry.cluster_count(new.size_bytes) if is_filled and new.data_file is None else 0
    encryption = geometry.cluster_count(_header_bytes(new))
    table = blocks = 1
    while True:
        used = 1 + table + blocks + l1 + l2 + data + encryption
        needed = ceil_div(used, geometry.refcount_block_entry_count)
        if needed <= blocks:
            break
        blocks, table = needed, geometry.cluster_count(needed * 8)
    end_bytes = used << new.cluster_bits
    if l1_bytes > L1_BYTES_MAX or table << new.cluster_bits > REFCOUNT_TABLE_BYTES_MAX or end_bytes > HOST_BYTES_MAX:
        larger = "(try using a larger cluster size)"
        raise WrongUse(reason=f"The image size is too large for file format '{new.format}' {larger}")
    l1_end = ((1 + table + blocks) << new.cluster_bits) + l1_bytes
    return Layout(table, blocks, l1, l2, data, encryption, end_bytes if l2 or encryption else l1_end)


def _header(new: NewImage, layout: Layout) -> Header:
    geometry = new.geometry
    features = (
        (qcow2.EXTERNAL_DATA_FILE, new.data_file is not None),
        (qcow2.COMPRESSION_TYPE, new.compression_type != qcow2.ZLIB),
        (qcow2.EXTENDED_L2, new.has_subclusters),
    )
    header = Header(
        version=new.version,
        cluster_bits=new.cluster_bits,
        size_bytes=new.size_bytes,
        l1_entry_count=geometry.l1_entry_count(new.size_bytes),
        l1_table_offset=layout.l1_cluster << new.cluster_bits if new.size_bytes else 0,
        refcount_table_offset=geometry.cluster_size_bytes,
        refcount_table_cluster_count=layout.refcount_table,
        refcount_order=new.refcount_order,
        crypt_method=_CRYPT_METHODS[new.encryption.format] if new.encryption else 0,
        incompatible=sum(bit for bit, is_set in features if is_set),
        compatible=qcow2.LAZY_REFCOUNTS if new.lazy_refcounts else 0,
        autoclear=qcow2.AUTOCLEAR_RAW_DATA if new.is_data_file_raw else 0,
        compression_type=new.compression_type,
        header_length=112 if new.version >= 3 else qcow2.V3_START,
        unknown_fields=bytes(7) if new.version >= 3 else b"",
        extensions=_extensions(new, layout.encryption_cluster << new.cluster_bits),
        backing_name_bytes=qcow2.encode_name(new.backing_file) if new.backing_file else b"",
    )
    return with_moment(with_record(header, new.base_record), new.moment)


def _extensions(new: NewImage, encryption_offset: int) -> tuple[Extension, ...]:
    found = []
    if new.backing_file and new.backing_format:
        found.append(Extension(qcow2.BACKING_FORMAT, new.backing_format.encode()))
    if new.data_file is not None:
        found.append(Extension(qcow2.DATA_FILE_NAME, qcow2.encode_name(new.data_file)))
    if length := _header_bytes(new):
        found.append(encryption_extension(encryption_offset, length))
    if new.version >= 3 and 1 << new.cluster_bits >= qcow2.FEATURE_TABLE_CLUSTER_BYTES_MIN:
        found.append(qcow2.feature_table())
    return tuple(found)


def encryption_extension(offset: int, length: int) -> Extension:
    """What says where the header of the encryption lies. Units: bytes."""
    return Extension(qcow2.ENCRYPTION, qcow2.ENCRYPTION_HEADER.pack(offset=offset, length=length))


def _windows(count: int, step: int) -> Iterator[Offsets]:
    """The numbers from 0 to `count`, so many at a time."""
    for first in range(0, count, step):
        yield np.arange(first, min(first + step, count), dtype=np.int64)


def _refcount_writes(geometry: Geometry, layout: Layout) -> Iterator[Step]:
    """The refcount table and its blocks; every cluster of the file counts 1."""
    size, per_block = geometry.cluster_size_bytes, geometry.refcount_block_entry_count
    first_block = (1 + layout.refcount_table) * size
    blocks = first_block + size * np.arange(layout.refcount_blocks, dtype=np.int64)
    table = tables.encode_words(blocks.astype(np.uint64))
    yield Write(size, table.ljust(layout.refcount_table * size, b"\0"))
    used = layout.encryption_cluster + layout.encryption
    for index in _windows(layout.refcount_blocks, max(ENTRIES_PER_WINDOW // per_block, 1)):
        clusters = np.arange(index[0] * per_block, (index[-1] + 1) * per_block)
        counts = (clusters < used).astype(refcounts.count_type(geometry))
        yield Write(first_block + int(index[0]) * size, refcounts.encode(geometry, counts))


def _l1_writes(geometry: Geometry, layout: Layout) -> Iterator[Step]:
    if layout.l2:
        first = layout.l1_cluster + layout.l1
        hosts = np.arange(first, first + layout.l2, dtype=np.uint64) << np.uint64(geometry.cluster_bits)
        yield Write(layout.l1_cluster << geometry.cluster_bits, tables.encode_words(hosts | tables.COPIED))


def _l2_writes(new: NewImage, layout: Layout) -> Iterator[Step]:
    """L2 tables that map the guest's clusters in order. Subclusters are left unallocated: a backing file shows."""
    geometry, bits = new.geometry, new.cluster_bits
    per_table, data_count = geometry.l2_entry_count, geometry.cluster_count(new.size_bytes)
    first_host = layout.data_cluster if layout.data else 0
    for index in _windows(layout.l2, max(ENTRIES_PER_WINDOW // per_table, 1)):
        guest = np.arange(index[0] * per_table, (index[-1] + 1) * per_table)
        entries = ((first_host + guest) << bits).astype(np.uint64) | tables.COPIED
        entries[guest >= data_count] = 0
        if geometry.has_subclusters:
            entries = np.stack((entries, np.zeros_like(entries)), axis=1).ravel()
        yield Write((layout.l1_cluster + layout.l1 + int(index[0])) << bits, tables.encode_words(entries))
