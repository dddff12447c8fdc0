"""A disk that is served: reads through the whole chain, and writes to the layer on top, by many threads at once.

- A read looks up where its bytes are, once, however deep the chain is. A write to what the top holds alone goes there,
  with no lock held. Every other change of the disk comes after another, under the writers' lock.
- What was written is durable after `flush`. A stop at any moment leaves all that was flushed before, and of what came
  after for each sector the old or the new; see `pending.py`.
- `drain` waits until no request is under way, and holds new ones.
"""

import errno
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from cowtree.chain.gate import Layer
from cowtree.chain.view import Chain
from cowtree.errors import Refused, RequestFailed
from cowtree.execute.writer import refuse_plain_data
from cowtree.live import bitmaps, status
from cowtree.live import map as guest_map
from cowtree.live.active import Active
from cowtree.live.bitmaps import Bitmaps
from cowtree.live.claims import Claims
from cowtree.live.layers import Layers
from cowtree.live.pending import Pending
from cowtree.live.sight import Sight
from cowtree.live.tops import Flat, Top
from cowtree.live.traffic import IDLE, Traffic
from cowtree.nbd import wire
from cowtree.nbd.export import Blocks
from cowtree.qcow2.image import Image, refuse_what_we_cannot_write
from cowtree.units import SECTOR_BYTES

FAST_BYTES_MAX: Final = 1 << 20


