"""The bitmap directory of persistent dirty bitmaps, as it stands in the file. The standard library only.

    header extension  ->  directory  ->  bitmap table  ->  clusters of bits

A program that changes guest data without keeping a bitmap must first mark it in use, durably: whoever opens the image
later then knows that the bitmap is inconsistent.
"""

from collections.abc import Iterable
from typing import NamedTuple

from cowtree.errors import BrokenTable
from cowtree.qcow2.geometry import ceil_div, round_up
from cowtree.qcow2.header import AUTOCLEAR_BITMAPS, BITMAPS, Header, decode_name, encode_name
from cowtree.records import record
from cowtree.units import SECTOR_BYTES

# Source: qcow2 specification, "Bitmaps extension" and "Bitmap directory".
BITMAPS_EXTENSION = record(
    (0, ">u4", "nb_bitmaps"),
    (4, ">u4", "reserved"),
    (8, ">u8", "bitmap_directory_size"),
    (16, ">u8", "bitmap_directory_offset"),
    size=24,
)
BITMAP = record(
    (0, ">u8", "bitmap_table_offset"),
    (8, ">u4", "bitmap_table_size"),
    (12, ">u4", "flags"),
    (16, ">u1", "type"),
    (17, ">u1", "granularity_bits"),
    (18, ">u2", "name_size"),
    (20, ">u4", "extra_data_size"),
    size=24,
)
TABLE_SIZE_OFFSET = 8
FLAGS_OFFSET = 12
IN_USE = 1 << 0
AUTO = 1 << 1
EXTRA_DATA_COMPATIBLE = 1 << 2
KNOWN_FLAGS = IN_USE | AUTO | EXTRA_DATA_COMPATIBLE
DIRTY_TRACKING = 1
NAME_BYTES_MAX = 1023
GRANULARITY_BITS_MIN, GRANULARITY_BITS_MAX = 9, 31
# Source: QEMU refuses more.
TABLE_ENTRY_COUNT_MAX = 1 << 27
DATA_BYTES_MAX = 1 << 29
BITMAP_COUNT_MAX = 65535
DIRECTORY_BYTES_MAX = BITMAP_COUNT_MAX * 1024


class Directory(NamedTuple):
    """Where the bitmap directory lies."""

    bitmap_count: int
    offset: int
    length_bytes: int


class Bitmap(NamedTuple):
    """One persistent bitmap; `entry_offset` is its place in the directory."""

    name: str
    table_offset: int
    table_entry_count: int
    flags: int
    granularity_bits: int
    entry_offset: int
    extra_data: bytes = b""

    @property
    def is_auto(self) -> bool:
        """Whether it records the writes of the guest."""
        return bool(self.flags & AUTO)

    @property
    def is_in_use(self) -> bool:
        """Whether it was left inconsistent."""
        return bool(self.flags & IN_USE)

    @property
    def has_foreign_data(self) -> bool:
        """Whether it means something that nobody here knows, and must not be used."""
        return bool(self.extra_data) and not self.flags & EXTRA_DATA_COMPATIBLE

    def disk_bytes_max(self, cluster_bits: int) -> int:
        """The largest disk that its table can describe."""
        return self.table_entry_count << (cluster_bits + 3 + self.granularity_bits)

    @property
    def entry_bytes(self) -> int:
        """How much of the directory it takes."""
        return round_up(BITMAP.size_bytes + len(self.extra_data) + len(encode_name(self.name)), 8)


def disk_size_bytes(header: Header) -> int:
    """The size of the disk that bitmaps describe: whole sectors."""
    return header.size_bytes // SECTOR_BYTES * SECTOR_BYTES


def bit_count(size_bytes: int, granularity_bits: int) -> int:
    """How many bits describe a disk."""
    return ceil_div(size_bytes, 1 << granularity_bits)


def table_entry_count(size_bytes: int, granularity_bits: int, cluster_bits: int) -> int:
    """How many clusters the bits of a disk fill."""
    return ceil_div(bit_count(size_bytes, granularity_bits), 8 << cluster_bits)


def directory(path: str, header: Header) -> Directory | None:
    """Where the directory is, or None when the image has no valid bitmaps.
    Raises: BrokenTable when the extension breaks a rule.
    """
    data = header.extension(BITMAPS)
    if data is None:
        return None
    if len(data) != BITMAPS_EXTENSION.size_bytes:
        raise BrokenTable(path=path, reason="bitmaps_ext: Invalid extension length")
    if not header.autoclear & AUTOCLEAR_BITMAPS:
        return None
    fields = BITMAPS_EXTENSION.integers(data)
    reason = _broken_rule(header, fields)
    if reason:
        raise BrokenTable(path=path, reason=reason)
    return Directory(fields["nb_bitmaps"], fields["bitmap_directory_offset"], fields["bitmap_directory_size"])


