"""The first cluster: header, header extensions and the backing file name.

Every rule of the specification about these bytes is checked in `parse`, before memory is taken for anything that the
header points at. Extensions that nobody here knows are kept byte for byte. The standard library only: `img info`
stops after this file.

    cluster 0:  header | extensions ... end marker | (unused) | backing file name | (unused)
"""

from typing import Final, NamedTuple

from cowtree.errors import BrokenHeader, NotAnImage, TruncatedImage, UnknownFeature
from cowtree.qcow2.geometry import (
    CLUSTER_BITS_MAX,
    CLUSTER_BITS_MIN,
    L1_BYTES_MAX,
    L1_ENTRY_BYTES,
    REFCOUNT_ORDER_MAX,
    REFCOUNT_TABLE_BYTES_MAX,
    SNAPSHOT_COUNT_MAX,
    SUBCLUSTER_CLUSTER_BITS_MIN,
    Geometry,
    round_up,
)
from cowtree.records import record

MAGIC: Final = b"QFI\xfb"

# Source: qcow2 specification, "Header". All integers are big-endian.
HEADER_V2 = record(
    (0, "S4", "magic"),
    (4, ">u4", "version"),
    (8, ">u8", "backing_file_offset"),
    (16, ">u4", "backing_file_size"),
    (20, ">u4", "cluster_bits"),
    (24, ">u8", "size"),
    (32, ">u4", "crypt_method"),
    (36, ">u4", "l1_size"),
    (40, ">u8", "l1_table_offset"),
    (48, ">u8", "refcount_table_offset"),
    (56, ">u4", "refcount_table_clusters"),
    (60, ">u4", "nb_snapshots"),
    (64, ">u8", "snapshots_offset"),
    size=72,
)
HEADER_V3 = record(
    (0, ">u8", "incompatible_features"),
    (8, ">u8", "compatible_features"),
    (16, ">u8", "autoclear_features"),
    (24, ">u4", "refcount_order"),
    (28, ">u4", "header_length"),
    size=32,
)
V3_START = HEADER_V2.size_bytes
V3_LENGTH_MIN = V3_START + HEADER_V3.size_bytes
COMPRESSION_OFFSET = V3_LENGTH_MIN
EXTENSION = record((0, ">u4", "type"), (4, ">u4", "length"), size=8)
ENCRYPTION_HEADER = record((0, ">u8", "offset"), (8, ">u8", "length"), size=16)
FEATURE_NAME = record((0, ">u1", "type"), (1, ">u1", "bit"), (2, "S46", "name"), size=48)
BACKING_NAME_BYTES_MAX = 1023
SECTOR_BYTES = 512

# Header extension types.
END = 0
BACKING_FORMAT = 0xE2792ACA
FEATURE_NAMES = 0x6803F857
BITMAPS = 0x23852875
ENCRYPTION = 0x0537BE77
DATA_FILE_NAME = 0x44415441

# Feature bits.
DIRTY = 1 << 0
CORRUPT = 1 << 1
EXTERNAL_DATA_FILE = 1 << 2
COMPRESSION_TYPE = 1 << 3
EXTENDED_L2 = 1 << 4
KNOWN_INCOMPATIBLE = DIRTY | CORRUPT | EXTERNAL_DATA_FILE | COMPRESSION_TYPE | EXTENDED_L2
LAZY_REFCOUNTS = 1 << 0
AUTOCLEAR_BITMAPS = 1 << 0
AUTOCLEAR_RAW_DATA = 1 << 1
KNOWN_AUTOCLEAR = AUTOCLEAR_BITMAPS | AUTOCLEAR_RAW_DATA

ZLIB, ZSTD = 0, 1
COMPRESSION_NAMES = {ZLIB: "zlib", ZSTD: "zstd"}
CRYPT_NAMES = {1: "aes", 2: "luks"}

