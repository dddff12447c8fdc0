"""The one owner of how the first cluster changes: it turns (cluster, header) into ordered writes with flush points.

What the header says and where it says it lies in the first sector: the fixed fields, the head of the first extension,
the place of the backing file name. So every change is a pass like this one, and what is read is the old or the new:

    1  what is new is written where the header as it stands reads nothing
    2  (flush) the first sector switches: new fields, new places, the dirty bit as it shall be
    3  (flush)

Where one pass is not enough there are two. Without a backing file the end of the list of extensions is first told by
the place of an empty name, so that more may be written over the end marker. Else the new list is written behind all
that is used, a void extension in the first sector leads there, and the second pass brings it home:

    header | void ..................................... | extensions ... end marker | backing file name
    header | extensions ... end marker | backing file name | (unused)

`writes.py` owns the order of tables, counts and data around it.
"""

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np

from cowtree.errors import Refused
from cowtree.qcow2 import header as qcow2
from cowtree.qcow2.geometry import round_up
from cowtree.qcow2.header import Extension, Header
from cowtree.qcow2.image import Image
from cowtree.steps import Flush, Step, Write

# Fields behind this byte never change once an image exists, but when the whole header is rewritten.
_FIXED_FIELDS_BYTES = qcow2.V3_LENGTH_MIN
_HEAD_BYTES = qcow2.EXTENSION.size_bytes


def header_write(header: Header) -> Write:
    """Write the fixed fields; they lie in one sector, so a torn write cannot mix old and new."""
    return Write(0, qcow2.pack_fields(header)[:_FIXED_FIELDS_BYTES])


def relink(image: Image, cluster: bytes, backing: tuple[str, str] | None) -> list[Step]:
    """Steps that make (file name, format) the backing file, or None, and clear the dirty bit in the same write;
    `cluster` is the first cluster as it stands. A format without a name means nothing, so it stays when the link goes.
    Raises: Refused when the first cluster has no room for it.
    """
    header = image.header
    name, extensions = b"", header.extensions
    if backing is not None:
        name, new = qcow2.encode_name(backing[0]), Extension(qcow2.BACKING_FORMAT, backing[1].encode())
        extensions = with_extension(extensions, new)
    changed = header._replace(
        incompatible=header.incompatible & ~qcow2.DIRTY,
        autoclear=header.autoclear & qcow2.KNOWN_AUTOCLEAR,
        extensions=extensions,
        backing_name_bytes=name,
    )
    return rewrite(image, cluster, changed)


def with_extension(extensions: tuple[Extension, ...], new: Extension) -> tuple[Extension, ...]:
    """The extensions with a new one in the place of that of its type, else as the first one, where it can change later
    in one pass.
    """
    same = [index for index, each in enumerate(extensions) if each.type == new.type]
    others = without_extension(extensions, new.type)
    first = same[0] if same else 0
    return (*others[:first], new, *others[first:])


def without_extension(extensions: tuple[Extension, ...], kind: int) -> tuple[Extension, ...]:
    """The extensions without those of a type."""
    return tuple(each for each in extensions if each.type != kind)


class _Layout(NamedTuple):
    """A first cluster, and the half-open ranges of its bytes that its own header reads."""

    data: bytes
    used: tuple[tuple[int, int], ...]

    @property
    def end(self) -> int:
        """Where the last byte ends that is read."""
        return max(stop for _, stop in self.used)

    def leads_to(self, other: "_Layout") -> bool:
        """Whether all that this header reads is still there once everything of the other but its first sector is."""
        kept = [slice(max(start, qcow2.SECTOR_BYTES), stop) for start, stop in self.used]
        return all(self.data[each] == other.data[each] for each in kept)


def rewrite(image: Image, cluster: bytes, header: Header) -> list[Step]:
    """Steps that turn the first cluster, `cluster` as it stands, into one that says `header`; the end is durable.
    The backing file name goes where there is room; extensions that changed may come first or last, and when nothing
    else helps, the names of features go.
    Raises: Refused when there is no room.
    """
    now = _standing(image.header, cluster)
    route = None
    if len(header.backing_name_bytes) <= qcow2.BACKING_NAME_BYTES_MAX:
        wanted = header._replace(extensions=_without_void(header.extensions))
        route = _find_route(now, image.header, wanted) or _without_names(now, image.header, wanted)
    if route is not None:
        return _walk(now.data, route)
    name = header.backing_name_bytes if header.backing_name_bytes != image.header.backing_name_bytes else b""
    what = f"the backing file name '{qcow2.decode_name(name)}'" if name else "all that it shall say"
    raise Refused(
        reason=f"{image.path}: the header has no room for {what}",
        hint=f"use {'a shorter name' if name else 'shorter names'}, or convert {image.path} to larger clusters",
    )


def _without_void(extensions: tuple[Extension, ...]) -> tuple[Extension, ...]:
    """The extensions without what an earlier change left that was stopped on its second pass."""
    return tuple(each for each in extensions if not _is_void(each))


