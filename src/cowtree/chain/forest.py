"""Whole trees of images, as values: what there is below given folders or around given images, and what is broken.

- One file is one node, whatever it is called.
- A backing file that is not there is a node without a format. A loop is cut at one of its images, which is a root.
- What is wrong is the `problem` of the node that it is wrong with, never raised; what is only odd is a note.
"""

import os
import shlex
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from cowtree.chain.gate import LAYER_COUNT_MAX, QCOW2, RAW
from cowtree.chain.graph import Graph, Key, connect, keys_of, target
from cowtree.chain.search import ENDINGS, RAW_ENDINGS, Bounds, Found, Identity, Looked, Search, Unseen
from cowtree.errors import ChainTooDeep, CowtreeError, LoopInChain, MissingImage
from cowtree.storage.contract import FileSystem
from cowtree.units import SECTOR_BYTES, format_size

BOUNDS: Final = Bounds()


class Node(NamedTuple):
    """One image. None stands for what cannot be known. `backing` is the name and the format that the image declares,
    `parent` the index of the node that this means. A leaf backs nothing. A node is whole when it and all that it needs
    is there and sound; its `problem` is only what is wrong with itself. `use` is what others did with it when it was
    looked at: `Use.READ`, `Use.WRITTEN`, or None when nobody had it open. `data_file` is the path of its external data
    file; `data` the index of that, where it is a node because another image reads it.
    """

    path: str
    other_names: tuple[str, ...] = ()
    format: str | None = None
    size_bytes: int | None = None
    own_size_bytes: int | None = None
    backing: tuple[str, str | None] | None = None
    parent: int | None = None
    depth: int = 0
    is_leaf: bool = False
    is_whole: bool = False
    has_snapshots: bool = False
    problem: CowtreeError | None = None
    notes: tuple[str, ...] = ()
    use: str | None = None
    data: int | None = None
    data_file: str | None = None


class Forest(NamedTuple):
    """Trees of images, each base right before all that hangs on it. `looked` and `unseen` say how far was looked;
    `unread` are the files there of which nobody can tell what they read.
    """

    nodes: tuple[Node, ...]
    children: tuple[tuple[int, ...], ...]
    looked: tuple[Looked, ...]
    unseen: tuple[Unseen, ...]
    unread: tuple[str, ...] = ()

    @property
    def doubtful(self) -> tuple[str, ...]:
        """Where an image may be that reads another one without anybody knowing."""
        return (*self.unread, *(place.path for place in self.unseen if place.is_failure))

    @property
    def roots(self) -> tuple[int, ...]:
        """The nodes that nothing backs, or nothing that is known."""
        return tuple(index for index, node in enumerate(self.nodes) if node.parent is None)

    @property
    def leaves(self) -> tuple[int, ...]:
        """The nodes that back nothing: what guests write to."""
        return tuple(index for index, node in enumerate(self.nodes) if node.is_leaf)

    @property
    def problems(self) -> tuple[CowtreeError, ...]:
        """What is wrong, in the order of the nodes; each once, however many images suffer from it."""
        found: dict[tuple[object, str], CowtreeError] = {}
        for problem in (node.problem for node in self.nodes if node.problem):
            found.setdefault((problem.facts.get("path"), problem.reason), problem)
        return tuple(found.values())


class Spot(NamedTuple):
    """Where a node goes: under which one, how deep, how many layers lie below it, and whether all of them are sound."""

    key: Key
    parent: int | None = None
    depth: int = 0
    layer_count: int = 0
    is_sound: bool = True


def survey(files: FileSystem, places: Sequence[str], bounds: Bounds = BOUNDS) -> Forest:
    """Find the images below each place that is a folder, and the whole family of each that is an image: what backs it,
    wherever that is, and all in the folders of the family that hangs on any of it.
    Raises: MissingImage when a place is not there.
    """
    search = Search(files, bounds)
    for place in places:
        search.begin(place)
    graph = connect(search)
    given = keys_of(search, search.given)
    while given:
        family = sorted((key for key in graph.related(given) if not isinstance(key, str)), key=graph.order)
        data = (path for key in family if (path := search.found[key].data_path))
        if not search.look_around(map(os.path.dirname, [*(graph.paths[key] for key in family), *data])):
            break
        graph = connect(search)
    return _grow(search, graph, graph.related([*given, *_images_below(search)]))


