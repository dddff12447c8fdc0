"""Putting compressed clusters into one layer: side by side, several in one host cluster, as QEMU lays them.

They never take the place of a cluster that the layer holds alone: as in QEMU that is an error, for nothing is won.
"""

import numpy as np

from cowtree import extents as ex
from cowtree.errors import Refused
from cowtree.extents import Offsets
from cowtree.plan import convert, put
from cowtree.plan.convert import Layout
from cowtree.plan.put import FRESH, Demand, Fates
from cowtree.qcow2 import writes
from cowtree.qcow2.allocate import allocate, allocate_run
from cowtree.qcow2.image import Image, Slice, lookup
from cowtree.qcow2.tables import COPIED, Entries, Tables
from cowtree.steps import Step, Write


def decide(image: Image, held: Tables, cluster: Offsets) -> Fates:
    """What happens to guest clusters, sorted, that get compressed content.
    Raises: Refused when one of them is there already, or when no compressed cluster can be.
    """
    geometry = image.geometry
    entry, bitmap = lookup(held, geometry, cluster)
    own = (entry & image.l1[cluster // geometry.l2_entry_count] & COPIED) != 0
    wrong = cluster if geometry.has_data_file else cluster[own]
    if len(wrong):
        why = "Operation not supported" if geometry.has_data_file else "Input/output error"
        reason = f"error while writing at byte {wrong[0] << geometry.cluster_bits}: {why}"
        raise Refused(reason=reason, hint="leave out -c")
    none = ex.one_range(0, 0)
    fate = np.full(len(cluster), FRESH, np.uint8)
    return Fates(cluster, fate, entry, ex.empty(), none, none, bitmap)


def demand(image: Image, held: Tables, fates: Fates) -> Demand:
    """Say which counts `place` needs: clusters side by side are looked for among all that are free."""
    return put.demand(image, held, fates)._replace(free_count=image.host_cluster_count)


def place(piece: Slice, fates: Fates, packed: list[bytes]) -> tuple[list[Step], Image]:
    """Give the compressed clusters their places, and order the writes. Returns: the steps, and the image after them.
    `packed` is what each guest cluster becomes; all are shorter than a cluster.
    """
    image, geometry = piece.image, piece.image.geometry
    lengths = [len(each) for each in packed]
    empty = np.empty(0, np.uint64)
    offset, shared, layout = convert.pack(Layout(geometry, 0, convert.NO_TABLE, empty, 0, 0), lengths)
    l1_index = np.concatenate(put.table_changes(image, fates))
    table_hosts, counted = allocate(piece, len(l1_index))
    first, counted = allocate_run(counted, layout.next_cluster)
    hosts = np.arange(first, first + layout.next_cluster)
    put.refuse_tables(counted.image, np.concatenate((table_hosts, hosts)))
    users = 1 + np.bincount(shared, minlength=layout.next_cluster)
    counts = counted.counts.put(hosts, users.astype(counted.counts.counts.dtype))
    counts = put.count_down(image.path, counts, put.released(image, piece.tables, fates))
    moved = put.move_tables(counted._replace(counts=counts), l1_index, table_hosts)
    words = convert.packed_words(geometry, offset + (first << geometry.cluster_bits), np.array(lengths, np.int64))
    new = moved._replace(tables=_enter(moved.tables, fates.cluster, words))
    content = bytearray(layout.next_cluster << geometry.cluster_bits)
    for start, data in zip(offset.tolist(), packed, strict=True):
        content[start : start + len(data)] = data
    return [Write(first << geometry.cluster_bits, bytes(content)), *writes.order(piece, new)], new.image


def _enter(held: Tables, cluster: Offsets, words: Entries) -> Tables:
    """Put the entries into the tables. Shapes: words (count, words of an entry)."""
    index, column = np.divmod(cluster, held.entries.shape[1])
    row = held.rows_of(index)
    entries, bitmaps = held.entries.copy(), held.bitmaps.copy()
    entries[row, column] = words[:, 0]
    if words.shape[1] > 1:
        bitmaps[row, column] = words[:, 1]
    return held._replace(entries=entries, bitmaps=bitmaps)
