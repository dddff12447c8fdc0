"""Carrying a merge of images out: data, names, links, and what becomes of the images that nobody needs any more.

    MOVE   the target takes over what the others of its group hold: `fold`; then it lies on what the bottom lies on
    NAME   the image whose name the target shall bear is set aside, and the target gets that name as well
    LINK   the overlays of the top are linked to the target
    LEAVE  what nobody needs any more is set aside or removed, and so is the target's old name

Each phase may be stopped anywhere and done again, and each that is done is written down (`order.py`). Whoever looks
through an overlay of the top, or at the top itself, sees the same at every moment: what is set aside keeps its name
until another file has it, and the target keeps its old name until nobody links to that.
"""

import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

from cowtree.chain import gate
from cowtree.chain.load import load_image
from cowtree.chain.view import Chain, open_chain
from cowtree.errors import Refused
from cowtree.execute.writer import LayerWriter
from cowtree.images import fold
from cowtree.images.check import trusted
from cowtree.images.fold import Fold, Link
from cowtree.images.order import DELETE, KEEP, LEAVE, LINK, MOVE, NAME, Order, Progress, forget, save
from cowtree.images.renew import renewed
from cowtree.images.tally import Tally
from cowtree.plan.family import Merge
from cowtree.storage.contract import Access, FileSystem, is_there

SECOND_NAME = ".cowtree-named"


class Overlay(NamedTuple):
    """An overlay of the top, open for writing, and what it shall link to."""

    chain: Chain
    link: Link


