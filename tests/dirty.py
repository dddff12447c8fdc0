"""Owns how the tests read persistent dirty bitmaps: byte by byte as the specification says, and through QEMU."""

import json
import struct
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

BITMAPS_EXTENSION = 0x23852875
IN_USE, AUTO = 1, 2
Spans = list[tuple[int, int]]


class Found(NamedTuple):
    """One bitmap; `dirty` are half-open ranges of the disk, None when it is in use."""

    granularity: int
    flags: int
    dirty: Spans | None


def read_bitmaps(data: bytes | bytearray) -> dict[str, Found]:
    """The bitmaps that the bytes of an image hold, in their order.
    Source: qcow2 specification, "Bitmaps extension", "Bitmap directory", "Bitmap table".
    """
    cluster_bits, disk_bytes = struct.unpack_from(">IQ", data, 20)
    place = find_directory(data)
    found: dict[str, Found] = {}
    if place is None:
        return found
    count, position = place
    for _ in range(count):
        table, size, flags, kind, bits, name_bytes, extra_bytes = struct.unpack_from(">QIIBBHI", data, position)
        assert kind == 1
        name_start = position + 24 + extra_bytes
        name = data[name_start : name_start + name_bytes].decode("utf-8", "surrogateescape")
        packed = b"".join(
            _cluster(data, entry, 1 << cluster_bits) for entry in struct.unpack_from(f">{size}Q", data, table)
        )
        bit_count = -(-disk_bytes // (1 << bits))
        assert size == -(-bit_count // (8 << cluster_bits)) or flags & IN_USE, name
        dirty = None if flags & IN_USE else _spans(packed, bit_count, 1 << bits, disk_bytes)
        found[name] = Found(1 << bits, flags, dirty)
        position = -(-(name_start + name_bytes) // 8) * 8
    return found


def find_directory(data: bytes | bytearray) -> tuple[int, int] | None:
    """How many bitmaps there are, and where their directory begins."""
    (position,) = struct.unpack_from(">I", data, 100)
    while True:
        kind, length = struct.unpack_from(">II", data, position)
        if kind == BITMAPS_EXTENSION and data[95] & 1:
            count, _, _, offset = struct.unpack_from(">IIQQ", data, position + 8)
            return count, offset
        if kind == 0:
            return None
        position += 8 + -(-length // 8) * 8


def entry_of(data: bytes | bytearray, name: str) -> int:
    """Where the directory entry of a bitmap begins."""
    place = find_directory(data)
    assert place
    # A name follows right behind its length, where there is no extra data.
    return data.index(struct.pack(">HI", len(name), 0) + name.encode(), place[1]) - 18


def table_of(data: bytes | bytearray, name: str) -> int:
    """Where the table of a bitmap begins."""
    return int(struct.unpack_from(">Q", data, entry_of(data, name))[0])


def _cluster(data: bytes | bytearray, entry: int, size: int) -> bytes:
    if entry in (0, 1):
        return (b"\xff" if entry else b"\0") * size
    return bytes(data[entry : entry + size]).ljust(size, b"\0")


def _spans(packed: bytes, bit_count: int, granularity: int, disk_bytes: int) -> Spans:
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
    assert not bits[bit_count:].any(), "bits behind the end of the disk"
    edges = np.flatnonzero(np.diff(bits[:bit_count], prepend=0, append=0)) * granularity
    return [(int(start), min(int(stop), disk_bytes)) for start, stop in edges.reshape(-1, 2)]


def dirty_through_nbd(path: Path, name: str) -> Spans:
    """What QEMU says is dirty, when it serves the image and is asked over the socket."""
    for patience_s in (20, 40, 120):
        # Once in a while client and server wait for each other for ever.
        with suppress(subprocess.TimeoutExpired):
            return _spans_of(json.loads(_map_through_nbd(path, name, patience_s)))
    raise AssertionError("qemu-nbd does not answer")


def _map_through_nbd(path: Path, name: str, patience_s: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder) / "socket"
        words = ["qemu-nbd", "-r", "-k", str(socket), "-B", name, "-f", "qcow2", str(path)]
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr
            try:
                while not socket.exists():
                    assert server.poll() is None, server.stderr.read()
                    time.sleep(0.005)
                place = f"driver=nbd,server.type=unix,server.path={socket},x-dirty-bitmap=qemu:dirty-bitmap:{name}"
                asked = ["qemu-img", "map", "--output=json", "--image-opts", place]
                return subprocess.run(asked, check=True, capture_output=True, text=True, timeout=patience_s).stdout
            finally:
                server.kill()


def _spans_of(entries: list[dict[str, Any]]) -> Spans:
    spans: Spans = []
    for each in entries:
        start, stop = each["start"], each["start"] + each["length"]
        if each["data"]:
            continue
        if spans and spans[-1][1] == start:
            start = spans.pop()[0]
        spans.append((start, stop))
    return spans