# What a new image says of feature bits, for older programs that do not know one. Kinds: 0 incompatible,
# 1 compatible, 2 autoclear.
FEATURE_TABLE = (
    (0, 0, b"dirty bit"),
    (0, 1, b"corrupt bit"),
    (0, 2, b"external data file"),
    (0, 3, b"compression type"),
    (0, 4, b"extended L2 entries"),
    (1, 0, b"lazy refcounts"),
    (2, 0, b"bitmaps"),
    (2, 1, b"raw external data"),
)
# The table would leave no room for a backing file name in a smaller cluster.
FEATURE_TABLE_CLUSTER_BYTES_MIN = 8192


class Extension(NamedTuple):
    """One header extension, kept as it stands in the file."""

    type: int
    data: bytes


class Header(NamedTuple):
    """Everything that the first cluster says."""

    version: int
    cluster_bits: int
    size_bytes: int
    l1_entry_count: int
    l1_table_offset: int
    refcount_table_offset: int
    refcount_table_cluster_count: int
    refcount_order: int = 4
    crypt_method: int = 0
    snapshot_count: int = 0
    snapshot_table_offset: int = 0
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    compression_type: int = ZLIB
    header_length: int = 112
    unknown_fields: bytes = b""
    extensions: tuple[Extension, ...] = ()
    backing_file_offset: int = 0
    backing_name_bytes: bytes = b""

    @property
    def geometry(self) -> Geometry:
        """The arithmetic of this image."""
        has_subclusters = bool(self.incompatible & EXTENDED_L2)
        has_data_file = bool(self.incompatible & EXTERNAL_DATA_FILE)
        return Geometry(self.version, self.cluster_bits, self.refcount_order, has_subclusters, has_data_file)

    @property
    def backing_file(self) -> str | None:
        """The backing file as the image names it; inert text until the gate resolves it."""
        return decode_name(self.backing_name_bytes) if self.backing_name_bytes else None

    @property
    def backing_format(self) -> str | None:
        """The format that the image declares for its backing file."""
        data = self.extension(BACKING_FORMAT)
        return decode_name(data) or None if data else None

    @property
    def data_file(self) -> str | None:
        """The external data file as the image names it."""
        data = self.extension(DATA_FILE_NAME)
        return decode_name(data) if data else None

    def extension(self, kind: int) -> bytes | None:
        """The bytes of the last extension of this type: it is the one that QEMU heeds."""
        return next((each.data for each in reversed(self.extensions) if each.type == kind), None)

    @property
    def encryption_header(self) -> tuple[int, int] | None:
        """Offset and length in bytes of the header of the encryption, if the image has one."""
        data = self.extension(ENCRYPTION)
        if data is None or len(data) != ENCRYPTION_HEADER.size_bytes:
            return None
        fields = ENCRYPTION_HEADER.integers(data)
        return fields["offset"], fields["length"]

    @property
    def is_dirty(self) -> bool:
        """Whether reference counts may be stale."""
        return bool(self.incompatible & DIRTY)

    @property
    def is_corrupt(self) -> bool:
        """Whether nothing may be written."""
        return bool(self.incompatible & CORRUPT)


def decode_name(text: bytes) -> str:
    """A name as it stands in an image, such as a file's or a snapshot's."""
    # Written by C: what follows the first zero byte is not part of it.
    return text.split(b"\0")[0].decode("utf-8", "surrogateescape")


def encode_name(name: str) -> bytes:
    """The bytes of a file name as the file system spells it."""
    return name.encode("utf-8", "surrogateescape")


def is_qcow2(data: bytes) -> bool:
    """Whether these first bytes are those of a qcow2 image."""
    return data[:4] == MAGIC


def first_cluster_bytes(data: bytes) -> int:
    """How many bytes of the file `parse` wants, told from its first 24."""
    cluster_bits = int.from_bytes(data[20:24], "big")
    return 1 << min(max(cluster_bits, CLUSTER_BITS_MIN), CLUSTER_BITS_MAX)