def _is_void(extension: Extension) -> bool:
    """A void extension calls itself the names of features, which every program may ignore and QEMU makes anew whenever
    it writes a header; its length says that there are none.
    """
    return extension.type == qcow2.FEATURE_NAMES and len(extension.data) % qcow2.FEATURE_NAME.size_bytes != 0


def _standing(header: Header, cluster: bytes) -> _Layout:
    marker_end = _list_end(header) + _HEAD_BYTES
    name = header.backing_file_offset, header.backing_file_offset + len(header.backing_name_bytes)
    return _Layout(cluster, ((0, min(marker_end, len(cluster))), name))


def _list_end(header: Header) -> int:
    """Where the end marker is."""
    return header.header_length + sum(len(qcow2.pack_extension(each)) for each in header.extensions)


def _find_route(now: _Layout, old: Header, new: Header) -> list[_Layout] | None:
    """First clusters on the way to one that says `new`, each a pass from the one before; None when there is no room."""
    orders = _orders(old, new)
    starts: list[list[_Layout]] = [[]]
    if not old.backing_name_bytes:
        starts.append([_closed(now, old)])
    for start in starts:
        here = start[-1] if start else now
        for extensions, name_start in product(orders, (0, here.end)):
            last = _lay(now.data, new._replace(extensions=extensions), new.header_length, name_start)
            if last is not None and here.leads_to(last):
                return [*start, last]
    return _detour(now, new)


def _without_names(now: _Layout, old: Header, new: Header) -> list[_Layout] | None:
    """The same, but for the names of features; where that is not enough they go first, and make room."""
    slim, wanted = (
        each._replace(extensions=without_extension(each.extensions, qcow2.FEATURE_NAMES)) for each in (old, new)
    )
    if route := _find_route(now, old, wanted):
        return route
    first = _find_route(now, old, slim)
    second = _find_route(first[-1], slim, wanted) if first else None
    return [*first, *second] if first and second else None


def _orders(old: Header, new: Header) -> list[tuple[Extension, ...]]:
    """The extensions as they are wanted, and with those first or last that the image does not have yet."""
    known = set(old.extensions)
    kept = tuple(each for each in new.extensions if each in known)
    fresh = tuple(each for each in new.extensions if each not in known)
    # Of several of one type the last one counts, so they keep their order.
    if {each.type for each in kept} & {each.type for each in fresh}:
        return [new.extensions]
    return [new.extensions, (*fresh, *kept), (*kept, *fresh)]


def _closed(now: _Layout, header: Header) -> _Layout:
    """The same, but for how the end of the extensions is told: by an empty backing file name, not by the end marker."""
    end = _list_end(header)
    fields = qcow2.pack_fields(header._replace(backing_file_offset=end))
    return _Layout(fields + now.data[len(fields) :], ((0, end),))


def _detour(now: _Layout, new: Header) -> list[_Layout] | None:
    """Behind all that is used, and then home. None when there is no room."""
    home = _lay(now.data, new, new.header_length)
    if home is None or new.header_length + _HEAD_BYTES > qcow2.SECTOR_BYTES:
        return None
    away = _lay(now.data, new, round_up(max(now.end, home.end, new.header_length + _HEAD_BYTES), 8))
    if away is None:
        return None
    home = _lay(away.data, new, new.header_length)
    return None if home is None else [away, home]


def _lay(cluster: bytes, header: Header, start: int, name_start: int = 0) -> _Layout | None:
    """Lay the header over a cluster: its extensions from `start` on, its backing file name not before `name_start`.
    None when there is no room.
    """
    listed = b"".join(map(qcow2.pack_extension, header.extensions)) + bytes(_HEAD_BYTES)
    name, end = header.backing_name_bytes, start + len(listed)
    position = max(round_up(name_start, 8), end) if name else 0
    if max(end, position + len(name)) > len(cluster):
        return None
    fields = qcow2.pack_fields(header._replace(backing_file_offset=position))
    if start > header.header_length:
        # Padding makes up for the last byte; an odd length tells it from true names.
        void_bytes = start - len(fields) - _HEAD_BYTES - 1
        fields += qcow2.EXTENSION.pack(type=qcow2.FEATURE_NAMES, length=void_bytes)
    data = bytearray(cluster)
    for offset, piece in ((0, fields), (start, listed), (position, name)):
        data[offset : offset + len(piece)] = piece
    return _Layout(bytes(data), ((0, len(fields)), (start, end), (position, position + len(name))))


def _walk(cluster: bytes, route: list[_Layout]) -> list[Step]:
    steps: list[Step] = []
    for each in route:
        steps += [*_rest_writes(cluster, each.data), Flush()]
        sector = each.data[: qcow2.SECTOR_BYTES]
        if cluster[: qcow2.SECTOR_BYTES] != sector:
            steps += [Write(0, sector), Flush()]
        cluster = each.data
    return steps


def _rest_writes(old: bytes, new: bytes) -> Iterator[Step]:
    """What differs past the first sector."""
    skipped = qcow2.SECTOR_BYTES
    where = np.flatnonzero(np.frombuffer(old, np.uint8)[skipped:] != np.frombuffer(new, np.uint8)[skipped:]) + skipped
    if len(where):
        yield Write(int(where[0]), new[where[0] : where[-1] + 1])
