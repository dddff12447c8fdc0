"""Taking the last merge back: names and links become what they were; content that was merged into an image stays there.

Nobody sees that content: it is what the images over it show, which hold it themselves. Undone is from the last act to
the first, and of each act:

    1  what was set aside gets its name back, and the target its own one beside the one that it bears
    2  the overlays of the top are linked to the top
    3  the image whose name the target bore gets it back
    4  the target is linked to what it lay on

At every moment each leaf shows what it shows now. Each step that is done is passed over, so after a stop the same call
does the rest. Before the first one all leaves are looked at through the images as they will lie on each other: what
somebody has written since must be seen there, too.
"""

import os
import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

from cowtree.catalog.store import Catalog
from cowtree.chain import gate
from cowtree.chain.forest import survey
from cowtree.chain.load import load_image
from cowtree.chain.view import Chain, open_chain
from cowtree.errors import Refused
from cowtree.execute.writer import LayerWriter
from cowtree.images import lineage, proof
from cowtree.images.act import Act
from cowtree.images.check import trusted
from cowtree.images.digest import chain_digest
from cowtree.images.history import Past, past
from cowtree.images.order import KEEP, Order
from cowtree.plan.family import Family
from cowtree.storage.contract import Access, FileSystem, is_there


class Rename(NamedTuple):
    """A file gets its name back, in place of what bears it now if `replaces`."""

    source: str
    path: str
    replaces: bool = False


class Name(NamedTuple):
    """A file gets another name beside the one that it has."""

    source: str
    path: str


class Relink(NamedTuple):
    """An image is linked to a base, by the old name if that leads there."""

    path: str
    base: str
    base_format: str
    old_name: str | None = None


Step = Rename | Name | Relink


def find_last(files: FileSystem, catalog: Catalog) -> Past:
    """The merge that would be undone. Raises: Refused when there is none, or a later one is not done."""
    for merge in catalog.merges():
        found = past(merge)
        if found is None:
            continue
        if found.is_finished:
            return found
        if is_there(files, found.order.journal_path):
            reason = f"cowtree {shlex.join(found.order.words)} was begun and is not done"
            raise Refused(reason=reason, hint=f"cowtree recover {found.order.journal_path}")
    raise Refused(reason="there is no merge that could be undone")


def plan_undo(files: FileSystem, last: Past) -> list[Step]:
    """What is left to be done, in its order. Nothing is changed.
    Raises: Refused with the names of files that are gone, of images that lie on what would go, and of leaves that would
    show something else.
    """
    _refuse_gone(files, last.order)
    _refuse_strange_overlays(files, last)
    for leaf in proof.affected_leaves(last.order.family, last.order.acts):
        if not _is_kept(files, last, leaf):
            path = _shown_at(files, last.order, leaf)
            reason = f"{path} was written to since: {last.order.family.path(leaf)} would show something else"
            raise Refused(reason=reason, hint=f"cowtree img convert -O qcow2 {path} COPY, and go on with that")
    return [step for act in _acts(files, last.order) for step in _steps(act, last) if not _is_done(files, step)]


def undo(files: FileSystem, last: Past) -> None:
    """Do it. Raises: what `plan_undo` raises, and what opening and writing raise; then the same call goes on."""
    relinked = list[str]()
    for step in plan_undo(files, last):
        if _is_done(files, step):
            continue
        if isinstance(step, Relink):
            _relink(files, step)
            relinked.append(step.path)
            continue
        if isinstance(step, Rename):
            files.rename(step.source, step.path)
        else:
            files.link(step.source, step.path)
        files.sync_folder(os.path.dirname(step.path) or ".")
    # Bases first: a record is a write.
    for path in reversed(relinked):
        lineage.record_quietly(files, path, gate.QCOW2)


def _acts(files: FileSystem, order: Order) -> list[Act]:
    """The acts, the last one first."""
    return [Act(files, order, number) for number in reversed(range(len(order.acts)))]


def _set_aside(act: Act) -> list[int]:
    """The members whose files an act has set aside; from the bottom up, so that none is there without its base."""
    left = list(act.family.left_over(act.act)) if act.order.ending != KEEP else []
    return left[::-1] + [act.act.name] * (act.act.name != act.act.target)


def _steps(act: Act, last: Past) -> Iterator[Step]:
    """All steps of one act, in their order, whether they are done or not."""
    merge, family, order = act.act, act.family, last.order
    moves = merge.target != merge.name
    for index in _set_aside(act):
        if index != merge.name or not moves:
            yield Rename(order.aside(family.path(index)), family.path(index))
    if moves:
        yield Name(act.name_path, act.target_path)
    for index in family.overlays(merge.top):
        yield _link(family, (index, merge.top), last)
    if moves:
        yield Rename(order.aside(act.name_path), act.name_path, replaces=True)
    if merge.depth + 1 < len(merge.group):
        yield _link(family, (merge.target, merge.group[merge.depth + 1]), last)


def _link(family: Family, pair: tuple[int, int], last: Past) -> Relink:
    above, below = pair
    return Relink(family.path(above), family.path(below), family.members[below].format, last.links.get(above))


def _is_done(files: FileSystem, step: Step) -> bool:
    if isinstance(step, Rename):
        return not is_there(files, step.source)
    if isinstance(step, Name):
        return is_there(files, step.path)
    if not (is_there(files, step.path) and is_there(files, step.base)):
        return False
    layer = gate.open_alone(files, step.path, gate.QCOW2, Access.SHARED)
    try:
        found = (layer.header.backing_file, layer.header.backing_format) if layer.header else None
    finally:
        layer.close()
    return found == (_name_of_base(files, step), step.base_format)


