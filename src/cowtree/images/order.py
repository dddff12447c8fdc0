"""What a merge of images was told to do and how far it is, as one small file beside the image that is written first.

The file is replaced in one step whenever more is done and durable, and removed at the end. Whoever finds it knows all
that is needed to complete the merge: it needs nothing else, and asks nobody.
"""

import json
import os
from typing import Any, Final, NamedTuple

from cowtree.chain.aside import NAME_BYTES_MAX, set_aside
from cowtree.errors import BrokenJournal
from cowtree.images.create import NEW_MODE, new_file
from cowtree.plan.family import Family, Member, Merge
from cowtree.storage.contract import FileSystem, is_there

Identity = tuple[int, int]

SUFFIX: Final = ".cowtree-merge"
VERSION: Final = 1
JOURNAL_BYTES_MAX: Final = 16 << 20

# What becomes of an image that nobody needs any more: it gets a name by which no tool takes it for a good one, it stays
# as it is, or it goes.
RENAME, KEEP, DELETE = ENDINGS = ("rename", "keep", "delete")
# The phases of an act, in their order.
MOVE, NAME, LINK, LEAVE = range(4)


class Sight(NamedTuple):
    """What a leaf shows before a merge: the digest of these guest ranges, of all without any. `place` is the member
    through which it is seen afterwards.
    """

    leaf: int
    place: int
    digest: str
    ranges: tuple[tuple[int, int], ...] | None = None


class Order(NamedTuple):
    """What shall be done: acts on a family, `ending` for those who are not needed any more, and the end of the names
    that they get. `words` are those of the command, `sights` what has to be proven in the end. When it
    `is_atomic`, each target shows its old content or its new one at every moment. `token` is a secret by which the
    catalogue knows it again; `identities` tell the members' files (device, inode): no others are renamed or removed.
    `data_identities` tell those of the data files that go with their images.
    """

    family: Family
    acts: tuple[Merge, ...]
    ending: str = RENAME
    stamp: str = ""
    words: tuple[str, ...] = ()
    sights: tuple[Sight, ...] = ()
    is_atomic: bool = False
    token: str = ""
    identities: tuple[Identity | None, ...] = ()
    data_identities: tuple[Identity | None, ...] = ()

    def owns(self, files: FileSystem, index: int, path: str) -> bool:
        """Whether the file at a path is that of a member. One that an atomic act has written may be a new file."""
        if not self.identities or (self.is_atomic and index in {act.target for act in self.acts}):
            return True
        return is_there(files, path) and files.identity(path) == self.identities[index]

    def data_of(self, files: FileSystem, index: int) -> str | None:
        """The data file that goes with a member, as long as it is there."""
        path = self.family.members[index].data_file
        known = self.data_identities[index] if self.data_identities else None
        if path is None or known is None or not is_there(files, path):
            return None
        return path if files.identity(path) == known else None

    @property
    def result(self) -> Family:
        """The family as it will be."""
        family = self.family
        for act in self.acts:
            family = family.after(act)
        return family

    @property
    def leaving(self) -> str:
        """What becomes at once of those who are not needed any more: before the proof nothing is removed."""
        return RENAME if self.sights and self.ending == DELETE else self.ending

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
    content = {**to_json(order), "progress": list(progress)}
    with new_file(files, order.journal_path, NEW_MODE & ~0o044) as file:
        file.pwrite(0, json.dumps(content, indent=1).encode())


def to_json(order: Order) -> dict[str, Any]:
    """An order in the words of JSON."""
    return {
        "version": VERSION,
        "words": order.words,
        "ending": order.ending,
        "stamp": order.stamp,
        "members": [list(member) for member in order.family.members],
        "gone": sorted(order.family.gone),
        "acts": [[list(act.group), act.target, act.name] for act in order.acts],
        "sights": [list(sight) for sight in order.sights],
        "atomic": order.is_atomic,
        "token": order.token,
        "identities": order.identities,
        "data": order.data_identities,
    }


