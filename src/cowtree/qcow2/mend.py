"""Mending one image in memory: refcount blocks where they are missing, counts and COPIED flags that tell the truth.

All of it is computed from `References`, which are the truth; `writes.py` orders what comes out.
"""

import numpy as np

from cowtree.errors import Refused
from cowtree.extents import Offsets
from cowtree.qcow2.check import References, blocks_in_use, is_sound_block, readable_blocks
from cowtree.qcow2.geometry import REFCOUNT_TABLE_BYTES_MAX, ceil_div
from cowtree.qcow2.image import Image
from cowtree.qcow2.refcounts import Counts, block_offsets, count_type


def with_blocks(image: Image, references: References, *, anew: bool = False) -> Image:
    """The image with a refcount block for every cluster in use, or with a wholly new refcount table and blocks.
    New blocks lie where nothing is used. The references are those of the returned image afterwards.
    Raises: Refused when the refcount table would be longer than any reader accepts.
    """
    old = _keep_structure(image, references) if anew else _table_clusters(image)
    changed = image._replace(refcount_table=image.refcount_table[:0]) if anew else image
    is_moved = False
    while True:
        needed = blocks_in_use(references)
        if int(needed[-1]) >= len(changed.refcount_table):
            changed, is_moved = _with_longer_table(changed, references, int(needed[-1]) + 1), True
            continue
        missing = needed[changed.refcount_table[needed] == 0]
        if not len(missing):
            break
        offsets = references.take_free(len(missing)) << image.header.cluster_bits
        table = changed.refcount_table.copy()
        table[missing] = offsets.astype(np.uint64)
        changed = changed._replace(refcount_table=table)
    if is_moved:
        # Only now: nothing new may lie where the old table still is.
        references.give_back(old)
    return changed


def _table_clusters(image: Image) -> Offsets:
    first = image.header.refcount_table_offset >> image.header.cluster_bits
    return np.arange(first, first + image.header.refcount_table_cluster_count)


def structure_clusters(image: Image, references: References) -> Offsets:
    """The host clusters of the refcount table and of its blocks, as far as they lie inside the file."""
    geometry, table = image.geometry, _table_clusters(image)
    if len(table) and table[-1] >= references.cluster_count:
        table = table[:0]
    readable = readable_blocks(geometry, image.refcount_table, image.file_size_bytes)
    return np.concatenate((table, block_offsets(readable[readable != 0]) >> geometry.cluster_bits))


def _keep_structure(image: Image, references: References) -> Offsets:
    """Count the blocks that were not sound enough to be counted, so that nothing new is put there.
    Returns: the clusters of the refcount table and of its blocks, each as often as it is counted now.
    """
    geometry, clusters = image.geometry, structure_clusters(image, references)
    readable = readable_blocks(geometry, image.refcount_table, image.file_size_bytes)
    offset = block_offsets(readable[readable != 0])
    counted = is_sound_block(geometry, readable[readable != 0], references)
    references.use(offset[~counted], geometry.cluster_size_bytes, np.ones(np.count_nonzero(~counted), np.int64))
    return clusters


def _with_longer_table(image: Image, references: References, entry_count: int) -> Image:
    """The image with room for so many refcount blocks, and for those that count the new table and the new blocks."""
    geometry = image.geometry
    while True:
        cluster_count = ceil_div(entry_count * 8, geometry.cluster_size_bytes)
        capacity = cluster_count * geometry.cluster_size_bytes // 8
        if capacity * geometry.refcount_block_entry_count >= references.cluster_count + cluster_count + capacity:
            break
        entry_count = capacity + 1
    if cluster_count << geometry.cluster_bits > REFCOUNT_TABLE_BYTES_MAX:
        raise Refused(reason=f"{image.path}: the image is too large for its cluster size")
    table = np.zeros(capacity, np.uint64)
    table[: len(image.refcount_table)] = image.refcount_table
    offset = references.take_end(cluster_count) << geometry.cluster_bits
    header = image.header._replace(refcount_table_offset=offset, refcount_table_cluster_count=cluster_count)
    return image._replace(header=header, refcount_table=table)


def true_counts(image: Image, references: References, block_index: Offsets) -> Counts:
    """What these refcount blocks of the image should say."""
    counts = references.limit(references.in_blocks(block_index)).astype(count_type(image.geometry))
    return Counts(block_index, block_offsets(image.refcount_table[block_index]), counts)
