"""How far a merge is, in virsh's lines; and how it is held to a speed and to a time.

    <CR>Block commit: [  5 %]

Percent are of the bytes that move, and of those that are read to prove it; they never go back.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from cowtree.cli.domain.words import Given, Option
from cowtree.cli.stop import stopping
from cowtree.errors import CowtreeError, WrongUse
from cowtree.monitor import Monitor
from cowtree.units import MIB, parse_size

NAP_S: Final = 0.1
ABORTED_STATUS: Final = 1

BANDWIDTH = Option("bandwidth", "at most so many MiB a second", "bandwidth")
BYTES = Option("bytes", "bandwidth is in bytes a second; a suffix such as 4M may be given")
WAIT = Option("wait", "say what has become of it; without it, only that it was started, though it is done then too")
VERBOSE = Option("verbose", "show how far it is")
TIMEOUT = Option("timeout", "stop at a safe point after so many seconds", "timeout", has_place=False, is_number=True)
ASYNC = Option("async", "accepted: a merge that is stopped stops at once")


class TimeIsUp(CowtreeError):
    """The time that was given is over."""

    exit_status = ABORTED_STATUS


class Lines:
    """A monitor that writes lines to standard error when they are wanted."""

    def __init__(self, title: str, *, is_wanted: bool) -> None:
        self._title = title
        self._is_wanted = is_wanted
        self._total_bytes = 0
        self._done_bytes = 0
        self._percent = -1

    def expect(self, more_bytes: int) -> None:
        """Add to the total."""
        self._total_bytes += more_bytes

    def advance(self, moved_bytes: int) -> None:
        """Say it when another percent is done; the last one is said at the end."""
        self._done_bytes += moved_bytes
        self._say(min(self._done_bytes * 100 // max(self._total_bytes, 1), 99))

    def end(self) -> None:
        """All is done."""
        self._say(100)

    def _say(self, percent: int) -> None:
        if self._is_wanted and percent > self._percent:
            self._percent = percent
            print(f"\r{self._title}: [{percent:3} %]", end="", file=sys.stderr, flush=True)


class Limited:
    """A monitor that passes on, and lets what it watches move at most so many bytes a second, 0 for any, and take at
    most so many seconds, None for any.
    """

    def __init__(self, inner: Monitor, bytes_per_s: int, timeout_s: float | None) -> None:
        self._inner = inner
        self._bytes_per_s = bytes_per_s
        self._start_s = time.monotonic()
        self._end_s = None if timeout_s is None else self._start_s + timeout_s
        self._moved_bytes = 0

    def expect(self, more_bytes: int) -> None:
        """Pass it on."""
        self._inner.expect(more_bytes)

    def advance(self, moved_bytes: int) -> None:
        """Pass it on, and wait until it may go on. Raises: TimeIsUp."""
        self._inner.advance(moved_bytes)
        self._moved_bytes += moved_bytes
        due_s = self._start_s + self._moved_bytes / self._bytes_per_s if self._bytes_per_s else self._start_s
        while True:
            now_s = time.monotonic()
            if self._end_s is not None and now_s >= self._end_s:
                raise TimeIsUp(reason="the time is up")
            if now_s >= due_s:
                return
            time.sleep(min(NAP_S, due_s - now_s))


def bytes_per_s(given: Given) -> int:
    """The speed that is wanted; 0 for any. Raises: WrongUse."""
    text = given.get(BANDWIDTH.name)
    if text is None:
        return 0
    try:
        return parse_size(text) if given.has(BYTES.name) else int(text) * MIB if text.isdecimal() else int("")
    except (ValueError, OverflowError):
        reason = f"Scaled numeric value '{text[:40]}' for <--bandwidth> option is malformed or out of range"
        raise WrongUse(reason=reason, hint=f"cowtree {given.command.name} --help") from None


@contextmanager
def watched(given: Given, title: str) -> Iterator[Monitor]:
    """A monitor as the words want it; Ctrl-C and SIGTERM stop what is done at a safe point.
    Raises: KeyboardInterrupt, TimeIsUp.
    """
    lines = Lines(title, is_wanted=given.has(VERBOSE.name))
    speed, timeout_s = bytes_per_s(given), given.number(TIMEOUT.name)
    if timeout_s == 0:
        raise WrongUse(reason="invalid timeout", hint=f"cowtree {given.command.name} --help")
    with stopping():
        yield Limited(lines, speed, timeout_s)
    lines.end()
