"""What every storage promises, whatever is behind it.

- Offsets and lengths are bytes. Reads are never short: bytes past the end are zeroes.
- A write past the end makes the storage longer; what lies between reads as zeroes.
- After `flush` returns, everything that was written earlier survives a power loss. When `flush` has failed once it
  fails for ever: the kernel may have dropped the pages, so no later success can be believed.
- Nothing changes a storage that was opened for reading: `pwrite` and its kin raise `StorageFailed`.
- Every failure of the system is `StorageFailed` with the path, the action and the reason.
"""

import errno
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from cowtree.errors import MissingImage, WrongUse

Bytes = bytes | bytearray | memoryview


class Span(NamedTuple):
    """A range of a storage: either it may hold data, or it is a hole that reads as zeroes."""

    start: int
    length: int
    is_data: bool


class Storage(Protocol):
    """An array of bytes that can be made durable."""

    @property
    def path(self) -> str:
        """What people call it; for messages."""

    @property
    def size_bytes(self) -> int:
        """Where it ends now."""

    def pread(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes."""

    def preadv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the writable buffers, one behind the other, from `offset` on."""

    def pwrite(self, offset: int, data: Bytes) -> None:
        """Write all of `data`."""

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make the range read as zeroes, as a hole where that is possible; never changes the data around it."""

    def allocate(self, offset: int, length: int) -> None:
        """Give the range space of its own on disk, where that is possible; what it reads as stays."""

    def truncate(self, size_bytes: int) -> None:
        """Set where it ends; what is added reads as zeroes."""

    def extents(self, offset: int, length: int) -> Iterator[Span]:
        """Split the range, up to its end or the end of the storage, into data and holes, in order."""

    def place(self, offset: int, length: int) -> "tuple[Storage, int] | None":
        """In which file the range lies as it is, and where there; None when its bytes are made on the way."""

    def clone_block_bytes(self, source: "Storage") -> int:
        """The unit of which offsets and lengths must be multiples for `clone` to take over ranges of `source`; 0 when
        it cannot. Changes nothing, and may be asked of a storage that was opened for reading.
        """

    def clone(self, source: "Storage", source_offset: int, offset: int, length: int) -> bool:
        """Let the range share the blocks of a range that lies inside `source`, which reads as if it were copied.
        Returns: False when that cannot be done; then the range may be changed in part, and the caller copies it.
        """

    def use(self) -> str | None:
        """What others do with it, by QEMU's locks: `Use.WRITTEN`, `Use.READ`, or None when nobody relies on it. Takes
        no lock.
        """

    def relock(self, access: str) -> None:
        """Hold the locks of another access from now on, with no moment between when others could come. With those of a
        reader nobody writes through it any more; those of a writer let whoever opens it as COVERED write.
        Raises: ImageLocked when others are in the way; then all is as before.
        """

    def prefetch(self, offset: int, length: int) -> None:
        """Hint that the range is read soon. May do nothing; never fails."""

    def flush(self) -> None:
        """Make everything written so far durable."""

    def close(self) -> None:
        """Give the descriptor and the locks back. Does not flush. May be called twice."""


class Access:
    """How a file is opened, and which of QEMU's locks its holder takes.

    READ     reads, and keeps others from writing          (what qemu-img takes for reading)
    WRITE    reads and writes, and keeps all others out    (what qemu-img takes for writing)
    SHARED   reads, whatever others do (`-U`)
    PROBE    reads, whatever others do, and takes no lock for it: for a look at what somebody else may have open
    COVERED  reads and writes, and takes no lock: another handle of the same holder has the writer's
    """

    READ = "read"
    WRITE = "write"
    SHARED = "shared"
    PROBE = "probe"
    COVERED = "covered"
    WRITERS = (WRITE, COVERED)


class Use:
    """What others do with a file that they have open."""

    WRITTEN = "written"
    READ = "read"


class Times(NamedTuple):
    """What tells cheaply that a file is as it was. `mtime_ns` is when its bytes changed, as far as nobody set it back;
    `ctime_ns` when anything about it changed, which nobody can set.
    """

    size_bytes: int
    mtime_ns: int
    ctime_ns: int


class FileSystem(Protocol):
    """Where files are opened, made, renamed and removed. Paths are absolute or relative to the process."""

    @property
    def follows_addresses(self) -> bool:
        """Whether a name inside an image may be more than a path: only where the user answers for all images."""

    def open(self, path: str, access: str) -> Storage:
        """Open a file that is there.
        Raises: MissingImage when it cannot be opened, ImageLocked when its locks say no.
        """

    def create(self, path: str, mode: int) -> Storage:
        """Make an empty file with exactly these permission bits, or empty what a killed run left; locked for writing.
        Raises: StorageFailed, ImageLocked when somebody else is making the same file.
        """

    def identity(self, path: str) -> tuple[int, int]:
        """The (device, inode) that makes two names one file, links followed. Raises: MissingImage."""

    def times(self, path: str) -> Times:
        """How long a file is and when it changed, links followed. Raises: MissingImage."""

    def rename(self, source: str, target: str) -> None:
        """Replace `target` by `source` in one step; durable after `sync_folder`."""

    def link(self, source: str, target: str) -> None:
        """Give a file another name; durable after `sync_folder`. Raises: StorageFailed when that name is taken."""

    def copy_rights(self, source: str, target: str) -> None:
        """Give `target` the owner, the group and the permission bits of `source`. Raises: StorageFailed."""

    def unlink(self, path: str) -> None:
        """Remove a name; durable after `sync_folder`."""

    def make_folder(self, path: str) -> None:
        """Make a folder, and those above it, durably; does nothing when it is there. Raises: StorageFailed."""

    def sync_folder(self, path: str) -> None:
        """Make the names in this folder durable."""

    def secret(self, name: str) -> bytes:
        """The passphrase or key that images know by this name. Raises: WrongUse when there is none."""


def find_secret(secrets: Mapping[str, bytes], name: str) -> bytes:
    """The secret of this name. Raises: WrongUse when there is none; no message ever holds a secret."""
    if name not in secrets:
        raise WrongUse(reason=f"No secret with id '{name}'", hint=f"--object secret,id={name},file=PATH")
    return secrets[name]


def is_there(files: FileSystem, path: str) -> bool:
    """Whether a path leads to a file. Raises: MissingImage when that cannot be told."""
    try:
        files.identity(path)
    except MissingImage as error:
        if error.facts.get("errno") in (errno.ENOENT, errno.ENOTDIR):
            return False
        raise
    return True