def _images_below(search: Search) -> list[Key]:
    """The files in the searched folders that are images of their own account."""
    data = {found.data for found in search.found.values() if found.data}
    images: list[Key] = []
    for name, key in zip(search.below, keys_of(search, search.below), strict=True):
        found = None if isinstance(key, str) else search.found[key]
        ending = os.path.splitext(name)[1].lower()
        if found is None:
            # A link that leads nowhere; or a file that somebody removed meanwhile, which is nobody's loss.
            is_image = os.path.islink(name)
        elif found.is_qcow2 or not found.problem:
            is_image = found.is_qcow2 or (ending in RAW_ENDINGS and found.identity not in data)
        else:
            is_image = ending in ENDINGS
            if not is_image:
                search.unseen.append(Unseen(name, found.problem.reason, is_failure=True))
        if is_image:
            images.append(key)
    return images


def _grow(search: Search, graph: Graph, keys: set[Key]) -> Forest:
    """Lay whole families out, each root before all that hangs on it."""
    loops = graph.loops(keys)
    roots = loops | {key for key in keys if graph.parent(key) is None}
    pending = [Spot(key) for key in sorted(roots, key=graph.order, reverse=True)]
    nodes: list[Node] = []
    children: list[list[int]] = []
    places: dict[Key, int] = {}
    is_deep_told = False
    while pending:
        spot = pending.pop()
        node = _node(search, graph, spot)
        if spot.key in loops:
            node = node._replace(problem=LoopInChain(path=node.path, backing=graph.edges[spot.key].name))
        layer_count = spot.layer_count + 1
        is_deep_told = is_deep_told and spot.parent is not None
        if layer_count > LAYER_COUNT_MAX and not is_deep_told:
            # Once for each tree: whatever lies above suffers from the same.
            node, is_deep_told = node._replace(problem=ChainTooDeep(path=node.path, limit=LAYER_COUNT_MAX)), True
        is_sound = spot.is_sound and node.problem is None and layer_count <= LAYER_COUNT_MAX
        if spot.parent is not None:
            children[spot.parent].append(len(nodes))
        for key in reversed(graph.overlays.get(spot.key, ())):
            if key not in loops:
                # Read as raw, the image is the end of the chain, and no header of it can be wrong.
                is_end = node.format == QCOW2 and graph.edges[key].format == RAW
                below = (1, True) if is_end else (layer_count, is_sound)
                pending.append(Spot(key, len(nodes), spot.depth + 1, *below))
        places[spot.key] = len(nodes)
        nodes.append(node._replace(is_whole=is_sound))
        children.append([])
    for key, data_key in graph.data.items():
        if key in places and data_key in places:
            nodes[places[key]] = nodes[places[key]]._replace(data=places[data_key])
    unread = tuple(sorted(_unread(search, graph)))
    return Forest(tuple(nodes), tuple(map(tuple, children)), tuple(search.looked), tuple(search.unseen), unread)


def _unread(search: Search, graph: Graph) -> Iterator[str]:
    """The files whose header cannot be read, though they may be overlays of what is known."""
    for key, found in search.found.items():
        if found.problem and found.header is None and key not in graph.raw:
            yield graph.paths[key]


def _node(search: Search, graph: Graph, spot: Spot) -> Node:
    key, path, overlays = spot.key, graph.paths[spot.key], graph.overlays.get(spot.key, ())
    node = Node(path, parent=spot.parent, depth=spot.depth)
    if isinstance(key, str):
        return node._replace(problem=_missing(search, graph, key))
    found, edge = search.found[key], graph.edges.get(key)
    image_format, size_bytes = _form(graph, found)
    # What a guest wrote into a raw disk cannot be a broken header.
    is_only_raw = key in graph.raw and found.is_qcow2
    return node._replace(
        other_names=tuple(sorted(set(search.names[key]) - {path})),
        format=image_format,
        size_bytes=size_bytes,
        own_size_bytes=found.own_size_bytes,
        backing=(edge.name, edge.format) if edge else None,
        is_leaf=not overlays,
        has_snapshots=image_format == QCOW2 and found.header is not None and found.header.snapshot_count > 0,
        problem=None if is_only_raw else found.problem or (edge.problem if edge else None),
        notes=tuple(_notes(search, graph, found, size_bytes)),
        use=found.use,
        data_file=None if is_only_raw else found.data_path,
    )


