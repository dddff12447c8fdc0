"""Owns exports in memory, and servers around them that are gone after a test with all that was theirs."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cowtree.errors import StorageFailed
from cowtree.nbd import wire
from cowtree.nbd.export import Blocks
from cowtree.nbd.server import Server
from cowtree.sockets import listen_on_path

PAGE_BYTES = 4096
MIB = 1 << 20
WAIT_S = 5.0
BLOCKS = Blocks()


class Ram:
    """A disk in memory that writes down what it is asked, and fails when it is told to."""

    description = "some memory"
    contexts = (wire.BASE_ALLOCATION, "x-tests:odd")

    def __init__(self, data: bytes | int, *, is_read_only: bool = False, blocks: Blocks = BLOCKS) -> None:
        self.data = bytearray(data)
        self.is_read_only = is_read_only
        self.blocks = blocks
        self.calls: list[tuple[Any, ...]] = []
        self.error: Exception | None = None

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def fail(self, code: int) -> None:
        """From now on nothing works."""
        self.error = StorageFailed(path="ram", action="read", reason=os.strerror(code), errno=code)

    def _note(self, *call: Any) -> None:
        if self.error:
            raise self.error
        self.calls.append(call)

    def read(self, offset: int, length: int) -> bytes:
        self._note("read", offset, length)
        return bytes(self.data[offset : offset + length])

    def write(self, offset: int, data: memoryview, *, is_durable: bool) -> None:
        self._note("write", offset, len(data), is_durable)
        self.data[offset : offset + len(data)] = data

    def write_zeroes(self, offset: int, length: int, *, may_trim: bool, is_fast: bool, is_durable: bool) -> None:
        self._note("write zeroes", offset, length, may_trim, is_fast, is_durable)
        self.data[offset : offset + length] = bytes(length)

    def trim(self, offset: int, length: int, *, is_durable: bool) -> None:
        self._note("trim", offset, length, is_durable)

    def cache(self, offset: int, length: int) -> None:
        self._note("cache", offset, length)

    def flush(self) -> None:
        self._note("flush")

    def status(self, context: str, offset: int, length: int) -> list[tuple[int, int]]:
        """Pages of zeroes are holes; in the other context every second page is odd."""
        self._note("status", context, offset, length)
        found, end = list[tuple[int, int]](), offset + length
        while offset < end:
            stop = min((offset // PAGE_BYTES + 1) * PAGE_BYTES, end)
            is_hole = not any(self.data[offset:stop])
            state = offset // PAGE_BYTES % 2 if context != wire.BASE_ALLOCATION else 3 * is_hole
            if found and found[-1][1] == state:
                found[-1] = (found[-1][0] + stop - offset, state)
            else:
                found.append((stop - offset, state))
            offset = stop
        return found


class Shelf:
    """Exports by their names; the first is what nobody names."""

    def __init__(self, **exports: Any) -> None:
        self.exports = exports

    def names(self) -> list[str]:
        return list(self.exports)

    def find(self, name: str) -> Any:
        return self.exports.get(name or next(iter(self.exports)))


@contextmanager
def serving(path: Path, shelf: Shelf, **how: Any) -> Iterator[Server]:
    """A server on a unix socket. Fails when it leaves a thread or a descriptor behind."""
    before = set(threading.enumerate()), descriptor_count()
    server = Server(shelf, **how)
    server.listen(listen_on_path(str(path)))
    try:
        yield server
    finally:
        server.stop()
        path.unlink()
    assert server.connection_count == 0
    assert set(threading.enumerate()) == before[0]
    assert wait_until(lambda: descriptor_count() <= before[1])


def descriptor_count() -> int:
    """How many files this process has open."""
    return len(os.listdir("/proc/self/fd"))


def wait_until(holds: Any) -> bool:
    """Whether something comes true before long."""
    end_s = time.monotonic() + WAIT_S
    while not holds():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.01)
    return True