def _broken_rule(header: Header, fields: dict[str, int]) -> str:
    """What is wrong with the extension, in QEMU's words; empty when nothing is."""
    count, length = fields["nb_bitmaps"], fields["bitmap_directory_size"]
    rules = (
        (fields["reserved"] != 0, "bitmaps_ext: Reserved field is not zero"),
        (
            count > BITMAP_COUNT_MAX,
            f"bitmaps_ext: Image has {count} bitmaps, exceeding the QEMU supported maximum of {BITMAP_COUNT_MAX}",
        ),
        (count == 0, "found bitmaps extension with zero bitmaps"),
        (
            fields["bitmap_directory_offset"] % (1 << header.cluster_bits) != 0,
            "bitmaps_ext: invalid bitmap directory offset",
        ),
        (
            length > DIRECTORY_BYTES_MAX,
            f"bitmaps_ext: bitmap directory size ({length}) exceeds the maximum supported size ({DIRECTORY_BYTES_MAX})",
        ),
        (length == 0, "Requested bitmap directory size is zero"),
    )
    return next((reason for is_broken, reason in rules if is_broken), "")


def parse(path: str, header: Header, data: bytes, bitmap_count: int) -> tuple[Bitmap, ...]:
    """Read the directory. Raises: BrokenTable when an entry breaks a rule, or the entries do not fill `data`.
    Source: qcow2 specification, "Bitmap directory".
    """
    found: list[Bitmap] = []
    position, reason = 0, ""
    while position < len(data) and not reason:
        if position + BITMAP.size_bytes > len(data):
            reason = "Broken bitmap directory"
        elif len(found) == bitmap_count:
            reason = "More bitmaps found than specified in header extension"
        else:
            bitmap, length, reason = _parse_entry(header, data, position)
            found.append(bitmap)
            position += length
    if not reason and len(found) < bitmap_count:
        reason = "Less bitmaps found than specified in header extension"
    if reason:
        raise BrokenTable(path=path, reason=reason)
    return tuple(found)


def _parse_entry(header: Header, data: bytes, position: int) -> tuple[Bitmap, int, str]:
    """Read one entry. Returns: it, its length, and what is wrong with it."""
    fields = BITMAP.integers(data, position)
    extra_start = position + BITMAP.size_bytes
    name_start = extra_start + fields["extra_data_size"]
    end = name_start + fields["name_size"]
    bitmap = Bitmap(
        decode_name(data[name_start:end]),
        fields["bitmap_table_offset"],
        fields["bitmap_table_size"],
        fields["flags"],
        fields["granularity_bits"],
        position,
        data[extra_start:name_start],
    )
    length = round_up(end - position, 8)
    if position + length > len(data):
        return bitmap, length, "Broken bitmap directory"
    if fields["type"] != DIRTY_TRACKING or fields["name_size"] > NAME_BYTES_MAX or not _is_sound(header, bitmap):
        return bitmap, length, f"Bitmap '{bitmap.name}' doesn't satisfy the constraints"
    count = table_entry_count(disk_size_bytes(header), bitmap.granularity_bits, header.cluster_bits)
    if not bitmap.is_in_use and bitmap.table_entry_count != count:
        return bitmap, length, f"Could not read bitmap '{bitmap.name}' from image: Invalid argument"
    return bitmap, length, ""


def _is_sound(header: Header, bitmap: Bitmap) -> bool:
    bits = header.cluster_bits
    return (
        0 < bitmap.table_entry_count <= TABLE_ENTRY_COUNT_MAX
        and bitmap.table_entry_count << bits <= DATA_BYTES_MAX
        and bitmap.table_offset > 0
        and bitmap.table_offset % (1 << bits) == 0
        and GRANULARITY_BITS_MIN <= bitmap.granularity_bits <= GRANULARITY_BITS_MAX
        and bitmap.flags & ~KNOWN_FLAGS == 0
        # One that was not kept when the disk grew may be too short.
        and (bitmap.is_in_use or bitmap.disk_bytes_max(bits) >= disk_size_bytes(header))
    )


def placed(bitmaps: Iterable[Bitmap]) -> tuple[Bitmap, ...]:
    """The same bitmaps, each with the place that it has in a directory of just these."""
    found, position = [], 0
    for each in bitmaps:
        found.append(each._replace(entry_offset=position))
        position += each.entry_bytes
    return tuple(found)


def pack(bitmaps: Iterable[Bitmap]) -> bytes:
    """The bytes of a directory."""
    return b"".join(map(_pack_entry, bitmaps))


def _pack_entry(bitmap: Bitmap) -> bytes:
    name = encode_name(bitmap.name)
    head = BITMAP.pack(
        bitmap_table_offset=bitmap.table_offset,
        bitmap_table_size=bitmap.table_entry_count,
        flags=bitmap.flags,
        type=DIRTY_TRACKING,
        granularity_bits=bitmap.granularity_bits,
        name_size=len(name),
        extra_data_size=len(bitmap.extra_data),
    )
    return (head + bitmap.extra_data + name).ljust(bitmap.entry_bytes, b"\0")
