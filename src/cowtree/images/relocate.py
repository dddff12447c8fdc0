"""Relocate: whole families of images go into another folder, and every link between them leads there.

    1  each file gets its new name: a second name for the same file, or on another file system a copy that is compared
    2  where both names mean one file, a link that must change leads to the new base by its full name: right from both
    3  every chain is opened at its new place; then the old names go
    4  full names become relative ones, unless they shall stay

So each image is whole at its old place until it is whole at its new one. A small file in the new folder says which file
goes where, from before the first step until after the last; how far each is stands on disk. After a stop the same call
completes the move. A copy that is no more what it was copied from is never taken for it. That file is followed unasked
only when the catalogue knows it; else it may have come with an archive, and the user has to answer for it.
"""

import errno
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import pairwise
from typing import Final, NamedTuple

from cowtree import extents as ex
from cowtree.chain import gate
from cowtree.chain.address import is_json, parse
from cowtree.chain.forest import Node, survey
from cowtree.chain.gate import QCOW2, RAW, Layer
from cowtree.chain.load import load_image
from cowtree.chain.search import BLOCK_BYTES, Identity
from cowtree.chain.view import Chain, layer_extents, windows
from cowtree.errors import MarkedCorrupt, MissingImage, Refused, StorageFailed
from cowtree.execute.compare import differing
from cowtree.execute.run import run
from cowtree.images.create import kept_mode, new_file
from cowtree.images.history import BLANK, Notebook
from cowtree.images.relocation import Member, Relocation, begun, canonical, refuse_doubtful, write_journal
from cowtree.monitor import Monitor, Silent
from cowtree.qcow2 import header as qcow2
from cowtree.qcow2 import header_writes
from cowtree.qcow2.header import Extension, Header
from cowtree.steps import Move, Step, Truncate
from cowtree.storage.contract import Access, FileSystem, Storage, is_there
from cowtree.units import SECTOR_BYTES, format_size

# What says that a second name cannot be had, and a copy must do.
NO_LINKS: Final = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}


class _Held(NamedTuple):
    """A member that is open and locked; `copy` is its new file where that is another one."""

    member: Member
    file: Storage
    identity: tuple[int, int]
    copy: Storage | None = None


def relocate(
    files: FileSystem,
    wanted: Relocation,
    monitor: Monitor | None = None,
    *,
    is_dry: bool = False,
    notebook: Notebook = BLANK,
) -> None:
    """Move all members, or complete what an earlier call began. A dry run finds out what would be refused. What is
    begun is noted in `notebook`.
    Raises: ImageLocked, Refused and MissingImage before anything changes, StorageFailed.
    """
    with ExitStack() as stack:
        held = [_hold(files, stack, wanted, member) for member in wanted.members]
        for each in held:
            _survey_links(wanted, each)
        if is_dry:
            return
        if not is_there(files, wanted.journal):
            write_journal(files, wanted, notebook)
        held = [_place(files, stack, (wanted, each), monitor or Silent()) for each in held]
        _sync(files, (each.member.new for each in held))
        _switch(files, wanted, held)
        files.unlink(wanted.journal)
        files.sync_folder(wanted.target)
    notebook.forget(wanted.journal)


def _switch(files: FileSystem, wanted: Relocation, held: Sequence[_Held]) -> None:
    """Let the links lead to the new places, and the old names go."""
    linked = [each for each in held if each.copy is None and each.member.is_qcow2]
    old = [each for each in held if each.member.old != each.member.new and is_there(files, each.member.old)]
    for each in linked if old else []:
        if _links(wanted, each.member, each.file, is_final=True) is not None:
            _rewrite(each.file, _links(wanted, each.member, each.file, is_final=False))
    _check(files, wanted)
    for each in reversed(old):
        if files.identity(each.member.old) != each.identity:
            raise Refused(reason=f"{each.member.old} was replaced while it was moved", hint="look what it is now")
        files.unlink(each.member.old)
    _sync(files, (each.member.old for each in old))
    for each in linked:
        _rewrite(each.file, _links(wanted, each.member, each.file, is_final=True))


def _sync(files: FileSystem, paths: Iterable[str]) -> None:
    """Make names durable."""
    for folder in dict.fromkeys(map(os.path.dirname, paths)):
        files.sync_folder(folder)