def wanted_bytes(data: bytes) -> int:
    """How many bytes of the first cluster `parse` wants, as far as its first ones tell; when that is more than these,
    the answer may grow. A first cluster of 2 MiB is nearly all unused.
    """
    two, cluster_size = HEADER_V2.integers(data), first_cluster_bytes(data)
    if two["backing_file_offset"]:
        return min(two["backing_file_offset"] + two["backing_file_size"], cluster_size)
    position = HEADER_V3.integers(data, V3_START)["header_length"] if two["version"] >= 3 else V3_START
    kind = -1
    while kind != END and position + EXTENSION.size_bytes <= len(data):
        kind, length = EXTENSION.integers(data, position).values()
        position += EXTENSION.size_bytes + round_up(length, 8)
    return min(position if kind == END else position + EXTENSION.size_bytes, cluster_size)


def parse(path: str, data: bytes, size_bytes: int) -> Header:
    """Read the first cluster of a file that is `size_bytes` long, and check where its tables lie.
    Raises: NotAnImage, TruncatedImage, BrokenHeader, UnknownFeature.
    """
    header = parse_fields(path, data, size_bytes)
    if header.snapshot_count > SNAPSHOT_COUNT_MAX:
        raise BrokenHeader(path=path, reason="Snapshot table too large")
    _check_offsets(path, header, _tables(header))
    _check_places(path, header, size_bytes)
    return header


def parse_fields(path: str, data: bytes, size_bytes: int) -> Header:
    """Read the first cluster of a file whose tables may lie outside it or on top of each other; its snapshot table may
    be anything.
    Raises: NotAnImage, TruncatedImage, BrokenHeader, UnknownFeature.
    Source: qcow2 specification, "Header" and "Header extensions".
    """
    if not is_qcow2(data):
        raise NotAnImage(path=path, format="qcow2")
    if size_bytes < V3_START:
        raise TruncatedImage(path=path, what="the header", offset=0, length=V3_START, size_bytes=size_bytes)
    fields = HEADER_V2.integers(data)
    if fields["version"] not in (2, 3):
        raise BrokenHeader(path=path, reason=f"Unsupported qcow2 version {fields['version']}")
    if not CLUSTER_BITS_MIN <= fields["cluster_bits"] <= CLUSTER_BITS_MAX:
        raise BrokenHeader(path=path, reason=f"Unsupported cluster size: 2^{fields['cluster_bits']}")
    header = _from_fields(path, data, size_bytes)
    header = header._replace(extensions=_parse_extensions(path, data, header))
    unknown = header.incompatible & ~KNOWN_INCOMPATIBLE
    if unknown:
        raise UnknownFeature(path=path, features=_name_features(header.extension(FEATURE_NAMES) or b"", unknown))
    _check_fields(path, header)
    _check_offsets(path, header, [table for table in _tables(header) if table[0] != SNAPSHOT_TABLE])
    return header


def _from_fields(path: str, data: bytes, size_bytes: int) -> Header:
    two = HEADER_V2.integers(data)
    header = Header(
        version=two["version"],
        cluster_bits=two["cluster_bits"],
        size_bytes=two["size"],
        l1_entry_count=two["l1_size"],
        l1_table_offset=two["l1_table_offset"],
        refcount_table_offset=two["refcount_table_offset"],
        refcount_table_cluster_count=two["refcount_table_clusters"],
        crypt_method=two["crypt_method"],
        snapshot_count=two["nb_snapshots"],
        snapshot_table_offset=two["snapshots_offset"],
        header_length=V3_START,
        backing_file_offset=two["backing_file_offset"],
    )
    if header.version >= 3:
        header = _with_version_3(path, header, data, size_bytes)
    return header._replace(backing_name_bytes=_backing_name(path, header, data, two["backing_file_size"]))


def _with_version_3(path: str, header: Header, data: bytes, size_bytes: int) -> Header:
    if size_bytes < V3_LENGTH_MIN:
        raise TruncatedImage(path=path, what="the header", offset=0, length=V3_LENGTH_MIN, size_bytes=size_bytes)
    three = HEADER_V3.integers(data, V3_START)
    length = three["header_length"]
    if length < V3_LENGTH_MIN:
        raise BrokenHeader(path=path, reason="qcow2 header too short")
    if length > 1 << header.cluster_bits:
        raise BrokenHeader(path=path, reason="qcow2 header exceeds cluster size")
    has_compression = length > COMPRESSION_OFFSET
    return header._replace(
        incompatible=three["incompatible_features"],
        compatible=three["compatible_features"],
        autoclear=three["autoclear_features"],
        refcount_order=three["refcount_order"],
        header_length=length,
        compression_type=data[COMPRESSION_OFFSET] if has_compression else ZLIB,
        unknown_fields=bytes(data[COMPRESSION_OFFSET + 1 : length]) if has_compression else b"",
    )


