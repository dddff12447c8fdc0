"""Owns exports of files by our server and by stock qemu-nbd, and storages over them that grow as files do."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cowtree.chain.place import parse
from cowtree.nbd import wire
from cowtree.nbd.client import NbdStorage, open_export
from cowtree.nbd.export import Blocks
from cowtree.storage.contract import Access, Bytes, Span, Storage
from cowtree.storage.file import LocalFiles
from cowtree.storage.passing import PassingFile
from tests.nbd.ram import BLOCKS, WAIT_S, Shelf, serving

KINDS = ("ours", "qemu-nbd")


class Shelved:
    """A storage as an export."""

    description = "a storage"
    contexts = (wire.BASE_ALLOCATION,)
    is_read_only = False

    def __init__(self, storage: Storage, blocks: Blocks = BLOCKS) -> None:
        self.storage = storage
        self.blocks = blocks

    @property
    def size_bytes(self) -> int:
        return self.storage.size_bytes

    def _check(self, *numbers: int) -> None:
        assert all(number % self.blocks.minimum == 0 for number in numbers)

    def read(self, offset: int, length: int) -> bytes:
        self._check(offset, length)
        return self.storage.pread(offset, length)

    def write(self, offset: int, data: memoryview, *, is_durable: bool) -> None:
        self._check(offset, len(data))
        self.storage.pwrite(offset, data)

    def write_zeroes(self, offset: int, length: int, *, may_trim: bool, is_fast: bool, is_durable: bool) -> None:
        self._check(offset, length)
        self.storage.write_zeroes(offset, length)

    def trim(self, offset: int, length: int, *, is_durable: bool) -> None:
        self._check(offset, length)
        self.storage.write_zeroes(offset, length)

    def cache(self, offset: int, length: int) -> None:
        pass

    def flush(self) -> None:
        self.storage.flush()

    def status(self, context: str, offset: int, length: int) -> list[tuple[int, int]]:
        self._check(offset, length)
        return [(span.length, 0 if span.is_data else 3) for span in self.storage.extents(offset, length)]


@contextmanager
def exported(kind: str, raw: Path, *options: str) -> Iterator[str]:
    """The address of a raw file that a server exports until this ends."""
    path = raw.with_suffix(".s")
    address = f"nbd+unix:///disk?socket={path}"
    if kind == "ours":
        file = LocalFiles().open(str(raw), Access.WRITE)
        with serving(path, Shelf(disk=Shelved(file))):
            yield address
        file.close()
        return
    words = ["qemu-nbd", "-t", "-e", "8", "-f", "raw", "-x", "disk", "-k", str(path), "--discard=unmap", *options]
    server = subprocess.Popen([*words, str(raw)])
    try:
        wait_for_server(path)
        yield address
    finally:
        # Asked to end while it starts, it may forget that.
        server.kill()
        server.wait()


def wait_for_server(path: Path) -> None:
    """Wait until somebody takes connections there; the socket has its name before anybody listens."""
    end_s = time.monotonic() + WAIT_S
    while True:
        with socket.socket(socket.AF_UNIX) as peer:
            try:
                peer.connect(str(path))
                return
            except (FileNotFoundError, ConnectionRefusedError):
                assert time.monotonic() < end_s
        time.sleep(0.01)


@contextmanager
def connected(address: str, access: str = Access.WRITE, **how: Any) -> Iterator[NbdStorage]:
    """A storage over an address."""
    storage = open_export(parse(address), access, **how)
    try:
        yield storage
    finally:
        storage.close()


class Grown(PassingFile):
    """A large export taken for a file: it ends behind the last byte that somebody wrote."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self._end = 0

    @property
    def size_bytes(self) -> int:
        return self._end

    def pwrite(self, offset: int, data: Bytes) -> None:
        self.inner.pwrite(offset, data)
        self._reach(offset, len(data))

    def write_zeroes(self, offset: int, length: int) -> None:
        self.inner.write_zeroes(offset, length)
        self._reach(offset, length)

    def allocate(self, offset: int, length: int) -> None:
        self.inner.allocate(offset, length)
        self._reach(offset, length)

    def truncate(self, size_bytes: int) -> None:
        if size_bytes < self._end:
            self.inner.write_zeroes(size_bytes, self._end - size_bytes)
        self._end = size_bytes

    def extents(self, offset: int, length: int) -> Iterator[Span]:
        return self.inner.extents(offset, min(length, self._end - offset))

    def _reach(self, offset: int, length: int) -> None:
        if length:
            self._end = max(self._end, offset + length)
