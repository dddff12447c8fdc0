"""Making a range of a local file read as zeroes: as a hole, else as the file system's own zeroes, else written.

Apart from `file.py` because it is needed only for writing, and `ctypes` takes time to import.
"""

import ctypes
import errno
import os
from typing import Final

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 0x01, 0x02, 0x10
_WAYS: Final = (_PUNCH_HOLE | _KEEP_SIZE, _ZERO_RANGE | _KEEP_SIZE)
_CANNOT: Final = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV, errno.EPERM}
_ZEROES: Final = bytes(1 << 20)

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_FALLOCATE: Final = _LIBC.fallocate64 if hasattr(_LIBC, "fallocate64") else _LIBC.fallocate
_FALLOCATE.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def zero(descriptor: int, offset: int, length: int) -> None:
    """Make a range inside the file read as zeroes. Raises: OSError."""
    for way in _WAYS:
        if _fallocate(descriptor, way, offset, length):
            return
    write_zeroes(descriptor, offset, length)


def write_zeroes(descriptor: int, offset: int, length: int) -> None:
    """Write zeroes, as every file takes them. Raises: OSError."""
    view = memoryview(_ZEROES)
    while length:
        written = os.pwrite(descriptor, view[: min(length, len(view))], offset)
        offset, length = offset + written, length - written


def _fallocate(descriptor: int, mode: int, offset: int, length: int) -> bool:
    """Whether the file system did it; False when it cannot."""
    while _FALLOCATE(descriptor, mode, offset, length):
        code = ctypes.get_errno()
        if code in _CANNOT:
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return True
