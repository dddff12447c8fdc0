"""How far a subcommand is, in qemu-img's form; and a monitor that holds a merge to a rate.

With `-p` each step rewrites one line of standard output. Without it SIGUSR1 asks, and a line on standard error
answers.
"""

import os
import signal
import sys
import time
from types import FrameType
from typing import Final

from cowtree.cli.img.command import Given, Option
from cowtree.cli.img.numbers import parse_number
from cowtree.monitor import Monitor

STANDARD_ERROR: Final = 2
RATE = Option(("-r",), "bytes per second, at most", "RATE_LIMIT")


class Progress:
    """A monitor that shows percentages while its block runs, at least `step_percent` apart."""

    def __init__(self, given: Given, step_percent: float) -> None:
        self._is_shown = given.has("-p") and not given.has("-q")
        self._step_percent = step_percent
        self._shown_percent = -1.0
        self._total_bytes = 0
        self._moved_bytes = 0

    @property
    def percent(self) -> float:
        """What is done of what is known so far; it never goes back when more becomes known."""
        share = 100 * self._moved_bytes / self._total_bytes if self._total_bytes else 0.0
        return max(self._shown_percent, min(share, 100.0))

    def __enter__(self) -> "Progress":
        # Neither is taken back: a signal that comes late must not kill a program that has done its work.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN if self._is_shown else self._answer)
        return self

    def __exit__(self, *error: object) -> None:
        self._print("\n")

    def show(self, percent: float) -> None:
        """Show this percentage, whatever was moved, unless it is shown already."""
        if percent > self._shown_percent:
            self._shown_percent = percent
            self._print(f"    ({percent:.2f}/100%)\r")

    def expect(self, more_bytes: int) -> None:
        """Add to the total."""
        self._total_bytes += more_bytes

    def advance(self, moved_bytes: int) -> None:
        """Add the step, and show it when it is large enough."""
        self._moved_bytes += moved_bytes
        if self.percent > self._shown_percent + self._step_percent:
            self.show(self.percent)

    def _print(self, text: str) -> None:
        if not self._is_shown:
            return
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            # Nobody reads any more. That is no reason to stop a merge in its middle.
            self._is_shown = False

    def _answer(self, number: int, frame: FrameType | None) -> None:
        # The signal may come while standard error is being written to, so its buffer is left alone.
        os.write(STANDARD_ERROR, f"    ({self.percent:.2f}/100%)\n".encode())


class Limiter:
    """A monitor that waits until what was moved is not ahead of `rate` bytes per second, and passes on."""

    def __init__(self, monitor: Monitor, rate: int) -> None:
        self._next = monitor
        self._rate = rate
        self._moved_bytes = 0
        self._start_s = time.monotonic()

    def expect(self, more_bytes: int) -> None:
        """Pass the total on."""
        self._next.expect(more_bytes)

    def advance(self, moved_bytes: int) -> None:
        """Pass the step on, and wait until it is due."""
        self._next.advance(moved_bytes)
        self._moved_bytes += moved_bytes
        due_s = self._start_s + self._moved_bytes / self._rate
        time.sleep(max(due_s - time.monotonic(), 0))


def limited(given: Given, monitor: Monitor) -> Monitor:
    """The monitor, held to the rate that `-r` names; 0 is no limit. Raises: WrongUse."""
    text = given.last("-r")
    rate = 0 if text is None else parse_number("rate limit", text)
    return Limiter(monitor, rate) if rate else monitor
