"""What every guest can do with its disks, whoever has them open.

- What is asked for is one act for all disks that are named, as far as that kind of guest can do it; what a stop leaves
  half-done, `take_back` or the same call once more puts right.
- Nothing that was there before is replaced or emptied.
- When a call returns, what it did is durable.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from cowtree.images.wish import Manner, Planned


class Overlay(NamedTuple):
    """A disk that goes on in another file: `source` is frozen, and `path` lies on it; it is there if it `is_reused`.
    `moment` is what the new file tells of what lies below it, for whoever has lost the catalogue: the fields of
    `qcow2.moment.Moment` but for the path, as an intent keeps them.
    """

    target: str
    source: str
    format: str
    path: str
    is_reused: bool = False
    moment: dict[str, Any] | None = None


class Inside(NamedTuple):
    """An internal snapshot of one disk, which lies in the file `source`; `id` is known when it has been taken.
    Units: whole microseconds since 1970, in nanoseconds.
    """

    target: str
    source: str
    format: str
    name: str
    created_ns: int
    id: str | None = None


class Copy(NamedTuple):
    """A disk that goes on in a new file which shows what an internal snapshot of another one holds. Its moment is that
    of the file in which the snapshot lies, with those fields that are given here in place of its own.
    """

    inside: Inside
    path: str
    moment: dict[str, Any] | None = None


class Guest(Protocol):
    """One guest and its disks."""

    def go_on(self, overlays: Sequence[Overlay]) -> None:
        """Freeze disks at one moment, and go on in files that lie on them; done before, it does the rest.
        Raises: Refused when a file is there that is not to be reused, and what making it raises.
        """

    def take_back(self, overlays: Sequence[Overlay]) -> None:
        """Do without such files again, those that were made. Raises: Refused when somebody has written to one."""

    def keep(self, disks: Sequence[Inside]) -> list[Inside]:
        """Take internal snapshots. Returns: the same, with their IDs."""

    def forget(self, disks: Sequence[Inside]) -> None:
        """Delete internal snapshots, those that are there: by ID, or by name and time."""

    def return_to(self, disks: Sequence[Inside]) -> None:
        """Let disks show what they showed when these were taken. Raises: Refused when one is not there."""

    def copy_out(self, copies: Sequence[Copy]) -> None:
        """Make such files, those that are not there yet. Raises: Refused when a snapshot is not there."""

    def merge(self, planned: Planned, words: Sequence[str], manner: Manner) -> int:
        """Carry out what was planned. Returns: how many bytes were moved."""
