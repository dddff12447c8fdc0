"""Adding up what an operation moves, while somebody watches it."""

from cowtree.monitor import Monitor, Silent


class Tally:
    """A monitor that adds up for an outcome, and passes on."""

    def __init__(self, monitor: Monitor | None) -> None:
        self.moved_bytes = 0
        self._next = monitor or Silent()

    def expect(self, more_bytes: int) -> None:
        """Pass the total on."""
        self._next.expect(more_bytes)

    def advance(self, moved_bytes: int) -> None:
        """Add the step and pass it on."""
        self.moved_bytes += moved_bytes
        self._next.advance(moved_bytes)

    def skip(self, unmoved_bytes: int) -> None:
        """Pass on that so many bytes are done because they need not be moved."""
        self._next.advance(unmoved_bytes)
