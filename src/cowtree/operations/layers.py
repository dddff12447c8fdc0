"""Which disk, and which layer of its chain, somebody means: by target, by number, or by the name of a file.

vda        the disk of this target
vda[2]     its second layer, as a guest that was just started counts them: the active image is the first one
a path     a file of a chain, as seen from here, else from the active image's folder, else from the root
"""

import os
import re
from collections.abc import Iterator
from typing import Final, NamedTuple, NoReturn

from cowtree.chain import gate
from cowtree.domain.definition import Disk
from cowtree.errors import WrongUse
from cowtree.operations import drift
from cowtree.operations.host import Host, Subject
from cowtree.storage.contract import is_there

NUMBERED: Final = re.compile(r"([A-Za-z][A-Za-z0-9]*)\[([0-9]{1,6})\]")


class Stack(NamedTuple):
    """A disk and the files of its chain, the active image first."""

    disk: Disk
    paths: tuple[str, ...]

    @property
    def target(self) -> str:
        """What the guest calls it."""
        return self.disk.target


def find_disk(host: Host, subject: Subject, word: str) -> tuple[Stack, int]:
    """The disk that is meant, and which of its layers. Raises: WrongUse, and what opening raises."""
    numbered = NUMBERED.fullmatch(word)
    target = numbered[1] if numbered else word
    for disk in subject.definition.disks:
        if disk.source is not None and word in (disk.source, disk.target):
            return stack_of(host, disk), 0
    for disk in subject.definition.disks:
        if disk.source is None or (numbered and disk.target != target):
            continue
        stack = stack_of(host, disk)
        index = find_layer(host, stack, word)
        if index is not None:
            return stack, index
    raise WrongUse(
        reason=f"invalid argument: disk '{word}' not found in domain",
        hint=f"cowtree domblklist {subject.domain.name}",
    )


def stack_of(host: Host, disk: Disk) -> Stack:
    """A disk with its chain. Raises: what opening raises."""
    layers = drift.layers(host, disk.source or "", disk.format or gate.RAW)
    return Stack(disk, tuple(layer.path for layer in layers))


def find_layer(host: Host, stack: Stack, word: str) -> int | None:
    """The number of a layer, from 0 on; None when nothing in the chain is called so."""
    numbered = NUMBERED.fullmatch(word)
    if word == stack.target:
        return 0
    if numbered and numbered[1] == stack.target:
        index = int(numbered[2]) - 1
        return index if 0 <= index < len(stack.paths) else None
    for path in _candidates(stack, word):
        if path in stack.paths:
            return stack.paths.index(path)
        if is_there(host.files, path):
            same = (index for index, each in enumerate(stack.paths) if gate.is_same(host.files, path, each))
            index_of_same = next(same, None)
            if index_of_same is not None:
                return index_of_same
    return None


def _candidates(stack: Stack, word: str) -> Iterator[str]:
    yield os.path.abspath(word)
    yield os.path.join(os.path.dirname(stack.paths[0]), word)
    yield os.path.join(os.sep, word)


def refuse_unknown(stack: Stack, word: str, *, beneath: str | None = None) -> NoReturn:
    """Raises: WrongUse, as stock says that a layer is not in a chain."""
    place = "" if beneath is None else f" beneath '{beneath}'"
    reason = f"invalid argument: could not find image '{word}'{place} in chain for '{stack.target}'"
    raise WrongUse(reason=reason, hint=f"cowtree img info --backing-chain {stack.paths[0]}")
