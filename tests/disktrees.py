"""Owns small trees of real images in a folder: what the merge verbs are tried on from outside."""

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cowtree.chain.forest import survey
from cowtree.images.digest import digest
from cowtree.plan.create import NewImage
from cowtree.storage.file import LocalFiles
from tests.pictures import CLUSTER_BITS, CLUSTER_BYTES, draw

FILES = LocalFiles()
# base <- middle <- (top, other), and a second base of its own.
PARENTS = (None, 0, 1, 1)
NAMES = ("base", "middle", "top", "other")
PICTURES = ("AAAA----AAAA", "-BB0BB------", "CC----C0--C-", "-D---D---D--")


class DiskTree(NamedTuple):
    """Images on disk, each base before what lies on it."""

    folder: Path
    paths: tuple[str, ...]
    parents: tuple[int | None, ...]

    @property
    def leaves(self) -> list[str]:
        """What nothing lies on."""
        return [path for index, path in enumerate(self.paths) if index not in self.parents]

    def digests(self) -> dict[str, str]:
        """What each image that is there shows."""
        return {path: digest(FILES, path) for path in self.paths if os.path.exists(path)}

    def shape(self) -> dict[str, tuple[str | None, str | None] | None]:
        """The names of all images that are there, and what they name as their bases."""
        nodes = survey(FILES, [str(self.folder)]).nodes
        return {node.path: node.backing for node in nodes}

    def names(self) -> list[str]:
        """All files that are there."""
        return sorted(os.listdir(self.folder))


def plant(
    folder: Path,
    parents: Sequence[int | None] = PARENTS,
    pictures: Sequence[str] = PICTURES,
    names: Sequence[str] = NAMES,
) -> DiskTree:
    """Make images that lie on each other so; they name their bases relatively."""
    paths = []
    for index, (parent, picture) in enumerate(zip(parents, pictures, strict=True)):
        new = NewImage(str(folder / names[index]), "qcow2", len(picture) * CLUSTER_BYTES, CLUSTER_BITS)
        if parent is not None:
            name = names[parent]
            new = new._replace(backing_file=f"./{name}" if ":" in name else name, backing_format="qcow2")
        draw(FILES, new, picture)
        paths.append(new.path)
    return DiskTree(folder, tuple(paths), tuple(parents))


def random_tree(folder: Path, choose: random.Random, count: int) -> DiskTree:
    """A tree of so many images with random content."""
    parents: list[int | None] = [None, *(choose.randrange(max(0, index - 3), index) for index in range(1, count))]
    pictures = ["".join(choose.choice("--ABC0") for _ in range(16)) for _ in range(count)]
    return plant(folder, parents, pictures, [f"image-{index}" for index in range(count)])


def random_words(tree: DiskTree, choose: random.Random) -> list[str]:
    """The words of some merge, which may be refused."""
    index = choose.randrange(len(tree.paths))
    line = [index]
    while (parent := tree.parents[line[-1]]) is not None:
        line.append(parent)
    verb = choose.choice(["commit", "commit", "pull", "pull", "flatten", "delete", "delete", "shorten"])
    words = [verb, tree.paths[index]]
    if verb in ("commit", "pull") and len(line) > 1 and choose.random() < 0.6:
        words += ["--base", tree.paths[choose.choice(line[1:])]]
    if verb == "shorten":
        words += ["--max-depth", str(choose.randint(1, 3))]
    if choose.random() < 0.3:
        words.append("--with-dependants")
    return words