def _name_of_base(files: FileSystem, step: Relink) -> str:
    """The name that the image had for its base, where that is right; else a relative one."""
    old = step.old_name
    if old is not None and os.path.abspath(gate.resolve_name(step.path, old)) == os.path.abspath(step.base):
        return old
    return gate.name_for(files, step.path, step.base, is_relative=old is None or not old.startswith(("/", "file:")))


def _relink(files: FileSystem, step: Relink) -> None:
    layer = gate.open_layer(files, step.path, gate.QCOW2, Access.WRITE)
    try:
        chain = trusted(Chain((layer,), (load_image(layer),)), 0, is_filled=False)
        LayerWriter(chain, 0).relink((_name_of_base(files, step), step.base_format))
    finally:
        layer.close()


def _place(files: FileSystem, order: Order, index: int) -> str:
    """Where the file of a member is now, be nothing undone, some of it, or all."""
    path = order.family.path(index)
    for act in reversed(_acts(files, order)):
        aside = order.aside(act.name_path)
        if index in _set_aside(act):
            path = act.family.path(index)
            path = order.aside(path) if is_there(files, order.aside(path)) else path
        elif index == act.act.target != act.act.name:
            path = act.name_path if is_there(files, aside) else act.target_path
    return path


def _refuse_gone(files: FileSystem, order: Order) -> None:
    """Refuse when a file is gone that would be needed, or another one has its name now."""
    gone, taken = list[str](), list[str]()
    for act in _acts(files, order):
        moves = act.act.target != act.act.name
        for index in _set_aside(act):
            path = act.family.path(index)
            aside, is_back = order.aside(path), is_there(files, path)
            if moves and index == act.act.name:
                # Its name is the target's until it is back; then the target has its own.
                own = act.target_path
                is_back = is_there(files, own) and not gate.is_same(files, own, path)
                taken += [own] if is_back and is_there(files, aside) else []
            elif is_back and is_there(files, aside):
                taken.append(path)
            gone += [] if is_back or is_there(files, aside) else [aside]
        places = [_place(files, order, each) for each in act.act.group]
        gone += [path for path in places if not is_there(files, path)]
    if gone:
        raise Refused(reason=f"not all files of that merge are there any more: {', '.join(dict.fromkeys(gone))}")
    if taken:
        raise Refused(reason=f"another file has the name by now: {', '.join(taken)}", hint="rename it first")


def _shown_at(files: FileSystem, order: Order, leaf: int) -> str:
    """Where what a leaf shows is seen now."""
    path = order.family.path(leaf)
    is_moved = any(leaf in _set_aside(act) for act in _acts(files, order))
    if is_moved and is_there(files, path):
        return path
    return _place(files, order, proof.place_of(leaf, order.acts))


def _open_old(files: FileSystem, order: Order, index: int, stack: ExitStack) -> Chain:
    """The chain of a member as it will be: the files as they are now lie on each other as they did."""
    layers = []
    for each in order.family.line(index):
        layers.append(gate.open_layer(files, _place(files, order, each), order.family.members[each].format))
        stack.callback(layers[-1].close)
    return Chain(tuple(layers), tuple(load_image(layer) for layer in layers))


def _is_kept(files: FileSystem, last: Past, leaf: int) -> bool:
    """Whether a leaf will show what it shows now; or what it showed before the merge, when nobody has written since."""
    order = last.order
    sight = next((each for each in order.sights if each.leaf == leaf), None)
    with ExitStack() as stack:
        old = _open_old(files, order, leaf, stack)
        if sight is not None and _is_untouched(files, last):
            return chain_digest(old, None, proof.ranges_of(sight)) == sight.digest
        place = order.result.members[proof.place_of(leaf, order.acts)]
        now = open_chain(files, _shown_at(files, order, leaf), place.format)
        stack.callback(now.close)
        ranges = proof.owned(old, proof.moving_layers(order.family, order.acts, leaf))
        return chain_digest(old, None, ranges) == chain_digest(now, None, ranges)


def _is_untouched(files: FileSystem, last: Past) -> bool:
    """Whether what the merge left is as it left it."""
    for index, result in last.results.items():
        times = files.times(_place(files, last.order, index))
        if (times.size_bytes, times.mtime_ns) != result:
            return False
    return True


def _refuse_strange_overlays(files: FileSystem, last: Past) -> None:
    """Refuse when images that were not there before would see something else, or nothing."""
    order = last.order
    places = [_place(files, order, index) for index in range(len(order.family.members))]
    known = {files.identity(path): index for index, path in enumerate(places) if is_there(files, path)}
    merged = sorted({each for act in order.acts for each in act.group})
    forest = survey(files, [places[each] for each in merged])
    harmed = []
    for node in forest.nodes:
        if node.parent is None or node.backing is None or files.identity(node.path) in known:
            continue
        base = forest.nodes[node.parent].path
        if is_there(files, base) and (index := known.get(files.identity(base))) in merged:
            path = os.path.abspath(gate.resolve_name(node.path, node.backing[0]))
            if index is not None and not _shows_same(files, order, index, path):
                harmed.append(node.path)
    if harmed:
        reason = f"{', '.join(harmed)} would show something else: what would go is below"
        raise Refused(reason=reason, hint=f"cowtree flatten {harmed[0]}", harmed=harmed)


def _shows_same(files: FileSystem, order: Order, index: int, path: str) -> bool:
    """Whether a path that leads to a member's file now will show the same when it leads to whom it led before."""
    named = [each for each, member in enumerate(order.family.members) if os.path.abspath(member.path) == path]
    if not named:
        return False
    with ExitStack() as stack:
        old = _open_old(files, order, named[0], stack)
        now = open_chain(files, _place(files, order, index), order.family.members[index].format)
        stack.callback(now.close)
        return chain_digest(old) == chain_digest(now)
