"""The family of an image as a planner sees it, from what there is on disk."""

from collections.abc import Sequence
from typing import NamedTuple

from cowtree.chain.forest import Forest, Node, survey
from cowtree.chain.gate import QCOW2, RAW
from cowtree.errors import MissingImage
from cowtree.plan.family import Family, Member
from cowtree.storage.contract import FileSystem


class Kin(NamedTuple):
    """A family, and the forest in which it was found: that says how far was looked."""

    family: Family
    forest: Forest
    identities: tuple[tuple[int, int] | None, ...]

    def find(self, files: FileSystem, name: str) -> int:
        """Which member a name means. Raises: MissingImage when there is no such file, or it is of another family."""
        identity = files.identity(name)
        if identity not in self.identities:
            reason = f"it has nothing to do with {self.family.path(0)}"
            raise MissingImage(path=name, reason=reason, hint="cowtree tree {path}")
        return self.identities.index(identity)


def find(files: FileSystem, name: str, places: Sequence[str] = ()) -> Kin:
    """Find all that belongs to an image: what backs it, and all in the folders of these and in `places` that hangs on
    any of it.
    Raises: MissingImage.
    """
    forest = survey(files, [name, *places])
    identities = [_identity(files, node) for node in forest.nodes]
    own = identities.index(files.identity(name))
    wanted = _tree(forest, own)
    place = {index: number for number, index in enumerate(wanted)}
    members = []
    for index in wanted:
        node, identity = forest.nodes[index], identities[index]
        parent = None if node.parent is None else place[node.parent]
        device = identity[0] if identity else 0
        members.append(
            Member(
                node.path,
                node.format or "",
                node.size_bytes or 0,
                parent,
                device,
                _why_not(node),
                node.has_snapshots,
            )
        )
    return Kin(Family(tuple(members)), forest, tuple(identities[index] for index in wanted))


def _tree(forest: Forest, index: int) -> list[int]:
    """All nodes of the tree in which one is."""
    root = index
    while (parent := forest.nodes[root].parent) is not None:
        root = parent
    found = [root]
    for each in found:
        found += forest.children[each]
    return sorted(found)


def _identity(files: FileSystem, node: Node) -> tuple[int, int] | None:
    try:
        return files.identity(node.path)
    except MissingImage:
        return None


def _why_not(node: Node) -> str | None:
    """Why nothing may be done with an image."""
    if node.problem is not None:
        return node.problem.reason
    return None if node.format in (RAW, QCOW2) else f"cowtree does not write {node.format} images"
