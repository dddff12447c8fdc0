"""Files in memory, for tests and trials: what local files promise, locks included, and nothing on disk.

A file is a dictionary of pages that never change in place; a page that is not there is a hole. So a file of 1 TiB
costs what is written to it, and a copy of all files costs next to nothing.
"""

import errno
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from cowtree.errors import ImageLocked, MissingImage, StorageFailed
from cowtree.storage import locks
from cowtree.storage.contract import Access, Bytes, Span, Storage, Times, find_secret

PAGE_BYTES: Final = 4096
_HOLE: Final = bytes(PAGE_BYTES)


class Pages:
    """A sparse array of bytes. Pages are `bytes`, so copies share them."""

    def __init__(self, data: bytes = b"") -> None:
        self.size_bytes = 0
        self.change_count = 0
        self._pages: dict[int, bytes] = {}
        self.write(0, data)

    def copy(self) -> "Pages":
        """An array of its own with the same bytes."""
        other = Pages()
        other.size_bytes, other._pages = self.size_bytes, dict(self._pages)
        other.change_count = self.change_count
        return other

    def key(self) -> tuple[int, tuple[tuple[int, bytes], ...]]:
        """Equal for arrays with the same bytes. A page keeps its hash, so that comparing many copies is cheap."""
        held = [(index, page) for index, page in self._pages.items() if page != _HOLE]
        return self.size_bytes, tuple(sorted(held, key=lambda pair: pair[0]))

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes; zeroes past the end."""
        first, last = offset // PAGE_BYTES, -(-(offset + length) // PAGE_BYTES)
        data = b"".join([self._pages.get(index, _HOLE) for index in range(first, last)])
        skip = offset - first * PAGE_BYTES
        return data[skip : skip + length]

    def write(self, offset: int, data: Bytes) -> None:
        """Put bytes there; the array grows when they reach past its end."""
        self.change_count += 1
        view = memoryview(data).cast("B")
        for index, begin, end in _pieces(offset, len(view)):
            piece, view = bytes(view[: end - begin]), view[end - begin :]
            if len(piece) < PAGE_BYTES:
                page = self._pages.get(index, _HOLE)
                piece = page[:begin] + piece + page[end:]
            self._pages[index] = piece
        if len(data):
            self.size_bytes = max(self.size_bytes, offset + memoryview(data).nbytes)

    def zero(self, offset: int, length: int) -> None:
        """Make a hole, and zeroes on the pages at its ends."""
        self.change_count += 1
        stop = offset + length
        for index in self._between(offset, stop):
            begin, end = max(offset - index * PAGE_BYTES, 0), min(stop - index * PAGE_BYTES, PAGE_BYTES)
            if end - begin == PAGE_BYTES:
                del self._pages[index]
            else:
                page = self._pages[index]
                self._pages[index] = page[:begin] + bytes(end - begin) + page[end:]
        if length:
            self.size_bytes = max(self.size_bytes, stop)

    def share(self, source: "Pages", source_offset: int, offset: int, length: int) -> None:
        """Let whole pages be those of another array."""
        self.zero(offset, length)
        moved = (offset - source_offset) // PAGE_BYTES
        for index in source._between(source_offset, source_offset + length):
            self._pages[index + moved] = source._pages[index]

    def truncate(self, size_bytes: int) -> None:
        """Set where it ends; what is cut off reads as zeroes when it grows again."""
        self.change_count += 1
        if size_bytes < self.size_bytes:
            self.zero(size_bytes, -(-self.size_bytes // PAGE_BYTES) * PAGE_BYTES - size_bytes)
        self.size_bytes = size_bytes

    def spans(self, offset: int, length: int) -> Iterator[Span]:
        """Data and holes up to the end of the range or of the array, in order."""
        stop = min(offset + length, self.size_bytes)
        span = None
        for begin, end, is_data in self._runs(offset, stop):
            if span and span.is_data == is_data:
                span = span._replace(length=end - span.start)
                continue
            if span:
                yield span
            span = Span(begin, end - begin, is_data)
        if span:
            yield span

    def _runs(self, offset: int, stop: int) -> Iterator[tuple[int, int, bool]]:
        for index in self._between(offset, stop):
            begin, end = max(index * PAGE_BYTES, offset), min((index + 1) * PAGE_BYTES, stop)
            if begin > offset:
                yield offset, begin, False
            yield begin, end, True
            offset = end
        if offset < stop:
            yield offset, stop, False

    def _between(self, start: int, stop: int) -> list[int]:
        """The pages that hold something of the range, in order."""
        if stop <= start:
            return []
        first, last = start // PAGE_BYTES, -(-stop // PAGE_BYTES)
        if last - first < len(self._pages):
            return [index for index in range(first, last) if index in self._pages]
        return sorted(index for index in self._pages if first <= index < last)


def _pieces(offset: int, length: int) -> Iterator[tuple[int, int, int]]:
    """The pages of a range: number, and where the range begins and ends on it."""
    stop = offset + length
    while offset < stop:
        index, begin = divmod(offset, PAGE_BYTES)
        end = min(begin + stop - offset, PAGE_BYTES)
        yield index, begin, end
        offset += end - begin


class _Node:
    """A file whatever its name is: its number, its bytes, and who has it open."""

    def __init__(self, number: int, pages: Pages) -> None:
        self.number = number
        self.pages = pages
        self.holders: list[MemoryFile] = []


class MemoryFiles:
    """A world of files of its own. Every folder exists."""

    follows_addresses = False

    def __init__(self, initial: Mapping[str, bytes] | None = None) -> None:
        self.secrets: dict[str, bytes] = {}
        self._numbers = itertools.count(1)
        self._nodes: dict[str, _Node] = {}
        for path, data in (initial or {}).items():
            self._nodes[os.path.normpath(path)] = self._new_node(Pages(data))

    @classmethod
    def of_pages(cls, pages: Mapping[str, Pages]) -> "MemoryFiles":
        """A world that takes these arrays over as its files; names of the same array are names of one file."""
        files = cls()
        nodes = {id(each): files._new_node(each) for each in pages.values()}
        files._nodes = {os.path.normpath(path): nodes[id(each)] for path, each in pages.items()}
        return files

    def pages(self) -> dict[str, Pages]:
        """A copy of all files that costs next to nothing."""
        copies = {node.number: node.pages.copy() for node in self._nodes.values()}
        return {path: copies[node.number] for path, node in self._nodes.items()}

    def copy(self) -> "MemoryFiles":
        """The same files in a world of their own, where nobody has any of them open."""
        other = MemoryFiles.of_pages(self.pages())
        other.secrets = self.secrets
        return other

    def key(self) -> tuple[object, ...]:
        """Equal for worlds with the same names and bytes, where the same names mean one file."""
        first: dict[int, str] = {}
        names = [(path, first.setdefault(self._nodes[path].number, path)) for path in sorted(self._nodes)]
        return tuple((*both, self._nodes[both[0]].pages.key()) for both in names)

    def held(self) -> list[str]:
        """The paths under which somebody has a file open."""
        return [holder.path for node in self._nodes.values() for holder in node.holders]

    def content(self, path: str) -> bytes:
        """All bytes of a file."""
        pages = self._find(path).pages
        return pages.read(0, pages.size_bytes)

    def snapshot(self) -> dict[str, bytes]:
        """All bytes of all files."""
        return {path: self.content(path) for path in sorted(self._nodes)}

    def open(self, path: str, access: str) -> "MemoryFile":
        """Open a file that is there."""
        return MemoryFile(path, self._find(path), access)

    def create(self, path: str, mode: int) -> "MemoryFile":
        """Make an empty file, or empty one that nobody holds. There are no permissions here."""
        name = os.path.normpath(path)
        node = self._nodes.get(name) or self._new_node(Pages())
        file = MemoryFile(path, node, Access.WRITE)
        self._nodes[name] = node
        file.truncate(0)
        return file

    def identity(self, path: str) -> tuple[int, int]:
        """A number that goes with the file when its name changes."""
        return 0, self._find(path).number

    def times(self, path: str) -> Times:
        """How long a file is and how often it changed: there is no clock here."""
        pages = self._find(path).pages
        return Times(pages.size_bytes, pages.change_count, pages.change_count)

    def rename(self, source: str, target: str) -> None:
        """Replace `target` by `source`."""
        node = self._named(source, "rename")
        del self._nodes[os.path.normpath(source)]
        self._nodes[os.path.normpath(target)] = node

    def link(self, source: str, target: str) -> None:
        """Give a file another name."""
        node = self._nodes.get(os.path.normpath(source))
        code = errno.ENOENT if node is None else errno.EEXIST if os.path.normpath(target) in self._nodes else 0
        if node is None or code:
            raise StorageFailed(path=target, action="link", reason=os.strerror(code), errno=code)
        self._nodes[os.path.normpath(target)] = node

    def copy_rights(self, source: str, target: str) -> None:
        """Do nothing: there are no rights here."""
        self._named(source, "change the rights")
        self._named(target, "change the rights")

    def unlink(self, path: str) -> None:
        """Remove a name; who has the file open keeps it."""
        self._named(path, "remove")
        del self._nodes[os.path.normpath(path)]

    def make_folder(self, path: str) -> None:
        """Do nothing: every folder exists."""

    def sync_folder(self, path: str) -> None:
        """Do nothing: names here are as durable as all the rest."""

    def secret(self, name: str) -> bytes:
        """The passphrase or key of this name."""
        return find_secret(self.secrets, name)

    def _new_node(self, pages: Pages) -> _Node:
        return _Node(next(self._numbers), pages)

    def _find(self, path: str) -> _Node:
        node = self._nodes.get(os.path.normpath(path))
        if node is None:
            raise MissingImage(path=path, reason=os.strerror(errno.ENOENT), errno=errno.ENOENT)
        return node

    def _named(self, path: str, action: str) -> _Node:
        node = self._nodes.get(os.path.normpath(path))
        if node is None:
            reason = os.strerror(errno.ENOENT)
            raise StorageFailed(path=path, action=action, reason=reason, errno=errno.ENOENT)
        return node


class MemoryFile:
    """One open file."""

    def __init__(self, path: str, node: _Node, access: str) -> None:
        self.path = path
        self.access = access
        self._node = node
        held = {byte for each in node.holders for byte in locks.PERMISSIONS[each.access].held_bytes}
        conflict = locks.find_conflict(access, held.__contains__)
        if conflict is not None:
            raise ImageLocked(path=path, what=conflict)
        self._is_writable = access in Access.WRITERS
        node.holders.append(self)

    @property
    def size_bytes(self) -> int:
        """Where it ends now."""
        return self._node.pages.size_bytes

    def pread(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes."""
        self._refuse("read", offset, length)
        return self._node.pages.read(offset, length)

    def preadv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers."""
        for view in buffers:
            view[:] = self.pread(offset, len(view))
            offset += len(view)

    def pwrite(self, offset: int, data: Bytes) -> None:
        """Write all of `data`."""
        self._refuse("write", offset, 0, is_change=True)
        self._node.pages.write(offset, data)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make a hole."""
        self._refuse("write", offset, length, is_change=True)
        self._node.pages.zero(offset, length)

    def allocate(self, offset: int, length: int) -> None:
        """Make it long enough; memory is taken when something is written."""
        self._refuse("allocate", offset, length, is_change=True)
        if length:
            self._node.pages.truncate(max(self.size_bytes, offset + length))

    def truncate(self, size_bytes: int) -> None:
        """Set where it ends."""
        self._refuse("truncate", size_bytes, 0, is_change=True)
        self._node.pages.truncate(size_bytes)

    def extents(self, offset: int, length: int) -> Iterator[Span]:
        """Data and holes, a page at a time."""
        self._refuse("read", offset, length)
        return self._node.pages.spans(offset, length)

    def place(self, offset: int, length: int) -> tuple[Storage, int]:
        """Here."""
        return self, offset

    def clone_block_bytes(self, source: Storage) -> int:
        """A page, for all files in memory are on one device."""
        origin, start = source.place(0, 0) or (None, 0)
        return PAGE_BYTES if isinstance(origin, MemoryFile) and start % PAGE_BYTES == 0 else 0

    def clone(self, source: Storage, source_offset: int, offset: int, length: int) -> bool:
        """Share pages."""
        self._refuse("clone", offset, length, is_change=True)
        origin, start = source.place(source_offset, length) or (None, 0)
        if not isinstance(origin, MemoryFile) or (start | offset | length) % PAGE_BYTES:
            return False
        if start + length > origin.size_bytes or (origin._node is self._node and abs(start - offset) < length):
            return False
        self._node.pages.share(origin._node.pages, start, offset, length)
        return True

    def use(self) -> str | None:
        """What others do with it."""
        others = [each for each in self._node.holders if each is not self]
        held = {byte for each in others for byte in locks.PERMISSIONS[each.access].held_bytes}
        return locks.find_use(lambda start, count: not held.isdisjoint(range(start, start + count)))

    def relock(self, access: str) -> None:
        """Hold the locks of another access."""
        others = [each for each in self._node.holders if each is not self]
        held = {byte for each in others for byte in locks.PERMISSIONS[each.access].held_bytes}
        conflict = locks.find_conflict(access, held.__contains__)
        if conflict is not None:
            raise ImageLocked(path=self.path, what=conflict)
        self.access = access
        self._is_writable = self._is_writable and access in Access.WRITERS

    def prefetch(self, offset: int, length: int) -> None:
        """Do nothing: it is all here."""

    def flush(self) -> None:
        """Do nothing: it is as durable as it gets."""
        self._refuse("flush", 0, 0)

    def close(self) -> None:
        """Give the locks back."""
        if self in self._node.holders:
            self._node.holders.remove(self)

    def _refuse(self, action: str, offset: int, length: int, *, is_change: bool = False) -> None:
        """Refuse what a local file would: a closed file, a file that is open for reading, a negative number."""
        if self not in self._node.holders or (is_change and not self._is_writable):
            raise StorageFailed(path=self.path, action=action, reason=os.strerror(errno.EBADF), errno=errno.EBADF)
        if offset < 0 or length < 0:
            raise StorageFailed(path=self.path, action=action, reason=os.strerror(errno.EINVAL), errno=errno.EINVAL)