def _missing(search: Search, graph: Graph, name: str) -> MissingImage:
    """Why a file that is not there is missed."""
    error, overlays = search.places[name], graph.overlays.get(name, ())
    facts = dict(error.facts) if isinstance(error, MissingImage) else {}
    if not overlays:
        return MissingImage(**facts)
    facts["overlay"] = graph.paths[overlays[0]]
    place = next(iter(_moved(search, graph, name)), None)
    if place is not None:
        declared = graph.edges[overlays[0]].format or (QCOW2 if search.found[place].is_qcow2 else RAW)
        words = ["cowtree", "img", "rebase", "-u", "-b", graph.paths[place], "-F", declared, facts["overlay"]]
        facts["hint"] = f"it may be the one at {graph.paths[place]}: {shlex.join(words)}; or put the file back"
    return MissingImage(**facts)


def _moved(search: Search, graph: Graph, name: str) -> Sequence[Identity]:
    """The files that may be one that is missing: called like it, and as long as its overlays remember. First those that
    were last changed when these remember, too.
    """
    candidates = {key for key in search.called(os.path.basename(name)) if search.found[key].size_bytes is not None}
    candidates -= {key for key in graph.hanging([name]) if not isinstance(key, str)}
    if not candidates:
        return ()
    # It needs numpy, which most searches do without.
    from cowtree.qcow2.lineage import find_record  # noqa: PLC0415

    headers = (search.found[key].header for key in graph.overlays[name] if not isinstance(key, str))
    known = [record for header in headers if header and (record := find_record(header)[0])]
    ranked = []
    for key in candidates:
        found = search.found[key]
        # With an external data file the record counts both files.
        if found.data is None and any(record.size_bytes != found.size_bytes for record in known):
            continue
        is_as_old = any(record.mtime_ns == found.mtime_ns for record in known)
        ranked.append((not is_as_old, graph.order(key), key))
    return [key for *_, key in sorted(ranked)]


def _form(graph: Graph, found: Found) -> tuple[str | None, int | None]:
    """The format of a file and the size of its disk, as far as they can be known."""
    if found.is_qcow2 and found.identity not in graph.raw:
        header = found.header
        return QCOW2, header.size_bytes // SECTOR_BYTES * SECTOR_BYTES if header else None
    declared = {graph.edges[key].format for key in graph.overlays.get(found.identity, ())}
    foreign = sorted(each for each in declared if each and (each not in (RAW, QCOW2) or found.is_device))
    if foreign or found.size_bytes is None:
        return (foreign[0] if foreign else None), None
    return RAW, -(-found.size_bytes // SECTOR_BYTES) * SECTOR_BYTES


def _notes(search: Search, graph: Graph, found: Found, size_bytes: int | None) -> list[str]:
    """What is odd, but may be as it should."""
    key, header, edge = found.identity, found.header, graph.edges.get(found.identity)
    if found.is_device:
        return ["device, not opened"]
    if key in graph.raw:
        return ["raw as declared, though it begins like qcow2"] if found.is_qcow2 else []
    notes = []
    if found.data and header:
        notes.append(f"data in {header.data_file}")
    if header and header.crypt_method:
        notes.append("encrypted")
    if header and header.is_dirty:
        notes.append("not closed well")
    if edge is None or edge.parent is None or isinstance(edge.parent, str):
        return notes
    base_format, base_bytes = _form(graph, search.found[edge.parent])
    if edge.format is None:
        notes.append("format of the base not declared")
    if edge.format == RAW and base_format == QCOW2:
        notes.append("base declared raw, though it is qcow2")
    elif base_bytes is not None and size_bytes is not None and base_bytes < size_bytes:
        notes.append(f"base ends at {format_size(base_bytes)}")
    for name in search.names[key]:
        if target(search, name) != target(search, graph.paths[key]):
            notes.append(f"no such base when opened as {name}")
    return notes
