"""Files whose bytes are encrypted sector by sector: plain on this side, secret in the file that is wrapped.

What the contract promises holds, but for the end: it lies on a sector's border, so what is written past the end is
filled up with zeroes. A hole in the file that is wrapped would read as anything but zeroes, so there are none: zeroes
are written, as they look encrypted. Reads and writes that begin or end inside a sector touch all of it.

Two places are wrapped. A volume of its own begins behind its header, and its end is the end of the file. The guest data
of an image lies among tables, at the same offsets here and there; the end of that file is not ours to move.
"""

from collections.abc import Iterator, Sequence
from typing import Final, Protocol

from cowtree.storage.contract import Bytes, Span, Storage
from cowtree.storage.passing import PassingFile
from cowtree.units import SECTOR_BYTES

# So much is held twice while it is turned.
ROUND_BYTES: Final = 1 << 20


class SectorCipher(Protocol):
    """What turns whole sectors; the first of them has this number."""

    def encrypt(self, sector: int, data: Bytes) -> bytes:
        """Make plain bytes secret."""

    def decrypt(self, sector: int, data: Bytes) -> bytes:
        """Make secret bytes plain."""


class EncryptedFile(PassingFile):
    """Guest data that lies among the tables of the same file, at the same offsets; sectors are numbered by these."""

    def __init__(self, inner: Storage, cipher: SectorCipher) -> None:
        super().__init__(inner)
        self._cipher = cipher
        self._origin = 0

    def pread(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes."""
        data = bytearray(length)
        self.preadv(offset, [memoryview(data)])
        return bytes(data)

    def preadv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers."""
        for view in buffers:
            for first in range(0, len(view), ROUND_BYTES):
                part = view[first : first + ROUND_BYTES]
                part[:] = self._read(offset + first, len(part))
            offset += len(view)

    def _read(self, offset: int, length: int) -> bytes:
        """Decrypt the sectors that hold the range; those past the end are zeroes."""
        start, stop = _sectors(offset, length)
        stored = self.inner.pread(self._origin + start, max(min(stop, _up(self.size_bytes)) - start, 0))
        plain = self._cipher.decrypt(start // SECTOR_BYTES, stored).ljust(stop - start, b"\0")
        return plain[offset - start : offset - start + length]

    def pwrite(self, offset: int, data: Bytes) -> None:
        """Write all of `data`."""
        view = memoryview(data).cast("B")
        for first in range(0, len(view), ROUND_BYTES):
            self._write(offset + first, view[first : first + ROUND_BYTES])

    def _write(self, offset: int, view: memoryview) -> None:
        """Encrypt the sectors that hold the range; what they hold beside it stays."""
        start, stop = _sectors(offset, len(view))
        if (start, stop) != (offset, offset + len(view)):
            before = self._read(start, offset - start)
            view = memoryview(before + view + self._read(offset + len(view), stop - offset - len(view)))
        self.inner.pwrite(self._origin + start, self._cipher.encrypt(start // SECTOR_BYTES, view))

    def write_zeroes(self, offset: int, length: int) -> None:
        """Write zeroes as they look encrypted."""
        zeroes = memoryview(bytes(min(length, ROUND_BYTES)))
        for first in range(offset, offset + length, ROUND_BYTES):
            self._write(first, zeroes[: offset + length - first])

    def extents(self, offset: int, length: int) -> Iterator[Span]:
        """All is data: nobody can tell what is zero without reading it."""
        stop = min(offset + length, self.size_bytes)
        if offset < stop:
            yield Span(offset, stop - offset, is_data=True)

    def place(self, offset: int, length: int) -> None:
        """Nowhere do these bytes lie as they are."""

    def clone_block_bytes(self, source: Storage) -> int:
        """Nothing that is plain elsewhere can be taken over."""
        return 0

    def clone(self, source: Storage, source_offset: int, offset: int, length: int) -> bool:
        """Never."""
        return False


class EncryptedVolume(EncryptedFile):
    """The guest data of a volume: all that lies behind its header. Sectors are numbered from there."""

    def __init__(self, inner: Storage, cipher: SectorCipher, payload_offset: int) -> None:
        super().__init__(inner, cipher)
        self._origin = payload_offset

    @property
    def size_bytes(self) -> int:
        """Where it ends now."""
        return max(self.inner.size_bytes - self._origin, 0)

    def pwrite(self, offset: int, data: Bytes) -> None:
        """Write all of `data`; what lies between the end and it becomes zeroes."""
        if len(data):
            self._grow(offset)
        super().pwrite(offset, data)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Write zeroes as they look encrypted."""
        if length:
            self._grow(offset)
        super().write_zeroes(offset, length)

    def allocate(self, offset: int, length: int) -> None:
        """Give the range space of its own; what is added reads as zeroes."""
        if length:
            self._grow(offset + length)
            self.inner.allocate(self._origin + offset, length)

    def truncate(self, size_bytes: int) -> None:
        """Set where it ends; what is added reads as zeroes."""
        end = self.size_bytes
        if size_bytes > end:
            self._grow(size_bytes)
        else:
            self.inner.truncate(self._origin + _up(size_bytes))
            # What is cut off of the last sector must not come back.
            super().write_zeroes(size_bytes, -size_bytes % SECTOR_BYTES)

    def prefetch(self, offset: int, length: int) -> None:
        """Pass the hint on."""
        self.inner.prefetch(self._origin + offset, length)

    def _grow(self, size_bytes: int) -> None:
        """Let it reach at least so far, with zeroes."""
        end = self.size_bytes
        if size_bytes > end:
            super().write_zeroes(end, size_bytes - end)


def _up(offset: int) -> int:
    return -(-offset // SECTOR_BYTES) * SECTOR_BYTES


def _sectors(offset: int, length: int) -> tuple[int, int]:
    """Where the sectors of a range begin and end."""
    return offset // SECTOR_BYTES * SECTOR_BYTES, _up(offset + length)