def _backing_name(path: str, header: Header, data: bytes, length: int) -> bytes:
    offset, cluster_size = header.backing_file_offset, 1 << header.cluster_bits
    if offset == 0:
        return b""
    if offset > cluster_size:
        raise BrokenHeader(path=path, reason="Invalid backing file offset")
    if length > min(BACKING_NAME_BYTES_MAX, cluster_size - offset):
        raise BrokenHeader(path=path, reason="Backing file name too long")
    return bytes(data[offset : offset + length]).split(b"\0")[0]


def _parse_extensions(path: str, data: bytes, header: Header) -> tuple[Extension, ...]:
    end = header.backing_file_offset or 1 << header.cluster_bits
    position, extensions = header.header_length, []
    if header.header_length > end:
        raise BrokenHeader(path=path, reason="Invalid backing file offset")
    while position + EXTENSION.size_bytes <= end:
        kind, length = EXTENSION.integers(data.ljust(position + 8, b"\0"), position).values()
        if kind == END:
            break
        position += EXTENSION.size_bytes
        if length > end - position:
            raise BrokenHeader(path=path, reason="Header extension too large")
        extensions.append(Extension(kind, bytes(data[position : position + length])))
        position += round_up(length, 8)
    return tuple(extensions)


def _name_features(table: bytes, unknown: int) -> str:
    names = []
    for start in range(0, len(table), FEATURE_NAME.size_bytes):
        # The last entry may be cut: what is missing is zero.
        entry = FEATURE_NAME.unpack(
            table[start : start + FEATURE_NAME.size_bytes].ljust(FEATURE_NAME.size_bytes, b"\0")
        )
        mask = 1 << (int(entry["bit"]) & 63)
        if entry["type"] == 0 and unknown & mask and isinstance(entry["name"], bytes):
            names.append(entry["name"].split(b"\0")[0].decode("utf-8", "replace"))
            unknown &= ~mask
    if unknown:
        names.append(f"Unknown incompatible feature: {unknown:x}")
    return ", ".join(names)


def _check_fields(path: str, header: Header) -> None:
    geometry = header.geometry
    has_type_bit = bool(header.incompatible & COMPRESSION_TYPE)
    rules = (
        (header.refcount_order <= REFCOUNT_ORDER_MAX, "Reference count entry width too large; may not exceed 64 bits"),
        (header.crypt_method in (0, *CRYPT_NAMES), f"Unsupported encryption method {header.crypt_method}"),
        (header.compression_type in COMPRESSION_NAMES, f"Unknown compression type: {header.compression_type}"),
        (has_type_bit == (header.compression_type != ZLIB), "Compression type does not match its feature bit"),
        (
            not geometry.has_subclusters or header.cluster_bits >= SUBCLUSTER_CLUSTER_BITS_MIN,
            "Unsupported subcluster size",
        ),
        (header.l1_entry_count * L1_ENTRY_BYTES <= L1_BYTES_MAX, "Active L1 table too large"),
        (geometry.l1_entry_count(header.size_bytes) < 1 << 31, "Image is too big"),
        (header.l1_entry_count >= geometry.l1_entry_count(header.size_bytes), "L1 table is too small"),
        (
            header.refcount_table_cluster_count << header.cluster_bits <= REFCOUNT_TABLE_BYTES_MAX,
            "Reference count table too large",
        ),
    )
    for holds, reason in rules:
        if not holds:
            raise BrokenHeader(path=path, reason=reason)


SNAPSHOT_TABLE: Final = "Snapshot table"


