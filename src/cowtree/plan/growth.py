"""Room for a larger disk: what must be refused, and an L1 table that is long enough, before the size itself changes."""

import numpy as np

from cowtree import extents as ex
from cowtree.errors import Refused
from cowtree.qcow2 import tables, writes
from cowtree.qcow2.allocate import allocate_run
from cowtree.qcow2.geometry import L1_BYTES_MAX, L1_ENTRY_BYTES
from cowtree.qcow2.image import Image, Slice
from cowtree.steps import Step


def refuse_old_snapshots(image: Image) -> None:
    """Refuse another disk size while version 2 has snapshots, which there need not say how large the disk was.
    Raises: Refused in QEMU's words.
    """
    if image.snapshots and image.header.version < 3:
        hint = f"cowtree img snapshot -d {image.snapshots[0].name} {image.path}"
        raise Refused(reason="Can't resize a v2 image which has snapshots", hint=hint)


def refuse_growth(image: Image, size_bytes: int) -> None:
    """Refuse a disk size that the image cannot have. Raises: Refused."""
    refuse_old_snapshots(image)
    cluster_bytes = image.geometry.cluster_size_bytes
    if image.geometry.l1_entry_count(size_bytes) * L1_ENTRY_BYTES > L1_BYTES_MAX:
        reason = f"{image.path}: a disk of {size_bytes} bytes is too large for clusters of {cluster_bytes} bytes"
        raise Refused(reason=reason, hint=f"convert {image.path} to an image with larger clusters first")
    silent = [each.name for each in image.snapshots if not each.has_size]
    if silent:
        reason = f"{image.path}: snapshot '{silent[0]}' does not say how large the disk was, so that must not change"
        raise Refused(reason=reason, hint="delete the snapshot first")


def with_room(image: Image, size_bytes: int) -> Image:
    """The image with an L1 table in memory that is long enough for a larger disk."""
    missing = max(image.geometry.l1_entry_count(size_bytes) - len(image.l1), 0)
    return image._replace(l1=np.concatenate((image.l1, np.zeros(missing, np.uint64))))


def lengthen_l1(piece: Slice, size_bytes: int) -> tuple[list[Step], Image]:
    """Give the image an L1 table that is long enough for a larger disk; its size stays as it is.
    The slice must hold the refcount blocks of the old table and of enough free clusters.
    """
    image, geometry = piece.image, piece.image.geometry
    l1 = with_room(image, size_bytes).l1
    if len(l1) == len(image.l1):
        return [], image
    old_clusters = l1_clusters(image)
    cluster, counted = allocate_run(piece, geometry.cluster_count(tables.l1_bytes(l1)))
    header = counted.image.header._replace(l1_table_offset=cluster << geometry.cluster_bits, l1_entry_count=len(l1))
    counts = counted.counts.put(old_clusters, np.zeros(len(old_clusters), piece.counts.counts.dtype))
    new = counted._replace(image=counted.image._replace(header=header, l1=l1), counts=counts)
    return writes.order(piece, new), new.image


def l1_clusters(image: Image) -> ex.Offsets:
    """The host clusters of the active L1 table."""
    first = image.header.l1_table_offset >> image.header.cluster_bits
    return np.arange(first, first + image.geometry.cluster_count(tables.l1_bytes(image.l1)))
