"""A family of images as a planner sees it: which image lies on which, and what a merge makes of that.

    group     a line of images, each lying on the next: from its top down to its bottom
    target    the one of them whose file is written, so that it shows what the top shows
    name      the one of them whose name the target bears afterwards

A commit has the bottom for its target, a pull the top; whatever the target, only bytes that others of the group hold
are moved. When another image than the target gives the name, the target takes it over: the small one was merged into
the large one, and nobody can tell.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import NamedTuple


class Member(NamedTuple):
    """One image: `parent` is the index of the one that backs it, `device` the file system on which it lies. `why_not`
    says why nothing may be done with it, `use` what others do who have it open: "read" or "written". What its
    internal snapshots leave to the one that backs it is read there. `data` is the index of its external data file,
    where others lie on that as on an image; `data_file` its path, where nobody else names it.
    """

    path: str
    format: str
    size_bytes: int
    parent: int | None = None
    device: int = 0
    why_not: str | None = None
    has_snapshots: bool = False
    use: str | None = None
    data: int | None = None
    data_file: str | None = None


class Merge(NamedTuple):
    """One act on a family; all are indices of members, the group from its top down."""

    group: tuple[int, ...]
    target: int
    name: int

    @property
    def top(self) -> int:
        """The image whose view the target shows in the end."""
        return self.group[0]

    @property
    def depth(self) -> int:
        """How many images of the group lie over the target."""
        return self.group.index(self.target)

    @property
    def reach(self) -> int:
        """How deep in the group the deepest image lies whose name shows something else in the end."""
        return max((self.group.index(each) for each in self.changed), default=0)

    @property
    def changed(self) -> tuple[int, ...]:
        """Those whose name shows something else in the end, as seen by whoever does not come through the top."""
        return tuple({each: None for each in (self.target, self.name) if each != self.top})


@dataclass(frozen=True)
class Family:
    """Images and what backs them. An index always means the same image; `gone` are those that nobody needs any more."""

    members: tuple[Member, ...]
    gone: frozenset[int] = frozenset()

    def path(self, index: int) -> str:
        """What people call it."""
        return self.members[index].path

    def paths(self, indices: Iterator[int] | tuple[int, ...]) -> tuple[str, ...]:
        """What people call them."""
        return tuple(self.path(index) for index in indices)

    def overlays(self, index: int) -> tuple[int, ...]:
        """The images that lie on this one."""
        return tuple(self._overlays.get(index, ()))

    def overlays_of(self, indices: Iterable[int]) -> dict[int, list[int]]:
        """The same for many images at once."""
        return {each: self._overlays.get(each, []) for each in indices}

    @cached_property
    def _overlays(self) -> dict[int, list[int]]:
        """For each image on which others lie."""
        return self._grouped(member.parent for member in self.members)

    @cached_property
    def _holders(self) -> dict[int, list[int]]:
        """For each file that holds the data of others."""
        return self._grouped(member.data for member in self.members)

    def _grouped(self, places: Iterable[int | None]) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for each, place in enumerate(places):
            if place is not None and each not in self.gone:
                found.setdefault(place, []).append(each)
        return found

    def holders(self, index: int) -> tuple[int, ...]:
        """The images whose external data file this is."""
        return tuple(self._holders.get(index, ()))

    def beside(self, index: int) -> tuple[int, ...]:
        """The images that read the bytes of this one directly but do not lie on it: through its data file, or because
        it is theirs.
        """
        data = self.members[index].data
        through = () if data is None else (*self.overlays(data), *self.holders(data))
        return tuple(each for each in (*self.holders(index), *through) if each != index)

    def line(self, index: int) -> tuple[int, ...]:
        """The image and all below it, from the top down."""
        found = [index]
        while (parent := self.members[found[-1]].parent) is not None:
            found.append(parent)
        return tuple(found)

    def readers(self, index: int) -> tuple[int, ...]:
        """All images that lie on this one, directly or not."""
        found = list(self.overlays(index))
        for each in found:
            found += self.overlays(each)
        return tuple(sorted(found))

    @property
    def leaves(self) -> tuple[int, ...]:
        """What guests write to."""
        return tuple(index for index in range(len(self.members)) if index not in self.gone and not self.overlays(index))

    def in_the_way(self, act: Merge) -> tuple[int, ...]:
        """The images outside a merge that read directly what will show something else."""
        overlays, group = self.overlays_of(act.group[1 : act.reach + 1]), set(act.group)
        # Whatever the target shows, the bytes of its data file are others.
        found = {each for beside in (*overlays.values(), self.beside(act.target)) for each in beside}
        return tuple(sorted(found - group))

    def result(self, act: Merge) -> Member:
        """The member that a merge makes."""
        target = self.members[act.target]
        below = self.members[act.group[-1]].parent
        size_bytes = self.members[act.top].size_bytes
        if self.overlays(act.top) and act.depth:
            size_bytes = max(size_bytes, target.size_bytes)
        return target._replace(path=self.path(act.name), size_bytes=size_bytes, parent=below)

    def left_over(self, act: Merge) -> tuple[int, ...]:
        """The images of the group that nobody needs after the merge. The target is none, but for its old name."""
        overlays, group = self.overlays_of(act.group[1:]), set(act.group)
        beside = (each for each in act.group[1:] if self.holders(each) or not group.issuperset(overlays[each]))
        # What lies below the first that somebody else needs is needed as well.
        needed = {below for each in islice(beside, 1) for below in self.line(each)}
        return tuple(each for each in act.group if each not in needed and each not in (act.target, act.name))

    def after(self, act: Merge) -> "Family":
        """The family that a legal merge leaves: the index of the target is that of its result."""
        members, gone = list(self.members), {*self.left_over(act)}
        if act.name != act.target:
            gone.add(act.name)
        for each in self.overlays(act.top):
            members[each] = members[each]._replace(parent=act.target)
        members[act.target] = self.result(act)
        return Family(tuple(members), self.gone | gone)
