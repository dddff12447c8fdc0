"""Names of images that nobody needs any more: a merge sets them aside, and no search takes them for good ones.

NAME.invalid-20261124T203100.123456        when it was set aside, in local time, to the microsecond
"""

import os
import re
import time
from typing import Final

NAME_BYTES_MAX: Final = 255
_ENDING: Final = re.compile(r"\.invalid-[0-9]{8}T[0-9]{6}\.[0-9]{6}")


def stamp_of(time_ns: int) -> str:
    """The moment as it stands in names."""
    return time.strftime("%Y%m%dT%H%M%S", time.localtime(time_ns // 10**9)) + f".{time_ns // 1000 % 10**6:06}"


def set_aside(path: str, stamp: str) -> str:
    """The name that a file gets in its folder when it is set aside."""
    folder, name = os.path.split(path)
    ending = f".invalid-{stamp}"
    # The longest name that a file system takes leaves no room for more.
    start = os.fsdecode(os.fsencode(name)[: NAME_BYTES_MAX - len(ending)])
    return os.path.join(folder, start + ending)


def is_aside(path: str) -> bool:
    """Whether a file has such a name."""
    return _ENDING.fullmatch(path[-len(".invalid-20261124T203100.123456") :]) is not None
