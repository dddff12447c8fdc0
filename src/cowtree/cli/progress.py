"""How far an operation is, for people: a bar on a terminal for cowtree's own verbs."""

import sys
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


class Bar:
    """A monitor that draws a bar on standard error while its block runs; nothing when that is no terminal."""

    def __init__(self, title: str, *, is_wanted: bool) -> None:
        self._title = title
        self._is_wanted = is_wanted and sys.stderr.isatty()
        self._progress: Progress | None = None
        self._total_bytes = 0

    def __enter__(self) -> "Bar":
        if self._is_wanted:
            from rich import console, progress  # noqa: PLC0415  it costs a tenth of a second

            columns = (
                progress.BarColumn(),
                progress.DownloadColumn(binary_units=True),
                progress.TransferSpeedColumn(),
                progress.TimeRemainingColumn(),
            )
            screen = console.Console(stderr=True)
            self._progress = progress.Progress(self._title, *columns, console=screen, transient=True)
            self._task = self._progress.add_task(self._title, total=None)
            self._progress.start()
        return self

    def expect(self, more_bytes: int) -> None:
        """Add to the total."""
        self._total_bytes += more_bytes
        if self._progress is not None:
            self._progress.update(self._task, total=self._total_bytes)

    def advance(self, moved_bytes: int) -> None:
        """Move the bar."""
        if self._progress is not None:
            self._progress.advance(self._task, moved_bytes)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
