"""How each foreign format is opened with dissect.hypervisor: what is checked first, and where its blocks are.

Source: QEMU 7.2, block/vmdk.c, vhdx.c, vpc.c and vdi.c, for what an image must be to be opened and for its size.
"""

import os
import stat
import struct
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from typing import Any, Final

from dissect.hypervisor.disk.c_vhd import c_vhd
from dissect.hypervisor.disk.c_vhdx import METADATA_REGION_GUID, PARENT_LOCATOR_GUID, c_vhdx
from dissect.hypervisor.disk.vdi import VDI as VdiImage
from dissect.hypervisor.disk.vhd import DynamicDisk
from dissect.hypervisor.disk.vhdx import VHDX as VhdxImage
from dissect.hypervisor.disk.vmdk import DiskDescriptor, SparseDisk

from cowtree.errors import ChainError
from cowtree.storage.contract import FileSystem, Storage
from cowtree.storage.foreign import VDI, VHDX, VMDK, VPC, Blocks, Disk, Flat, Stream
from cowtree.storage.part import Part
from cowtree.units import SECTOR_BYTES

_MIB: Final = 1 << 20
_DESCRIPTOR_BYTES_MAX: Final = 1 << 20
_EXTENT_COUNT_MAX: Final = 1024
_NO_PARENT: Final = "ffffffff"
# Where the fields of a vpc footer begin: creator, size, cylinders, heads, sectors, type, checksum.
_FOOTER: Final = struct.Struct(">28x4s16xQHBBII")
_FOOTER_BYTES: Final = 512
_SIZED_CREATORS: Final = (b"win ", b"qem2", b"d2v ", b"tap\0", b"CTXS")
_GEOMETRY_MAX: Final = 65535 * 16 * 255
_FIXED, _DYNAMIC = 2, 3
_ELSEWHERE: Final = "convert it to qcow2 with the program that made it"


def open_disk(files: FileSystem, file: Storage, image_format: str, access: str) -> Disk:
    """The disk in a file. Raises: ChainError, and whatever the library stumbles over."""
    if image_format == VMDK:
        return _open_vmdk(files, file, access)
    openers: dict[str, Callable[[Storage], Disk]] = {VHDX: _open_vhdx, VPC: _open_vpc, VDI: _open_vdi}
    return openers[image_format](file)


def _check(holds: bool, reason: str) -> None:
    if not holds:
        raise ValueError(reason)


def _refuse(file: Storage, reason: str) -> ChainError:
    return ChainError(path=file.path, reason=reason, hint=_ELSEWHERE)