def _hold(files: FileSystem, stack: ExitStack, wanted: Relocation, member: Member) -> _Held:
    """Lock a member where it is. Raises: MissingImage, ImageLocked, Refused when the new file is something else."""
    path = member.old if is_there(files, member.old) else member.new
    if not is_there(files, path):
        raise MissingImage(path=member.old, reason=os.strerror(errno.ENOENT), errno=errno.ENOENT)
    held = _Held(member, _open(files, stack, path), files.identity(path))
    if is_there(files, member.new) and files.identity(member.new) != held.identity:
        if not is_there(files, wanted.journal):
            raise Refused(reason=f"{member.new} is there already", hint="remove it, or choose another folder")
        held = held._replace(copy=_open(files, stack, member.new))
        if not _is_copy(wanted, held):
            reason = f"{member.new} was copied from {member.old}, and one of them was written to since"
            raise Refused(reason=reason, hint="remove the one that shall not stay, and then the same again")
    return held


def _open(files: FileSystem, stack: ExitStack, path: str) -> Storage:
    file = files.open(path, Access.WRITE)
    stack.callback(file.close)
    return file


def _survey_links(wanted: Relocation, held: _Held) -> None:
    """Find out whether the links can be rewritten. Raises: Refused when there is no room, MarkedCorrupt."""
    if held.member.is_qcow2 and held.copy is None:
        for is_final in (False, True):
            _links(wanted, held.member, held.file, is_final=is_final)


def _links(wanted: Relocation, member: Member, file: Storage, *, is_final: bool) -> list[Step] | None:
    """Steps after which an image names its base and its data file where these will be; None when it does so now."""
    header = gate.read_header(file.path, file)
    changed = _renamed(wanted, member, header, is_final=is_final)
    if changed == header:
        return None
    if header.is_corrupt:
        raise MarkedCorrupt(path=file.path)
    image = load_image(Layer(file.path, QCOW2, file, header.size_bytes, header, None, was_probed=False))
    if image is None:
        raise AssertionError("a qcow2 image has a header")
    return header_writes.rewrite(image, file.pread(0, 1 << header.cluster_bits), changed)


def _renamed(wanted: Relocation, member: Member, header: Header, *, is_final: bool) -> Header:
    """The header with other names in it; the same when these are right."""
    name, data_name = header.backing_file or "", header.data_file
    extensions = header.extensions
    if member.base is not None:
        if header.backing_format is None and is_json(name) and (declared := parse(name).format):
            # What only the address said must not be guessed from the first bytes.
            extensions = header_writes.with_extension(extensions, Extension(qcow2.BACKING_FORMAT, declared.encode()))
        name = wanted.final_name(member, name) if is_final else wanted.members[member.base].new
    if member.data is not None and data_name != wanted.members[member.data].new:
        # As in QEMU a data file is looked for from the folder of the process, so only a full name is right anywhere.
        place = Extension(qcow2.DATA_FILE_NAME, qcow2.encode_name(wanted.members[member.data].new))
        extensions = header_writes.with_extension(extensions, place)
    if (name, extensions) == (header.backing_file or "", header.extensions):
        return header
    autoclear = header.autoclear & qcow2.KNOWN_AUTOCLEAR
    return header._replace(backing_name_bytes=qcow2.encode_name(name), extensions=extensions, autoclear=autoclear)


def _rewrite(file: Storage, steps: list[Step] | None) -> None:
    run(steps or [], file, Chain((), ()), Silent())


def _place(files: FileSystem, stack: ExitStack, what: tuple[Relocation, _Held], monitor: Monitor) -> _Held:
    """Give a member its new name, which may be that of a copy."""
    wanted, held = what
    member = held.member
    if is_there(files, member.new):
        return held
    files.make_folder(os.path.dirname(member.new))
    try:
        files.link(member.old, member.new)
    except StorageFailed as error:
        if error.facts.get("errno") not in NO_LINKS:
            raise
        _copy(files, wanted, held, monitor)
        return held._replace(copy=_open(files, stack, member.new))
    return held


def _copy(files: FileSystem, wanted: Relocation, held: _Held, monitor: Monitor) -> None:
    """Make a copy that is durable, and found to be one, before it gets its name; its links are right from the start."""
    member, source = held.member, _as_raw(held.file)
    with new_file(files, member.new, kept_mode(member.old)) as target:
        for start, stop in windows(source, source.size_bytes):
            found = layer_extents(source, 0, start, stop).of_kind(ex.DATA)
            monitor.expect(found.total_bytes)
            run([Move(found, found.start)], target, source, monitor)
        run([Truncate(held.file.size_bytes)], target, source, monitor)
        target.flush()
        if _differ(held.file, target, 0):
            raise StorageFailed(
                path=member.new, action="copy", reason="what was written is read back as something else"
            )
        if member.is_qcow2:
            _rewrite(target, _links(wanted, member, target, is_final=True))
        _dress(member.old, target.path)


def _dress(old: str, new: str) -> None:
    """Let a copy have the owner, the times and the labels of the file that it was made from, as far as we may."""
    with suppress(OSError):
        found = os.stat(old)
        with suppress(PermissionError):
            os.chown(new, found.st_uid, found.st_gid)
        shutil.copystat(old, new)


