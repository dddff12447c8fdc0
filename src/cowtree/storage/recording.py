"""Files that keep a log of all that could be lost when the power goes: `powercut.py` replays it.

Events name a file by a number, because its name may change; `Opened` and `Created` say which name it had at first.
"""

import os
from typing import NamedTuple

from cowtree.storage.contract import Bytes, FileSystem, Storage, is_there
from cowtree.storage.passing import PassingFile, PassingFiles


class Opened(NamedTuple):
    """A file that was there is met for the first time."""

    path: str
    file: int


class Created(NamedTuple):
    """A file begins to exist, empty."""

    path: str
    file: int


class Wrote(NamedTuple):
    """Bytes were written."""

    file: int
    offset: int
    data: bytes


class Zeroed(NamedTuple):
    """A range was made to read as zeroes."""

    file: int
    offset: int
    length: int


class Truncated(NamedTuple):
    """The end of the file was set."""

    file: int
    size_bytes: int


class Synced(NamedTuple):
    """All of the file is durable."""

    file: int


class Renamed(NamedTuple):
    """The file got another name, and whatever had that name lost it."""

    source: str
    target: str
    file: int


class Linked(NamedTuple):
    """The file got one more name."""

    path: str
    file: int


class Unlinked(NamedTuple):
    """A name of the file is gone."""

    path: str
    file: int


class FolderSynced(NamedTuple):
    """The names in a folder are durable."""

    path: str


Event = Opened | Created | Wrote | Zeroed | Truncated | Synced | Renamed | Linked | Unlinked | FolderSynced


class RecordingFiles(PassingFiles):
    """Passes every call on, and logs those that succeeded and changed something. Paths in the log are normalised."""

    def __init__(self, inner: FileSystem) -> None:
        super().__init__(inner)
        self.log: list[Event] = []
        self._numbers: dict[tuple[int, int], int] = {}
        self._count = 0

    def open(self, path: str, access: str) -> Storage:
        """Open a file and log its first meeting."""
        file = self.inner.open(path, access)
        return RecordingFile(file, self._meet(path), self.log)

    def create(self, path: str, mode: int) -> Storage:
        """Make a file, or empty one that is there: that is another event."""
        was_there = is_there(self.inner, path)
        file = self.inner.create(path, mode)
        if was_there:
            number = self._meet(path)
            self.log.append(Truncated(number, 0))
        else:
            number = self._add(path)
            self.log.append(Created(os.path.normpath(path), number))
        return RecordingFile(file, number, self.log)

    def rename(self, source: str, target: str) -> None:
        """Rename and log it."""
        number = self._meet(source) if is_there(self.inner, source) else 0
        self.inner.rename(source, target)
        self.log.append(Renamed(os.path.normpath(source), os.path.normpath(target), number))

    def link(self, source: str, target: str) -> None:
        """Give a file another name and log it."""
        number = self._meet(source) if is_there(self.inner, source) else 0
        self.inner.link(source, target)
        self.log.append(Linked(os.path.normpath(target), number))

    def unlink(self, path: str) -> None:
        """Remove a name and log it."""
        number = self._meet(path) if is_there(self.inner, path) else 0
        self.inner.unlink(path)
        self.log.append(Unlinked(os.path.normpath(path), number))

    def sync_folder(self, path: str) -> None:
        """Sync and log it."""
        self.inner.sync_folder(path)
        self.log.append(FolderSynced(os.path.normpath(path)))

    def _meet(self, path: str) -> int:
        """The number of a file that is there."""
        number = self._numbers.get(self.inner.identity(path))
        if number is None:
            number = self._add(path)
            self.log.append(Opened(os.path.normpath(path), number))
        return number

    def _add(self, path: str) -> int:
        self._count += 1
        self._numbers[self.inner.identity(path)] = self._count
        return self._count


class RecordingFile(PassingFile):
    """Passes every call on, and logs what was written and what is durable."""

    def __init__(self, inner: Storage, number: int, log: list[Event]) -> None:
        super().__init__(inner)
        self._number = number
        self._log = log

    def pwrite(self, offset: int, data: Bytes) -> None:
        """Write and log it."""
        self.inner.pwrite(offset, data)
        if len(data):
            self._log.append(Wrote(self._number, offset, bytes(data)))

    def clone(self, source: Storage, source_offset: int, offset: int, length: int) -> bool:
        """Clone, and log it as a write of the same bytes: it is as durable as that."""
        done = self.inner.clone(source, source_offset, offset, length)
        if done and length:
            self._log.append(Wrote(self._number, offset, source.pread(source_offset, length)))
        return done

    def write_zeroes(self, offset: int, length: int) -> None:
        """Write zeroes and log it."""
        self.inner.write_zeroes(offset, length)
        if length:
            self._log.append(Zeroed(self._number, offset, length))

    def allocate(self, offset: int, length: int) -> None:
        """Allocate; only the new end can be seen afterwards."""
        before = self.size_bytes
        self.inner.allocate(offset, length)
        if self.size_bytes != before:
            self._log.append(Truncated(self._number, self.size_bytes))

    def truncate(self, size_bytes: int) -> None:
        """Set the end and log it."""
        self.inner.truncate(size_bytes)
        self._log.append(Truncated(self._number, size_bytes))

    def flush(self) -> None:
        """Flush and log it."""
        self.inner.flush()
        self._log.append(Synced(self._number))
