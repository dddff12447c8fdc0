"""Disks in formats of other hypervisors, read and never written: vmdk, vhdx, vpc (VHD) and vdi.

dissect.hypervisor reads their headers and tables, when such an image is opened and not before. It sees one stream of
bounded reads and opens no file itself. No block is read across its border, and holes are never asked for.
Images that are built on others, or whose log has to be replayed first, are refused.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

from cowtree.errors import BrokenHeader, BrokenTable, ChainError, CowtreeError
from cowtree.storage.contract import FileSystem, Span, Storage
from cowtree.storage.passing import PassingFile

VMDK, VHDX, VPC, VDI = "vmdk", "vhdx", "vpc", "vdi"
FORMATS: Final = (VMDK, VHDX, VPC, VDI)
PROBE_BYTES: Final = 512
# No table that anybody makes is longer; a longer one is a number that somebody wrote into a header.
READ_BYTES_MAX: Final = 64 << 20
VDI_MAGIC: Final = (0xBEDA107F).to_bytes(4, "little")
_DESCRIPTOR: Final = re.compile(rb"(?:#[^\n]*\n| *\r?\n)*version=[123]\r?\n")
# Each holds its own file, and all of them are found in its folder.
Opener = Callable[[FileSystem, Storage, str], "Disk"]


class Disk(Protocol):
    """What a guest sees of an image. Offsets and lengths are bytes."""

    @property
    def size_bytes(self) -> int:
        """The size of the disk."""

    def run(self, offset: int) -> tuple[int, bool]:
        """Where the block, or the row of holes, that begins here or before ends, and whether it is data."""

    def read(self, offset: int, length: int) -> bytes:
        """Read a part of one block of data; short where the file ends."""

    def close(self) -> None:
        """Give the other files back that it has opened."""


def probe(data: bytes) -> str | None:
    """Tell the format from the first bytes as QEMU does, which does not look at the end: a fixed vpc image is found
    only by its name. Source: QEMU, the functions `vmdk_probe`, `vhdx_probe`, `vpc_probe` and `vdi_probe`.
    """
    if data[:4] in (b"KDMV", b"COWD") or _DESCRIPTOR.match(data):
        return VMDK
    if data.startswith(b"vhdxfile"):
        return VHDX
    if data.startswith(b"conectix"):
        return VPC
    return VDI if data[0x40:0x44] == VDI_MAGIC else None


def open_disk(files: FileSystem, file: Storage, image_format: str, access: str) -> "ForeignFile":
    """The disk that is in a file. Takes the file over when it succeeds.
    Raises: ChainError without the library, or when the image needs another one; BrokenHeader.
    """
    with reading(file.path, image_format, BrokenHeader):
        try:
            from cowtree.storage import foreign_disks  # noqa: PLC0415 # the library is an extra
        except ImportError as error:
            if (error.name or "").partition(".")[0] not in ("dissect", "defusedxml"):
                raise
            reason = f"reading {image_format} images needs dissect.hypervisor, which is not installed"
            raise ChainError(path=file.path, reason=reason, hint="pip install 'cowtree[foreign]'") from None
        return ForeignFile(file, image_format, foreign_disks.open_disk(files, file, image_format, access))


@contextmanager
def reading(path: str, image_format: str, kind: type[CowtreeError]) -> Iterator[None]:
    """Give whatever the library stumbles over a sentence: it answers damage with exceptions of many kinds."""
    try:
        yield
    except (CowtreeError, ImportError):
        raise
    except Exception as error:
        what = str(error).partition("\n")[0] or type(error).__name__
        hint = "restore {path} from a copy, or convert it to qcow2 with the program that made it"
        raise kind(path=path, reason=f"the {image_format} image is damaged: {what}", hint=hint) from error


class ForeignFile(PassingFile):
    """The disk in an image as a file of its own. What is written is refused by the file below, opened for reading."""

    def __init__(self, inner: Storage, image_format: str, disk: Disk) -> None:
        super().__init__(inner)
        self._format = image_format
        self._disk = disk

    @property
    def size_bytes(self) -> int:
        """The size of the disk."""
        return self._disk.size_bytes

    def pread(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes. Raises: BrokenTable."""
        found = bytearray(length)
        stop = min(offset + length, self.size_bytes)
        position = offset
        with reading(self.path, self._format, BrokenTable):
            while position < stop:
                end, is_data = self._disk.run(position)
                end = min(end, stop)
                if is_data:
                    data = self._disk.read(position, end - position)
                    if len(data) != end - position:
                        raise EOFError(f"the file ends before the data of guest offset {position}")
                    found[position - offset : end - offset] = data
                position = end
        return bytes(found)

    def preadv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers."""
        for view in buffers:
            view[:] = self.pread(offset, len(view))
            offset += len(view)

    def extents(self, offset: int, length: int) -> Iterator[Span]:
        """Split the range into data and holes. Raises: BrokenTable."""
        stop = min(offset + length, self.size_bytes)
        start, waiting = offset, None
        with reading(self.path, self._format, BrokenTable):
            while offset < stop:
                end, is_data = self._disk.run(offset)
                if waiting not in (None, is_data):
                    yield Span(start, offset - start, is_data=not is_data)
                    start = offset
                waiting, offset = is_data, min(end, stop)
        if waiting is not None:
            yield Span(start, stop - start, is_data=waiting)

    def place(self, offset: int, length: int) -> None:
        """Nowhere: what lies at this offset of the file is something else."""

    def prefetch(self, offset: int, length: int) -> None:
        """Nothing: what lies at this offset of the file is something else."""

    def close(self) -> None:
        """Give all files back."""
        self._disk.close()
        super().close()


class Stream:
    """A storage as the library wants it. A read ends at the end of the file, and none is longer than a table may be."""

    def __init__(self, file: Storage) -> None:
        self._file = file
        self._size_bytes = file.size_bytes
        self._position = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place, counted from the start, from here, or from the end."""
        self._position = offset + (0, self._position, self._size_bytes)[whence]
        if self._position < 0:
            raise EOFError("the file is too short")
        return self._position

    def tell(self) -> int:
        """Where the next read begins."""
        return self._position

    def read(self, length: int = -1) -> bytes:
        """Read what is there, up to so many bytes."""
        rest = max(self._size_bytes - self._position, 0)
        length = rest if length < 0 else min(length, rest)
        if length > READ_BYTES_MAX:
            raise ValueError(f"a table of {length} bytes is longer than any that makes sense")
        data = self._file.pread(self._position, length) if length else b""
        self._position += length
        return data


