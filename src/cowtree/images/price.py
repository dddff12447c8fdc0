"""What merges cost, read from the tables of the images; nothing is changed, and no guest data is read.

While somebody plans, the images stay open, and what their tables say is kept: each is read once, whatever is asked.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Final, Self

from cowtree import extents as ex
from cowtree.chain import gate
from cowtree.chain.gate import Layer
from cowtree.chain.load import load_image, table_bytes
from cowtree.chain.view import TABLE_BYTES_MAX, Chain, layer_extents, open_chain, read_known, windows
from cowtree.errors import CowtreeError
from cowtree.extents import Known
from cowtree.images import fold
from cowtree.images.act import Act
from cowtree.images.order import Order
from cowtree.plan.bound import Bounds, Form, Window, over_nothing, weigh
from cowtree.plan.family import Family, Merge
from cowtree.plan.put import Cost
from cowtree.qcow2.header import AUTOCLEAR_RAW_DATA
from cowtree.qcow2.image import Image
from cowtree.storage.contract import FileSystem

# So many extents of all images together are kept; of more images the tables are read again.
KNOWN_COUNT_MAX: Final = 1 << 19


class Prices:
    """The prices of any acts on a family as it is on disk; each is looked up once. Inside a `with` block what is open
    stays open, locked for reading.
    """

    def __init__(self, files: FileSystem, family: Family, *, is_atomic: bool = False) -> None:
        self.files = files
        self.family = family
        self.is_atomic = is_atomic
        self.known: dict[int, Known] = {}
        self._prices: dict[Merge, Cost] = {}
        self._bounds: dict[tuple[int, ...], Bounds | None] = {}
        self._room = KNOWN_COUNT_MAX
        self._broken: set[int] = set()
        self._line: tuple[int, ...] = ()
        self._chain = Chain((), ())
        self._is_kept = False

    def __enter__(self) -> Self:
        self._is_kept = True
        return self

    def __exit__(self, *_: object) -> None:
        self._is_kept = False
        self._close()

    def _close(self) -> None:
        self._chain.close()
        self._line, self._chain = (), Chain((), ())

    def __call__(self, act: Merge) -> Cost:
        """The price of an act. Raises: Refused when it cannot be done, and what opening raises."""
        if act not in self._prices:
            with ExitStack() as stack:
                now = Act(self.files, Order(self.family, (act,), is_atomic=self.is_atomic), 0)
                chain = self._open(act.top, stack)
                now.compare(chain)
                self._prices[act] = fold.price(chain, now.fold_of(chain))
        return self._prices[act]

    def bound(self, act: Merge) -> Cost:
        """The lowest price that an act may have: its price, when that is known."""
        if act in self._prices:
            return self._prices[act]
        if act.group not in self._bounds:
            self._bounds[act.group] = self._weigh(act.group, is_one_group=True)
        bounds = self._bounds[act.group]
        return Cost() if bounds is None else bounds.cost(0, len(act.group) - 1, act.depth)

    def bounds(self, leaf: int) -> Bounds | None:
        """The lowest prices of all merges along the line below an image; None when nothing of it can be opened."""
        line = self.family.line(leaf)
        first = 0
        if not self._can_open(leaf):
            # Why one chain cannot be opened, no chain over it can.
            first = bisect_left(range(len(line)), True, key=lambda place: self._can_open(line[place]))
            self._close()
            first = first if first == len(line) or self._can_open(line[first]) else len(line)
        # Nobody can look through a broken table either.
        first = max([first, *(place + 1 for place, each in enumerate(line) if each in self._broken)])
        bounds = self._weigh(line[first:], is_one_group=False) if first < len(line) else None
        return None if bounds is None else over_nothing(bounds, first)

    def _can_open(self, top: int) -> bool:
        try:
            with ExitStack() as stack:
                self._open(top, stack)
        except CowtreeError:
            return False
        return True

    def _weigh(self, group: Sequence[int], *, is_one_group: bool) -> Bounds | None:
        if not self._is_kept:
            return None
        try:
            with ExitStack() as stack:
                chain = self._open(group[0], stack)
                # Whoever can take blocks over from others could from itself.
                files = [layer.data_file for layer in chain.layers]
                can_share = any(each.clone_block_bytes(each) for each in files)
                forms = list(map(_form, *chain))
                return weigh(forms, _windows(chain), is_one_group=is_one_group, can_share=can_share)
        except CowtreeError:
            # Whoever asks for the price of something is told why.
            return None

    def _open(self, top: int, stack: ExitStack) -> Chain:
        """Open an image and all that backs it, or take what is open."""
        if top not in self._line:
            parent = self.family.members[top].parent
            chain = self._open_over(top, parent) if parent in self._line else None
            if chain is not None:
                stack.callback(chain.top.close)
                return chain
            member = self.family.members[top]
            line, chain = self.family.line(top), open_chain(self.files, member.path, member.format)
            if not self._is_kept or self._line or len(chain.layers) != len(line):
                stack.callback(chain.close)
                return chain if not self._is_kept else self._learn(line, chain)
            self._line, self._chain = line, chain
            self._chain = self._learn(line, chain)
        return self._chain.below(self._line.index(top))

    def _open_over(self, top: int, parent: int) -> Chain | None:
        """Open an image over one that is open; None when it takes that for something else."""
        member, below = self.family.members[top], self._chain.below(self._line.index(parent))
        layer = gate.open_readable(self.files, member.path, member.format)
        try:
            backing = layer.header.backing_format if layer.header else None
            own_bytes = sum(map(table_bytes, (layer, *below.layers)))
            if backing != below.top.format or own_bytes > TABLE_BYTES_MAX:
                layer.close()
                return None
            chain = Chain((layer, *below.layers), (load_image(layer), *below.images))
            return self._learn((top,), chain)
        except BaseException:
            layer.close()
            raise

    def _learn(self, line: Sequence[int], chain: Chain) -> Chain:
        """Read what the first layers of a chain hold, as long as there is room to remember it."""
        for index, each in enumerate(line[: len(chain.layers)]):
            layer = chain.layers[index]
            if not gate.is_same(self.files, self.family.path(each), layer.path):
                break
            if each not in self.known:
                self._read(each, layer, chain.images[index])
            chain = chain.with_layer(index, layer._replace(known=self.known.get(each)))
        return chain

    def _read(self, member: int, layer: Layer, image: Image | None) -> None:
        try:
            known = read_known(layer, image, self._room)
        except CowtreeError:
            # A table is broken: whoever needs it is told.
            self._broken.add(member)
            return
        if known is not None:
            self._room -= len(known.extents.start)
            self.known[member] = known


def pricer(files: FileSystem, family: Family, *, is_atomic: bool = False) -> Prices:
    """What tells the price of any act on a family as it is on disk; each is looked up once."""
    return Prices(files, family, is_atomic=is_atomic)


def _form(layer: Layer, image: Image | None) -> Form:
    if image is None:
        return Form(layer.size_bytes)
    geometry = image.geometry
    # Where the external data file reads as the disk does, zeroes around what is written are no data.
    unit_bytes = 1 if image.header.autoclear & AUTOCLEAR_RAW_DATA else geometry.subcluster_size_bytes
    return Form(layer.size_bytes, geometry.cluster_size_bytes, unit_bytes, geometry.l2_span_bytes)


def _windows(chain: Chain) -> Iterator[Window]:
    for start, stop in windows(chain, max(layer.size_bytes for layer in chain.layers)):
        yield (
            start,
            stop,
            [
                # What goes on is one piece, for long ones may be shared.
                ex.coalesce(layer_extents(chain, index, start, stop))
                for index in range(len(chain.layers))
            ],
        )


def survey_act(files: FileSystem, order: Order, known: dict[int, Known] | None = None) -> None:
    """Look at all that the act of an order relies on, as far as that can be told before it is begun. What the tables of
    the images say that are only read may be `known`.
    Raises: Refused, BrokenTable, ImageLocked, and what opening raises.
    """
    with ExitStack() as stack:
        now = Act(files, order, 0)
        chain, wanted = now.open(stack)
        now.open_overlays(stack)
        image = chain.images[wanted.target]
        # Counts that a stopped run left wrong are mended before they are relied on.
        if image is None or not image.header.is_dirty:
            fold.survey(_informed(chain, order.family.line(now.act.top), known or {}, wanted.target), wanted)


def _informed(chain: Chain, line: Sequence[int], known: dict[int, Known], target: int) -> Chain:
    for index, each in enumerate(line):
        if index != target:
            chain = chain.with_layer(index, chain.layers[index]._replace(known=known.get(each)))
    return chain
