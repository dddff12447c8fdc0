"""Adding up what an operation moves, while somebody watches it."""

from cowtree.monitor import CloneMonitor, Monitor, Silent


class Tally:
    """A monitor that adds up for an outcome, and passes on."""

    def __init__(self, monitor: Monitor | None) -> None:
        self.moved_bytes = 0
        self.cloned_bytes = 0
        self._next = monitor or Silent()

    def expect(self, more_bytes: int) -> None:
        """Pass the total on."""
        self._next.expect(more_bytes)

    def advance(self, moved_bytes: int) -> None:
        """Add the step and pass it on."""
        self.moved_bytes += moved_bytes
        self._next.advance(moved_bytes)

    def note_cloned(self, cloned_bytes: int) -> None:
        """Add up what was moved by cloning, and pass it on to whoever wants to know."""
        self.cloned_bytes += cloned_bytes
        if isinstance(self._next, CloneMonitor):
            self._next.note_cloned(cloned_bytes)

    def skip(self, unmoved_bytes: int) -> None:
        """Pass on that so many bytes are done because they need not be moved."""
        self._next.advance(unmoved_bytes)
