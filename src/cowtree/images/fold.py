"""Folding an open chain: one layer takes over what the others of its group hold, window by window.

Everything is looked at before the first byte is written. After a stop the same call on the reloaded chain completes the
work; with a mark it goes on from there.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from cowtree import extents as ex
from cowtree.chain import gate
from cowtree.chain.load import load_image
from cowtree.chain.view import ALIGNMENT_BYTES, Chain, layer_extents, resolve, windows
from cowtree.execute.beside import BesideWriter
from cowtree.execute.writer import LayerWriter, refuse_plain_data
from cowtree.images.check import trusted
from cowtree.images.renew import own_bytes, surely_cloned_bytes
from cowtree.images.resize import resize
from cowtree.images.tally import Tally
from cowtree.monitor import Monitor
from cowtree.plan.fold import Views, fold_wish
from cowtree.plan.put import Cost, Wish
from cowtree.plan.resize import refuse
from cowtree.qcow2.geometry import L1_ENTRY_BYTES, round_up
from cowtree.qcow2.image import Image

Span = tuple[int, int]
Link = tuple[str, str]

# So much is moved at most before it is made durable and noted down.
MARK_BYTES: Final = 256 << 20


class Fold(NamedTuple):
    """Layer `target` of a chain takes over what the layers [0, last] hold. `seen_bytes` is how far somebody looks at
    the result, `size_bytes` how large its disk is in the end, `link` its backing file then. `is_beside` says that the
    target must show what it shows, or all that it shall show, at every moment.
    """

    target: int
    last: int
    seen_bytes: int
    size_bytes: int
    link: Link | None = None
    is_beside: bool = False

    @property
    def links(self) -> bool:
        """Whether the target will lie on another layer than now."""
        return self.target < self.last

    def grown(self, chain: Chain) -> Chain:
        """The chain when the target is as large as it ever is."""
        layer = chain.layers[self.target]
        return chain.with_layer(self.target, layer._replace(size_bytes=max(layer.size_bytes, self.size_bytes)))

    def spans(self, chain: Chain, begin: int = 0) -> Iterator[Span]:
        """The windows from a mark on."""
        # To the end of the last cluster: what the target holds there must come along when the cluster moves.
        stop = round_up(self.seen_bytes, ALIGNMENT_BYTES) if self.target else self.seen_bytes
        for first, last in windows(self.grown(chain), stop):
            if last > begin:
                yield max(first, begin), last

    def wish(self, chain: Chain, span: Span) -> Wish:
        """What one window puts into the target."""
        (start, stop), index, count = span, self.target, len(chain.layers)
        target = chain.layers[index]
        end_bytes = min(target.size_bytes, chain.size_bytes)
        past_end = ex.single(max(start, end_bytes), min(stop, self.seen_bytes), ex.ZERO) if index else ex.empty()
        rest, kept = chain.below(self.last + 1), self.grown(chain)
        after = Chain((kept.layers[index], *rest.layers), (kept.images[index], *rest.images))
        views = Views(
            above=resolve(chain, start, min(stop, chain.size_bytes), last=index),
            own=layer_extents(chain, index, start, stop),
            below=resolve(chain, start, stop, first=index + 1, last=self.last + 1) if self.links else ex.empty(),
            shown=resolve(chain, start, stop, first=index),
            after=resolve(after, start, stop),
        )
        below_span = (start, max(min(stop, target.size_bytes), start))
        wish = fold_wish(views, below_span, past_end, has_backing=self.last + 1 < count)
        if not (self.is_beside and self.links):
            return wish
        # The new content must be right over the old backing file too, before it is linked past.
        return wish._replace(after=ex.over(views.shown.of_kind(*ex.BYTES), views.after), has_backing_after=True)

    def writer(self, chain: Chain, monitor: Monitor | None = None) -> LayerWriter:
        """What writes to the target in the way that is wanted. Raises: Refused."""
        if self.is_beside and chain.images[self.target] is not None:
            return BesideWriter(chain, self.target, self.size_bytes, monitor)
        return LayerWriter(chain, self.target, monitor)


def disk_bytes(image: Image | None) -> int:
    """How large the largest disk is that an overlay has or had in one of its internal snapshots."""
    return 0 if image is None else max([image.header.size_bytes, *(each.size_bytes for each in image.snapshots)])


def seen_bytes(chain: Chain, target: int, overlay_sizes: Iterable[int]) -> int:
    """Up to where somebody looks at layer `target` when it stands for the top, for overlays of these sizes."""
    if not target:
        return chain.size_bytes
    # Whoever reads the top from above sees zeroes past its end; without the top the target would show there.
    own_bytes = chain.layers[target].size_bytes
    return max([chain.size_bytes, *(min(size, own_bytes) for size in overlay_sizes)])


def price(chain: Chain, fold: Fold, begin: int = 0) -> Cost:
    """What a fold will cost; the chain needs to be open for reading only. Raises: Refused when it cannot be done."""
    writer = fold.writer(chain)
    return _add_up(chain, fold, begin, writer, writer.price)


def survey(chain: Chain, fold: Fold, begin: int = 0) -> Cost:
    """The same, and tables and counts are looked at that it will rely on. Raises: Refused, BrokenTable."""
    writer = fold.writer(chain)
    return _add_up(chain, fold, begin, writer, writer.survey)


def _add_up(chain: Chain, fold: Fold, begin: int, writer: LayerWriter, look: Callable[[Wish, int, int], Cost]) -> Cost:
    _survey_ends(writer, fold)
    total = _own(chain, fold)
    for span in fold.spans(chain, begin):
        total = total.plus(look(fold.wish(chain, span), *span))
    return total


def _own(chain: Chain, fold: Fold) -> Cost:
    """What building beside costs whatever is put: a raw file is copied, a qcow2 image gets another L1 table."""
    image = chain.images[fold.target]
    if not fold.is_beside:
        return Cost()
    if image is None:
        held_bytes, cloned_bytes = own_bytes(chain, fold.target), surely_cloned_bytes(chain, fold.target)
        copied_bytes = held_bytes - cloned_bytes
        return Cost(copied_bytes, held_bytes, copied_bytes, 0, cloned_bytes)
    geometry = image.geometry
    count = max(geometry.l1_entry_count(fold.size_bytes), len(image.l1))
    return Cost(new_bytes=geometry.cluster_count(count * L1_ENTRY_BYTES) << geometry.cluster_bits)


def _survey_ends(writer: LayerWriter, fold: Fold) -> None:
    refuse_plain_data(writer.chain.layers[fold.target])
    own_bytes = writer.chain.layers[fold.target].size_bytes
    if fold.size_bytes > own_bytes:
        writer.survey_growth(fold.size_bytes)
    elif fold.size_bytes < own_bytes and writer.image is not None:
        refuse(writer.image, fold.size_bytes)
    if fold.links:
        writer.survey_link(fold.link)


def run(chain: Chain, fold: Fold, tally: Tally, begin: int = 0, mark: Callable[[int], None] = lambda _: None) -> Chain:
    """Carry a fold out. `mark` is told up to which guest offset all is durable, for the first time before anything
    changes; `begin` is what it was told last.
    Raises: Refused and BrokenTable before anything changes, StorageFailed. Returns: the chain as it is then.
    """
    own_bytes = chain.layers[fold.target].size_bytes
    writer = fold.writer(trusted(chain, fold.target), tally)
    _survey_ends(writer, fold)
    spans = list(fold.spans(writer.chain, begin))
    costs = [writer.survey(fold.wish(writer.chain, span), *span) for span in spans]
    tally.expect(sum(cost.moved_bytes for cost in costs))
    mark(begin)
    is_beside = isinstance(writer, BesideWriter)
    if fold.size_bytes > own_bytes and not is_beside:
        writer.prepare_growth(fold.size_bytes)
    unmarked_bytes = 0
    for span, cost in zip(spans, costs, strict=True):
        for part in parts(span, cost.moved_bytes):
            before = tally.moved_bytes
            writer.put(fold.wish(writer.chain, part), *part)
            unmarked_bytes += tally.moved_bytes - before
            # What is built beside is of no use before it is switched to.
            if unmarked_bytes >= MARK_BYTES and not is_beside:
                writer.flush()
                mark(part[1])
                unmarked_bytes = 0
    if isinstance(writer, BesideWriter):
        writer.switch()
    elif fold.size_bytes > own_bytes:
        writer.grow(fold.size_bytes)
    elif fold.size_bytes < own_bytes:
        writer = _shrink(writer, fold)
    if fold.links:
        writer.relink(fold.link)
    else:
        writer.finish()
    return writer.chain


def _shrink(writer: LayerWriter, fold: Fold) -> LayerWriter:
    """Cut the target's disk off, before its link changes: after that nobody would look at its size again."""
    writer.finish()
    resize(writer.chain.below(fold.target), fold.size_bytes)
    layer = writer.chain.layers[fold.target]
    header = gate.read_header(layer.path, layer.file) if layer.header else None
    layer = layer._replace(header=header, size_bytes=fold.size_bytes)
    chain = writer.chain.with_layer(fold.target, layer).with_image(fold.target, load_image(layer))
    return LayerWriter(chain, fold.target, writer.monitor)


def parts(span: Span, moved_bytes: int) -> Iterator[Span]:
    """Cut a window where much is moved into parts of about `MARK_BYTES`."""
    start, stop = span
    step = round_up(-(-(stop - start) // max(1, -(-moved_bytes // MARK_BYTES))), ALIGNMENT_BYTES)
    first = start
    while first < stop:
        last = min((first + step) // ALIGNMENT_BYTES * ALIGNMENT_BYTES, stop)
        yield first, last
        first = last
