"""How large the file of a new image would be: what `qemu-img measure` says.

It is an upper bound: tables are counted for the whole disk, whatever of it is used.
"""

from typing import NamedTuple

from cowtree.errors import WrongUse
from cowtree.qcow2.bitmaps import BITMAP, Bitmap
from cowtree.qcow2.geometry import L1_BYTES_MAX, L1_ENTRY_BYTES, Geometry, ceil_div, round_up

TABLE_ENTRY_BYTES = 8


class Sizes(NamedTuple):
    """Units: bytes. `bitmaps` is what copies of the source's bitmaps would add, None where there can be none."""

    required: int
    fully_allocated: int
    bitmaps: int | None = None


def measure_raw(size_bytes: int) -> Sizes:
    """A raw file is as long as its disk."""
    return Sizes(size_bytes, size_bytes)


def measure_qcow2(geometry: Geometry, size_bytes: int, data_bytes: int, *, header_bytes: int = 0) -> Sizes:
    """The sizes of a qcow2 image in which clusters of so many guest bytes are used; `header_bytes` is the length of an
    encryption header.
    Source: QEMU counts tables for a whole disk, and the L1 table in whole clusters.
    """
    size = geometry.cluster_size_bytes
    disk = round_up(size_bytes, size)
    l2 = ceil_div(disk, geometry.l2_span_bytes)
    l1 = geometry.cluster_count(l2 * L1_ENTRY_BYTES)
    clusters = 1 + l2 + l1 + disk // size
    total = (clusters + _count_clusters(geometry, clusters)) * size + round_up(header_bytes, size)
    return Sizes(total - disk + data_bytes, total)


def _count_clusters(geometry: Geometry, clusters: int) -> int:
    """How many clusters of refcount blocks and of the refcount table count so many clusters and themselves."""
    found = -1
    blocks = table = 0
    while blocks + table != found:
        found = blocks + table
        blocks = ceil_div(clusters + found, geometry.refcount_block_entry_count)
        table = geometry.cluster_count(blocks * TABLE_ENTRY_BYTES)
    return found


def refuse_too_large(geometry: Geometry, size_bytes: int) -> None:
    """Refuse a disk that needs too long an L1 table. Raises: WrongUse."""
    if geometry.l1_entry_count(size_bytes) * L1_ENTRY_BYTES > L1_BYTES_MAX:
        reason = "The image size is too large (try using a larger cluster size)"
        raise WrongUse(reason=reason, hint="-o cluster_size=2M")


def measure_bitmaps(bitmaps: tuple[Bitmap, ...], size_bytes: int, cluster_size_bytes: int) -> int:
    """What bitmaps of a disk take in an image with such clusters, when every bit of them is stored."""
    total = directory = 0
    for each in bitmaps:
        bit_count = ceil_div(size_bytes, 1 << each.granularity_bits)
        cluster_count = ceil_div(ceil_div(bit_count, 8), cluster_size_bytes)
        total += cluster_count * cluster_size_bytes + round_up(cluster_count * TABLE_ENTRY_BYTES, cluster_size_bytes)
        directory += round_up(BITMAP.size_bytes + len(each.name.encode("utf-8", "surrogateescape")), 8)
    return total + round_up(directory, cluster_size_bytes)