class Disk:
    """An open chain as a disk; an `nbd.export.Export`. For writing the top is open for that, and its counts are right:
    whoever opens an image that was not closed well has them mended first.
    """

    def __init__(self, chain: Chain, *, is_read_only: bool, description: str = "") -> None:
        self.description = description or chain.top.path
        self.is_read_only = is_read_only
        self.size_bytes = chain.size_bytes
        self._traffic = Traffic()
        self._writing = threading.Lock()
        # Whether the image says that it is written, and whether something was that is not settled yet.
        self._has_begun = self._has_written = False
        self._is_closed = False
        self.claims = Claims()
        self._sight = Sight(chain)
        self._top: Top | None = None
        self._take_top()

    def _take_top(self) -> None:
        """Begin to serve with the layer that is on top now. Raises: Refused, MarkedCorrupt, BrokenTable, Locked."""
        chain = self.layers.chain
        layer, image = chain.top, chain.images[0]
        self._bitmaps = None if image is None else Bitmaps(layer, image)
        self._notes = self._bitmaps.note if self._bitmaps and self._bitmaps.are_recording else None
        self._unit_bytes = SECTOR_BYTES if layer.is_encrypted else 1
        self._has_begun = self._has_written = False
        if not self.is_read_only:
            self._top = self._open_top(layer, image, has_backing=len(chain.layers) > 1)

    def _open_top(self, layer: Layer, image: Image | None, *, has_backing: bool) -> Top:
        """What writes to the top. Raises: Refused, MarkedCorrupt, BrokenTable, Locked."""
        refuse_plain_data(layer)
        if image is None or self._bitmaps is None:
            return Flat(self._sight, layer.file)
        refuse_what_we_cannot_write(image)
        pending = Pending(layer, image, self._traffic, self._sight.lock)
        self._sight.top = pending
        return Active(self._sight, pending, self._bitmaps, has_backing=has_backing)

    @property
    def layers(self) -> Layers:
        """Its layers; whoever changes them has drained the disk, and calls `changed` then."""
        return self._sight.layers

    @property
    def blocks(self) -> Blocks:
        """Its block sizes."""
        return Blocks(minimum=self._unit_bytes)

    @property
    def contexts(self) -> Sequence[str]:
        """What `status` can be asked for."""
        named = self._bitmaps.contexts if self._bitmaps else []
        return [wire.BASE_ALLOCATION, status.ALLOCATION_DEPTH, *named]

    def read(self, offset: int, length: int) -> bytes | bytearray:
        """Read what the guest sees."""
        slot = self._traffic.enter()
        try:
            return self._sight.read(offset, length)
        finally:
            slot[0] = IDLE

    def write(self, offset: int, data: memoryview, *, is_durable: bool) -> None:
        """Write all of it."""
        slot = self._traffic.enter()
        try:
            if self._notes:
                self._notes(offset, offset + len(data))
            if self._has_begun and not (offset | len(data)) % self._unit_bytes:
                begin, end, code, host = self._sight.find(offset)
                if code & guest_map.OWN and offset + len(data) <= end:
                    self._sight.layers.files[code].pwrite(host + offset - begin, data)
                    if is_durable:
                        self._flush()
                    return
            with self._changing() as top:
                top.write(offset, data)
            if is_durable:
                self._flush()
        finally:
            slot[0] = IDLE

    @contextmanager
    def _changing(self) -> Iterator[Top]:
        """The top, for one change; with the first of all the image is said to be in use. Raises: RequestFailed."""
        with self._writing:
            if self._top is None or self._is_closed:
                raise RequestFailed(reason=f"{self.description} is not open for writing", errno=errno.EPERM)
            if not self._has_begun:
                self._top.begin()
                self._has_begun = self._has_written = True
            yield self._top

    def write_zeroes(self, offset: int, length: int, *, may_trim: bool, is_fast: bool, is_durable: bool) -> None:
        """Let a range read as zeroes."""
        slot = self._traffic.enter()
        try:
            with self._changing() as top:
                if is_fast and not top.can_say_zero and length > FAST_BYTES_MAX:
                    raise RequestFailed(reason="zeroes would have to be written out", errno=errno.EOPNOTSUPP)
                if self._notes:
                    self._notes(offset, offset + length)
                top.zero(offset, offset + length, may_trim=may_trim)
            if is_durable:
                self._flush()
        finally:
            slot[0] = IDLE

    def trim(self, offset: int, length: int, *, is_durable: bool) -> None:
        """Give space back."""
        slot = self._traffic.enter()
        try:
            with self._changing() as top:
                if self._notes:
                    self._notes(offset, offset + length)
                top.trim(offset, offset + length)
            if is_durable:
                self._flush()
        finally:
            slot[0] = IDLE

    def cache(self, offset: int, length: int) -> None:
        """Ask the system to read a range ahead."""
        slot = self._traffic.enter()
        try:
            for begin, end, code, host in self._sight.pieces(offset, offset + length):
                file = self._sight.layers.files.get(code)
                if file is not None:
                    low, high = max(begin, offset), min(end, offset + length)
                    file.prefetch(host + low - begin, high - low)
        finally:
            slot[0] = IDLE

    def flush(self) -> None:
        """Make everything durable."""
        slot = self._traffic.enter()
        try:
            self._flush()
        finally:
            slot[0] = IDLE

    def _flush(self) -> None:
        if self._top is None or not self._has_written:
            return
        if not self._top.has_changes:
            self._top.sync()
            return
        with self._writing:
            self._top.flush()

    def status(self, context: str, offset: int, length: int) -> Sequence[tuple[int, int]]:
        """What a context says of a range."""
        slot = self._traffic.enter()
        try:
            if context.startswith(bitmaps.DIRTY_BITMAP):
                if self._bitmaps is None or context not in self._bitmaps.contexts:
                    raise RequestFailed(reason=f"the layer on top has no {context}", errno=errno.EINVAL)
                return self._bitmaps.status(context, offset, offset + length)
            find = status.allocation if context == wire.BASE_ALLOCATION else status.depth
            return find(self._sight, offset, offset + length)
        finally:
            slot[0] = IDLE

    @contextmanager
    def drain(self) -> Iterator[None]:
        """Wait for all requests, and hold new ones until the block ends."""
        with self._traffic.drain():
            yield

    def settle(self) -> None:
        """Make all durable, and say in the image of the top that all is right, as when it is closed; the next write
        begins anew. Only while it is drained. Raises: StorageFailed; then the disk goes on as before.
        """
        if self._is_closed or self._top is None:
            raise Refused(
                reason=f"{self.description} is not open for writing", hint="a disk that is served for writing"
            )
        self._has_begun = False
        if self._has_written:
            self._top.finish()
        self._has_written = False
        image, layer = self._top.image, self.layers.chain.top
        if image is not None:
            image = image._replace(file_size_bytes=layer.file.size_bytes)
            self.layers.renew(self.layers.numbers[0], layer._replace(header=image.header), image)

    def changed(self) -> None:
        """Layers are other ones, or hold something else than before. Only while it is drained, after `settle`."""
        self._take_top()
        self._sight.forget()

    def refresh(self) -> None:
        """A layer below holds elsewhere what is seen of it: when this returns nobody looks any more where it was. Not
        from within a request.
        """
        self._sight.forget()
        self._traffic.wait_past()

    def close(self) -> None:
        """Make all durable, say in the image that all is right, and close every file. Raises: StorageFailed; then the
        image says that it was not closed well.
        """
        self.claims.end()
        with self._traffic.drain(), self._writing:
            if self._is_closed:
                return
            self._is_closed = True
            try:
                if self._top is not None and self._has_written:
                    self._top.finish()
            finally:
                self._sight.layers.close()