def _is_copy(wanted: Relocation, held: _Held) -> bool:
    """Whether the new file is what copying the old one makes."""
    member, skipped = held.member, 0
    if held.copy is None or held.copy.size_bytes != held.file.size_bytes:
        return False
    if member.is_qcow2:
        old, new = (gate.read_header(file.path, file) for file in (held.file, held.copy))
        if _said(_renamed(wanted, member, old, is_final=True)) != _said(new):
            return False
        skipped = 1 << old.cluster_bits
    return not _differ(held.file, held.copy, skipped)


def _said(header: Header) -> Header:
    """What a header says, wherever in its cluster it says it. Names of features may go where room is needed."""
    kept = header_writes.without_extension(header.extensions, qcow2.FEATURE_NAMES)
    return header._replace(extensions=tuple(sorted(kept)), backing_file_offset=0)


def _differ(one: Storage, other: Storage, start: int) -> bool:
    """Whether the bytes of two files differ from some place on."""
    left, right = _as_raw(one), _as_raw(other)
    return left.size_bytes != right.size_bytes or any(
        len(differing(left, right, ex.one_range(max(start, first), last), SECTOR_BYTES).start)
        for first, last in windows(left, left.size_bytes)
        if last > start
    )


def _as_raw(file: Storage) -> Chain:
    """A file as the disk that its bytes are."""
    size_bytes = -(-file.size_bytes // SECTOR_BYTES) * SECTOR_BYTES
    return Chain((Layer(file.path, RAW, file, size_bytes, None, None, was_probed=False),), (None,))


def _check(files: FileSystem, wanted: Relocation) -> None:
    """Fail unless each chain is found where it shall be. Raises: Refused, and what opening raises."""
    places = {files.identity(member.new): member for member in wanted.members}
    for leaf in wanted.leaves:
        layers: list[Layer] = []
        try:
            layers.extend(gate.walk(files, leaf.new, QCOW2, Access.SHARED))
            met = [places.get(files.identity(layer.path)) for layer in layers]
        finally:
            gate.close_all(layers)
        for above, below in pairwise([*met, None]):
            base = None if above is None or above.base is None else wanted.members[above.base]
            if above is None or base != below:
                raise Refused(reason=f"{leaf.new} would not find what backs it", hint="look at cowtree tree {leaf.new}")


class Wanted(NamedTuple):
    """What shall be moved: the whole families of `places`, into the folder `target`, each file below it as it lies
    below the folder that all have in common, or all side by side when that `is_flat`. `pools` are searched for images
    that would lose what they read. Links are relative unless they shall be absolute. `trusted` are journals for which
    the user answers.
    """

    places: Sequence[str]
    target: str
    pools: Sequence[str] = ()
    is_flat: bool = False
    is_absolute: bool = False
    trusted: Sequence[str] = ()


class _Item(NamedTuple):
    """A file that shall move, and the paths of those that it names."""

    path: str
    is_qcow2: bool = False
    base: str | None = None
    data: str | None = None


def plan(files: FileSystem, wanted: Wanted, notebook: Notebook = BLANK) -> Relocation:
    """Say where every file of these families goes; what was begun there before is completed as it was begun, when the
    notebook knows it, or the user trusts it and all of it belongs to the families that are named.
    Raises: Refused, and what is wrong with an image of the families.
    """
    target = os.path.realpath(wanted.target)
    if not os.path.isdir(_standing(target)):
        raise Refused(reason=f"{_standing(target)} is no folder", hint="name a folder, which need not be there yet")
    unfinished = begun(files, target)
    if unfinished is not None:
        refuse_doubtful(files, unfinished, places=wanted.places, trusted=wanted.trusted, notebook=notebook)
        return unfinished
    items = _gather(files, wanted)
    common = os.path.commonpath([os.path.dirname(item.path) for item in items])
    places = {item.path: index for index, item in enumerate(items)}
    members = []
    for item in items:
        tail = os.path.basename(item.path) if wanted.is_flat else os.path.relpath(item.path, common)
        base, data = (None if name is None else places[name] for name in (item.base, item.data))
        members.append(Member(item.path, os.path.join(target, tail), item.is_qcow2, base, data))
    _refuse_taken(members)
    _refuse_full(target, members)
    return Relocation(target, tuple(members), wanted.is_absolute)


def _gather(files: FileSystem, wanted: Wanted) -> list[_Item]:
    """All files that move, each behind those that it names.
    Raises: Refused when somebody else would lose something, what is wrong with an image, MissingImage.
    """
    paths: dict[Identity, str] = {}
    for node in survey(files, wanted.places).nodes:
        if node.problem is not None:
            raise node.problem
        paths[files.identity(node.path)] = canonical(node.path)
    if not paths:
        raise Refused(reason=f"there is no image in {', '.join(wanted.places)}", hint="cowtree tree PATH")
    nodes = _survey_widely(files, wanted, paths)
    items: dict[str, _Item] = {}
    for node in nodes:
        path = None if node.own_size_bytes is None else paths.get(files.identity(node.path))
        if path is None:
            continue
        data = _look(files, node, path)
        if data is not None and data not in items:
            _refuse_names(data, [])
            items[data] = _Item(data)
        base = None if node.parent is None else paths[files.identity(nodes[node.parent].path)]
        items[path] = _Item(path, node.format == QCOW2, base, data)
    return list(items.values())


def _survey_widely(files: FileSystem, wanted: Wanted, paths: Mapping[Identity, str]) -> Sequence[Node]:
    """Look around the families for images that would lose what they read. Raises: Refused."""
    folders = dict.fromkeys(map(os.path.dirname, paths.values()))
    nodes = survey(files, [*wanted.places, *folders, *wanted.pools]).nodes
    for node in nodes:
        if node.own_size_bytes is None or files.identity(node.path) in paths or node.backing is None:
            continue
        if node.parent is None and node.problem is not None:
            raise Refused(reason=f"what {node.path} reads is not known: {node.problem}", hint="mend or move that first")
        base = None if node.parent is None else nodes[node.parent]
        if base is not None and base.own_size_bytes is not None and files.identity(base.path) in paths:
            reason = f"{node.path} reads {base.path}, which would move away from it"
            raise Refused(reason=reason, hint=f"name {node.path} as well, so that it moves along")
    return nodes


def _look(files: FileSystem, node: Node, path: str) -> str | None:
    """The data file of an image that may move. Raises: Refused, and what is wrong with it."""
    if node.problem is not None:
        raise node.problem
    if node.format not in (QCOW2, RAW) or node.size_bytes is None:
        what = "a device" if node.format in (None, RAW) else f"in the format {node.format}, whose links are not known"
        raise Refused(reason=f"{path} is {what}, and does not move", hint="rebase its overlays first")
    _refuse_names(path, [canonical(name) for name in (node.path, *node.other_names)])
    if node.format != QCOW2:
        return None
    layer = gate.open_alone(files, path, QCOW2, Access.SHARED)
    layer.close()
    header = layer.header
    if header is None or not header.geometry.has_data_file or header.data_file is None:
        return None
    return canonical(gate.data_file_path(path, header.data_file))


def _refuse_names(path: str, others: Sequence[str]) -> None:
    """Refuse a file that has other names, which would stay behind. Raises: Refused."""
    if os.path.islink(path):
        raise Refused(reason=f"{path} is a link", hint=f"name the file itself: {os.path.realpath(path)}")
    names = sorted(set(others) - {path})
    if names:
        reason = f"{path} is also called {', '.join(names)}, which would stay behind"
        raise Refused(reason=reason, hint="remove these names first")
    count = os.stat(path).st_nlink
    if count > 1:
        raise Refused(reason=f"{path} has {count} names (hard links)", hint=f"find / -xdev -samefile {path}")


def _refuse_taken(members: Sequence[Member]) -> None:
    """Refuse when two files would have one name, or somebody else has it. Raises: Refused."""
    olds: dict[str, str] = {}
    for member in members:
        if member.new in olds:
            reason = f"{olds[member.new]} and {member.old} would both become {member.new}"
            raise Refused(reason=reason, hint="the same without --flat, or rename one of them")
        olds[member.new] = member.old
        if member.new != member.old and os.path.lexists(member.new):
            raise Refused(reason=f"{member.new} is there already", hint="remove it, or choose another folder")


def _standing(path: str) -> str:
    """The path, or else the deepest folder above it that is there."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path


def copied(target: str, members: Sequence[Member]) -> list[Member]:
    """The members that lie on another file system than a folder that may not be there yet, and must be copied."""
    device = os.stat(_standing(target)).st_dev
    return [member for member in members if os.path.lexists(member.old) and os.stat(member.old).st_dev != device]


def _refuse_full(target: str, members: Sequence[Member]) -> None:
    """Refuse to copy what there is no room for. Raises: Refused."""
    needed = sum(os.stat(member.old).st_blocks * BLOCK_BYTES for member in copied(target, members))
    system = os.statvfs(_standing(target))
    free = system.f_bavail * system.f_frsize
    if needed > free:
        reason = f"the copies need {format_size(needed)}, and {target} has {format_size(free)} free"
        raise Refused(reason=reason, hint="make room there, or choose another folder")
