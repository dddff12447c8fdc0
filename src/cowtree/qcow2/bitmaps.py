"""The bitmap directory of persistent dirty bitmaps: read for information and for reference counts.

A program that changes guest data without keeping a bitmap must first mark it in use, durably: whoever opens the image
later then knows that the bitmap is inconsistent.
"""

from typing import NamedTuple

from cowtree.errors import BrokenTable
from cowtree.qcow2.geometry import round_up
from cowtree.qcow2.header import AUTOCLEAR_BITMAPS, BITMAPS, Header, decode_name
from cowtree.records import record

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
FLAGS_OFFSET = 12
IN_USE = 1 << 0
AUTO = 1 << 1
KNOWN_FLAGS = IN_USE | AUTO | 1 << 2
DIRTY_TRACKING = 1
NAME_BYTES_MAX = 1023
# Source: QEMU refuses more.
TABLE_ENTRY_COUNT_MAX = 1 << 27
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

    @property
    def is_auto(self) -> bool:
        """Whether it records the writes of the guest."""
        return bool(self.flags & AUTO)

    @property
    def is_in_use(self) -> bool:
        """Whether it was left inconsistent."""
        return bool(self.flags & IN_USE)

    def disk_bytes_max(self, cluster_bits: int) -> int:
        """The largest disk that its table can describe."""
        return self.table_entry_count << (cluster_bits + 3 + self.granularity_bits)


def directory(path: str, header: Header) -> Directory | None:
    """Where the directory is, or None when the image has no valid bitmaps.
    Raises: BrokenTable when the extension breaks a rule.
    """
    data = header.extension(BITMAPS)
    if data is None or not header.autoclear & AUTOCLEAR_BITMAPS:
        return None
    if len(data) != BITMAPS_EXTENSION.size_bytes:
        raise BrokenTable(path=path, reason="Invalid bitmaps extension length")
    fields = BITMAPS_EXTENSION.integers(data)
    found = Directory(fields["nb_bitmaps"], fields["bitmap_directory_offset"], fields["bitmap_directory_size"])
    if not 0 < found.bitmap_count <= BITMAP_COUNT_MAX or not 0 < found.length_bytes <= DIRECTORY_BYTES_MAX:
        raise BrokenTable(path=path, reason="Bitmap directory size invalid")
    if found.offset % (1 << header.cluster_bits):
        raise BrokenTable(path=path, reason="Invalid bitmap directory offset")
    return found


def parse(path: str, header: Header, data: bytes, bitmap_count: int) -> tuple[Bitmap, ...]:
    """Read the directory. Raises: BrokenTable when an entry breaks a rule, or the entries do not fill `data`.
    Source: qcow2 specification, "Bitmap directory".
    """
    found, position = [], 0
    for _ in range(bitmap_count):
        if position + BITMAP.size_bytes > len(data):
            raise BrokenTable(path=path, reason="Broken bitmap directory")
        fields = BITMAP.integers(data, position)
        name_start = position + BITMAP.size_bytes + fields["extra_data_size"]
        end = name_start + fields["name_size"]
        if round_up(end, 8) > len(data):
            raise BrokenTable(path=path, reason="Broken bitmap directory")
        name = decode_name(data[name_start:end])
        if not _is_sound(header, fields):
            raise BrokenTable(path=path, reason=f"Bitmap '{name}' doesn't satisfy the constraints")
        table = (fields["bitmap_table_offset"], fields["bitmap_table_size"])
        found.append(Bitmap(name, *table, fields["flags"], fields["granularity_bits"], position))
        position = round_up(end, 8)
    if position != len(data):
        raise BrokenTable(path=path, reason="Broken bitmap directory")
    return tuple(found)


def _is_sound(header: Header, fields: dict[str, int]) -> bool:
    offset = fields["bitmap_table_offset"]
    return (
        0 < fields["bitmap_table_size"] <= TABLE_ENTRY_COUNT_MAX
        and offset > 0
        and offset % (1 << header.cluster_bits) == 0
        and 9 <= fields["granularity_bits"] <= 31
        and fields["name_size"] <= NAME_BYTES_MAX
        and fields["type"] == DIRTY_TRACKING
        and fields["flags"] & ~KNOWN_FLAGS == 0
    )
