"""Searching folders and following links: which image files there are, under which names, and what each says of itself.

- A file is known by (device, inode), so links and hard links to one file are names of one find.
- Headers are read and nothing else, without locks: a running guest is not in the way, and is not disturbed.
- What a merge has set aside is no image any more: only who names it finds it.
- Links to folders are not followed, and neither pipes, sockets nor devices are opened.
- Nothing that a file or folder holds stops the search: damage is a problem of that file, a folder that cannot be
  read is named in `unseen`. Only a place that is not there at all is an error.
"""

import os
import stat
import time
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from cowtree.chain import gate
from cowtree.chain.address import has_protocol
from cowtree.chain.aside import is_aside
from cowtree.errors import BrokenHeader, ChainError, CowtreeError, MarkedCorrupt, MissingImage
from cowtree.qcow2 import header as qcow2
from cowtree.qcow2.header import Header
from cowtree.storage.contract import Access, FileSystem

Identity = tuple[int, int]

RAW_ENDINGS: Final = (".img", ".raw")
ENDINGS: Final = (*RAW_ENDINGS, ".qcow2", ".qcow")
# What looks like a file below these is none, and reading may wait for ever or do things.
KERNEL_FOLDERS: Final = ("proc", "sys")
# A folder that is reached through a link to itself gives every file in it names without end.
NAME_COUNT_MAX: Final = 16
FILES_PER_TASK: Final = 64
# Threads of Python hinder each other: when all is in memory they take three times as long. So they are called only when
# reading so many files meant waiting so long.
WAIT_S_MAX: Final = 0.03
THREAD_COUNT: Final = 8
BLOCK_BYTES: Final = 512


class Bounds(NamedTuple):
    """How far a search goes before it gives up, which it then says."""

    folder_depth: int = 64
    file_count: int = 1_000_000


class Looked(NamedTuple):
    """A folder that was searched; `is_deep` when all folders below it were, too."""

    folder: str
    is_deep: bool


class Unseen(NamedTuple):
    """A place that was not looked into, or not all of it; a failure unless that is how it should be."""

    path: str
    reason: str
    is_failure: bool


class Found(NamedTuple):
    """One file. `size_bytes` is where it ends, None when that is not known; `own_size_bytes` is what it takes on
    disk, with its external data file, which is `data` and lies at `data_path`. A file without the magic number has no
    header, and may be raw. `use` is what others do with it at this moment.
    """

    identity: Identity
    own_size_bytes: int | None = None
    size_bytes: int | None = None
    is_qcow2: bool = False
    is_device: bool = False
    header: Header | None = None
    data: Identity | None = None
    data_path: str | None = None
    problem: CowtreeError | None = None
    use: str | None = None
    mtime_ns: int = 0


