"""Owns trees of images in memory, drawn at random: what merges of whole families are tried on."""

import random
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

import numpy as np

from cowtree import extents as ex
from cowtree.chain import gate
from cowtree.chain.load import load_image
from cowtree.chain.view import Chain, layer_extents, open_chain, through_snapshot
from cowtree.errors import MissingImage
from cowtree.execute.writer import LayerWriter
from cowtree.images import act, order, snapshot
from cowtree.images.tally import Tally
from cowtree.plan.create import NewImage
from cowtree.plan.family import Family, Member, Merge
from cowtree.plan.strategy import Plan
from cowtree.qcow2.compression import deflate
from cowtree.qcow2.header import ZLIB, ZSTD
from cowtree.storage.contract import Access, FileSystem
from cowtree.storage.faults import AFTER, Fault, FaultyFiles, Killed
from cowtree.storage.memory import MemoryFiles
from tests.crash import assert_sound, guest_view, read_all, write_more
from tests.pictures import CLUSTER_BITS, CLUSTER_BYTES, draw

STAMP = "then"

# Figure 2 of the document that cowtree implements, grown to twelve layers: three branches on one base.
FIGURE_2 = (None, 0, 1, 2, 3, 4, 0, 6, 7, 0, 9, 10)

# Images of all kinds that there are, or all but those with internal snapshots.
ALL, NO_SNAPSHOTS = "all", "no snapshots"


class Tree(NamedTuple):
    """A family of images, and the files that it is of."""

    files: MemoryFiles
    family: Family

    @property
    def views(self) -> dict[int, bytes]:
        """What each image shows, as a digest would tell."""
        return _views(self.family.members, tuple(self.files.snapshot().items()))


@lru_cache(maxsize=4)
def _views(members: tuple[Member, ...], content: tuple[tuple[str, bytes], ...]) -> dict[int, bytes]:
    """Looked at once, for a test may ask it of one tree a thousand times."""
    files = MemoryFiles(dict(content))
    return {index: guest_view(files, each.path, each.format) for index, each in enumerate(members)}


def grow(
    parents: Sequence[int | None],
    seed: int,
    *,
    sizes: Sequence[int] = (12,),
    raw_root: bool = False,
    mixed: str = "",
) -> Tree:
    """Draw images that lie on each other so; their disks have so many sectors, drawn from `sizes`. They are
    plain images unless it is said how `mixed` they are.
    """
    choose, files = random.Random(seed), MemoryFiles()
    members: list[Member] = []
    for index, parent in enumerate(parents):
        count = choose.choice(list(sizes))
        kind = "raw" if raw_root and parent is None else "qcow2"
        new = NewImage(f"image-{index}", kind, count * CLUSTER_BYTES, CLUSTER_BITS)
        if parent is not None:
            below = members[parent]
            new = new._replace(backing_file=below.path, backing_format=below.format)
        if mixed and kind == "qcow2":
            new = _any_kind(new, choose)
        draw(files, new, _picture(choose, index, count))
        if mixed and kind == "qcow2":
            _live_on(files, new, choose, has_snapshots=mixed == ALL)
        members.append(Member(new.path, kind, new.size_bytes, parent, has_snapshots=_has_snapshots(files, new)))
    return Tree(files, Family(tuple(members)))


def _picture(choose: random.Random, index: int, count: int) -> str:
    weight = choose.choice([0.1, 0.3, 0.8])
    return "".join(
        (chr(65 + index % 26) if choose.random() < 0.8 else "0") if choose.random() < weight else "-"
        for _ in range(count)
    )


def _any_kind(new: NewImage, choose: random.Random) -> NewImage:
    """The same image, but of any kind."""
    version = choose.choice([2, 3, 3, 3])
    new = new._replace(cluster_bits=choose.choice([9, 9, 10, 12, 14]), version=version)
    if version == 2:
        return new
    has_data_file = choose.random() < 0.2
    return new._replace(
        refcount_order=choose.choice([0, 3, 4, 4, 6]),
        lazy_refcounts=choose.random() < 0.2,
        compression_type=choose.choice([ZLIB, ZSTD]),
        has_subclusters=new.cluster_bits == 14 and choose.random() < 0.7,
        data_file=f"{new.path}.data" if has_data_file else None,
        is_data_file_raw=has_data_file and new.backing_file is None and choose.random() < 0.5,
    )


def _live_on(files: MemoryFiles, new: NewImage, choose: random.Random, *, has_snapshots: bool) -> None:
    """What happens to an image in its life: compressed clusters, an internal snapshot, a writer that is killed."""
    if choose.random() < 0.4 and new.data_file is None:
        _pack(files, new, choose)
    if has_snapshots and choose.random() < 0.3 and new.refcount_order >= 3 and new.data_file is None:
        snapshot.create(files, new.path, name="before", time_ns=1)
        write_more(files, new.path, _patches(new, choose))
    # Version 2 has no bit that would tell whoever does not fill it.
    if choose.random() < 0.2 and new.version > 2:
        try:
            write_more(FaultyFiles(files, Fault(choose.randrange(8), moment=AFTER)), new.path, _patches(new, choose))
        except Killed:
            return