def _open_vdi(file: Storage) -> Disk:
    image = VdiImage(Stream(file))
    header = image.header
    _check(image.block_size == _MIB, f"unsupported block size {image.block_size}")
    _check(image.size <= image.number_of_blocks * image.block_size, "unsupported disk size")
    _check(int(image.type) in (1, 2), f"unsupported image type {int(image.type)}")
    if any(bytes(header.uuidLinkage)) or any(bytes(header.uuidParentModify)):
        raise _refuse(file, "vdi images that are built on others are not opened")
    stream = image.open()

    def read_sectors(first: int, count: int) -> bytes:
        stream.seek(first * SECTOR_BYTES)
        data: bytes = stream.read(count * SECTOR_BYTES)
        return data

    def holds(block: int) -> tuple[bool, int]:
        place = int(stream.map[block])
        _check(place >= -2, f"block {block} lies nowhere")
        return place >= 0, 1

    size_bytes = -(-image.size // SECTOR_BYTES) * SECTOR_BYTES
    is_in_order = all(place == block for block, place in enumerate(stream.map))
    if is_in_order and image.data_offset + size_bytes <= file.size_bytes:
        return Flat(Part(file, image.data_offset, size_bytes), is_own=False)
    stream.size = size_bytes
    return Blocks((size_bytes, _MIB, SECTOR_BYTES), holds, read_sectors)


def _open_vpc(file: Storage) -> Disk:
    end, footer = file.size_bytes, file.pread(0, _FOOTER_BYTES)
    if not footer.startswith(b"conectix"):
        footer = file.pread(max(end - _FOOTER_BYTES, 0), _FOOTER_BYTES)
    _check(footer.startswith(b"conectix"), "there is no footer")
    creator, size_bytes, cylinders, heads, sectors, kind, checksum = _FOOTER.unpack_from(footer)
    _check(checksum == ~sum(footer[:64] + footer[68:]) & 0xFFFFFFFF, "the footer has incorrect checksum")
    geometry = cylinders * heads * sectors
    if creator not in _SIZED_CREATORS and geometry != _GEOMETRY_MAX:
        size_bytes = geometry * SECTOR_BYTES
    size_bytes = size_bytes // SECTOR_BYTES * SECTOR_BYTES
    if kind == _FIXED:
        _check(size_bytes + _FOOTER_BYTES <= end, "the file ends before the disk")
        return Flat(Part(file, 0, size_bytes), is_own=False)
    if kind != _DYNAMIC:
        raise _refuse(file, "vpc images that are built on others are not opened")
    disk = DynamicDisk(Stream(file), c_vhd.footer(footer))
    block_bytes = int(disk.header.block_size)
    _check(disk.header.cookie == b"cxsparse", "there is no header of a dynamic disk")
    _check(_is_power(block_bytes) and _MIB // 2048 <= block_bytes <= 256 * _MIB, f"invalid block size {block_bytes}")
    _check(-(-size_bytes // block_bytes) <= disk.header.max_table_entries, "the page table is too small")
    return Blocks(
        (size_bytes, block_bytes, SECTOR_BYTES), lambda block: (disk.bat[block] is not None, 1), disk.read_sectors
    )


def _open_vhdx(file: Storage) -> Disk:
    for offset in (3 * 65536, 4 * 65536):
        count = int.from_bytes(file.pread(offset + 8, 4), "little")
        _check(count <= 2047, f"a region table of {count} entries")
    if _is_differencing(file):
        raise _refuse(file, "vhdx images that are built on others are not opened")
    image = VhdxImage(Stream(file))
    if any(bytes(image.header.log_guid)):
        raise _refuse(file, "the vhdx image contains a log that needs to be replayed")
    _check(image.sector_size in (512, 4096), f"unsupported sector size {image.sector_size}")
    block_bytes, size_bytes = int(image.block_size), int(image.size)
    _check(_is_power(block_bytes) and _MIB <= block_bytes <= 256 * _MIB, f"invalid block size {block_bytes}")
    _check(size_bytes % image.sector_size == 0 and size_bytes <= 64 << 40, f"invalid disk size {size_bytes}")
    absent = {
        int(state)
        for state in (
            c_vhdx.PAYLOAD_BLOCK_NOT_PRESENT,
            c_vhdx.PAYLOAD_BLOCK_UNDEFINED,
            c_vhdx.PAYLOAD_BLOCK_ZERO,
            c_vhdx.PAYLOAD_BLOCK_UNMAPPED,
        )
    }

    def holds(block: int) -> tuple[bool, int]:
        state = int(image.bat.pb(block).state)
        _check(state in absent or state == c_vhdx.PAYLOAD_BLOCK_FULLY_PRESENT, f"block {block} is in state {state}")
        return state not in absent, 1

    return Blocks((size_bytes, block_bytes, int(image.sector_size)), holds, image.read_sectors)


def _is_differencing(file: Storage) -> bool:
    """Whether the metadata of a vhdx image name a parent; the library would open it."""
    table = file.pread(3 * 65536, 65536)
    place = table.find(METADATA_REGION_GUID.bytes_le)
    if place < 0:
        return False
    return PARENT_LOCATOR_GUID.bytes_le in file.pread(int.from_bytes(table[place + 16 : place + 24], "little"), 65536)


def _open_vmdk(files: FileSystem, file: Storage, access: str) -> Disk:
    if file.pread(0, 4) in (b"KDMV", b"COWD"):
        return _open_sparse(file)
    text = file.pread(0, min(file.size_bytes, _DESCRIPTOR_BYTES_MAX)).split(b"\0", 1)[0]
    descriptor = DiskDescriptor.parse(text.decode("utf-8", "surrogateescape"))
    _refuse_parent(file, descriptor)
    _check(0 < len(descriptor.extents) <= _EXTENT_COUNT_MAX, "the descriptor names no extents")
    parts: list[Disk] = []
    try:
        for extent in descriptor.extents:
            parts.append(_open_extent(files, file, extent, access))
    except BaseException:
        _Joined(parts).close()
        raise
    return _Joined(parts)


def _refuse_parent(file: Storage, descriptor: Any) -> None:
    if descriptor.attr.get("parentCID", _NO_PARENT).lower() != _NO_PARENT:
        raise _refuse(file, "vmdk images that are built on others are not opened")


def _open_extent(files: FileSystem, holder: Storage, extent: Any, access: str) -> Disk:
    """Open the file of one extent: a regular one in the folder of the descriptor, whatever the descriptor says."""
    name = extent.filename or ""
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise _refuse(holder, f"the extent '{name}' is not a file of the same folder")
    if extent.access_mode != "RW" or extent.type not in ("FLAT", "VMFS", "SPARSE"):
        raise _refuse(holder, f"Unsupported extent type '{extent.access_mode} {extent.type}'")
    path = os.path.join(os.path.dirname(holder.path), name)
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        raise _refuse(holder, f"the extent '{name}' is not a regular file")
    file = files.open(path, access)
    try:
        if extent.type == "SPARSE":
            return _Owned(file, _open_sparse(file))
        start, size_bytes = (extent.start_sector or 0) * SECTOR_BYTES, extent.sectors * SECTOR_BYTES
        _check(start + size_bytes <= file.size_bytes, f"the extent '{name}' is shorter than the descriptor says")
        return Flat(Part(file, start, size_bytes), is_own=True)
    except BaseException:
        file.close()
        raise


def _open_sparse(file: Storage) -> Disk:
    """Open an extent with grain tables. Sectors are counted from its start."""
    _check_sparse_header(file.pread(0, SECTOR_BYTES))
    disk = SparseDisk(Stream(file))
    header = disk.header
    _check_sparse_header(bytes(header.hdr.dumps()))
    if disk.descriptor:
        _refuse_parent(file, disk.descriptor)
    table_size = int(header.num_grain_table_entries)

    def holds(grain: int) -> tuple[bool, int]:
        directory, entry = divmod(grain, table_size)
        table = disk._lookup_grain_table(directory)
        if table is None or max(table[entry:]) <= 1:
            return False, table_size - entry
        return table[entry] > 1, 1

    grain_bytes = int(header.grain_size) * SECTOR_BYTES
    return Blocks((int(header.capacity) * SECTOR_BYTES, grain_bytes, SECTOR_BYTES), holds, disk.read_sectors)


def _check_sparse_header(data: bytes) -> None:
    """Refuse numbers that would cost memory or time without end."""
    magic, version, flags, capacity, grain_sectors, _, _, entry_count = struct.unpack_from("<4sIIQQQQI", data)
    _check(magic == b"KDMV", f"unsupported kind of extent {magic!r}")
    _check(1 <= version <= 3, f"unsupported version {version}")
    _check(1 <= entry_count <= 512, f"a grain table of {entry_count} entries")
    is_compressed = bool(flags & 1 << 16)
    grain_sectors_max = 128 if is_compressed else 16384
    _check(1 <= grain_sectors <= grain_sectors_max, f"grains of {grain_sectors} sectors")
    _check(capacity <= entry_count * grain_sectors << 21, f"a disk of {capacity} sectors")


def _is_power(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


class _Owned:
    """A disk together with the file that was opened for it."""

    def __init__(self, file: Storage, disk: Disk) -> None:
        self._file = file
        self.size_bytes, self.run, self.read = disk.size_bytes, disk.run, disk.read

    def close(self) -> None:
        self._file.close()


class _Joined:
    """Disks one behind the other."""

    def __init__(self, parts: list[Disk]) -> None:
        self._parts = parts
        self._starts = list(accumulate((each.size_bytes for each in parts), initial=0))
        self.size_bytes = self._starts[-1]

    def run(self, offset: int) -> tuple[int, bool]:
        start, part = self._find(offset)
        end, is_data = part.run(offset - start)
        return min(start + end, start + part.size_bytes), is_data

    def read(self, offset: int, length: int) -> bytes:
        start, part = self._find(offset)
        return part.read(offset - start, length)

    def close(self) -> None:
        for each in self._parts:
            each.close()

    def _find(self, offset: int) -> tuple[int, Disk]:
        index = bisect_right(self._starts, offset) - 1
        return self._starts[index], self._parts[index]