class Search:
    """What has been found so far.

    `places` says for every name that was looked up which file it is, or why it is none; `names` is the reverse of it.
    `links` says for every name of a file with a backing file where that lies, or why it cannot be followed.
    """

    def __init__(self, files: FileSystem, bounds: Bounds) -> None:
        self.found: dict[Identity, Found] = {}
        self.names: dict[Identity, list[str]] = {}
        self.places: dict[str, Identity | MissingImage] = {}
        self.links: dict[str, str | ChainError] = {}
        self.given: list[str] = []
        self.below: list[str] = []
        self.looked: list[Looked] = []
        self.unseen: list[Unseen] = []
        self._files = files
        self._bounds = bounds
        self._room = bounds.file_count
        self._visited: set[Identity] = set()
        self._by_name: dict[str, list[Identity]] | None = None

    def begin(self, place: str) -> None:
        """Search below a folder, or take an image for given. Raises: MissingImage when it is not there."""
        path = _plain(place)
        self._files.identity(path)
        if os.path.isdir(path):
            self.looked.append(Looked(path, is_deep=True))
            names = list(self._walk(path, self._bounds.folder_depth))
            self.below.extend(names)
        else:
            names = [path]
            self.given.append(path)
        self._follow(names)

    def look_around(self, folders: Iterable[str]) -> bool:
        """Search in these folders and not below them. Returns: whether any of them was new."""
        names: list[str] = []
        known = len(self.looked)
        for folder in dict.fromkeys(folders):
            count = len(self._visited)
            names.extend(self._walk(folder, 0))
            if len(self._visited) > count:
                self.looked.append(Looked(folder, is_deep=False))
        self._follow(names)
        return len(self.looked) > known

    def called(self, name: str) -> list[Identity]:
        """The files that bear this name, in whatever folder."""
        if self._by_name is None:
            self._by_name = {}
            for identity, names in self.names.items():
                for each in names:
                    self._by_name.setdefault(os.path.basename(each), []).append(identity)
        return self._by_name.get(name, [])

    def _walk(self, folder: str, depth_max: int) -> Iterator[str]:
        """Every name below a folder that may be that of an image."""
        pending = [(folder, 0)]
        while pending:
            place, depth = pending.pop()
            for entry in self._list(place):
                kind = _kind(entry)
                if kind == stat.S_IFDIR and depth < depth_max:
                    self._enter(pending, entry, depth + 1)
                elif kind == stat.S_IFDIR and depth_max:
                    self.unseen.append(Unseen(entry.path, f"more than {depth_max} folders deep", is_failure=True))
                elif kind == stat.S_IFREG and self._room == 0:
                    reason = f"more than {self._bounds.file_count} files"
                    self.unseen.append(Unseen(place, reason, is_failure=True))
                    return
                elif kind == stat.S_IFREG and not is_aside(entry.name):
                    self._room -= 1
                    yield entry.path

    def _list(self, folder: str) -> list[os.DirEntry[str]]:
        """What is in a folder; nothing when it was searched before, under whatever name."""
        if folder.split(os.sep)[1] in KERNEL_FOLDERS:
            self.unseen.append(Unseen(folder, "not a folder of files", is_failure=False))
            return []
        try:
            identity = self._files.identity(folder)
            if identity in self._visited:
                return []
            self._visited.add(identity)
            with os.scandir(folder) as entries:
                return list(entries)
        except (OSError, MissingImage) as error:
            reason = error.reason if isinstance(error, MissingImage) else str(error.strerror)
            self.unseen.append(Unseen(folder, reason, is_failure=True))
            return []

    def _enter(self, pending: list[tuple[str, int]], entry: os.DirEntry[str], depth: int) -> None:
        if entry.is_symlink():
            self.unseen.append(Unseen(entry.path, "a link to a folder", is_failure=False))
        else:
            pending.append((entry.path, depth))

    def _follow(self, names: Iterable[str]) -> None:
        """Read the files that these names mean, and all that backs them, wherever it is."""
        pending = [name for name in dict.fromkeys(names) if name not in self.places]
        while pending:
            targets: dict[str, None] = {}
            for name, (place, found) in zip(pending, self._read_all(pending), strict=True):
                self.places[name] = place
                if not isinstance(place, MissingImage):
                    if found and place not in self.found:
                        self.found[place] = found
                    self._add_name(name, place, targets)
            pending = [target for target in targets if target not in self.places]

    def _add_name(self, name: str, place: Identity, targets: dict[str, None]) -> None:
        self._by_name = None
        names = self.names.setdefault(place, [])
        header = self.found[place].header
        if len(names) == NAME_COUNT_MAX:
            return
        names.append(name)
        if header and header.backing_file:
            try:
                target = _place(name, header.backing_file)
                targets[target] = None
                self.links[name] = target
            except ChainError as error:
                self.links[name] = error

    def _read_all(self, names: list[str]) -> list[tuple[Identity | MissingImage, Found | None]]:
        """Look all names up: one by one as long as that keeps us busy, many at a time once we wait for the disk."""
        read: list[tuple[Identity | MissingImage, Found | None]] = []
        parts = [names[start : start + FILES_PER_TASK] for start in range(0, len(names), FILES_PER_TASK)]
        waited_s = 0.0
        while parts and waited_s < WAIT_S_MAX:
            began_s = time.monotonic() - time.thread_time()
            read += self._read_some(parts.pop(0))
            waited_s = time.monotonic() - time.thread_time() - began_s
        if parts:
            read += self._read_threaded(parts)
        return read

    def _read_threaded(self, parts: list[list[str]]) -> list[tuple[Identity | MissingImage, Found | None]]:
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  few searches wait

        pool = ThreadPoolExecutor(THREAD_COUNT)
        try:
            return [each for part in pool.map(self._read_some, parts) for each in part]
        finally:
            pool.shutdown(cancel_futures=True)

    def _read_some(self, names: list[str]) -> list[tuple[Identity | MissingImage, Found | None]]:
        return [self._read(name) for name in names]

    def _read(self, name: str) -> tuple[Identity | MissingImage, Found | None]:
        try:
            identity = self._files.identity(name)
        except MissingImage as error:
            return error, None
        return identity, None if identity in self.found else read_file(self._files, name, identity)