class Act:
    """One merge of an order, on the family as the acts before it have left it. Files stay locked from `open` on."""

    def __init__(self, files: FileSystem, order: Order, number: int) -> None:
        self.files = files
        self.order = order
        self.number = number
        self.family = order.family
        for each in order.acts[:number]:
            self.family = self.family.after(each)
        self.act: Merge = order.acts[number]
        self.target_path = self.family.path(self.act.target)
        self.name_path = self.family.path(self.act.name)

    def open(self, stack: ExitStack, *, access: str = Access.WRITE) -> tuple[Chain, Fold]:
        """Open the chain of the group's top, its target for writing, and check that it is what was planned.
        Raises: Refused when it is not, and what opening raises.
        """
        act, family, files = self.act, self.family, self.files
        chain = open_chain(files, family.path(act.top), family.members[act.top].format, access)
        stack.callback(chain.close)
        self.compare(chain)
        depth = act.depth
        if depth and access == Access.WRITE:
            old = chain.layers[depth]
            old.close()
            layer = gate.open_layer(files, old.name, old.format, Access.WRITE)
            stack.callback(layer.close)
            chain = chain.with_layer(depth, layer).with_image(depth, load_image(layer))
        return chain, self.fold_of(chain)

    def fold_of(self, chain: Chain) -> Fold:
        """What it is for the open chain of the group's top."""
        act, family = self.act, self.family
        depth, sizes = act.depth, [self._seen_by(each) for each in family.overlays(act.top)]
        target_bytes = chain.layers[depth].size_bytes
        seen_bytes = fold.seen_bytes(chain, depth, sizes)
        size_bytes = max(chain.size_bytes, target_bytes) if sizes else chain.size_bytes
        is_beside = self.order.is_atomic
        return Fold(depth, len(act.group) - 1, seen_bytes, size_bytes, self._link_below(chain), is_beside)

    def _seen_by(self, index: int) -> int:
        """Up to where an overlay looks at what it lies on; a snapshot in it may have a larger disk than it has now."""
        member = self.family.members[index]
        if not member.has_snapshots:
            return member.size_bytes
        layer = gate.open_alone(self.files, self.family.path(index), member.format, Access.SHARED)
        try:
            image = load_image(layer)
        finally:
            layer.close()
        return max(member.size_bytes, fold.disk_bytes(image))

    def compare(self, chain: Chain) -> None:
        """Refuse a chain that somebody has changed since it was looked at."""
        expected = self.family.paths(self.family.line(self.act.top))
        found = [layer.path for layer in chain.layers]
        same = len(expected) == len(found) and all(
            gate.is_same(self.files, mine, its) for mine, its in zip(expected, found, strict=True)
        )
        if not same:
            reason = f"{chain.top.path} does not lie on what it was planned with: {' <- '.join(reversed(expected))}"
            raise Refused(reason=reason, hint="the same command again, which looks anew")

    def _link_below(self, chain: Chain) -> Link | None:
        """How the target finds what the bottom lies on, from where it is and from where it will be."""
        bottom = len(self.act.group) - 1
        if bottom + 1 == len(chain.layers):
            return None
        base, above = chain.layers[bottom + 1], chain.layers[bottom].header
        name = above.backing_file if above and above.backing_file else "/"
        stays = os.path.dirname(self.target_path) == os.path.dirname(self.name_path)
        is_relative = stays and not name.startswith(("/", "file:"))
        return gate.name_for(self.files, self.target_path, base.path, is_relative=is_relative), base.format

    def open_overlays(self, stack: ExitStack) -> list[Overlay]:
        """Open those that must be linked to the target. Raises: Refused when one has no room for the name."""
        found = []
        target = self.family.members[self.act.target]
        for index in self.family.overlays(self.act.top):
            path = self.family.path(index)
            layer = gate.open_layer(self.files, path, gate.QCOW2, Access.WRITE)
            stack.callback(layer.close)
            header = layer.header
            name = header.backing_file if header and header.backing_file else "/"
            is_relative = not name.startswith(("/", "file:"))
            link = gate.name_for(self.files, path, self.name_path, is_relative=is_relative), target.format
            below = gate.resolve_name(path, name)
            if header and header.backing_format == target.format and self._leads(below):
                continue
            self._expect_overlay(path, below)
            overlay = Overlay(Chain((layer,), (load_image(layer),)), link)
            LayerWriter(overlay.chain, 0).survey_link(link)
            found.append(overlay)
        return found

    def _expect_overlay(self, path: str, below: str) -> None:
        """Refuse to give another base to what lies on none of these images: whatever is written down, no guest of
        another family loses its own.
        """
        top = self.family.path(self.act.top)
        known = (top, self.order.aside(top), self.target_path, self.name_path)
        if not any(is_there(self.files, each) and gate.is_same(self.files, below, each) for each in known):
            reason = f"{path} does not lie on {top}, and keeps the base that it has"
            raise Refused(reason=reason, hint=f"cowtree tree {path}")

    def _leads(self, path: str) -> bool:
        """Whether a path leads to the target by the name that it will keep; for a while its old one leads there too."""
        keeps_name = self.target_path == self.name_path or os.path.abspath(path) == os.path.abspath(self.name_path)
        return keeps_name and gate.is_same(self.files, path, self.name_path)

    def is_moved(self) -> bool:
        """Whether the target lies on what the bottom lay on: then nothing is left to move."""
        bottom, target = self.act.group[-1], self.act.target
        if target == bottom:
            return False
        layer = gate.open_alone(self.files, self.target_path, self.family.members[target].format, Access.READ)
        try:
            name = layer.header.backing_file if layer.header else None
        finally:
            layer.close()
        below = self.act.group[self.act.depth + 1]
        return name is None or not gate.is_same(
            self.files, gate.resolve_name(self.target_path, name), self.family.path(below)
        )

    def give_name(self) -> None:
        """Let the target have the name that it shall bear, beside its own; who had that name is set aside."""
        target, name, files = self.target_path, self.name_path, self.files
        if target == name or gate.is_same(files, target, name):
            return
        aside, second = self.order.aside(name), name + SECOND_NAME
        if not self.order.owns(files, self.act.name, name):
            reason = f"{name} is not the file that it was when the merge began"
            raise Refused(reason=reason, hint=f"look what it is now: cowtree img info {name}")
        if not is_there(self.files, aside):
            files.link(name, aside)
            self._sync(aside)
        if is_there(self.files, second):
            files.unlink(second)
        files.copy_rights(name, target)
        files.link(target, second)
        files.rename(second, name)
        self._sync(name)

    def link_overlays(self, overlays: list[Overlay]) -> None:
        """Link the overlays of the top to the target."""
        for chain, link in overlays:
            LayerWriter(trusted(chain, 0, is_filled=False), 0).relink(link)

    def leave(self) -> None:
        """Set aside or remove what nobody needs any more: from the top down, so that none is there without its base."""
        ending, target, name = self.order.leaving, self.target_path, self.name_path
        for index in self.family.left_over(self.act) if ending != KEEP else ():
            path = self.family.path(index)
            # A file that came there meanwhile is not ours.
            is_ours = is_there(self.files, path) and self.order.owns(self.files, index, path)
            if is_ours and ending == DELETE:
                self.files.unlink(path)
            elif is_ours:
                self.files.rename(path, self.order.aside(path))
            self._sync(path)
            self._drop_data(index)
        if target != name:
            if is_there(self.files, target) and gate.is_same(self.files, target, name):
                self.files.unlink(target)
                self._sync(target)
            aside = self.order.aside(name)
            if ending == DELETE and is_there(self.files, aside) and self.order.owns(self.files, self.act.name, aside):
                self.files.unlink(aside)
                self._sync(name)
            self._drop_data(self.act.name)

    def _drop_data(self, index: int) -> None:
        """Remove the data file of an image that was removed; one that is set aside needs it still."""
        data = self.order.data_of(self.files, index)
        if data is not None and self.order.leaving == DELETE:
            self.files.unlink(data)
            self._sync(data)

    def _sync(self, path: str) -> None:
        self.files.sync_folder(os.path.dirname(path) or ".")


