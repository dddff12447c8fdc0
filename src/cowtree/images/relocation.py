"""What a relocation is, and how it is written down in its new folder; whose word is followed when one is found there.

A journal may come with an archive, and whoever unpacks that owns it. So one that the catalogue does not know is
followed only when the user answers for it, and moves nothing but what hangs, as it lies on disk, on an image that is
named. No journal moves anything to a place that is not below its own folder.
"""

import json
import os
import secrets
import shlex
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from cowtree.chain import gate
from cowtree.chain.address import has_protocol
from cowtree.chain.gate import QCOW2
from cowtree.errors import BrokenJournal, Refused
from cowtree.images import halves
from cowtree.images.create import new_file
from cowtree.images.history import Notebook
from cowtree.storage.contract import Access, FileSystem, is_there

JOURNAL: Final = ".cowtree-relocate"
JOURNAL_MODE: Final = 0o600
JOURNAL_BYTES_MAX: Final = 64 << 20
TOKEN_BYTES: Final = 16
MOVES_TOLD_MAX: Final = 5


class Member(NamedTuple):
    """One file, by its full old and new path. A qcow2 image may name others: `base` and `data` are their places in the
    list of members.
    """

    old: str
    new: str
    is_qcow2: bool = False
    base: int | None = None
    data: int | None = None


class Relocation(NamedTuple):
    """Files that go into the folder `target`; each stands behind those that it names."""

    target: str
    members: tuple[Member, ...]
    is_absolute: bool = False

    @property
    def journal(self) -> str:
        """Where is written what goes where."""
        return os.path.join(self.target, JOURNAL)

    @property
    def leaves(self) -> tuple[Member, ...]:
        """The images that back no other."""
        bases = {member.base for member in self.members}
        return tuple(each for index, each in enumerate(self.members) if each.is_qcow2 and index not in bases)

    def final_name(self, member: Member, current: str) -> str:
        """How an image shall name its base in the end; the name stays as it is if it will be right."""
        if member.base is None:
            return current
        new = self.members[member.base].new
        if self.is_absolute:
            return new
        folder = os.path.dirname(member.new)
        is_relative = not os.path.isabs(current) and not has_protocol(current)
        if is_relative and os.path.normpath(os.path.join(folder, current)) == new:
            return current
        name = os.path.relpath(new, folder)
        return f"./{name}" if ":" in name.partition("/")[0] else name


