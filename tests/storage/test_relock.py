"""What the contract promises of locks that change while a file is open, tried on what keeps it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cowtree.errors import ImageLocked, StorageFailed
from cowtree.storage.contract import Access, FileSystem
from cowtree.storage.faults import FaultyFiles
from cowtree.storage.file import LocalFiles
from cowtree.storage.memory import MemoryFiles
from cowtree.storage.recording import RecordingFiles
from tests.storage.wrapped import PartFiles

WORLDS: dict[str, Callable[[], FileSystem]] = {
    "local": LocalFiles,
    "memory": MemoryFiles,
    "recording": lambda: RecordingFiles(MemoryFiles()),
    "faulty": lambda: FaultyFiles(MemoryFiles()),
    "part": lambda: PartFiles(MemoryFiles()),
}


@pytest.fixture(params=WORLDS)
def files(request: pytest.FixtureRequest) -> FileSystem:
    """A world of files."""
    return WORLDS[request.param]()


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where a file may be."""
    return str(tmp_path / "image")


def make(files: FileSystem, path: str, data: bytes) -> None:
    """Make a file."""
    made = files.create(path, 0o600)
    made.pwrite(0, data)
    made.close()


def test_a_writer_becomes_a_reader_through_whom_nobody_writes(files: FileSystem, path: str):
    make(files, path, b"data")
    file = files.open(path, Access.WRITE)
    file.relock(Access.READ)
    files.open(path, Access.READ).close()
    with pytest.raises(ImageLocked):
        files.open(path, Access.WRITE)
    with pytest.raises(StorageFailed):
        file.pwrite(0, b"x")
    assert file.pread(0, 4) == b"data"
    file.close()
    files.open(path, Access.WRITE).close()


def test_a_reader_covers_a_writer_and_then_no_more(files: FileSystem, path: str):
    make(files, path, b"data")
    file = files.open(path, Access.READ)
    file.relock(Access.WRITE)
    with pytest.raises(ImageLocked):
        files.open(path, Access.READ)
    covered = files.open(path, Access.COVERED)
    covered.pwrite(0, b"x")
    covered.flush()
    assert file.pread(0, 4) == b"xata"
    with pytest.raises(StorageFailed):
        file.pwrite(0, b"y")
    covered.close()
    file.relock(Access.READ)
    files.open(path, Access.READ).close()
    file.close()


def test_where_others_read_a_reader_stays_one(files: FileSystem, path: str):
    make(files, path, b"data")
    file, other = files.open(path, Access.READ), files.open(path, Access.READ)
    with pytest.raises(ImageLocked):
        file.relock(Access.WRITE)
    files.open(path, Access.READ).close()
    other.close()
    file.relock(Access.WRITE)
    file.close()
