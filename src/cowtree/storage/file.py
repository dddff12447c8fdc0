"""Local files and block devices, under QEMU's locks.

Reads and writes go on until all is done; whatever the system refuses becomes an error with the path, the action and
the system's words. The standard library only, for `img info` passes through here.
"""

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from cowtree.errors import MissingImage, StorageFailed
from cowtree.storage import locks
from cowtree.storage.contract import Access, Bytes, Span, Storage, Times, find_secret

_VIEWS_PER_CALL = os.sysconf("SC_IOV_MAX")
# A write of this size or more goes past the page cache: half of the time of a large merge is copying into it.
_DIRECT_BYTES_MIN = 1 << 20
_DIRECT_ALIGNMENT_BYTES = 4096
_UNOPENED, _UNABLE = -2, -1
_CLONE_RANGE = 0x4020940D  # FICLONERANGE
# How often a file may be replaced between its opening and its locking before we give up.
_OPENING_COUNT_MAX = 16

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
}


class LocalFiles:
    """The files of this machine. Holds nothing itself but the secrets that open some of them, and whether addresses
    inside images are followed.
    """

    def __init__(self, secrets: Mapping[str, bytes] | None = None, *, follows_addresses: bool = False) -> None:
        self._secrets = secrets or {}
        self.follows_addresses = follows_addresses

    def secret(self, name: str) -> bytes:
        """The passphrase or key of this name."""
        return find_secret(self._secrets, name)

    def open(self, path: str, access: str) -> Storage:
        """Open a file that is there, under the locks of this access."""
        flags = os.O_RDWR if access in Access.WRITERS else os.O_RDONLY
        for _ in range(_OPENING_COUNT_MAX):
            with _missing(path):
                _refuse_odd_kind(path, os.stat(path).st_mode)
                # What became a pipe since must not keep us waiting.
                descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
            file = LocalFile(path, descriptor, is_writable=access in Access.WRITERS)
            if file.take_over(access):
                return file
        raise MissingImage(path=path, reason="it is replaced again and again", errno=errno.EAGAIN)

    def create(self, path: str, mode: int) -> Storage:
        """Make an empty file under the writer's locks; what a killed run left is emptied only when nobody holds it."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        for _ in range(_OPENING_COUNT_MAX):
            with _failing(path, "create"):
                descriptor = os.open(path, flags, mode)
            file = LocalFile(path, descriptor, is_writable=True)
            if not file.take_over(Access.WRITE):
                continue
            try:
                file.truncate(0)
                with _failing(path, "create"):
                    os.fchmod(descriptor, mode)
            except BaseException:
                file.close()
                raise
            return file
        raise StorageFailed(path=path, action="create", reason="it is replaced again and again", errno=errno.EAGAIN)

    def identity(self, path: str) -> tuple[int, int]:
        """The (device, inode) of the file that the name leads to."""
        with _missing(path):
            found = os.stat(path)
        return found.st_dev, found.st_ino

    def times(self, path: str) -> Times:
        """How long a file is and when it changed; a block device does not tell."""
        with _missing(path):
            found = os.stat(path)
        if stat.S_ISBLK(found.st_mode):
            return Times(0, 0, 0)
        return Times(found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def rename(self, source: str, target: str) -> None:
        """Replace `target` by `source`."""
        with _failing(source, "rename"):
            os.rename(source, target)

    def link(self, source: str, target: str) -> None:
        """Give a file another name."""
        with _failing(target, "link"):
            os.link(source, target)

    def copy_rights(self, source: str, target: str) -> None:
        """Give `target` the owner, the group and the permission bits of `source`."""
        with _failing(target, "change the rights"):
            status, own = os.stat(source), os.stat(target)
            if (status.st_uid, status.st_gid) != (own.st_uid, own.st_gid):
                os.chown(target, status.st_uid, status.st_gid)
            os.chmod(target, stat.S_IMODE(status.st_mode))

    def unlink(self, path: str) -> None:
        """Remove a name."""
        with _failing(path, "remove"):
            os.unlink(path)

    def make_folder(self, path: str) -> None:
        """Make a folder and those above it."""
        path = path or "."
        if os.path.isdir(path):
            return
        above = os.path.dirname(path.rstrip(os.sep))
        self.make_folder(above)
        with _failing(path, "create"):
            try:
                os.mkdir(path)
            except FileExistsError:
                if not os.path.isdir(path):
                    raise
        self.sync_folder(above or ".")

    def sync_folder(self, path: str) -> None:
        """Make the names in this folder durable, where its file system can."""
        with _failing(path, "flush"):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            finally:
                os.close(descriptor)


class LocalFile:
    """One open file."""

    def __init__(self, path: str, descriptor: int, *, is_writable: bool) -> None:
        self.path = path
        self._descriptor = descriptor
        self._direct = _UNOPENED
        self._is_writable = is_writable
        self._access = Access.PROBE
        self._broken_flush: StorageFailed | None = None

    def take_over(self, access: str) -> bool:
        """Check what was opened and lock it; closes it unless all is well.
        Returns: whether the path still leads to this file. Nobody replaces what a reader opened under his hands.
        """
        try:
            with _missing(self.path):
                mine = os.fstat(self._descriptor)
                _refuse_odd_kind(self.path, mine.st_mode)
                locks.acquire(self._descriptor, self.path, access)
                self._access = access
            if access != Access.WRITE or _is_same(mine, self.path):
                return True
        except BaseException:
            self.close()
            raise
        self.close()
        return False

    @property
    def size_bytes(self) -> int:
        """Where it ends; a block device has no size of its own but the place of its end."""
        with _failing(self.path, "read"):
            found = os.fstat(self._descriptor)
            if stat.S_ISBLK(found.st_mode):
                return os.lseek(self._descriptor, 0, os.SEEK_END)
            return found.st_size

    def pread(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes."""
        with _failing(self.path, "read"):
            data = os.pread(self._descriptor, length, offset)
        if len(data) == length:
            return data
        rest = bytearray(length - len(data))
        self.preadv(offset + len(data), [memoryview(rest)])
        return data + rest

    def preadv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers."""
        filled = [each for each in buffers if len(each)]
        with _failing(self.path, "read"):
            for first in range(0, len(filled), _VIEWS_PER_CALL):
                views = filled[first : first + _VIEWS_PER_CALL]
                _fill(self._descriptor, offset, views)
                offset += sum(map(len, views))

    def pwrite(self, offset: int, data: Bytes) -> None:
        """Write all of `data`."""
        self._refuse_reading("write")
        view = memoryview(data).cast("B")
        with _failing(self.path, "write"):
            written = self._write_direct(offset, view)
            offset, view = offset + written, view[written:]
            while len(view):
                written = os.pwrite(self._descriptor, view, offset)
                offset, view = offset + written, view[written:]

    def _write_direct(self, offset: int, view: memoryview) -> int:
        """Write what is large and aligned without the page cache. Returns: how many bytes were written; perhaps none.
        Source: open(2), "O_DIRECT"; the kernel says EINVAL where the file system is not fit for it.
        """
        length = len(view) // _DIRECT_ALIGNMENT_BYTES * _DIRECT_ALIGNMENT_BYTES
        if length < _DIRECT_BYTES_MIN or offset % _DIRECT_ALIGNMENT_BYTES or self._direct == _UNABLE:
            return 0
        # Asking the kernel instead would cost a flush of the page cache before it says no.
        if _address(view) % _DIRECT_ALIGNMENT_BYTES:
            return 0
        try:
            if self._direct == _UNOPENED:
                self._direct = _UNABLE
                flags = os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC
                self._direct = os.open(f"/proc/self/fd/{self._descriptor}", flags)
            return os.pwrite(self._direct, view[:length], offset)
        except OSError as error:
            # Without /proc there is no second way to the same file.
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return 0
            raise

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make the range read as zeroes, as a hole where the file system can."""
        from cowtree.storage import holes  # noqa: PLC0415 # readers never need it

        self._refuse_reading("write")
        size_bytes = self.size_bytes
        inside = min(offset + length, size_bytes) - offset
        with _failing(self.path, "write"):
            if inside > 0:
                holes.zero(self._descriptor, offset, inside)
            if length and offset + length > size_bytes:
                os.ftruncate(self._descriptor, offset + length)

    def allocate(self, offset: int, length: int) -> None:
        """Let the file system reserve blocks; where it cannot, the C library writes zeroes over the holes."""
        self._refuse_reading("allocate")
        if length:
            with _failing(self.path, "allocate"):
                os.posix_fallocate(self._descriptor, offset, length)

    def truncate(self, size_bytes: int) -> None:
        """Set where it ends."""
        self._refuse_reading("truncate")
        with _failing(self.path, "truncate"):
            os.ftruncate(self._descriptor, size_bytes)

    def extents(self, offset: int, length: int) -> Iterator[Span]:
        """Split the range into data and holes, as far as the file system knows them."""
        stop = min(offset + length, self.size_bytes)
        while offset < stop:
            data = min(max(self._seek(offset, os.SEEK_DATA, stop), offset), stop)
            if data > offset:
                yield Span(offset, data - offset, is_data=False)
            hole = min(self._seek(data, os.SEEK_HOLE, stop), stop) if data < stop else stop
            if hole > data:
                yield Span(data, hole - data, is_data=True)
            offset = max(hole, data)

    def _seek(self, offset: int, whence: int, stop: int) -> int:
        """Where the next data or hole begins; `stop` when there is none before the end."""
        with _failing(self.path, "read"):
            try:
                return os.lseek(self._descriptor, offset, whence)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return stop
                if error.errno == errno.EINVAL:
                    return offset if whence == os.SEEK_DATA else stop
                raise

    def place(self, offset: int, length: int) -> tuple[Storage, int]:
        """Here."""
        return self, offset

    def clone_block_bytes(self, source: Storage) -> int:
        """The block size of the file system, when that lets the two files share blocks. It is asked to clone nothing,
        from the end of the source on; should that grow meanwhile, no file reaches to where it would go.
        """
        origin, start = source.place(0, 0) or (None, 0)
        if not isinstance(origin, LocalFile):
            return 0
        with suppress(OSError):
            block_bytes = os.fstatvfs(self._descriptor).f_bsize
            if stat.S_ISREG(os.fstat(self._descriptor).st_mode) and start % block_bytes == 0:
                # The kernel wants a descriptor for writing even then, which this one need not be.
                descriptor = os.open(f"/proc/self/fd/{self._descriptor}", os.O_WRONLY | os.O_CLOEXEC)
                try:
                    _clone(descriptor, origin._descriptor, origin.size_bytes, (1 << 63) - block_bytes, 0)
                finally:
                    os.close(descriptor)
                return block_bytes
        return 0

    def clone(self, source: Storage, source_offset: int, offset: int, length: int) -> bool:
        """Let the file system share blocks. Whatever it says but that the disk is broken, copying may still do."""
        self._refuse_reading("clone")
        origin, start = source.place(source_offset, length) or (None, 0)
        if not isinstance(origin, LocalFile):
            return False
        with _failing(self.path, "clone"):
            try:
                # No length would mean all of it.
                if length:
                    _clone(self._descriptor, origin._descriptor, start, offset, length)
            except OSError as error:
                if error.errno == errno.EIO:
                    raise
                return False
        return True

    def use(self) -> str | None:
        """What others do with it."""
        with _failing(self.path, "read"):
            return locks.probe(self._descriptor)

    def relock(self, access: str) -> None:
        """Hold the locks of another access."""
        with _failing(self.path, "lock"):
            locks.change(self._descriptor, self.path, self._access, access)
        self._access = access
        self._is_writable = self._is_writable and access in Access.WRITERS

    def prefetch(self, offset: int, length: int) -> None:
        """Ask the system to read the range ahead."""
        with suppress(OSError, OverflowError):
            os.posix_fadvise(self._descriptor, offset, length, os.POSIX_FADV_WILLNEED)

    def flush(self) -> None:
        """Make everything written so far durable; after one failure never again."""
        if self._broken_flush is None:
            try:
                with _failing(self.path, "flush"):
                    os.fdatasync(self._descriptor)
            except StorageFailed as error:
                self._broken_flush = error
        if self._broken_flush is not None:
            raise StorageFailed(**self._broken_flush.facts)

    def close(self) -> None:
        """Give the descriptor and the locks back."""
        descriptors = self._descriptor, self._direct
        self._descriptor, self._direct = -1, _UNABLE
        for descriptor in descriptors:
            if descriptor >= 0:
                with suppress(OSError):
                    os.close(descriptor)

    def _refuse_reading(self, action: str) -> None:
        if not self._is_writable:
            raise StorageFailed(path=self.path, action=action, reason="it is open for reading only", errno=errno.EBADF)


