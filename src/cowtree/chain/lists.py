"""The lists that a header points at: internal snapshots and persistent bitmaps of one open layer.

The standard library only, for `img info` reads them and no other table.
"""

from typing import Final

from cowtree.chain.gate import Layer
from cowtree.errors import TruncatedImage
from cowtree.qcow2 import bitmaps, snapshots
from cowtree.qcow2.bitmaps import Bitmap, Directory
from cowtree.qcow2.geometry import round_up
from cowtree.qcow2.header import Header
from cowtree.qcow2.snapshots import Snapshot

# Identifier and name are at most 64 KiB each, extra data at most 1 KiB.
SNAPSHOT_BYTES_MAX: Final = snapshots.SNAPSHOT.size_bytes + 132 * 1024


def read_snapshots(layer: Layer, header: Header) -> tuple[tuple[Snapshot, ...], int]:
    """Read the snapshot table. Returns: the snapshots, and the length of the table in bytes.
    Raises: BrokenTable.
    """
    if not header.snapshot_count:
        return (), 0
    room = max(layer.file.size_bytes - header.snapshot_table_offset, 0)
    length = min(room, snapshots.TABLE_BYTES_MAX, header.snapshot_count * SNAPSHOT_BYTES_MAX)
    return snapshots.parse(layer.path, header, layer.file.pread(header.snapshot_table_offset, length))


def read_bitmaps(layer: Layer, header: Header) -> tuple[Directory | None, tuple[Bitmap, ...]]:
    """Read the bitmap directory. Returns: where it lies, and the bitmaps; None and none when there are no valid ones.
    Raises: BrokenTable, TruncatedImage.
    """
    directory = bitmaps.directory(layer.path, header)
    if directory is None:
        return None, ()
    offset, length, size_bytes = directory.offset, directory.length_bytes, layer.file.size_bytes
    if offset + length > round_up(size_bytes, 1 << header.cluster_bits):
        what = "the bitmap directory"
        raise TruncatedImage(path=layer.path, what=what, offset=offset, length=length, size_bytes=size_bytes)
    return directory, bitmaps.parse(layer.path, header, layer.file.pread(offset, length), directory.bitmap_count)
