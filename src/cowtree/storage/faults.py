"""Files that fail on purpose, at one chosen call: the process dies there, or the system refuses.

Only calls that change something are counted: create, pwrite, clone, write_zeroes, allocate, truncate, flush, rename,
unlink and sync_folder, over all files. Run once without a fault to learn how many there are.
"""

import errno
import os
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from cowtree.errors import StorageFailed
from cowtree.storage.contract import Bytes, FileSystem, Storage, Times
from cowtree.storage.passing import PassingFile, PassingFiles
from cowtree.units import SECTOR_BYTES

BEFORE: Final = "before"
MIDDLE: Final = "in the middle of"
AFTER: Final = "after"

# What a full disk still does.
_FREE_OF_CHARGE: Final = ("flush", "rename", "unlink", "sync_folder")


class Killed(BaseException):
    """The process is dead; no handler of errors may catch it."""


class Fault(NamedTuple):
    """What happens at call number `call`, counted from 0.
    `code` is an errno, or None to die; a sticky error comes again at each later call, but a full disk (ENOSPC) still
    flushes, renames and unlinks. In the middle means that about half of a write is done: no kernel and no disk stops
    within a sector.
    """

    call: int
    code: int | None = None
    moment: str = BEFORE
    is_sticky: bool = False

    def hits(self, number: int, name: str) -> bool:
        """Whether the call of this number and name fails."""
        if number <= self.call or not self.is_sticky:
            return number == self.call
        return self.code != errno.ENOSPC or name not in _FREE_OF_CHARGE

    def __str__(self) -> str:
        what = "death" if self.code is None else errno.errorcode[self.code] + (" for ever" if self.is_sticky else "")
        return f"{what} {self.moment} call {self.call}"


class Call(NamedTuple):
    """A call that was made."""

    name: str
    path: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.path} {self.detail}".rstrip()


class FaultyFiles(PassingFiles):
    """Passes every call on but for the one that fails; after a death nothing but `close` does anything."""

    def __init__(self, inner: FileSystem, fault: Fault | None = None) -> None:
        super().__init__(inner)
        self.fault = fault
        self.calls: list[Call] = []
        self.is_dead = False

    def open(self, path: str, access: str) -> Storage:
        """Open a file that is there."""
        self.stay_dead()
        return FaultyFile(self.inner.open(path, access), self)

    def create(self, path: str, mode: int) -> Storage:
        """Make an empty file, or fail; when it fails late the file is there, closed."""
        made: list[Storage] = []
        try:
            self.act(Call("create", path), lambda: made.append(self.inner.create(path, mode)))
        except BaseException:
            for file in made:
                file.close()
            raise
        return FaultyFile(made[0], self)

    def identity(self, path: str) -> tuple[int, int]:
        """What makes two names one file."""
        self.stay_dead()
        return self.inner.identity(path)

    def times(self, path: str) -> Times:
        """How long a file is and when it changed."""
        self.stay_dead()
        return self.inner.times(path)

    def rename(self, source: str, target: str) -> None:
        """Replace `target` by `source`, or fail."""
        self.act(Call("rename", source, target), lambda: self.inner.rename(source, target))

    def link(self, source: str, target: str) -> None:
        """Give a file another name, or fail."""
        self.act(Call("link", source, target), lambda: self.inner.link(source, target))

    def copy_rights(self, source: str, target: str) -> None:
        """Give `target` the rights of `source`, or fail."""
        self.act(Call("copy_rights", source, target), lambda: self.inner.copy_rights(source, target))

    def unlink(self, path: str) -> None:
        """Remove a name, or fail."""
        self.act(Call("unlink", path), lambda: self.inner.unlink(path))

    def make_folder(self, path: str) -> None:
        """Make a folder, or fail."""
        self.act(Call("make_folder", path), lambda: self.inner.make_folder(path))

    def sync_folder(self, path: str) -> None:
        """Make the names durable, or fail."""
        self.act(Call("sync_folder", path), lambda: self.inner.sync_folder(path))

    def stay_dead(self) -> None:
        """Die again."""
        if self.is_dead:
            raise Killed

    def act(self, call: Call, whole: Callable[[], None], half: Callable[[], None] | None = None) -> None:
        """Do all of a call that changes something, or what the fault leaves of it.
        Raises: Killed, StorageFailed.
        """
        self.stay_dead()
        number = len(self.calls)
        self.calls.append(call)
        fault = self.fault
        if fault is None or not fault.hits(number, call.name):
            whole()
            return
        if fault.moment == AFTER:
            whole()
        elif fault.moment == MIDDLE and half is not None:
            half()
        if fault.code is None:
            self.is_dead = True
            raise Killed
        raise StorageFailed(path=call.path, action=call.name, reason=os.strerror(fault.code), errno=fault.code)


class FaultyFile(PassingFile):
    """One open file of faulty files. A flush that failed fails for ever."""

    def __init__(self, inner: Storage, files: FaultyFiles) -> None:
        super().__init__(inner)
        self._files = files
        self._broken_flush: StorageFailed | None = None

    def pwrite(self, offset: int, data: Bytes) -> None:
        """Write all, half or nothing."""
        call = Call("pwrite", self.path, f"{offset}+{len(data)}")
        border = (offset + len(data) // 2) // SECTOR_BYTES * SECTOR_BYTES
        half = data[: max(border - offset, 0)]
        self._files.act(call, lambda: self.inner.pwrite(offset, data), lambda: self.inner.pwrite(offset, half))

    def clone(self, source: Storage, source_offset: int, offset: int, length: int) -> bool:
        """Clone all, half or nothing."""
        done: list[bool] = []

        def take(part_bytes: int) -> None:
            done.append(self.inner.clone(source, source_offset, offset, part_bytes))

        unit = max(self.inner.clone_block_bytes(source), 1)
        call = Call("clone", self.path, f"{offset}+{length}")
        self._files.act(call, lambda: take(length), lambda: take(length // 2 // unit * unit))
        return all(done)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Write zeroes, or fail."""
        call = Call("write_zeroes", self.path, f"{offset}+{length}")
        self._files.act(call, lambda: self.inner.write_zeroes(offset, length))

    def allocate(self, offset: int, length: int) -> None:
        """Allocate, or fail."""
        call = Call("allocate", self.path, f"{offset}+{length}")
        self._files.act(call, lambda: self.inner.allocate(offset, length))

    def truncate(self, size_bytes: int) -> None:
        """Set the end, or fail."""
        self._files.act(Call("truncate", self.path, str(size_bytes)), lambda: self.inner.truncate(size_bytes))

    def flush(self) -> None:
        """Flush, or fail from now on."""
        if self._broken_flush is None:
            try:
                self._files.act(Call("flush", self.path), self.inner.flush)
            except StorageFailed as error:
                self._broken_flush = error
        if self._broken_flush is not None:
            raise StorageFailed(**self._broken_flush.facts)

    def pread(self, offset: int, length: int) -> bytes:
        """Read, unless the process is dead."""
        self._files.stay_dead()
        return self.inner.pread(offset, length)

    def preadv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers, unless the process is dead."""
        self._files.stay_dead()
        self.inner.preadv(offset, buffers)