def _tables(header: Header) -> list[tuple[str, int, int]]:
    """What each table is called, where it lies, and how many bytes of it are known."""
    tables = [
        (
            "Reference count table",
            header.refcount_table_offset,
            header.refcount_table_cluster_count << header.cluster_bits,
        ),
        ("Active L1 table", header.l1_table_offset, header.l1_entry_count * L1_ENTRY_BYTES),
        (SNAPSHOT_TABLE, header.snapshot_table_offset, min(header.snapshot_count, 1)),
        ("Encryption header", *(header.encryption_header or (0, 0))),
    ]
    return [table for table in tables if table[2]]


def _check_offsets(path: str, header: Header, tables: list[tuple[str, int, int]]) -> None:
    for what, offset, length in tables:
        if offset % (1 << header.cluster_bits) or offset + length > 1 << 63:
            raise BrokenHeader(path=path, reason=f"{what} offset invalid")


def _check_places(path: str, header: Header, size_bytes: int) -> None:
    if not header.refcount_table_cluster_count:
        raise BrokenHeader(path=path, reason="Image does not contain a reference count table")
    cluster_size = 1 << header.cluster_bits
    end, last = cluster_size, "the header"
    for what, offset, length in sorted(_tables(header), key=lambda table: table[1]):
        if offset < end:
            raise BrokenHeader(path=path, reason=f"{what} offset invalid: byte {offset} lies inside {last}")
        # The last cluster of a file may be cut: what is missing reads as zeroes.
        if offset + length > round_up(size_bytes, cluster_size):
            raise TruncatedImage(path=path, what=what, offset=offset, length=length, size_bytes=size_bytes)
        end, last = offset + round_up(length, cluster_size), what


def feature_table() -> Extension:
    """The feature name table of a new image."""
    entries = (FEATURE_NAME.pack(type=kind, bit=bit, name=name) for kind, bit, name in FEATURE_TABLE)
    return Extension(FEATURE_NAMES, b"".join(entries))


def pack_extension(extension: Extension) -> bytes:
    """One extension with its head, padded to 8 bytes."""
    head = EXTENSION.pack(type=extension.type, length=len(extension.data))
    return head + extension.data.ljust(round_up(len(extension.data), 8), b"\0")


def pack_fields(header: Header) -> bytes:
    """The fixed part of the header, `header_length` bytes."""
    fields = HEADER_V2.pack(
        magic=MAGIC,
        version=header.version,
        backing_file_offset=header.backing_file_offset,
        backing_file_size=len(header.backing_name_bytes),
        cluster_bits=header.cluster_bits,
        size=header.size_bytes,
        crypt_method=header.crypt_method,
        l1_size=header.l1_entry_count,
        l1_table_offset=header.l1_table_offset,
        refcount_table_offset=header.refcount_table_offset,
        refcount_table_clusters=header.refcount_table_cluster_count,
        nb_snapshots=header.snapshot_count,
        snapshots_offset=header.snapshot_table_offset,
    )
    if header.version < 3:
        return fields
    fields += HEADER_V3.pack(
        incompatible_features=header.incompatible,
        compatible_features=header.compatible,
        autoclear_features=header.autoclear,
        refcount_order=header.refcount_order,
        header_length=header.header_length,
    )
    if header.header_length > COMPRESSION_OFFSET:
        fields += bytes([header.compression_type]) + header.unknown_fields
    return fields.ljust(header.header_length, b"\0")


def pack(header: Header) -> bytes:
    """The bytes of a new image's first cluster, without what lies unused behind its last field.
    The backing file name goes right behind the extensions, whatever offset the value carried.
    Raises: ValueError when it does not fit into the first cluster.
    """
    extensions = b"".join(map(pack_extension, header.extensions)) + bytes(EXTENSION.size_bytes)
    name_offset = header.header_length + len(extensions)
    header = header._replace(backing_file_offset=name_offset if header.backing_name_bytes else 0)
    data = pack_fields(header) + extensions + header.backing_name_bytes
    if len(data) > 1 << header.cluster_bits:
        raise ValueError("the header does not fit into one cluster")
    return data