def parse(path: str, data: bytes) -> tuple[Order, Progress]:
    """What a journal says. Raises: BrokenJournal when it is not one of ours, or not in its place."""
    if len(data) > JOURNAL_BYTES_MAX:
        raise BrokenJournal(path=path, reason="it is too large")
    try:
        content = json.loads(data)
        order = from_json(content)
        progress = _progress(content["progress"], len(order.acts))
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise BrokenJournal(path=path, reason="nobody here wrote it so") from error
    # So nobody can leave a journal in one folder that changes files of another one's.
    if os.path.abspath(order.journal_path) != os.path.abspath(path):
        raise BrokenJournal(path=path, reason=f"it belongs beside {order.family.path(order.acts[0].target)}")
    return order, progress


def from_json(content: dict[str, Any]) -> Order:
    """An order that `to_json` wrote. Raises: ValueError, TypeError, KeyError, IndexError."""
    _expect(content["version"] == VERSION and content["ending"] in ENDINGS)
    members = tuple(Member(*each) for each in content["members"])
    for number, member in enumerate(members):
        _expect(all(isinstance(text, str) and text and "\0" not in text for text in (member.path, member.format)))
        _expect(all(_is_count(value) for value in (member.size_bytes, member.device)))
        _expect(member.data_file is None or (isinstance(member.data_file, str) and "\0" not in member.data_file))
        _expect(member.data is None or _is_index(member.data, members))
        _expect(member.parent is None or (_is_index(member.parent, members) and member.parent != number))
    gone, stamp, words = content["gone"], content["stamp"], content["words"]
    _expect(all(_is_index(each, members) for each in gone))
    _expect(isinstance(stamp, str) and stamp != "" and not {"/", "\0"} & set(stamp))
    _expect(isinstance(words, list) and all(isinstance(each, str) for each in words))
    acts = tuple(Merge(tuple(group), target, name) for group, target, name in content["acts"])
    order = Order(Family(members, frozenset(gone)), acts, content["ending"], stamp, tuple(words))
    _expect(len(acts) > 0)
    family = order.family
    for act in acts:
        _expect(all(_is_index(each, members) for each in (*act.group, act.target, act.name)))
        _expect({act.target, act.name} <= set(act.group) and len(set(act.group)) == len(act.group))
        pairs = zip(act.group, act.group[1:], strict=False)
        _expect(all(family.members[above].parent == below for above, below in pairs))
        _expect(_ends(family, act.top))
        family = family.after(act)
    sights = tuple(_sight(each, members) for each in content.get("sights", []))
    is_atomic = content.get("atomic", False)
    token = content.get("token", "")
    _expect(isinstance(is_atomic, bool) and isinstance(token, str))
    identities, data = (tuple(_identity(each) for each in content.get(key, [])) for key in ("identities", "data"))
    _expect(all(len(each) in (0, len(members)) for each in (identities, data)))
    order = order._replace(token=token, identities=identities, data_identities=data)
    return order._replace(sights=sights, is_atomic=is_atomic)


def _expect(is_so: bool) -> None:
    if not is_so:
        raise ValueError("nobody here wrote it so")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 64


def _is_index(value: object, members: tuple[Member, ...]) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(members)


def _identity(value: list[Any] | None) -> Identity | None:
    if value is None:
        return None
    device, inode = value
    _expect(_is_count(device) and _is_count(inode))
    return device, inode


def _ends(family: Family, index: int) -> bool:
    """Whether the chain below an image comes to an end."""
    seen = {index}
    parent = family.members[index].parent
    while parent is not None and parent not in seen:
        seen.add(parent)
        parent = family.members[parent].parent
    return parent is None


def _sight(content: list[Any], members: tuple[Member, ...]) -> Sight:
    leaf, place, digest, ranges = content
    _expect(_is_index(leaf, members) and _is_index(place, members) and isinstance(digest, str))
    if ranges is None:
        return Sight(leaf, place, digest)
    pairs, end = tuple((start, stop) for start, stop in ranges), 0
    for start, stop in pairs:
        _expect(_is_count(start) and _is_count(stop) and end <= start < stop < 1 << 63)
        end = stop
    return Sight(leaf, place, digest, pairs)


def _progress(content: list[Any], act_count: int) -> Progress:
    act, phase, begin, sources = content
    _expect(all(map(_is_count, (act, phase, begin))) and act <= act_count and phase <= LEAVE and begin < 1 << 63)
    return Progress(act, phase, begin, tuple((size, time) for size, time in sources))


def forget(files: FileSystem, order: Order) -> None:
    """Remove the file: all is done."""
    files.unlink(order.journal_path)
    files.sync_folder(os.path.dirname(order.journal_path) or ".")