def carry_out(
    files: FileSystem, order: Order, journal: "Journal", tally: Tally, finish: Callable[[], None] = lambda: None
) -> None:
    """Carry out all that is left of an order, and then `finish`, which is called again when that was stopped.
    Raises: what its phases and `finish` raise; then the same call goes on.
    """
    for number in range(journal.progress.act, len(order.acts)):
        act = Act(files, journal.order, number)
        with ExitStack() as stack:
            _do(act, journal, tally, stack)
    finish()
    journal.close()


def _do(act: Act, journal: "Journal", tally: Tally, stack: ExitStack) -> None:
    progress = journal.progress
    is_moved = progress.phase > MOVE or (journal.is_resumed and act.is_moved())
    if not is_moved:
        chain, wanted = act.open(stack)
        overlays = act.open_overlays(stack)
        begin = journal.begin_of(chain, act)
        if wanted.is_beside and chain.images[wanted.target] is None:
            journal.mark(0)
            with renewed(act.files, chain, wanted.target, tally) as chain:
                fold.run(chain, wanted, tally)
        else:
            fold.run(chain, wanted, tally, begin, journal.mark)
        journal.reach(NAME)
    else:
        if progress.phase == MOVE:
            journal.reach(NAME)
        overlays = act.open_overlays(stack) if progress.phase <= LINK else []
    if journal.progress.phase == NAME:
        act.give_name()
        journal.reach(LINK)
    if journal.progress.phase == LINK:
        act.link_overlays(overlays)
        journal.reach(LEAVE)
    act.leave()
    journal.next_act()


class Journal:
    """How far an order is, on disk whenever that matters: before the first change, and whenever more is done."""

    def __init__(self, files: FileSystem, order: Order, progress: Progress | None = None) -> None:
        self.files = files
        self.order = order
        self.progress = progress or Progress()
        self.is_resumed = progress is not None

    def begin_of(self, chain: Chain, act: Act) -> int:
        """Where the data of an act goes on: at 0 when an image that it is read from is not what it was."""
        others = (layer.path for index, layer in enumerate(chain.layers) if index != act.act.depth)
        times = (self.files.times(path) for path in others)
        sources = tuple((each.size_bytes, each.mtime_ns) for each in times)
        if sources != self.progress.sources or self.order.is_atomic:
            self.progress = self.progress._replace(begin=0, sources=sources)
        return self.progress.begin

    def mark(self, begin: int) -> None:
        """All before this guest offset is durable."""
        self.progress = self.progress._replace(begin=begin)
        self._save()

    def reach(self, phase: int) -> None:
        """All before this phase is done and durable."""
        self.progress = self.progress._replace(phase=phase, begin=0)
        self._save()

    def next_act(self) -> None:
        """An act is done."""
        self.progress = Progress(self.progress.act + 1)
        self._save()

    def _save(self) -> None:
        save(self.files, self.order, self.progress)

    def close(self) -> None:
        """All is done."""
        forget(self.files, self.order)
