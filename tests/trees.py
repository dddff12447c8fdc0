"""Owns trees of images in memory, drawn at random: what merges of whole families are tried on."""

import random
from collections.abc import Sequence
from typing import NamedTuple

from cowtree.operations import act, order
from cowtree.operations.tally import Tally
from cowtree.plan.create import NewImage
from cowtree.plan.family import Family, Member, Merge
from cowtree.plan.strategy import Plan
from cowtree.storage.contract import FileSystem
from cowtree.storage.memory import MemoryFiles
from tests.crash import assert_sound, guest_view
from tests.pictures import CLUSTER_BITS, CLUSTER_BYTES, draw

STAMP = "then"

# Figure 2 of the document that cowtree implements, grown to twelve layers: three branches on one base.
FIGURE_2 = (None, 0, 1, 2, 3, 4, 0, 6, 7, 0, 9, 10)


class Tree(NamedTuple):
    """A family of images, and the files that it is of."""

    files: MemoryFiles
    family: Family

    @property
    def views(self) -> dict[int, bytes]:
        """What each image shows, as a digest would tell."""
        members = enumerate(self.family.members)
        return {index: guest_view(self.files, each.path, each.format) for index, each in members}


def grow(parents: Sequence[int | None], seed: int, *, sizes: Sequence[int] = (12,), raw_root: bool = False) -> Tree:
    """Draw images that lie on each other so; their disks have so many clusters, drawn from `sizes`."""
    choose, files = random.Random(seed), MemoryFiles()
    members: list[Member] = []
    for index, parent in enumerate(parents):
        count = choose.choice(list(sizes))
        weight = choose.choice([0.1, 0.3, 0.8])
        signs = "".join(
            (chr(65 + index % 26) if choose.random() < 0.8 else "0") if choose.random() < weight else "-"
            for _ in range(count)
        )
        kind = "raw" if raw_root and parent is None else "qcow2"
        new = NewImage(f"image-{index}", kind, count * CLUSTER_BYTES, CLUSTER_BITS)
        if parent is not None:
            below = members[parent]
            new = new._replace(backing_file=below.path, backing_format=below.format)
        draw(files, new, signs)
        members.append(Member(new.path, kind, new.size_bytes, parent))
    return Tree(files, Family(tuple(members)))


def random_parents(count: int, choose: random.Random) -> list[int | None]:
    """One tree of so many images, in which long lines are as common as bushes."""
    is_deep = choose.random() < 0.5
    return [None, *(choose.randrange(max(0, index - 2) if is_deep else 0, index) for index in range(1, count))]


def carry_out(files: FileSystem, family: Family, acts: Sequence[Merge], ending: str = order.RENAME) -> int:
    """Do it, or what is left of it when it was begun. Returns: how many bytes were moved."""
    if not acts:
        return 0
    wanted = order.Order(family, tuple(acts), ending, STAMP)
    tally = Tally(None)
    act.carry_out(files, wanted, act.find_journal(files, wanted), tally)
    return tally.moved_bytes


def after(family: Family, plan: Plan) -> Family:
    """The family that a plan leaves."""
    for each in plan.acts:
        family = family.after(each)
    return family


def assert_same_leaves(before: Tree, files: MemoryFiles, now: Family) -> None:
    """Fail when a leaf shows something else than before, or an image is not sound. A merge may rename a leaf's file,
    and a leaf that is committed lives on in its base.
    """
    old = before.views
    for leaf in now.leaves:
        member = now.members[leaf]
        found = guest_view(files, member.path, member.format)
        names = [index for index, each in enumerate(before.family.members) if each.path == member.path]
        assert found in [old[index] for index in (*names, *before.family.readers(names[0]))], member.path
        if member.format == "qcow2":
            assert_sound(files, member.path, is_done=True)