class Blocks:
    """A disk of equal blocks, each data or a hole. `holds` says of which kind a block is, and of how many behind it
    as well; `read_sectors` reads sectors of one block.
    """

    def __init__(
        self,
        sizes: tuple[int, int, int],
        holds: Callable[[int], tuple[bool, int]],
        read_sectors: Callable[[int, int], Any],
    ) -> None:
        self.size_bytes, self._block_bytes, self._sector_bytes = sizes
        self._holds = holds
        self._read_sectors = read_sectors

    def run(self, offset: int) -> tuple[int, bool]:
        """Where the block, or the row of holes, ends."""
        block = offset // self._block_bytes
        is_data, count = self._holds(block)
        return (block + count) * self._block_bytes, is_data

    def read(self, offset: int, length: int) -> bytes:
        """Read a part of one block."""
        first, skip = divmod(offset, self._sector_bytes)
        count = -(-(skip + length) // self._sector_bytes)
        return bytes(self._read_sectors(first, count)[skip : skip + length])

    def close(self) -> None:
        """Nothing was opened."""


class Flat:
    """A part of a file that is the disk as it is."""

    def __init__(self, part: Storage, *, is_own: bool) -> None:
        self._part = part
        self._is_own = is_own
        self.size_bytes = part.size_bytes

    def run(self, offset: int) -> tuple[int, bool]:
        """Where data or a hole of the file ends."""
        span = next(self._part.extents(offset, self.size_bytes - offset), None)
        if span is None:
            raise EOFError(f"the file ends before the data of guest offset {offset}")
        return span.start + span.length, span.is_data

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes of the file."""
        return self._part.pread(offset, length)

    def close(self) -> None:
        """Give the file back if it was opened for this."""
        if self._is_own:
            self._part.close()
