"""What can be on disk after the power goes: every state that a log of events may leave.

The power can go after each event. What a file took before its last sync is durable, and so are the names of a folder
that were changed before its last sync. Each later write or change of a name is there or not, whatever became of the
others; the write that came last may be there in part, torn at a border of sectors.
"""

import bisect
import itertools
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from cowtree.storage.memory import MemoryFiles, Pages
from cowtree.storage.recording import (
    Created,
    Event,
    FolderSynced,
    Linked,
    Opened,
    Renamed,
    Synced,
    Truncated,
    Unlinked,
    Wrote,
    Zeroed,
)
from cowtree.units import SECTOR_BYTES

# So many pending events are tried in every combination; of more, some of the combinations.
EXHAUSTIVE_COUNT_MAX: Final = 4
RANDOM_COUNT: Final = 6
TEAR_COUNT_MAX: Final = 6

Content = Wrote | Zeroed | Truncated
Naming = Created | Renamed | Linked | Unlinked


class State(NamedTuple):
    """What a power cut may leave. `how` says when it came and what was lost; the same log and seed give it again.
    `number` is how many events had come.
    """

    files: MemoryFiles
    how: str
    number: int


class _Cut(NamedTuple):
    """One way in which the power goes: events by their number in the log."""

    number: int
    kept: frozenset[int]
    tear: Wrote | None = None


class _Disk:
    """What is durable, and which events may or may not be."""

    def __init__(self, initial: Mapping[str, bytes], log: Sequence[Event]) -> None:
        opened = {event.path: event.file for event in log if isinstance(event, Opened)}
        unknown = itertools.count(-1, -1)
        paths = {os.path.normpath(path): data for path, data in initial.items()}
        self.names = {path: opened.get(path) or next(unknown) for path in paths}
        self.content = {self.names[path]: Pages(data) for path, data in paths.items()}
        self.log = log
        self.linked = {event.file for event in log if isinstance(event, Linked)}
        self.writes: list[int] = []
        self.namings: list[int] = []

    def pass_event(self, number: int) -> None:
        """Let one more event of the log have happened."""
        event = self.log[number]
        if isinstance(event, Content):
            self.writes.append(number)
        elif isinstance(event, Naming):
            self.namings.append(number)
        elif isinstance(event, Synced):
            done = [each for each in self.writes if _file_of(self.log[each]) == event.file]
            self.writes = [each for each in self.writes if each not in done]
            for each in done:
                _write(self.content, self.log[each])
        elif isinstance(event, FolderSynced):
            done = [each for each in self.namings if _folder_of(self.log[each]) == event.path]
            self.namings = [each for each in self.namings if each not in done]
            for each in done:
                self._name(self.names, self.log[each])

    def after(self, cut: _Cut) -> dict[str, Pages]:
        """The files that are there after this cut."""
        names = dict(self.names)
        for each in self.namings:
            if each in cut.kept:
                self._name(names, self.log[each])
        content = {file: self.content[file].copy() for file in names.values() if file in self.content}
        for each in self.writes:
            event = cut.tear if cut.tear is not None and each == self.writes[-1] else self.log[each]
            if each in cut.kept and _file_of(event) in names.values():
                _write(content, event)
        return {path: content.get(file, Pages()) for path, file in names.items()}

    def _name(self, names: dict[str, int], event: Event) -> None:
        """Let an event change which names there are."""
        match event:
            case Created(path, file) | Linked(path, file):
                names[path] = file
            case Renamed(source, target, file):
                # Without the event that gave it this name a file is still where it was: it has one name, or was linked.
                old = [name for name, held in names.items() if held == file and file not in self.linked]
                for name in [source] if names.get(source) == file else old:
                    del names[name]
                names[target] = file
            case Unlinked(path, file):
                if names.get(path) == file:
                    del names[path]


