"""What a merge of images was told to do and how far it is, as one small file beside the image that is written first.

The file is replaced in one step whenever more is done and durable, and removed at the end. Whoever finds it knows all
that is needed to complete the merge: it needs nothing else, and asks nobody.
"""

import json
import os
from typing import Any, Final, NamedTuple

from cowtree.chain.aside import NAME_BYTES_MAX, set_aside
from cowtree.errors import BrokenJournal
from cowtree.operations.create import NEW_MODE, new_file
from cowtree.plan.family import Family, Member, Merge
from cowtree.storage.contract import Access, FileSystem

SUFFIX: Final = ".cowtree-merge"
VERSION: Final = 1
JOURNAL_BYTES_MAX: Final = 16 << 20

# What becomes of an image that nobody needs any more: it gets a name by which no tool takes it for a good one, it stays
# as it is, or it goes.
RENAME, KEEP, DELETE = ENDINGS = ("rename", "keep", "delete")
# The phases of an act, in their order.
MOVE, NAME, LINK, LEAVE = range(4)


class Order(NamedTuple):
    """What shall be done: acts on a family, `ending` for those who are not needed any more, and the end of the names
    that they get. `words` are those of the command.
    """

    family: Family
    acts: tuple[Merge, ...]
    ending: str = RENAME
    stamp: str = ""
    words: tuple[str, ...] = ()

    def aside(self, path: str) -> str:
        """The name that an image gets which nobody needs any more."""
        return set_aside(path, self.stamp)

    @property
    def journal_path(self) -> str:
        """Where it is written down how far the merge is."""
        return journal_path(self.family.path(self.acts[0].target))


class Progress(NamedTuple):
    """How far it is: the act and its phase that come next, up to which guest offset that act's data is durable, and
    what told (length, time of change) that the images it is read from are the same.
    """

    act: int = 0
    phase: int = MOVE
    begin: int = 0
    sources: tuple[tuple[int, int], ...] = ()


def journal_path(target: str) -> str:
    """Where a merge into this file is written down."""
    folder, name = os.path.split(target)
    start = os.fsdecode(os.fsencode(name)[: NAME_BYTES_MAX - len(SUFFIX) - 1])
    return os.path.join(folder, f".{start}{SUFFIX}")


def save(files: FileSystem, order: Order, progress: Progress) -> None:
    """Write down how far it is; durable when this returns. Raises: StorageFailed."""
    family = order.family
    content = {
        "version": VERSION,
        "words": order.words,
        "ending": order.ending,
        "stamp": order.stamp,
        "members": [list(member) for member in family.members],
        "gone": sorted(family.gone),
        "acts": [[list(act.group), act.target, act.name] for act in order.acts],
        "progress": list(progress),
    }
    with new_file(files, order.journal_path, NEW_MODE & ~0o044) as file:
        file.pwrite(0, json.dumps(content, indent=1).encode())


def load(files: FileSystem, path: str) -> tuple[Order, Progress]:
    """Read how far a merge is. Raises: MissingImage, BrokenJournal."""
    file = files.open(path, Access.READ)
    try:
        if file.size_bytes > JOURNAL_BYTES_MAX:
            raise BrokenJournal(path=path, reason="it is too large")
        content = json.loads(file.pread(0, file.size_bytes))
        return _parse(content)
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise BrokenJournal(path=path, reason="nobody here wrote it so") from error
    finally:
        file.close()


def _parse(content: dict[str, Any]) -> tuple[Order, Progress]:
    if content["version"] != VERSION:
        raise ValueError("another version")
    members = tuple(Member(*each) for each in content["members"])
    for member in members:
        checks = (isinstance(member.path, str), isinstance(member.format, str), isinstance(member.size_bytes, int))
        if not all(checks) or not (member.parent is None or 0 <= member.parent < len(members)):
            raise ValueError("no member")
    acts = tuple(Merge(tuple(group), target, name) for group, target, name in content["acts"])
    for act in acts:
        if not {act.target, act.name} <= set(act.group) <= set(range(len(members))):
            raise ValueError("no act")
    act, phase, begin, sources = content["progress"]
    progress = Progress(act, phase, begin, tuple((size, time) for size, time in sources))
    if content["ending"] not in ENDINGS or not 0 <= act <= len(acts) or phase not in range(4) or begin < 0 or not acts:
        raise ValueError("no progress")
    order = Order(Family(members, frozenset(content["gone"])), acts, content["ending"], content["stamp"])
    if "/" in order.stamp or not order.stamp:
        raise ValueError("no stamp")
    return order._replace(words=tuple(map(str, content["words"]))), progress


def forget(files: FileSystem, order: Order) -> None:
    """Remove the file: all is done."""
    files.unlink(order.journal_path)
    files.sync_folder(os.path.dirname(order.journal_path) or ".")