def read_file(files: FileSystem, path: str, identity: Identity) -> Found:
    """Read what a file says of itself; what is wrong with it becomes its problem."""
    found = Found(identity)
    try:
        status = os.stat(path)
        if stat.S_ISBLK(status.st_mode):
            return found._replace(own_size_bytes=0, is_device=True)
        if stat.S_ISREG(status.st_mode) and not status.st_size:
            return found._replace(own_size_bytes=status.st_blocks * BLOCK_BYTES, size_bytes=0)
        file = files.open(path, Access.PROBE)
    except OSError as error:
        return found._replace(problem=MissingImage(path=path, reason=error.strerror))
    except CowtreeError as error:
        return found._replace(problem=error)
    try:
        own_size_bytes = status.st_blocks * BLOCK_BYTES
        found = found._replace(own_size_bytes=own_size_bytes, use=file.use(), mtime_ns=status.st_mtime_ns)
        found = found._replace(size_bytes=file.size_bytes, is_qcow2=gate.probe(file) == gate.QCOW2)
        return _with_header(files, found, path, gate.read_header(path, file)) if found.is_qcow2 else found
    except CowtreeError as error:
        return found._replace(problem=error)
    finally:
        file.close()


def _with_header(files: FileSystem, found: Found, path: str, header: Header) -> Found:
    found = found._replace(header=header, problem=MarkedCorrupt(path=path) if header.is_corrupt else None)
    if not header.incompatible & qcow2.EXTERNAL_DATA_FILE:
        return found
    if header.data_file is None:
        return found._replace(problem=BrokenHeader(path=path, reason="'data-file' is required for this image"))
    try:
        data_path = _plain(_data_place(path, header.data_file))
        data = files.identity(data_path)
        own = (found.own_size_bytes or 0) + os.stat(data_path).st_blocks * BLOCK_BYTES
    except ChainError as error:
        reason, hint = f"its data file cannot be opened: {error.message}", "put its data file back"
        return found._replace(problem=MissingImage(path=path, reason=reason, hint=hint))
    except OSError as error:
        return found._replace(problem=MissingImage(path=data_path, reason=error.strerror))
    return found._replace(data=data, data_path=data_path, own_size_bytes=own)


def _kind(entry: os.DirEntry[str]) -> int:
    """What a name in a folder means, links followed; a link that leads nowhere counts when it is called as an image."""
    try:
        if entry.is_dir():
            return stat.S_IFDIR
        if entry.is_file():
            return stat.S_IFREG
    except OSError:
        return stat.S_IFREG
    return stat.S_IFREG if entry.is_symlink() and entry.name.lower().endswith(ENDINGS) else 0


def _place(holder: str, name: str) -> str:
    """Where a name inside an image leads. Raises: ChainError when it is the address of what is no local file."""
    return _plain(gate.resolve_name(holder, name))


def _data_place(holder: str, name: str) -> str:
    """The same of the name of an external data file."""
    return gate.resolve_name(holder, name) if has_protocol(name) else name


def _plain(path: str) -> str:
    """The absolute path without detours, where that means the same file."""
    path = path if os.path.isabs(path) else os.path.join(os.getcwd(), path)
    plain = os.path.normpath(path)
    if plain == path:
        return path
    try:
        return plain if os.path.samefile(plain, path) else path
    except OSError:
        return path if os.path.lexists(path) or os.path.lexists(plain) else plain