def _clone(target: int, source: int, source_offset: int, offset: int, length: int) -> None:
    """Share blocks between two descriptors. Raises: OSError. Source: ioctl_ficlonerange(2)."""
    fcntl.ioctl(target, _CLONE_RANGE, struct.pack("=qQQQ", source, source_offset, length, offset))


def _address(view: memoryview) -> int:
    """Where in memory the bytes lie."""
    import numpy as np  # noqa: PLC0415  whoever writes so much has loaded it; `img info` has not

    address: int = np.frombuffer(view, np.uint8).__array_interface__["data"][0]
    return address


def _fill(descriptor: int, offset: int, views: list[memoryview]) -> None:
    """Fill the views; zeroes where the file has ended."""
    while views:
        got = os.preadv(descriptor, views, offset)
        if not got:
            for view in views:
                view[:] = bytes(len(view))
            return
        offset += got
        done = 0
        while done < len(views) and got >= len(views[done]):
            got -= len(views[done])
            done += 1
        views = views[done:]
        if got:
            views[0] = views[0][got:]


def _is_same(mine: os.stat_result, path: str) -> bool:
    """Whether the path leads to this file. A lock on a file that lost its name keeps nobody out."""
    try:
        return os.path.samestat(mine, os.stat(path))
    except FileNotFoundError:
        return False


def _refuse_odd_kind(path: str, mode: int) -> None:
    kind = _KINDS.get(stat.S_IFMT(mode))
    if kind is not None:
        hint = "name a file or a block device"
        raise MissingImage(path=path, reason=f"it is {kind}, not a file", hint=hint, errno=errno.EINVAL)


@contextmanager
def _missing(path: str) -> Iterator[None]:
    """Turn what the system says about a path into MissingImage."""
    try:
        yield
    except (OSError, ValueError) as error:
        code, reason = _words(error)
        hint = {} if code == errno.ENOENT else {"hint": "see who owns {path} and who may read and write it"}
        raise MissingImage(path=path, reason=reason, errno=code, **hint) from error


@contextmanager
def _failing(path: str, action: str) -> Iterator[None]:
    """Turn what the system says about a call into StorageFailed."""
    try:
        yield
    except (OSError, OverflowError, ValueError) as error:
        code, reason = _words(error)
        raise StorageFailed(path=path, action=action, reason=reason, errno=code) from error


def _words(error: Exception) -> tuple[int, str]:
    """The system's number and words for an error; a name or number that it cannot even be asked about is invalid."""
    code = (error.errno if isinstance(error, OSError) else None) or errno.EINVAL
    return code, os.strerror(code)
