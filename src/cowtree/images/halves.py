"""Merges that were begun and not ended, as they are written down beside the images.

What stands in a journal is done with the rights of whoever completes it. So one counts only when it is a regular file
that this user or root wrote, and no link, whoever owns the folder. That is still not enough: whoever unpacks an archive
owns what was in it. So it is followed unasked only when the catalogue knows this very merge as begun
(`History.knows`), and whatever it says is held against the images on disk.
"""

import os
import shlex
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from cowtree.chain import gate
from cowtree.chain.forest import survey
from cowtree.errors import BrokenJournal, MissingImage, Refused
from cowtree.images.order import JOURNAL_BYTES_MAX, MOVE, SUFFIX, Order, Progress, journal_path, parse
from cowtree.plan.family import Family
from cowtree.storage.contract import FileSystem, is_there

ROOT_USER: Final = 0


class Half(NamedTuple):
    """A merge that was begun and not ended, and where that is written down."""

    path: str
    order: Order

    @property
    def command(self) -> str:
        """What began it, as it is typed."""
        return f"cowtree {shlex.join(self.order.words)}"


def read(path: str) -> tuple[Order, Progress]:
    """Read a journal on disk. Raises: MissingImage, BrokenJournal."""
    return parse(path, read_own(path, JOURNAL_BYTES_MAX + 1))


def read_own(path: str, size_bytes_max: int) -> bytes:
    """Read the beginning of a file that this user or root wrote. Raises: MissingImage, BrokenJournal for others."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise MissingImage(path=path, reason=error.strerror) from error
    except (OSError, ValueError) as error:
        raise BrokenJournal(path=path, reason="it cannot be opened, or it is a link") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BrokenJournal(path=path, reason="it is not a file")
        if status.st_uid not in (os.geteuid(), ROOT_USER):
            raise BrokenJournal(path=path, reason="somebody else wrote it")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(size_bytes_max)
    finally:
        os.close(descriptor)


def unknown(path: str) -> Refused:
    """Why a journal is not followed that no merge in the catalogue wrote."""
    reason = f"{path} tells of a merge that is not in the catalogue: it may have come with an archive"
    hint = f"if you began it: cowtree recover --trust {shlex.quote(path)}; else remove it: no image needs it"
    return Refused(reason=reason, hint=hint)


def refuse_harm(files: FileSystem, path: str, order: Order, progress: Progress) -> None:
    """Hold what is left of an order against the images on disk. Raises: Refused when it does not say which files its
    images are, or another image than its own reads what would change or go.
    """
    if not order.identities:
        raise Refused(reason=f"{path} does not say which files it means", hint="move it away, and plan the merge anew")
    lost, names, family = set[int](), set[str](), order.family
    for number, act in enumerate(order.acts):
        after = family.after(act)
        if number >= progress.act:
            lost |= after.gone - family.gone
            lost |= {*act.changed} if (number, MOVE) >= progress[:2] else set()
            names |= {family.path(act.target)} if act.target != act.name else set()
        family = after
    names |= set(order.family.paths(tuple(sorted(lost))))
    nodes = survey(files, sorted(path for path in names if is_there(files, path))).nodes
    lost_files = {order.identities[each] for each in lost}
    harmed = []
    for node in nodes:
        if node.parent is None or node.backing is None or not is_there(files, node.path):
            continue
        base = gate.resolve_name(node.path, node.backing[0])
        reads = os.path.abspath(base) in names or (is_there(files, base) and files.identity(base) in lost_files)
        if reads and files.identity(node.path) not in order.identities:
            harmed.append(node.path)
    if harmed:
        reason = f"{path} would change what {', '.join(harmed)} reads, and does not name it"
        raise Refused(reason=reason, hint=f"cowtree img rebase -b '' {shlex.quote(harmed[0])}", harmed=harmed)


def find(places: Iterable[str], *, is_deep: bool = False) -> tuple[list[Half], list[BrokenJournal]]:
    """All merges that were begun and not ended, as written down in these folders, and with `is_deep` below them; a
    place may be a journal, too. Also what cannot be understood.
    """
    found, broken = list[Half](), list[BrokenJournal]()
    for path in dict.fromkeys(os.path.abspath(path) for place in places for path in _journals(place, is_deep=is_deep)):
        try:
            found.append(Half(path, read(path)[0]))
        except BrokenJournal as error:
            broken.append(error)
        except MissingImage:
            # Completed meanwhile.
            continue
    return found, broken


def _journals(place: str, *, is_deep: bool) -> Iterator[str]:
    if is_journal(os.path.basename(place)) and not os.path.isdir(place):
        yield place
        return
    for folder, folders, names in os.walk(place or "."):
        folders[:] = sorted(folders) if is_deep else []
        yield from (os.path.join(folder, name) for name in sorted(names) if is_journal(name))


def is_journal(name: str) -> bool:
    """Whether a file of this name may be a journal."""
    return name.startswith(".") and name.endswith(SUFFIX)


def find_same(words: Sequence[str], folders: Iterable[str]) -> Half | None:
    """A merge that these very words began, as written down in these folders."""
    return next((half for half in find(folders)[0] if half.order.words == tuple(words)), None)


def refuse_begun(family: Family) -> None:
    """Refuse to begin another merge of a family before one that was begun is done. Raises: Refused, BrokenJournal."""
    paths = {os.path.abspath(member.path) for member in family.members}
    found, broken = find(sorted({os.path.dirname(path) for path in paths}))
    for half in found:
        if paths & {os.path.abspath(member.path) for member in half.order.family.members}:
            reason = f"a merge of this family was begun and is not done: {half.command}"
            raise Refused(reason=reason, hint=f"cowtree recover {half.path}")
    own = {journal_path(path) for path in paths}
    for error in broken:
        if os.path.abspath(error.facts["path"]) in own:
            raise error