def durable_states(
    initial: Mapping[str, bytes], log: Sequence[Event], seed: int, marks: Sequence[int] = ()
) -> Iterator[State]:
    """Every distinct state that a power cut can leave at any moment of the log, which began with these files. The same
    state counts again when more of the `marks`, numbers of events, have come.
    """
    disk, seen = _Disk(initial, log), set()
    for number in range(len(log) + 1):
        if number:
            disk.pass_event(number - 1)
        for cut in _cuts(disk, number, random.Random(f"{seed} {number}")):
            files = MemoryFiles.of_pages(disk.after(cut))
            key = bisect.bisect_right(marks, number), files.key()
            if key not in seen:
                seen.add(key)
                yield State(files, _describe(disk, cut), number)


def find_undurable(log: Sequence[Event]) -> list[Event]:
    """The events that a power cut at the end of the log may undo."""
    disk = _Disk({}, log)
    for number in range(len(log)):
        disk.pass_event(number)
    return [log[number] for number in sorted(disk.namings + disk.writes)]


def _cuts(disk: _Disk, number: int, choose: random.Random) -> Iterator[_Cut]:
    for names in _subsets(disk.namings, choose):
        for writes in _subsets(disk.writes, choose):
            yield _Cut(number, names | writes)
    last = disk.log[number - 1] if number else None
    if isinstance(last, Wrote):
        everything = frozenset(disk.namings + disk.writes)
        alone = frozenset([*disk.namings, number - 1])
        for tear in _tears(last, choose):
            yield _Cut(number, everything, tear)
            yield _Cut(number, alone, tear)


def _subsets(numbers: list[int], choose: random.Random) -> Iterator[frozenset[int]]:
    """Every subset of a few; of many all, none, all but one, each one alone, and some at random."""
    whole = frozenset(numbers)
    if len(numbers) <= EXHAUSTIVE_COUNT_MAX:
        for count in range(len(numbers) + 1):
            yield from map(frozenset, itertools.combinations(numbers, count))
        return
    yield whole
    yield frozenset()
    for each in numbers:
        yield whole - {each}
        yield frozenset([each])
    for _ in range(RANDOM_COUNT):
        yield frozenset(each for each in numbers if choose.random() < 0.5)


def _tears(write: Wrote, choose: random.Random) -> Iterator[Wrote]:
    """The write without what lies behind a border of sectors, and without what lies before it."""
    first = SECTOR_BYTES - write.offset % SECTOR_BYTES
    borders: Sequence[int] = range(first, len(write.data), SECTOR_BYTES)
    if len(borders) > TEAR_COUNT_MAX:
        borders = [borders[0], borders[-1], *choose.sample(borders[1:-1], TEAR_COUNT_MAX - 2)]
    for border in borders:
        yield write._replace(data=write.data[:border])
        yield write._replace(offset=write.offset + border, data=write.data[border:])


def _file_of(event: Event) -> int:
    return event.file if isinstance(event, Content) else 0


def _folder_of(event: Event) -> str:
    path = (
        event.target
        if isinstance(event, Renamed)
        else event.path
        if isinstance(event, Created | Linked | Unlinked)
        else ""
    )
    return os.path.dirname(path) or "."


def _write(content: dict[int, Pages], event: Event) -> None:
    pages = content.setdefault(_file_of(event), Pages())
    match event:
        case Wrote(_, offset, data):
            pages.write(offset, data)
        case Zeroed(_, offset, length):
            pages.zero(offset, length)
        case Truncated(_, size_bytes):
            pages.truncate(size_bytes)


def _describe(disk: _Disk, cut: _Cut) -> str:
    lost = [each for each in (*disk.namings, *disk.writes) if each not in cut.kept]
    words = [f"the power goes after {cut.number} of {len(disk.log)} events"]
    words += [f"event {each} is lost: {describe(disk.log[each])}" for each in lost]
    if cut.tear is not None:
        words.append(f"of {describe(disk.log[cut.number - 1])} only {describe(cut.tear)}")
    return "\n".join(words)


def describe(event: Event) -> str:
    """An event without its bytes."""
    return f"Wrote({event.file}, {event.offset}+{len(event.data)})" if isinstance(event, Wrote) else repr(event)
