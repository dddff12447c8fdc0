"""Files that pass every call on to the files that they wrap: what each wrapper starts from."""

from collections.abc import Iterator, Sequence

from cowtree.storage.contract import Bytes, FileSystem, Span, Storage, Times


class PassingFiles:
    """Passes every call on. A wrapper overrides what it is there for."""

    def __init__(self, inner: FileSystem) -> None:
        self.inner = inner

    @property
    def follows_addresses(self) -> bool:
        """Whether a name inside an image may be more than a path."""
        return self.inner.follows_addresses

    def open(self, path: str, access: str) -> Storage:
        """Open a file that is there."""
        return self.inner.open(path, access)

    def create(self, path: str, mode: int) -> Storage:
        """Make an empty file."""
        return self.inner.create(path, mode)

    def identity(self, path: str) -> tuple[int, int]:
        """What makes two names one file."""
        return self.inner.identity(path)

    def times(self, path: str) -> Times:
        """How long a file is and when it changed."""
        return self.inner.times(path)

    def rename(self, source: str, target: str) -> None:
        """Replace `target` by `source`."""
        self.inner.rename(source, target)

    def link(self, source: str, target: str) -> None:
        """Give a file another name."""
        self.inner.link(source, target)

    def copy_rights(self, source: str, target: str) -> None:
        """Give `target` the rights of `source`."""
        self.inner.copy_rights(source, target)

    def unlink(self, path: str) -> None:
        """Remove a name."""
        self.inner.unlink(path)

    def make_folder(self, path: str) -> None:
        """Make a folder and those above it."""
        self.inner.make_folder(path)

    def sync_folder(self, path: str) -> None:
        """Make the names in this folder durable."""
        self.inner.sync_folder(path)

    def secret(self, name: str) -> bytes:
        """The passphrase or key of this name."""
        return self.inner.secret(name)


class PassingFile:
    """Passes every call on."""

    def __init__(self, inner: Storage) -> None:
        self.inner = inner

    @property
    def path(self) -> str:
        """What people call it."""
        return self.inner.path

    @property
    def size_bytes(self) -> int:
        """Where it ends now."""
        return self.inner.size_bytes

    def pread(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes."""
        return self.inner.pread(offset, length)

    def preadv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers."""
        self.inner.preadv(offset, buffers)

    def pwrite(self, offset: int, data: Bytes) -> None:
        """Write all of `data`."""
        self.inner.pwrite(offset, data)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make the range read as zeroes."""
        self.inner.write_zeroes(offset, length)

    def allocate(self, offset: int, length: int) -> None:
        """Give the range space of its own."""
        self.inner.allocate(offset, length)

    def truncate(self, size_bytes: int) -> None:
        """Set where it ends."""
        self.inner.truncate(size_bytes)

    def extents(self, offset: int, length: int) -> Iterator[Span]:
        """Split the range into data and holes."""
        return self.inner.extents(offset, length)

    def place(self, offset: int, length: int) -> tuple[Storage, int] | None:
        """In which file the range lies as it is."""
        return self.inner.place(offset, length)

    def clone_block_bytes(self, source: Storage) -> int:
        """In which units `clone` works."""
        return self.inner.clone_block_bytes(source)

    def clone(self, source: Storage, source_offset: int, offset: int, length: int) -> bool:
        """Let a range share the blocks of another."""
        return self.inner.clone(source, source_offset, offset, length)

    def use(self) -> str | None:
        """What others do with it."""
        return self.inner.use()

    def relock(self, access: str) -> None:
        """Hold the locks of another access."""
        self.inner.relock(access)

    def prefetch(self, offset: int, length: int) -> None:
        """Pass the hint on."""
        self.inner.prefetch(offset, length)

    def flush(self) -> None:
        """Make everything written so far durable."""
        self.inner.flush()

    def close(self) -> None:
        """Give the descriptor and the locks back."""
        self.inner.close()
