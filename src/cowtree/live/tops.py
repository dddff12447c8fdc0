"""The layer on top of a disk, as whoever writes to the disk knows it."""

from typing import Protocol

from cowtree.live.sight import Sight
from cowtree.qcow2.image import Image
from cowtree.storage.contract import Storage


class Top(Protocol):
    """A layer that is written. The writers' lock of the disk is held around every call but `sync`."""

    def begin(self) -> None:
        """The first write comes. Raises: StorageFailed."""

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of it, wherever that is. Raises: StorageFailed, BrokenTable, Refused."""

    def zero(self, start: int, stop: int, *, may_trim: bool) -> None:
        """Let a range read as zeroes."""

    def trim(self, start: int, stop: int) -> None:
        """Give back what can be given back of a range; what it reads as then nobody relies on."""

    @property
    def can_say_zero(self) -> bool:
        """Whether zeroes need not be written out."""

    @property
    def has_changes(self) -> bool:
        """Whether a flush must write tables."""

    def flush(self) -> None:
        """Make all durable, tables too."""

    def sync(self) -> None:
        """Make durable what lies where the tables of the file say."""

    def finish(self) -> None:
        """The disk is closed: make all durable, and say so."""

    @property
    def image(self) -> Image | None:
        """The image as its file says; None for raw."""


class Flat:
    """A raw layer: a guest's byte lies at its own offset."""

    has_changes = False
    can_say_zero = True
    image = None

    def __init__(self, sight: Sight, file: Storage) -> None:
        self._sight = sight
        self._file = file

    def begin(self) -> None:
        """Nothing says that it is written."""

    def write(self, offset: int, data: memoryview) -> None:
        """Write it there."""
        self._file.pwrite(offset, data)

    def zero(self, start: int, stop: int, *, may_trim: bool) -> None:
        """Make a hole; one that has space of its own unless that may be given back."""
        self._file.write_zeroes(start, stop - start)
        if not may_trim:
            self._file.allocate(start, stop - start)

    def trim(self, start: int, stop: int) -> None:
        """Make a hole."""
        self._file.write_zeroes(start, stop - start)

    def flush(self) -> None:
        """Make data durable."""
        self._file.flush()

    def sync(self) -> None:
        """Make data durable."""
        self._file.flush()

    def finish(self) -> None:
        """Make data durable."""
        self._file.flush()
