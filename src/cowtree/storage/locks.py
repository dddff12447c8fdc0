"""QEMU's image locks: open-file-description locks on single bytes of the image file.

Byte 100 + i says "I use permission i", byte 200 + i "I do not share permission i". Whoever wants a permission looks
whether somebody does not share it, and the other way round. A lock belongs to the open file, so two opens in one
process exclude each other like two processes do; it ends with the descriptor.

Source: observed between QEMU 7.2 and itself; see `Access` for who takes what.
"""

import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from cowtree.errors import ImageLocked
from cowtree.storage.contract import Access, Use

_SET, _GET = 37, 36  # F_OFD_SETLK and F_OFD_GETLK, which `fcntl` does not name before Python 3.13
_FLOCK = struct.Struct("hh4xqqi4x")
_USED, _UNSHARED = 100, 200
_NAMES = {0: "consistent read", 1: "write", 2: "write unchanged", 3: "resize"}

# Two that come at once can both see the other and both step back; somebody who holds the image stays longer than this.
_PATIENCE_S = 0.2
_PAUSE_S = 0.004

# What a file system without these locks answers: then nobody can hold one there.
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


class Permissions(NamedTuple):
    """Which permissions a holder uses, and which it does not share."""

    used: tuple[int, ...]
    unshared: tuple[int, ...]

    @property
    def held_bytes(self) -> Iterator[int]:
        """The bytes of the file that the holder locks."""
        yield from (_USED + each for each in self.used)
        yield from (_UNSHARED + each for each in self.unshared)


PERMISSIONS = {
    Access.READ: Permissions((0,), (1, 3)),
    Access.WRITE: Permissions((0, 1, 3), (1, 3)),
    Access.SHARED: Permissions((0,), ()),
    Access.PROBE: Permissions((), ()),
    Access.COVERED: Permissions((), ()),
}


def find_conflict(access: str, is_held: Callable[[int], bool]) -> str | None:
    """Name the lock that others refuse, in QEMU's words; None when they let this access in.
    `is_held` tells whether somebody else locks a byte.
    """
    wanted = PERMISSIONS[access]
    for each in wanted.used:
        if is_held(_UNSHARED + each):
            return f'"{_NAMES[each]}"'
    for each in wanted.unshared:
        if is_held(_USED + each):
            return f'shared "{_NAMES[each]}"'
    return None


def acquire(descriptor: int, path: str, access: str) -> None:
    """Take the locks of this access; closing the descriptor gives them back.
    Raises: ImageLocked when somebody else keeps them for longer than a race lasts.
    """
    deadline = time.monotonic() + _PATIENCE_S
    try:
        while (conflict := _try(descriptor, access)) is not None:
            if time.monotonic() > deadline:
                raise ImageLocked(path=path, what=conflict)
            time.sleep(_PAUSE_S * (1 + os.urandom(1)[0] / 64))
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _try(descriptor: int, access: str) -> str | None:
    """Take all the locks, or none and return what stands against them."""
    held = list(PERMISSIONS[access].held_bytes)
    for byte in held:
        # A shared lock on a byte where others take only shared ones cannot be refused, unless by somebody odd.
        if not _set(descriptor, fcntl.F_RDLCK, byte):
            _release(descriptor, held)
            return f"byte {byte}"
    conflict = find_conflict(access, lambda byte: _is_held(descriptor, byte))
    if conflict is not None:
        _release(descriptor, held)
    return conflict


def change(descriptor: int, path: str, before: str, after: str) -> None:
    """Take the locks of another access, then give back those of the old one that it does not need.
    Raises: ImageLocked when others are in the way; then the locks are as before.
    """
    old, new = (set(PERMISSIONS[access].held_bytes) for access in (before, after))
    try:
        conflict = next((f"byte {byte}" for byte in new - old if not _set(descriptor, fcntl.F_RDLCK, byte)), None)
        if conflict is None and new - old:
            conflict = find_conflict(after, lambda byte: _is_held(descriptor, byte))
        _release(descriptor, list(old - new if conflict is None else new - old))
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return
    if conflict is not None:
        raise ImageLocked(path=path, what=conflict)


def find_use(is_held: Callable[[int, int], bool]) -> str | None:
    """What others do with a file; `is_held` tells whether somebody else locks one of so many bytes. Who reads and lets
    others write at the same time (`-U`) does not count.
    """
    first = _USED + 1
    if not is_held(first, _UNSHARED - first + len(_NAMES)):
        return None
    is_written = any(is_held(_USED + each, 1) for each in PERMISSIONS[Access.WRITE].used if each)
    return Use.WRITTEN if is_written else Use.READ


def probe(descriptor: int) -> str | None:
    """What others do with an open file, without a lock on it for any moment."""
    try:
        return find_use(lambda start, count: _is_held(descriptor, start, count))
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None


def _release(descriptor: int, held: list[int]) -> None:
    for byte in held:
        _set(descriptor, fcntl.F_UNLCK, byte)


def _set(descriptor: int, kind: int, byte: int) -> bool:
    try:
        fcntl.fcntl(descriptor, _SET, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True


def _is_held(descriptor: int, byte: int, count: int = 1) -> bool:
    answer = fcntl.fcntl(descriptor, _GET, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, count, 0))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
