"""A part of a file that is taken for the whole: what lies outside of it is neither read nor written."""

import errno
from collections.abc import Iterator, Sequence

from cowtree.errors import StorageFailed
from cowtree.storage.contract import Bytes, Span, Storage
from cowtree.storage.passing import PassingFile


class Part(PassingFile):
    """The bytes of a file from `offset` on; without a size up to its end, wherever that is."""

    def __init__(self, inner: Storage, offset: int, size_bytes: int | None) -> None:
        super().__init__(inner)
        self._offset = offset
        self._size_bytes = size_bytes

    @property
    def size_bytes(self) -> int:
        """Where the part ends."""
        return max(self.inner.size_bytes - self._offset, 0) if self._size_bytes is None else self._size_bytes

    def pread(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes; zeroes past the end."""
        inside = self._inside(offset, length)
        return self.inner.pread(self._offset + offset, inside) + bytes(length - inside)

    def preadv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers; zeroes past the end."""
        room = self._inside(offset, sum(len(each) for each in buffers))
        inside = []
        for view in buffers:
            inside.append(view[: min(room, len(view))])
            view[len(inside[-1]) :] = bytes(len(view) - len(inside[-1]))
            room -= len(inside[-1])
        self.inner.preadv(self._offset + offset, [view for view in inside if len(view)])

    def pwrite(self, offset: int, data: Bytes) -> None:
        """Write all of `data`."""
        self._check_room(offset + len(data), "write")
        self.inner.pwrite(self._offset + offset, data)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make the range read as zeroes."""
        self._check_room(offset + length, "write zeroes")
        self.inner.write_zeroes(self._offset + offset, length)

    def allocate(self, offset: int, length: int) -> None:
        """Give the range space of its own."""
        self._check_room(offset + length, "allocate")
        self.inner.allocate(self._offset + offset, length)

    def truncate(self, size_bytes: int) -> None:
        """Set where it ends, unless that is fixed."""
        if self._size_bytes is None:
            self.inner.truncate(self._offset + size_bytes)
        elif size_bytes != self._size_bytes:
            raise StorageFailed(
                path=self.path, action="resize", reason="Cannot resize fixed-size raw disks", errno=errno.ENOTSUP
            )

    def extents(self, offset: int, length: int) -> Iterator[Span]:
        """Split the range into data and holes."""
        for span in self.inner.extents(self._offset + offset, self._inside(offset, length)):
            yield span._replace(start=span.start - self._offset)

    def place(self, offset: int, length: int) -> tuple[Storage, int] | None:
        """In which file the range lies as it is; what lies past the end is zeroes, whatever the file holds there."""
        if self._inside(offset, length) < length:
            return None
        return self.inner.place(self._offset + offset, length)

    def clone_block_bytes(self, source: Storage) -> int:
        """In which units `clone` works; none when the part itself begins within one."""
        block_bytes = self.inner.clone_block_bytes(source)
        return block_bytes if block_bytes and self._offset % block_bytes == 0 else 0

    def clone(self, source: Storage, source_offset: int, offset: int, length: int) -> bool:
        """Let a range share the blocks of another."""
        self._check_room(offset + length, "clone")
        return self.inner.clone(source, source_offset, self._offset + offset, length)

    def prefetch(self, offset: int, length: int) -> None:
        """Pass the hint on."""
        self.inner.prefetch(self._offset + offset, length)

    def _inside(self, offset: int, length: int) -> int:
        """How much of a range lies before the end."""
        return max(min(length, self.size_bytes - offset), 0)

    def _check_room(self, end: int, action: str) -> None:
        if self._size_bytes is not None and end > self._size_bytes:
            raise StorageFailed(path=self.path, action=action, reason="No space left on device", errno=errno.ENOSPC)
