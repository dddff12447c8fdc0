"""Merging layers below the one that is written into the layer below them, while clients read and write.

    1  the layers are claimed, and opened once more: what is merged for reading, the base for writing
    2  the base takes over what the layers above it show       clients read through the layers as before
    3  the base is durable, and is as large as it must be
    4  the disk is drained: the overlay of the merged layers gets the base for its backing file
    5  the disk goes on without the merged layers, and they are closed

What is merged hides all that the base takes over, so clients see the same at every moment; when a part of the base that
they see comes to lie elsewhere, nobody looks at the old place any more before it is used again. A job that is stopped,
or fails, leaves the chain as it was, and every layer valid; run again it completes the work. When it has ended well all
of it is durable. Nobody removes the files of what was merged.
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from cowtree.chain import gate
from cowtree.chain.load import load_image
from cowtree.chain.view import Chain, open_chain
from cowtree.errors import CowtreeError, NotInChain, Refused, StorageFailed, WrongUse
from cowtree.execute.writer import LayerWriter
from cowtree.images import fold
from cowtree.images.check import trusted
from cowtree.images.fold import Fold, Link
from cowtree.images.merge import refuse_unproven
from cowtree.images.tally import Tally
from cowtree.live.disk import Disk
from cowtree.live.locks import relock
from cowtree.live.sight import whole
from cowtree.monitor import Monitor
from cowtree.plan.permit import Permit
from cowtree.storage.contract import Access, FileSystem
from cowtree.units import SECTOR_BYTES


class Wanted(NamedTuple):
    """What is merged: the layers from `top` down to just above `base`, which are paths; `top` is below the layer that
    is written. The permit proves that nobody outside the merge reads what it changes.
    """

    top: str
    base: str
    permit: Permit


class Span(NamedTuple):
    """The numbers of layers, the upper ones first: the overlay of what is merged, what is merged, and the base."""

    overlay: int
    merged: tuple[int, ...]
    base: int


class Merged(NamedTuple):
    """What a commit has done: the files that the disk needs no more, and how many bytes were moved."""

    paths: tuple[str, ...]
    moved_bytes: int


class Commit:
    """A job that merges layers of a disk. Raises: NotInChain, WrongUse, Refused."""

    def __init__(self, files: FileSystem, disk: Disk, wanted: Wanted, monitor: Monitor | None = None) -> None:
        self._files = files
        self._disk = disk
        self._span = find_span(files, disk, wanted.top, wanted.base)
        group = [disk.layers.held[number].top for number in (*self._span.merged, self._span.base)]
        refuse_unproven(files, group, wanted.permit)
        self._tally = Tally(monitor)
        self._stop = threading.Event()
        self._is_known = False

    def stop(self) -> None:
        """Let it end soon, if it has not come to its last step."""
        self._stop.set()

    def run(self) -> Merged | None:
        """Do it. Returns: None when it was stopped. Raises: Refused, ImageLocked when others read the base, and what
        opening and writing raise.
        """
        span = self._span
        with ExitStack() as stack:
            claimed = frozenset((span.overlay, *span.merged, span.base))
            stack.enter_context(self._disk.claims.hold(claimed, self._stop))
            if not claimed <= set(self._disk.layers.numbers):
                raise Refused(reason="some of these layers are gone meanwhile", hint="look at the chain again")
            held = self._disk.layers.held
            merged = [held[number].top for number in span.merged]
            stack.enter_context(self._covered(span.base))
            link = self._link()
            chain = self._open(stack)
            stack.enter_context(self._renewed())
            if not self._move(chain):
                return None
            self._switch(link)
        for layer in merged:
            layer.close()
        return Merged(tuple(layer.path for layer in merged), self._tally.moved_bytes)

    @contextmanager
    def _covered(self, number: int) -> Iterator[None]:
        """Keep others away from a layer that is written by another handle, while the block runs."""
        relock(self._disk.layers.held[number].top, Access.WRITE)
        try:
            yield
        finally:
            relock(self._disk.layers.held[number].top, Access.READ)

    def _link(self) -> Link:
        """How the overlay will find the base. Raises: Refused when its header has no room for that."""
        held = self._disk.layers.held
        overlay, base = held[self._span.overlay], held[self._span.base].top
        header = overlay.top.header
        name = header.backing_file if header and header.backing_file else "/"
        is_relative = not name.startswith(("/", "file:"))
        link = gate.name_for(self._files, overlay.top.path, base.path, is_relative=is_relative), base.format
        LayerWriter(overlay, 0).survey_link(link)
        return link

    def _open(self, stack: ExitStack) -> Chain:
        """The merged layers and all below them by handles of their own, the base for writing. Raises: Refused when
        their names do not lead to what is served any more.
        """
        held, span = self._disk.layers.held, self._span
        top, base = held[span.merged[0]].top, held[span.base].top
        # All of it is held under locks by the disk.
        chain = open_chain(self._files, top.name, top.format, Access.PROBE)
        stack.callback(chain.close)
        numbers = self._disk.layers.numbers
        served = [held[number].top.path for number in numbers[numbers.index(span.merged[0]) :]]
        found = [layer.path for layer in chain.layers]
        if len(served) != len(found) or not all(map(self._is_same, served, found)):
            raise Refused(reason=f"{top.path} does not lie on what it lay on when it was opened", hint="close the disk")
        index = len(span.merged)
        chain.layers[index].close()
        layer = gate.open_layer(self._files, base.name, base.format, Access.COVERED)
        stack.callback(layer.close)
        return chain.with_layer(index, layer).with_image(index, load_image(layer))

    def _is_same(self, path: str, other: str) -> bool:
        return gate.is_same(self._files, path, other)

    def _move(self, chain: Chain) -> bool:
        """Let the base take over what the merged layers show, durably. Returns: False when it was stopped."""
        index = len(self._span.merged)
        overlay = self._disk.layers.held[self._span.overlay]
        sizes = [max(overlay.top.size_bytes, fold.disk_bytes(overlay.images[0]))]
        base_bytes = chain.layers[index].size_bytes
        seen_bytes = fold.seen_bytes(chain, index, sizes)
        act = Fold(index, index, seen_bytes, max(chain.size_bytes, base_bytes))
        chain = trusted(chain, index)
        self._tally.expect(fold.survey(chain, act).moved_bytes)
        writer = LayerWriter(chain, index, self._tally)
        try:
            is_whole = self._put(writer, act)
        except BaseException:
            # What was put so far is right as it is; where the disk says no the dirty bit stays.
            with suppress(StorageFailed):
                writer.finish()
            raise
        if is_whole and act.size_bytes > base_bytes:
            writer.grow(act.size_bytes)
        writer.finish()
        return is_whole

    def _put(self, writer: LayerWriter, act: Fold) -> bool:
        if act.size_bytes > writer.chain.layers[act.target].size_bytes:
            writer.prepare_growth(act.size_bytes)
        for span in list(act.spans(writer.chain)):
            moved_bytes = writer.price(act.wish(writer.chain, span), *span).moved_bytes
            for part in fold.parts(span, moved_bytes):
                if self._stop.is_set():
                    return False
                writer.put(act.wish(writer.chain, part), *part)
                # What was let go may be used again by the next part.
                self._disk.refresh()
        return True

    @contextmanager
    def _renewed(self) -> Iterator[None]:
        """Whatever comes of the block, the disk knows the base as it is then."""
        try:
            yield
        finally:
            if not self._is_known:
                with suppress(CowtreeError), self._disk.drain():
                    self._renew(self._span.base)
                    self._disk.refresh()

    def _renew(self, number: int) -> None:
        """Read again what a layer's header and tables say."""
        layer = self._disk.layers.held[number].top
        if layer.header is None:
            layer = layer._replace(size_bytes=max(layer.size_bytes, layer.data_file.size_bytes), known=None)
            self._disk.layers.renew(number, whole(layer, None), None)
            return
        header = gate.read_header(layer.path, layer.file)
        layer = layer._replace(header=header, size_bytes=header.size_bytes // SECTOR_BYTES * SECTOR_BYTES)
        self._disk.layers.renew(number, layer, load_image(layer))

    def _switch(self, link: Link) -> None:
        """Let the overlay lie on the base, in its header and for the disk. Raises: StorageFailed; then it lies on the
        one or the other in its header, and both show the same.
        """
        layers, span = self._disk.layers, self._span
        with ExitStack() as stack, self._disk.drain():
            is_top = layers.numbers[0] == span.overlay
            self._disk.settle()
            try:
                if is_top:
                    self._relink(layers.held[span.overlay], link)
                else:
                    stack.enter_context(self._covered(span.overlay))
                    self._relink(self._open_overlay(stack), link)
                for number in span.merged:
                    layers.drop(number)
            finally:
                try:
                    self._renew(span.base)
                    self._renew(span.overlay)
                finally:
                    self._disk.changed()
                self._is_known = True

    def _open_overlay(self, stack: ExitStack) -> Chain:
        """An overlay that is not the top, for writing."""
        old = self._disk.layers.held[self._span.overlay].top
        layer = gate.open_layer(self._files, old.name, old.format, Access.COVERED)
        stack.callback(layer.close)
        return Chain((layer,), (load_image(layer),))

    def _relink(self, overlay: Chain, link: Link) -> None:
        LayerWriter(trusted(overlay, 0, is_filled=False), 0, records=False).relink(link)


def find_span(files: FileSystem, disk: Disk, top: str, base: str) -> Span:
    """The layers from `top` down to `base`. Raises: NotInChain, WrongUse, Refused."""
    layers = disk.layers.chain.layers
    found = []
    for wanted in (top, base):
        same = (index for index, layer in enumerate(layers) if gate.is_same(files, wanted, layer.path))
        index = next(same, None)
        if index is None:
            raise NotInChain(path=disk.layers.chain.top.path, wanted=wanted)
        found.append(index)
    first, last = found
    if first == 0:
        raise Refused(reason=f"{top} is being written, and is not merged this way")
    if first >= last:
        raise WrongUse(reason=f"{base} does not lie below {top}")
    numbers = disk.layers.numbers
    return Span(numbers[first - 1], tuple(numbers[first:last]), numbers[last])
