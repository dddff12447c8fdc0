"""Building another tree beside the one that the header leads to: both share what did not change, and one write of the
header's sector switches from one to the other.

The old tree stays whole until then: what it uses is neither written to nor counted down. Every touched cluster and
every touched L2 table gets a new place, which only the L1 table in memory knows. After a stop before the switch these
are leaks, and all is built anew: who mends the counts cannot tell them from other leaks. After the switch what only the
old tree used is.
"""

from collections.abc import Iterator

import numpy as np

from cowtree.errors import Refused
from cowtree.extents import Offsets
from cowtree.plan import resize
from cowtree.plan.growth import with_room
from cowtree.plan.put import count_down, entry_users
from cowtree.qcow2 import tables, writes
from cowtree.qcow2.allocate import allocate_run
from cowtree.qcow2.geometry import Geometry
from cowtree.qcow2.image import Image, Slice
from cowtree.qcow2.tables import COPIED, Entries, Tables
from cowtree.steps import Flush, Step, Write


def refuse(image: Image, size_bytes: int) -> None:
    """Refuse what cannot be switched in one step. Raises: Refused."""
    if image.geometry.has_data_file:
        reason = f"{image.path} has an external data file, and what lies in that cannot change in one step"
        raise Refused(reason=reason, hint="the same without --atomic")
    if image.bitmaps and size_bytes != image.header.size_bytes:
        reason = f"{image.path} has bitmaps, which cannot change in one step with the size of its disk"
        raise Refused(reason=reason, hint="the same without --atomic")


def detach(image: Image, size_bytes: int) -> Image:
    """The image in memory whose tables all belong to the old tree, with room for a disk of this size."""
    room = with_room(image, size_bytes)
    return room._replace(l1=room.l1 & ~COPIED)


def unowned(image: Image) -> Image:
    """The image as whoever decides about clusters must see it: none may be written where it is."""
    return image._replace(l1=image.l1 & ~COPIED)


def attach(image: Image, old: Entries) -> Image:
    """The image whose L1 table flags as its own what it had flagged before, where that stays."""
    before = with_length(old, len(image.l1))
    return image._replace(l1=np.where((before & ~COPIED) == (image.l1 & ~COPIED), before, image.l1))


def with_length(l1: Entries, count: int) -> Entries:
    """An L1 table with room for so many entries."""
    return np.concatenate((l1, np.zeros(count - len(l1), np.uint64)))


def switch(piece: Slice, size_bytes: int) -> tuple[list[Step], Image]:
    """Write the L1 table to a new place, and let the header lead to it and say this size, in one write of a sector.
    The slice holds the counts of enough free clusters. The old L1 table stays counted.
    """
    image, geometry = piece.image, piece.image.geometry
    cluster, counted = allocate_run(piece, geometry.cluster_count(tables.l1_bytes(image.l1)))
    offset = cluster << geometry.cluster_bits
    steps = writes.order(piece, counted)
    header = counted.image.header._replace(l1_table_offset=offset, l1_entry_count=len(image.l1), size_bytes=size_bytes)
    steps += [Write(offset, tables.encode_words(image.l1)), *writes.switch(header)]
    return steps, counted.image._replace(header=header)


def windows(image: Image, old: Entries) -> Iterator[tuple[int, int, Image, Image]]:
    """Guest ranges where the trees have different tables, and the images with no other tables than these: the old one
    and the new one.
    """
    before = with_length(old, len(image.l1))
    changed = (before & ~COPIED) != (image.l1 & ~COPIED)
    olds, news = (image._replace(l1=np.where(changed, each, np.uint64(0))) for each in (before, image.l1))
    for start, stop in resize.windows(news, 0):
        yield start, stop, olds, news


def released(geometry: Geometry, old: Tables, new: Tables) -> Offsets:
    """The host clusters that only the old tree used, each as often as it did: of guest clusters and of tables."""
    rows = np.searchsorted(new.l1_index, old.l1_index)
    users = entry_users(geometry, old.entries[old.entries != new.entries[rows]])
    return np.concatenate((users, old.host_offset >> geometry.cluster_bits))


def give_back(piece: Slice, clusters: Offsets) -> list[Step]:
    """Count down what the old tree used, now that nothing leads to it. Raises: BrokenTable."""
    counts = count_down(piece.image.path, piece.counts, clusters)
    return [Flush(), *writes.count_writes(piece.image, piece.counts, counts)]
