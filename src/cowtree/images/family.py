"""The family of an image as a planner sees it, from what there is on disk."""

from collections.abc import Sequence
from typing import NamedTuple

from cowtree.chain.forest import Forest, Node, survey
from cowtree.chain.gate import QCOW2, RAW, Layer, close_all, is_same, open_chain
from cowtree.errors import MissingImage, NotInChain
from cowtree.plan.family import Family, Member, Merge
from cowtree.plan.permit import Permit, permit
from cowtree.storage.contract import FileSystem, is_there

Identity = tuple[int, int]


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
    own_data = _own_data(files, forest, identities)
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
                node.use,
                None if node.data is None else place[node.data],
                own_data.get(index),
            )
        )
    return Kin(Family(tuple(members)), forest, tuple(identities[index] for index in wanted))


def around(files: FileSystem, layers: Sequence[Layer], places: Sequence[str] = ()) -> Kin:
    """Find all that hangs on the images of an open chain, in their folders and in `places`. These are the first
    members, the top first, and lie on each other as they are open, whatever the forest makes of their names; that
    nothing stands against opening them is known.
    Raises: MissingImage.
    """
    forest = survey(files, [*(layer.path for layer in layers), *places])
    own = [files.identity(layer.path) for layer in layers]
    numbers: dict[int, int] = {}
    identities: list[tuple[int, int] | None] = [*own]
    parents: list[int | None] = [*range(1, len(own)), None]
    members = [Member(layer.path, layer.format, layer.size_bytes) for layer in layers]
    for index, node in enumerate(forest.nodes):
        identity = _identity(files, node)
        numbers[index] = own.index(identity) if identity in own else len(members)
        if identity not in own:
            members.append(Member(node.path, node.format or "", node.size_bytes or 0))
            identities.append(identity)
            parents.append(None if node.parent is None else numbers[node.parent])
    family = Family(tuple(each._replace(parent=parent) for each, parent in zip(members, parents, strict=True)))
    data = {numbers[index]: numbers[node.data] for index, node in enumerate(forest.nodes) if node.data is not None}
    family = Family(tuple(each._replace(data=data.get(number)) for number, each in enumerate(family.members)))
    return Kin(family, forest, tuple(identities))


def prove_commit(
    files: FileSystem, layers: Sequence[Layer], base: int, places: Sequence[str] = ()
) -> tuple[Permit, Forest]:
    """Prove that no image in the folders of a chain, nor in `places`, reads what a commit into layer `base` changes.
    Returns: the permit, and how far was looked.
    Raises: Refused, with the names of those that do.
    """
    kin = around(files, layers, places)
    return permit(kin.family, [Merge(tuple(range(base + 1)), base, base)]), kin.forest


def permit_commit(files: FileSystem, path: str, base: str | None = None, places: Sequence[str] = ()) -> Permit:
    """The same for an image and the path of one below it, or the one that backs it.
    Raises: NotInChain, Refused, and what opening raises.
    """
    layers = open_chain(files, path)
    close_all(layers)
    same = (index for index, layer in enumerate(layers) if index and (base is None or is_same(files, layer.path, base)))
    index = next(same, None)
    if index is None:
        raise NotInChain(path=path, wanted=base or "a backing file")
    return prove_commit(files, layers, index, places)[0]


def _tree(forest: Forest, index: int) -> list[int]:
    """All nodes of the tree in which one is, and of the trees with which it shares data files."""
    near = [[*children] for children in forest.children]
    for number, node in enumerate(forest.nodes):
        for other in (node.parent, node.data):
            if other is not None:
                near[number].append(other)
                near[other].append(number)
    found = {index: None}
    pending = [index]
    while pending:
        each = pending.pop()
        pending += [other for other in near[each] if other not in found]
        found.update(dict.fromkeys(near[each]))
    return sorted(found)


def _own_data(files: FileSystem, forest: Forest, identities: Sequence[Identity | None]) -> dict[int, str]:
    """The external data files that one image only names, by the number of its node."""
    paths = {index: node.data_file for index, node in enumerate(forest.nodes) if node.data_file is not None}
    found = {index: files.identity(path) for index, path in paths.items() if is_there(files, path)}
    named = [*identities, *found.values()]
    return {index: paths[index] for index, identity in found.items() if named.count(identity) == 1}


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
