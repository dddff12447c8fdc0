"""Commit, pull and rebase of images that nobody else has open.

Each function opens the chain, plans all of it once to learn what must be refused and how much will move, and then walks
it window by window, leaving every layer valid at each moment; run again after a stop, it completes what was begun.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

from cowtree import extents as ex
from cowtree.chain import gate
from cowtree.chain.load import load_image
from cowtree.chain.view import Chain, layer_extents, open_chain, resolve, windows
from cowtree.errors import ImageLocked, LoopInChain, NotInChain, Refused, WrongUse
from cowtree.execute.compare import differing
from cowtree.execute.writer import LayerWriter
from cowtree.extents import Ranges
from cowtree.images import fold
from cowtree.images.check import repair_counts, trusted
from cowtree.images.fold import Fold, Link, Span
from cowtree.images.tally import Tally
from cowtree.monitor import Monitor
from cowtree.plan.permit import Permit
from cowtree.plan.pull import Views, both_show_data, may_differ, pull_wish
from cowtree.plan.put import Wish
from cowtree.storage.contract import Access, FileSystem
from cowtree.units import SECTOR_BYTES


class Into(NamedTuple):
    """Where a commit goes, and what happens to the images around it. The permit proves that nobody outside the merge
    reads what it changes, or that the user gave that up.

    Without a `base` it goes into the top's own backing file. `overlays` are the images that the top backs: they get the
    base as their backing file. A top that has none is emptied when its own backing file is the base and `empties_top`
    says so; it then stays a valid overlay.
    """

    permit: Permit
    base: str | None = None
    overlays: Sequence[str] = ()
    empties_top: bool = True


class Outcome(NamedTuple):
    """What a merge did. `invalid` are files that hold nothing of use any more, or show something else than before."""

    moved_bytes: int
    invalid: tuple[str, ...] = ()


def commit(
    files: FileSystem,
    path: str,
    image_format: str | None = None,
    *,
    into: Into,
    monitor: Monitor | None = None,
) -> Outcome:
    """Merge the layers from `path` down to just above the base into the base.
    Raises: NotInChain, Refused, and what opening and writing raise; WrongUse when the permit is for another merge.
    """
    tally = Tally(monitor)
    with ExitStack() as stack:
        chain = _open(files, stack, path, image_format)
        index = _find_base(files, chain, into.base)
        refuse_unproven(files, chain.layers[: index + 1], into.permit)
        chain = open_for_writing(files, stack, chain, index)
        is_emptied = into.empties_top and index == 1 and not into.overlays
        if is_emptied:
            LayerWriter(chain, 0)  # refuses what it could not write later
        links = [_open_overlay(files, stack, each, (chain.top, chain.layers[index])) for each in into.overlays]
        chain = _merge_down(chain, index, [fold.disk_bytes(overlay.images[0]) for overlay, _ in links], tally)
        for overlay, link in links:
            LayerWriter(trusted(overlay, 0, is_filled=False), 0).relink(link)
        if is_emptied:
            _empty_top(chain)
        invalid = chain.layers[:index] if into.overlays else chain.layers[1:index]
        return Outcome(tally.moved_bytes, tuple(layer.path for layer in invalid))


def _open(files: FileSystem, stack: ExitStack, path: str, image_format: str | None) -> Chain:
    chain = open_chain(files, path, image_format, Access.WRITE)
    stack.callback(chain.close)
    return chain


def refuse_unproven(files: FileSystem, group: Sequence[gate.Layer], permit: Permit) -> None:
    """Refuse a merge of these layers into the last one unless that is what is permitted. Raises: WrongUse."""
    for act in permit.acts:
        if act.target == act.name == act.group[-1] and len(act.group) == len(group):
            paths = permit.family.paths(act.group)
            pairs = zip(paths, (layer.path for layer in group), strict=True)
            if all(mine == its or gate.is_same(files, mine, its) for mine, its in pairs):
                return
    names = " <- ".join(layer.path for layer in reversed(group))
    raise WrongUse(reason=f"whether others read what a merge of {names} changes was not looked at")


def _find_base(files: FileSystem, chain: Chain, wanted: str | None) -> int:
    if len(chain.layers) < 2:
        raise Refused(reason="Image does not have a backing file")
    index = 1 if wanted is None else find_layer(files, chain, wanted)
    if index == 0:
        raise WrongUse(reason=f"{chain.top.path} cannot be committed into itself")
    return index


def find_layer(files: FileSystem, chain: Chain, wanted: str) -> int:
    """The index of the layer that a path names, as seen from here or else from the top's folder.
    Raises: NotInChain.
    """
    index = _index_of(files, chain, wanted)
    if index is None:
        index = _index_of(files, chain, gate.resolve_name(chain.top.path, wanted))
    if index is None:
        raise NotInChain(path=chain.top.path, wanted=wanted)
    return index


def _index_of(files: FileSystem, chain: Chain, path: str) -> int | None:
    same = (index for index, layer in enumerate(chain.layers) if gate.is_same(files, path, layer.path))
    return next(same, None)


def open_for_writing(files: FileSystem, stack: ExitStack, chain: Chain, index: int) -> Chain:
    """The same chain with one layer open for writing, which must be fit for it. The old handle is closed."""
    old = chain.layers[index]
    old.close()
    layer = gate.open_layer(files, old.name, old.format, Access.WRITE)
    stack.callback(layer.close)
    chain = chain.with_layer(index, layer).with_image(index, load_image(layer))
    LayerWriter(chain, index)  # refuses what it could not write later
    return chain


def _open_overlay(
    files: FileSystem, stack: ExitStack, path: str, ends: tuple[gate.Layer, gate.Layer]
) -> tuple[Chain, Link]:
    """Open an overlay of the top alone. Returns: it, and its link to the base.
    Raises: Refused when the top is not its backing file, or when its header has no room for the base's name.
    """
    top, base = ends
    layer = gate.open_layer(files, path, gate.QCOW2, Access.WRITE)
    stack.callback(layer.close)
    name = layer.header.backing_file if layer.header else None
    backing = gate.resolve_name(path, name) if name else path
    # A run that was stopped may have linked it to the base already.
    if name is None or not any(gate.is_same(files, backing, each.path) for each in (top, base)):
        raise Refused(reason=f"{path} is not an overlay of {top.path}", hint=f"cowtree img info {path}")
    link = (gate.name_for(files, path, base.path, is_relative=not name.startswith(("/", "file:"))), base.format)
    overlay = Chain((layer,), (load_image(layer),))
    LayerWriter(overlay, 0).survey_link(link)
    return overlay, link


def _merge_down(chain: Chain, index: int, overlay_sizes: list[int], tally: Tally) -> Chain:
    """Put what the layers above `index` show into it."""
    base_bytes, top_bytes = chain.layers[index].size_bytes, chain.size_bytes
    seen_bytes = fold.seen_bytes(chain, index, overlay_sizes)
    return fold.run(chain, Fold(index, index, seen_bytes, max(top_bytes, base_bytes)), tally)


def _empty_top(chain: Chain) -> None:
    writer = LayerWriter(chain, 0)
    writer.forget()
    if writer.image is not None:
        writer.chain = chain.with_image(0, repair_counts(chain.top, writer.image))
    writer.give_back()
    writer.finish()


def pull(
    files: FileSystem,
    path: str,
    image_format: str | None = None,
    *,
    base: str | None = None,
    monitor: Monitor | None = None,
) -> Outcome:
    """Pull what the layers between `path` and `base` hold into `path`, which then has `base` as its backing file.
    Without a base everything is pulled, and the image stands alone.
    Raises: NotInChain, Refused, and what opening and writing raise.
    """
    tally = Tally(monitor)
    with ExitStack() as stack:
        chain = _open(files, stack, path, image_format)
        index = len(chain.layers) if base is None else find_layer(files, chain, base)
        if index == 0:
            raise WrongUse(reason=f"{path} cannot be pulled into itself")
        link = inherited_link(files, chain, index)
        LayerWriter(chain, 0).survey_link(link)
        fold.run(chain, Fold(0, index - 1, chain.size_bytes, chain.size_bytes, link), tally)
        return Outcome(tally.moved_bytes)


def inherited_link(files: FileSystem, chain: Chain, index: int) -> Link | None:
    """How layer 0 finds layer `index`: as the layer above that one does, with the same name where it can be."""
    if index == len(chain.layers):
        return None
    above, base = chain.layers[index - 1], chain.layers[index]
    name = above.header.backing_file if above.header else None
    if name is None or not gate.is_same(files, gate.resolve_name(chain.top.path, name), base.path):
        is_relative = name is not None and not name.startswith(("/", "file:"))
        name = gate.name_for(files, chain.top.path, base.path, is_relative=is_relative)
    return name, base.format


def rebase(
    files: FileSystem,
    path: str,
    image_format: str | None = None,
    *,
    backing: tuple[str, str | None] | None,
    monitor: Monitor | None = None,
) -> Outcome:
    """Give `path` another backing file (name, format), or none, and let the guest see the same as before.
    Raises: LoopInChain when the new backing chain holds `path`, Refused, and what opening and writing raise.
    """
    tally = Tally(monitor)
    with ExitStack() as stack:
        chain = _open(files, stack, path, image_format)
        exchange = _Exchange(Chain((), ()), len(chain.layers), None)
        if backing is not None:
            new = _open_backing(files, chain, *backing)
            stack.callback(new.close)
            kept = _index_of(files, chain, new.top.path)
            if kept is not None and chain.layers[kept].format != new.top.format:
                kept = None
            exchange = _Exchange(new, kept, (backing[0], new.top.format))
        _take_over(chain, exchange, tally)
        return Outcome(tally.moved_bytes)


def _open_backing(files: FileSystem, chain: Chain, name: str, backing_format: str | None) -> Chain:
    try:
        new = open_chain(files, gate.locate(chain.top.path, name), backing_format)
    except ImageLocked as error:
        # It may be we who hold it.
        if gate.is_same(files, error.facts["path"], chain.top.path):
            raise LoopInChain(path=chain.top.path, backing=name) from error
        raise
    if any(gate.is_same(files, layer.path, chain.top.path) for layer in new.layers):
        new.close()
        raise LoopInChain(path=chain.top.path, backing=name)
    return new


class _Exchange(NamedTuple):
    """Another backing chain for layer 0. `kept` is the layer of the old chain that is the top of the new one, if there
    is such a layer; when there is no new one, it is the end of the old one.
    """

    new: Chain
    kept: int | None
    link: Link | None

    def wish_at_most(self, chain: Chain, span: Span) -> Wish:
        """What one window puts into layer 0 when all bytes differ that may."""
        views, where = self._look(chain, span)
        return pull_wish(views, where, has_backing=self.link is not None)

    def wish(self, chain: Chain, span: Span) -> Wish:
        """What one window puts into layer 0."""
        views, where = self._look(chain, span)
        doubtful = both_show_data(views, where)
        same = ex.subtract(doubtful, differing(chain.below(1), self.new, doubtful, _granule(chain)))
        return pull_wish(views, ex.subtract(where, same), has_backing=self.link is not None)

    def _look(self, chain: Chain, span: Span) -> tuple[Views, Ranges]:
        """What the window shows, and where layer 0 may have to answer itself."""
        views = Views(layer_extents(chain, 0, *span), resolve(chain, *span, first=1), resolve(self.new, *span))
        where = may_differ(views, span)
        if self.kept is not None:
            between = resolve(chain, *span, first=1, last=self.kept)
            where = ex.intersect(where, ex.merge_ranges(between.ranges))
        return views, where


def _granule(chain: Chain) -> int:
    header = chain.top.header
    return header.geometry.subcluster_size_bytes if header else SECTOR_BYTES


def _take_over(chain: Chain, exchange: _Exchange, tally: Tally) -> None:
    """Put into layer 0 what its old backing chain shows and the new one does not, then link it."""
    LayerWriter(chain, 0).survey_link(exchange.link)
    writer = LayerWriter(trusted(chain, 0), 0, tally)
    new = exchange.new
    spans = list(windows(Chain(chain.layers + new.layers, chain.images + new.images), chain.size_bytes))
    expected = [writer.survey(exchange.wish_at_most(chain, span), *span).moved_bytes for span in spans]
    tally.expect(sum(expected))
    for span, most_bytes in zip(spans, expected, strict=True):
        before = tally.moved_bytes
        writer.put(exchange.wish(writer.chain, span), *span)
        tally.skip(most_bytes - (tally.moved_bytes - before))
    writer.relink(exchange.link)


def relink(files: FileSystem, path: str, image_format: str | None = None, *, backing: Link | None) -> None:
    """Change the backing file name and format, and nothing else: whether the content fits is the caller's claim.
    Raises: Refused when the header has no room for the name.
    """
    with ExitStack() as stack:
        layer = gate.open_layer(files, path, image_format, Access.WRITE)
        stack.callback(layer.close)
        chain = Chain((layer,), (load_image(layer),))
        LayerWriter(chain, 0).survey_link(backing)
        LayerWriter(trusted(chain, 0, is_filled=False), 0).relink(backing)
