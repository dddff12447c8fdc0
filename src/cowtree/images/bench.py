"""Sending many equal requests to one disk, to learn how long they take.

Up to `depth` requests are under way at a time. Those that read are answered by threads; those that write become one
change of the layer, in the order that keeps it valid, for each depth of them.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

import numpy as np

from cowtree import extents as ex
from cowtree.chain import gate
from cowtree.chain.view import ALIGNMENT_BYTES, Chain, resolve, windows
from cowtree.errors import Refused
from cowtree.execute.read import fetch
from cowtree.execute.writer import LayerWriter
from cowtree.extents import Extents, Offsets, Ranges
from cowtree.images.check import trusted
from cowtree.plan.put import Wish
from cowtree.qcow2.geometry import round_up
from cowtree.storage.contract import Bytes
from cowtree.storage.memory import MemoryFiles

THREAD_COUNT_MAX: Final = 64
# So many requests are planned at once, however many may be under way.
BATCH_COUNT_MAX: Final = 4096
INK_BYTES_MAX: Final = 1 << 20
INK: Final = "ink"

# Where a request begins, and who holds what it asks for.
Request = tuple[int, Extents]


class Load(NamedTuple):
    """What is sent: requests of `length_bytes`, the first one at `offset`, each of the others `step_bytes` further, and
    from the end of the disk on to its start. Writes write the byte `pattern`, and are made durable in the end, and
    every `flush_interval` requests unless that is 0.
    """

    request_count: int = 75000
    depth: int = 64
    length_bytes: int = 4096
    offset: int = 0
    step_bytes: int = 4096
    pattern: int = 0
    flush_interval: int = 0

    def batches(self, size_bytes: int) -> Iterator[Offsets]:
        """The offsets of the requests that are under way together. Raises: Refused for those that the disk lacks."""
        sent, place, most = 0, self.offset, max(min(self.depth, BATCH_COUNT_MAX), 1)
        while sent < self.request_count:
            left = self.flush_interval - sent % self.flush_interval if self.flush_interval else most
            count = min(most, self.request_count - sent, left)
            # The first one may lie past the end, for only a step leads back to the start.
            offsets = np.append(place, (place + self.step_bytes * np.arange(1, count)) % max(size_bytes, 1))
            if not size_bytes or int(offsets.max()) + self.length_bytes > size_bytes:
                raise Refused(reason="Failed request: Input/output error", hint="sizes that divide the disk's")
            yield offsets
            place, sent = (int(offsets[-1]) + self.step_bytes) % size_bytes, sent + count


def read(chain: Chain, load: Load) -> None:
    """Read through the chain. Raises: Refused when a request reaches past the end, and what reading raises."""
    reader = _Reader(chain, load.length_bytes)
    with ThreadPoolExecutor(min(max(load.depth, 1), THREAD_COUNT_MAX)) as threads:
        for offsets in load.batches(chain.size_bytes):
            for _ in threads.map(reader.read, reader.plan(offsets)):
                continue


class _Reader:
    """Answers requests, and keeps what was found out about the window of the last one."""

    def __init__(self, chain: Chain, length_bytes: int) -> None:
        self._chain = chain
        self._length_bytes = length_bytes
        self._borders = np.array([0, *(stop for _, stop in windows(chain, chain.size_bytes))], np.int64)
        self._index = -1
        self._seen = ex.empty()

    def plan(self, offsets: Offsets) -> Iterator[Request]:
        """Who holds what each request asks for."""
        index = np.searchsorted(self._borders, offsets, "right") - 1
        for number in ex.distinct(index).tolist():
            if number != self._index:
                window = self._borders[number], self._borders[min(number + 1, len(self._borders) - 1)]
                self._index, self._seen = number, resolve(self._chain, *map(int, window))
            yield from self._plan_near(offsets[index == number])

    def _plan_near(self, offsets: Offsets) -> Iterator[Request]:
        """The same for requests that begin in the window; most of them ask for a part of one extent."""
        row = np.searchsorted(self._seen.start, offsets, "right") - 1
        inside = (row >= 0) & (offsets + self._length_bytes <= np.append(self._seen.stop, 0)[row])
        parts = self._seen.take(row[inside])
        skipped = np.where(np.isin(parts.kind, ex.MOVING), offsets[inside] - parts.start, 0)
        parts = parts._replace(
            start=offsets[inside],
            length=np.full(len(skipped), self._length_bytes, np.int64),
            host_offset=parts.host_offset + skipped,
        )
        yield from ((int(parts.start[number]), parts.take(slice(number, number + 1))) for number in range(len(skipped)))
        yield from ((offset, self._look(offset)) for offset in offsets[~inside].tolist())

    def _look(self, offset: int) -> Extents:
        stop, end = offset + self._length_bytes, int(self._borders[self._index + 1])
        near = self._seen if stop <= end else resolve(self._chain, offset, stop)
        return ex.clip(near, offset, stop)

    def read(self, request: Request) -> Bytes:
        """Read what one request asks for."""
        offset, parts = request
        if len(parts.start) == 1 and parts.kind[0] == ex.DATA and parts.length[0] == self._length_bytes:
            layer = self._chain.layers[int(parts.layer[0])]
            return layer.data_file.pread(int(parts.host_offset[0]), self._length_bytes)
        data = bytearray(self._length_bytes)
        fetch(self._chain, parts, parts.start - offset, memoryview(data))
        return data


def write(chain: Chain, load: Load) -> None:
    """Write through the top of the chain, and make all of it durable in the end, also when a request is refused.
    Raises: Refused when a request reaches past the end, and what writing raises.
    """
    ink_bytes = min(load.length_bytes, INK_BYTES_MAX)
    ink = gate.open_layer(MemoryFiles({INK: bytes([load.pattern]) * ink_bytes}), INK, gate.RAW)
    writer = LayerWriter(trusted(Chain((*chain.layers, ink), (*chain.images, None)), 0), 0)
    sent = 0
    try:
        for offsets in load.batches(chain.size_bytes):
            for ranges in _groups(offsets, load.length_bytes):
                _put(writer, ranges, ink_bytes)
            sent += len(offsets)
            if load.flush_interval and sent % load.flush_interval == 0:
                writer.flush()
    except Refused:
        writer.finish()
        raise
    writer.finish()


def _groups(offsets: Offsets, length_bytes: int) -> Iterator[Ranges]:
    """What is written, joined, and split so that what lies far apart is written by calls of its own."""
    start = np.sort(offsets[: len(offsets) if length_bytes else 0])
    joined = ex.merge_ranges(Ranges(start, start + length_bytes))
    far = np.flatnonzero(np.diff(joined.start // ALIGNMENT_BYTES) > 1) + 1
    for first, last in zip([0, *far.tolist()], [*far.tolist(), len(joined.start)], strict=True):
        if first < last:
            yield Ranges(joined.start[first:last], joined.stop[first:last])


def _put(writer: LayerWriter, ranges: Ranges, ink_bytes: int) -> None:
    chain, ink = writer.chain, len(writer.chain.layers) - 1
    length = ranges.stop - ranges.start
    count = -(-length // ink_bytes)
    which = np.repeat(np.arange(len(count)), count)
    inside = (np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)) * ink_bytes
    pieces = ex.fill(Ranges(ranges.start[which] + inside, ranges.start[which] + inside), ex.DATA, layer=ink)
    pieces = pieces._replace(length=np.minimum(length[which] - inside, ink_bytes))
    start = int(ranges.start[0]) // ALIGNMENT_BYTES * ALIGNMENT_BYTES
    stop = min(round_up(int(ranges.stop[-1]), ALIGNMENT_BYTES), chain.size_bytes)
    shown = resolve(chain, start, stop, last=ink)
    writer.put(Wish(pieces, shown, shown, ink > 1), start, stop)
