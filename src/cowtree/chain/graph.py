"""Who backs whom, among all the files that a search has found.

What all overlays of a file declare raw is raw, whatever its first bytes are: a guest can write those.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from cowtree.chain.address import WHOLE, Address, has_protocol, parse
from cowtree.chain.gate import QCOW2, RAW
from cowtree.chain.search import Identity, Search
from cowtree.errors import ChainError, CowtreeError, MissingImage, NotAnImage
from cowtree.qcow2.header import Header

# A file that is there, or the path of one that is not.
Key = Identity | str


class Edge(NamedTuple):
    """What an image says of its backing file: its name and format, which file that is, and why it cannot serve.
    The parent is None when the name cannot be followed.
    """

    name: str
    format: str | None
    parent: Key | None
    problem: CowtreeError | None = None


class Graph(NamedTuple):
    """For each file the name under which it is known best, what it says of its backing file, and what it backs.
    `raw` are the files that all their overlays declare raw. `data` are the external data files of images, and `holders`
    the images that name it, where there are several, or another image lies on the data file.
    """

    paths: Mapping[Key, str]
    edges: Mapping[Key, Edge]
    overlays: Mapping[Key, tuple[Key, ...]]
    raw: frozenset[Key]
    data: Mapping[Key, Key] = MappingProxyType({})
    holders: Mapping[Key, tuple[Key, ...]] = MappingProxyType({})

    def order(self, key: Key) -> tuple[tuple[int | str, ...], str]:
        """Sorts names as people do: Snap-2 before Snap-10."""
        words = re.split("([0-9]+)", self.paths[key])
        return tuple(int(word) if index % 2 else word for index, word in enumerate(words)), self.paths[key]

    def parent(self, key: Key) -> Key | None:
        """The file that backs this one, if any."""
        return self.edges[key].parent if key in self.edges else None

    def hanging(self, bases: Iterable[Key]) -> set[Key]:
        """These files and all that hangs on them."""
        reached: set[Key] = set()
        pending = list(bases)
        while pending:
            key = pending.pop()
            if key not in reached:
                reached.add(key)
                pending += self.overlays.get(key, ())
        return reached

    def related(self, keys: Iterable[Key]) -> set[Key]:
        """The whole families of these files: what they need, and all that hangs on any of it. An image is of one family
        with those that lie on its data file, or have the same one.
        """
        reached: set[Key] = set()
        pending = list(keys)
        while pending:
            key = pending.pop()
            if key not in reached:
                reached.add(key)
                parent, data = self.parent(key), self.data.get(key, key)
                pending += [] if parent is None else [parent]
                # Nobody may have looked at the data file itself yet.
                pending += [data] if data in self.paths else []
                pending += (*self.overlays.get(key, ()), *self.holders.get(data, ()))
        return reached

    def loops(self, keys: set[Key]) -> set[Key]:
        """The first image, by name, of each loop among these whole families."""
        first: set[Key] = set()
        left = keys - self.hanging(key for key in keys if self.parent(key) is None)
        while left:
            path: dict[Key, int] = {}
            step: Key | None = next(iter(left))
            while step is not None and step not in path:
                path[step] = len(path)
                step = self.parent(step)
            loop = [key for key, place in path.items() if step is not None and place >= path[step]]
            first.add(min(loop, key=self.order))
            left -= self.hanging(loop)
        return first


def keys_of(search: Search, names: Iterable[str]) -> list[Key]:
    """What these names mean, which the search has looked up."""
    places = [(name, search.places[name]) for name in names]
    return [name if isinstance(place, MissingImage) else place for name, place in places]


def connect(search: Search) -> Graph:
    """Tie the files of a search together."""
    paths: dict[Key, str] = {name: name for name, place in search.places.items() if isinstance(place, MissingImage)}
    edges: dict[Key, Edge] = {}
    for identity, found in search.found.items():
        paths[identity] = _best_name(search, search.names[identity])
        if found.header and found.header.backing_file:
            edges[identity] = _edge(search, paths[identity], found.header)
    raw = _declared_raw(edges)
    graph = Graph(paths, {key: edge for key, edge in edges.items() if key not in raw}, {}, raw)
    overlays: dict[Key, list[Key]] = defaultdict(list)
    for key in sorted(graph.edges, key=graph.order):
        parent = graph.parent(key)
        if parent is not None:
            overlays[parent].append(key)
    holders: dict[Key, list[Key]] = defaultdict(list)
    for key, found in search.found.items():
        if found.data is not None and key not in raw:
            holders[found.data].append(key)
    shared = {key: each for key, each in holders.items() if key in overlays or len(each) > 1}
    data = {each: key for key, held in shared.items() for each in held}
    return graph._replace(overlays=_frozen(overlays), data=data, holders=_frozen(shared))


def _frozen(lists: Mapping[Key, list[Key]]) -> dict[Key, tuple[Key, ...]]:
    return {key: tuple(found) for key, found in lists.items()}


def _best_name(search: Search, names: list[str]) -> str:
    """The name from which the backing file is found; of several such, that of the file itself and not of a link."""
    if len(names) == 1:
        return names[0]
    return min(names, key=lambda name: (target(search, name) is None, os.path.islink(name), name))


def target(search: Search, name: str) -> Identity | None:
    """The file that backs an image when it is opened under this name; None when there is none."""
    link = search.links.get(name)
    place = search.places[link] if isinstance(link, str) else None
    return None if isinstance(place, MissingImage) else place


def _edge(search: Search, path: str, header: Header) -> Edge:
    name, declared, link = header.backing_file or "", header.backing_format, search.links[path]
    if isinstance(link, ChainError):
        return Edge(name, declared, None, link)
    address = parse(name) if has_protocol(name) else None
    declared = declared or (address.format if address else None)
    parent = keys_of(search, [link])[0]
    found = None if isinstance(parent, str) else search.found[parent]
    problem: CowtreeError | None = None
    if declared not in (None, RAW, QCOW2):
        reason = f"backing format '{declared}' is neither raw nor qcow2"
        problem = ChainError(path=path, reason=reason, hint="qemu-img convert -O qcow2 {path} COPY")
    elif declared == QCOW2 and found and not (found.is_qcow2 or found.is_device or found.problem):
        problem = NotAnImage(path=link, format=QCOW2, overlay=path)
    if address and not _is_whole(address):
        reason = "it names more of its base than a file, and not all of that is followed"
        problem = ChainError(path=path, reason=reason, hint="cowtree img rebase -u -b BASE -F FORMAT {path}")
    return Edge(name, declared, parent, problem)


def _is_whole(address: Address) -> bool:
    """Whether an address means a whole file with all that the file itself names, and nothing else."""
    is_plain = address.has_backing and not (address.backing or address.data_file or address.inner)
    return is_plain and address.window == WHOLE and not isinstance(address.options.get("backing"), str)


def _declared_raw(edges: Mapping[Key, Edge]) -> frozenset[Key]:
    """The files that are raw because all their overlays say so. What such a file says of a backing file is the guest's
    word and counts for nothing, which is why overlays are judged before what they hang on.
    """
    waiting: dict[Key, int] = defaultdict(int)
    for each in edges.values():
        if each.parent is not None:
            waiting[each.parent] += 1
    said: dict[Key, set[str | None]] = defaultdict(set)
    raw: set[Key] = set()
    ready = [key for key in edges if key not in waiting]
    while ready:
        key = ready.pop()
        if said[key] == {RAW}:
            raw.add(key)
        edge = edges.get(key)
        if edge is None or edge.parent is None:
            continue
        if key not in raw:
            said[edge.parent].add(edge.format)
        waiting[edge.parent] -= 1
        if not waiting[edge.parent]:
            ready.append(edge.parent)
    return frozenset(raw)
