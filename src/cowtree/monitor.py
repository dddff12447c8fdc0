"""How an operation tells somebody how far it is: one contract, a silent form, and a form for tests.

Forms that draw on a terminal live with what people touch, in `cli/`.
"""

from typing import Protocol, runtime_checkable


class Monitor(Protocol):
    """Receives what an operation does while it does it."""

    def expect(self, more_bytes: int) -> None:
        """Say that the operation will move so many more bytes than was known so far."""

    def advance(self, moved_bytes: int) -> None:
        """Say that so many more bytes were moved."""


@runtime_checkable
class CloneMonitor(Protocol):
    """A monitor that also wants to know what needed no copying."""

    def note_cloned(self, cloned_bytes: int) -> None:
        """Say that so many of the bytes that were moved were cloned."""


def advance_cloned(monitor: Monitor, cloned_bytes: int) -> None:
    """Tell a monitor that bytes were moved by cloning, which not every one tells from copying."""
    monitor.advance(cloned_bytes)
    if isinstance(monitor, CloneMonitor):
        monitor.note_cloned(cloned_bytes)


class Silent:
    """Tells nobody."""

    def expect(self, more_bytes: int) -> None:
        """Ignore the total."""

    def advance(self, moved_bytes: int) -> None:
        """Ignore the step."""


class Counting:
    """Adds everything up, for tests and for statistics."""

    def __init__(self) -> None:
        self.total_bytes = 0
        self.moved_bytes = 0

    def expect(self, more_bytes: int) -> None:
        """Add to the total."""
        self.total_bytes += more_bytes

    def advance(self, moved_bytes: int) -> None:
        """Add the step."""
        self.moved_bytes += moved_bytes