def canonical(path: str) -> str:
    """The full path of a name itself, which may be a link, without links among the folders."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name)


def write_journal(files: FileSystem, wanted: Relocation, notebook: Notebook) -> None:
    """Write down what goes where; durable when this returns."""
    files.make_folder(wanted.target)
    said = {
        "absolute": wanted.is_absolute,
        "members": [member._asdict() for member in wanted.members],
        "token": secrets.token_hex(TOKEN_BYTES),
    }
    data = json.dumps(said).encode()
    notebook.note(wanted.journal, data)
    with new_file(files, wanted.journal, JOURNAL_MODE) as file:
        file.pwrite(0, data)


def begun(files: FileSystem, target: str) -> Relocation | None:
    """The relocation into a folder that was begun there and not completed.
    Raises: Refused when nobody can read what was begun, or somebody else wrote it.
    """
    path = os.path.join(target, JOURNAL)
    if not is_there(files, path):
        return None
    try:
        said = json.loads(_read(path))
        return Relocation(target, tuple(_parse(target, said["members"])), bool(said["absolute"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        hint = "see what lies there, and remove {path}"
        raise Refused(reason=f"{path} does not say what was begun", path=path, hint=hint) from error


def _read(path: str) -> bytes:
    try:
        return halves.read_own(path, JOURNAL_BYTES_MAX)
    except BrokenJournal as error:
        reason = f"{path} is not followed: {error.facts['reason']}"
        raise Refused(reason=reason, path=path, hint="see what lies there, and remove {path}") from error


def _parse(target: str, said: Sequence[dict[str, object]]) -> Iterator[Member]:
    """Members as a journal has them: nothing goes to a place that is not below its folder, nor by way of a link.
    Raises: ValueError, KeyError, TypeError.
    """
    for number, each in enumerate(said):
        old, new = (str(each[key]) for key in ("old", "new"))
        if canonical(old) != old or canonical(new) != new or not new.startswith(os.path.join(target, "")):
            raise ValueError(old, new)
        base, data = (_parse_index(each[key], number) for key in ("base", "data"))
        yield Member(old, new, bool(each["is_qcow2"]), base, data)


def _parse_index(said: object, limit: int) -> int | None:
    if said is None:
        return None
    if not isinstance(said, int) or not 0 <= said < limit:
        raise ValueError(said)
    return said


def refuse_doubtful(
    files: FileSystem, unfinished: Relocation, *, places: Sequence[str], trusted: Sequence[str], notebook: Notebook
) -> None:
    """Refuse to complete what was begun when none of these places is part of it, or nobody answers for it.
    Raises: Refused, and what is wrong with an image.
    """
    _refuse_others(unfinished, places)
    if not notebook.knows(unfinished.journal, _read(unfinished.journal)):
        _refuse_unknown(unfinished, trusted)
        _refuse_strange(files, unfinished, places)


def _refuse_others(unfinished: Relocation, places: Sequence[str]) -> None:
    """Refuse another relocation into a folder where one was begun. Raises: Refused."""
    for place in places:
        if not any(_is_in(member, [place]) for member in unfinished.members):
            reason = f"a relocation to {unfinished.target} was begun and not completed, and {place} is not part of it"
            raise Refused(reason=reason, hint=f"cowtree relocate {unfinished.members[-1].old} --to {unfinished.target}")


def _is_in(member: Member, places: Sequence[str]) -> bool:
    """Whether a member is one of these places, or below it."""
    paths = [canonical(place) for place in places]
    return any(
        each == path or each.startswith(path.rstrip("/") + "/") for each in (member.old, member.new) for path in paths
    )


def _refuse_unknown(unfinished: Relocation, trusted: Sequence[str]) -> None:
    """Refuse to follow a journal that may have come with an archive. Raises: Refused."""
    path = unfinished.journal
    if canonical(path) in map(canonical, trusted):
        return
    moves = ", ".join(f"{member.old} to {member.new}" for member in unfinished.members[:MOVES_TOLD_MAX])
    more = len(unfinished.members) - MOVES_TOLD_MAX
    moves += f" and {more} more" if more > 0 else ""
    reason = f"{path} tells of a relocation that is not in the catalogue ({moves}): it may have come with an archive"
    raise Refused(
        reason=reason,
        hint=f"if you began it: the same with --trust {shlex.quote(path)}; else remove it: no image needs it",
    )


def _refuse_strange(files: FileSystem, unfinished: Relocation, places: Sequence[str]) -> None:
    """Refuse when a journal tells of files that do not hang, as they lie on disk, on an image that is named.
    Raises: Refused, and what is wrong with an image.
    """
    members = unfinished.members
    pairs = [
        (number, other)
        for number, member in enumerate(members)
        for name, other in zip(_names(files, member), (member.base, member.data), strict=True)
        if name is not None and other is not None and canonical(name) in (members[other].old, members[other].new)
    ]
    found = {number for number, member in enumerate(members) if _is_in(member, places)}
    while more := {each for pair in pairs if found & {*pair} for each in pair} - found:
        found |= more
    strange = [member.old for number, member in enumerate(members) if number not in found]
    if strange:
        reason = f"{unfinished.journal} would move {', '.join(strange[:MOVES_TOLD_MAX])}, which is of another family"
        raise Refused(reason=reason, hint=f"name it as well, or remove {unfinished.journal}")


def _names(files: FileSystem, member: Member) -> tuple[str | None, str | None]:
    """The base and the data file that an image names where it is now."""
    path = member.old if is_there(files, member.old) else member.new
    if not member.is_qcow2 or not is_there(files, path):
        return None, None
    layer = gate.open_alone(files, path, QCOW2, Access.SHARED)
    layer.close()
    header = layer.header
    base = header.backing_file if header else None
    data = header.data_file if header else None
    return (
        None if base is None else gate.resolve_name(path, base),
        None if data is None else gate.data_file_path(path, data),
    )
