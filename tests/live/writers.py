"""Owns a client that writes without pause: blocks that say when they were written, and that are whole or not."""

import random
import socket
import struct
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from cowtree.chain.view import open_chain
from cowtree.images.check import trusted
from cowtree.live.disk import Disk
from cowtree.nbd.export import Export
from cowtree.nbd.server import Server
from cowtree.sockets import listen_on_path
from cowtree.storage.contract import Access, FileSystem

BLOCK_BYTES: Final = 4096
STAMP: Final = struct.Struct(">8sQQI")
MAGIC: Final = b"counted!"
WRITE, FLUSH, REQUEST_MAGIC = 1, 3, 0x25609513
REQUEST, ANSWER, LIMIT_S = struct.Struct(">IHHQQI"), struct.Struct(">IIQ"), 60


class Gone(Exception):
    """The server has gone."""


class Client:
    """A client of one export that asks one thing at a time."""

    def __init__(self, path: str, name: str) -> None:
        self.peer = socket.socket(socket.AF_UNIX)
        self.peer.settimeout(LIMIT_S)
        self.peer.connect(path)
        self._take(18)
        # No zeroes behind the size, and the old way to name an export.
        self.peer.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, len(name)) + name.encode())
        self.size_bytes, _ = struct.unpack(">QH", self._take(10))

    def _take(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            try:
                more = self.peer.recv(length - len(data))
            except ConnectionError as error:
                raise Gone from error
            if not more:
                raise Gone
            data += more
        return data

    def ask(self, kind: int, offset: int = 0, data: bytes = b"") -> None:
        """Ask, and wait for the answer."""
        try:
            self.peer.sendall(REQUEST.pack(REQUEST_MAGIC, 0, kind, 1, offset, len(data)) + data)
        except ConnectionError as error:
            raise Gone from error
        _, code, _ = ANSWER.unpack(self._take(ANSWER.size))
        assert not code, f"the server answered {code}"


def make_block(counter: int, block: int) -> bytes:
    """A block that says what it is."""
    rest = counter.to_bytes(8, "big") * ((BLOCK_BYTES - STAMP.size) // 8 + 1)
    rest = rest[: BLOCK_BYTES - STAMP.size]
    return STAMP.pack(MAGIC, counter, block, zlib.crc32(rest)) + rest


def counter_of(data: bytes, block: int) -> int:
    """When a block was written; 0 for one that never was. Fails when it is not whole."""
    magic, counter, number, checksum = STAMP.unpack_from(data)
    if magic != MAGIC:
        return 0
    assert (number, checksum) == (block, zlib.crc32(data[STAMP.size :])), f"block {block} holds half of something"
    return int(counter)


def newest(content: bytes) -> int:
    """The counter of the block that was written last."""
    return max(
        counter_of(content[at : at + BLOCK_BYTES], at // BLOCK_BYTES) for at in range(0, len(content), BLOCK_BYTES)
    )


class Writer:
    """Writes the same block to each of its disks in their order, and on and on; flushes now and then."""

    def __init__(self, clients: Sequence[Client], seed: int = 0, pause_s: float = 0.0) -> None:
        self._clients = clients
        self._choose = random.Random(seed)
        self._pause_s = pause_s
        self._is_over = False
        self.count = 0
        self.longest_s = 0.0
        self.error: BaseException | None = None
        # For each disk and block the counter that was sent, answered, and flushed last.
        self.sent, self.answered, self.flushed = ([dict[int, int]() for _ in clients] for _ in range(3))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._is_over:
                self._step()
        except Gone:
            return
        except BaseException as error:
            self.error = error

    def _step(self) -> None:
        counter = self.count + 1
        for number, client in enumerate(self._clients):
            # Mostly in one place, so that blocks are written again.
            reach = self._choose.choice((64, client.size_bytes // BLOCK_BYTES))
            block = self._choose.randrange(reach)
            start_s = time.monotonic()
            self.sent[number][block] = counter
            client.ask(WRITE, block * BLOCK_BYTES, make_block(counter, block))
            self.longest_s = max(self.longest_s, time.monotonic() - start_s)
            self.answered[number][block] = counter
            if not counter % 32:
                client.ask(FLUSH)
                self.flushed[number] = dict(self.answered[number])
        self.count = counter
        time.sleep(self._pause_s)

    def wait_for_more(self, count: int) -> None:
        """Wait until so many more blocks were written."""
        goal = self.count + count
        self.wait_until(lambda: self.count >= goal)

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Wait, but not for ever, and not for one that has failed."""
        end_s = time.monotonic() + LIMIT_S
        while not is_so():
            assert self.error is None, self.error
            assert time.monotonic() < end_s
            time.sleep(0.001)

    def end(self) -> None:
        """Write no more."""
        self._is_over = True
        self._thread.join()
        for client in self._clients:
            client.peer.close()
        if self.error is not None:
            raise self.error

    def check(self, content: bytes, number: int = 0, *, is_killed: bool = False) -> None:
        """Fail when a disk does not show what was written to it, or after a kill what was flushed."""
        held, most = (self.flushed if is_killed else self.answered)[number], self.sent[number]
        for block, counter in most.items():
            found = counter_of(content[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES], block)
            least = held.get(block, 0)
            assert least <= found <= counter, f"block {block} of disk {number}: {found}, not {least} to {counter}"


class _Named:
    def __init__(self, disks: Sequence[Disk]) -> None:
        self._disks = {str(number): disk for number, disk in enumerate(disks)}

    def names(self) -> Sequence[str]:
        """Numbers."""
        return list(self._disks)

    def find(self, name: str) -> Export | None:
        """The disk of this number."""
        return self._disks.get(name)


def open_disk(files: FileSystem, path: str) -> Disk:
    """A disk for writing; it is mended first when it was not closed well."""
    return Disk(trusted(open_chain(files, path, "qcow2", Access.WRITE), 0), is_read_only=False)


@contextmanager
def served(disks: Sequence[Disk], path: str) -> Iterator[None]:
    """Disks at a socket, under their numbers."""
    server = Server(_Named(disks))
    server.listen(listen_on_path(path))
    try:
        yield
    finally:
        server.stop()


@contextmanager
def busy(files: FileSystem, paths: Sequence[str], pause_s: float = 0.0) -> Iterator[tuple[list[Disk], Writer]]:
    """Disks that are served, and a client that writes to all of them until the block ends."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        disks = [open_disk(files, path) for path in paths]
        for disk in disks:
            stack.callback(disk.close)
        place = str(Path(folder) / "socket")
        stack.enter_context(served(disks, place))
        writer = Writer([Client(place, str(number)) for number in range(len(paths))], pause_s=pause_s)
        stack.callback(writer.end)
        yield disks, writer