def _patches(new: NewImage, choose: random.Random) -> dict[int, bytes]:
    """A few sectors that a guest writes."""
    starts = choose.sample(range(0, new.size_bytes, CLUSTER_BYTES), 2)
    return {start: bytes([choose.randrange(1, 256)]) * CLUSTER_BYTES for start in sorted(starts)}


def _pack(files: MemoryFiles, new: NewImage, choose: random.Random) -> None:
    """Compress something into a cluster that the image does not hold."""
    layer = gate.open_layer(files, new.path, gate.QCOW2, Access.WRITE)
    chain = Chain((layer,), (load_image(layer),))
    size = 1 << new.cluster_bits
    held = ex.integers(ex.widen(layer_extents(chain, 0, 0, new.size_bytes).ranges, size)) // size
    free = np.setdiff1d(np.arange(-(-new.size_bytes // size)), held).tolist()
    if free:
        writer = LayerWriter(chain, 0)
        writer.put_packed(np.array([choose.choice(free)]), [deflate(b"packed! " * (size // 8), new.compression_type)])
        writer.finish()
    layer.close()


def _has_snapshots(files: MemoryFiles, new: NewImage) -> bool:
    return bool(snapshot.list_snapshots(files, new.path, new.format))


def random_parents(count: int, choose: random.Random) -> list[int | None]:
    """One tree of so many images, in which long lines are as common as bushes."""
    is_deep = choose.random() < 0.5
    return [None, *(choose.randrange(max(0, index - 2) if is_deep else 0, index) for index in range(1, count))]


def random_acts(seed: int, count_max: int) -> Iterator[tuple[Family, Merge]]:
    """Merges of every group of a random family, each with some target and some name; nothing is drawn."""
    choose = random.Random(seed)
    count = choose.randint(2, count_max)
    parents = [None, *(choose.randrange(number) for number in range(1, count))]
    found = Family(tuple(Member(str(number), "qcow2", 1, parent) for number, parent in enumerate(parents)))
    for top in range(count):
        line = found.line(top)
        for start, stop in combinations(range(len(line) + 1), 2):
            group = line[start:stop]
            yield found, Merge(group, choose.choice(group), choose.choice(group))


def carry_out(
    files: FileSystem,
    family: Family,
    acts: Sequence[Merge],
    ending: str = order.RENAME,
    *,
    is_atomic: bool = False,
) -> int:
    """Do it, or what is left of it when it was begun. Returns: how many bytes were moved."""
    if not acts:
        return 0
    wanted = order.Order(family, tuple(acts), ending, STAMP, is_atomic=is_atomic)
    tally = Tally(None)
    act.carry_out(files, wanted, find_journal(files, wanted), tally)
    return tally.moved_bytes


def read_journal(files: FileSystem, path: str) -> tuple[order.Order, order.Progress]:
    """What a journal says that lies anywhere."""
    file = files.open(path, Access.READ)
    try:
        return order.parse(path, file.pread(0, file.size_bytes))
    finally:
        file.close()


def find_journal(files: FileSystem, wanted: order.Order) -> act.Journal:
    """What a stopped run of the same order wrote, else a new journal."""
    try:
        found, progress = read_journal(files, wanted.journal_path)
    except MissingImage:
        return act.Journal(files, wanted)
    assert (found.family.members, found.acts) == (wanted.family.members, wanted.acts)
    return act.Journal(files, found, progress)


def after(family: Family, plan: Plan) -> Family:
    """The family that a plan leaves."""
    for each in plan.acts:
        family = family.after(each)
    return family


def assert_same_leaves(before: Tree, files: MemoryFiles, now: Family) -> None:
    """Fail when a leaf shows something else than before, or an image is not sound. A merge may rename a leaf's file,
    and a leaf that is committed lives on in its base.
    """
    old = before.views
    for leaf in now.leaves:
        member = now.members[leaf]
        found = guest_view(files, member.path, member.format)
        names = [index for index, each in enumerate(before.family.members) if each.path == member.path]
        assert found in [old[index] for index in (*names, *before.family.readers(names[0]))], member.path
    then, there = before.files.snapshot(), files.snapshot()
    for index, member in enumerate(now.members):
        if member.format == "qcow2" and index not in now.gone:
            is_written = there[member.path] != then[before.family.path(index)]
            assert_sound(files, member.path, is_done=is_written)
            assert through_snapshots(files, member.path) == through_snapshots(before.files, before.family.path(index))


def through_snapshots(files: MemoryFiles, path: str) -> dict[str, bytes]:
    """What each internal snapshot of an image shows, with what backs it."""
    chain = open_chain(files, path, gate.QCOW2)
    try:
        snapshots = chain.images[0].snapshots if chain.images[0] else ()
        return {each.name: read_all(through_snapshot(chain, [(each.id, None)])) for each in snapshots}
    finally:
        chain.close()
