"""What `amend` may change of an image that exists, and what its header says afterwards.

All that can be refused is refused before anything changes, in the order in which QEMU looks at it.
"""

from typing import Final, NamedTuple

import numpy as np

from cowtree.errors import Refused
from cowtree.extents import ZEROES, Mask, Offsets
from cowtree.plan.keyslots import KeyChange
from cowtree.qcow2 import header as qcow2
from cowtree.qcow2 import tables
from cowtree.qcow2.check import References
from cowtree.qcow2.geometry import Geometry
from cowtree.qcow2.header import Extension, Header
from cowtree.qcow2.header_writes import with_extension, without_extension
from cowtree.qcow2.image import Image
from cowtree.qcow2.snapshots import Snapshot
from cowtree.qcow2.tables import Tables

V2_REFCOUNT_ORDER: Final = 4
# Source: qcow2 specification, "Snapshots": the extra data that version 3 wants.
V3_EXTRA_BYTES: Final = 16
V3_HEADER_BYTES: Final = 112
_V2_VM_STATE_BYTES_MAX: Final = (1 << 32) - 1


class Asked(NamedTuple):
    """What shall become of an image; None, and a size of 0, leave it as it is."""

    version: int | None = None
    refcount_order: int | None = None
    lazy_refcounts: bool | None = None
    backing_file: str | None = None
    backing_format: str | None = None
    data_file: str | None = None
    is_data_file_raw: bool | None = None
    size_bytes: int = 0
    keys: KeyChange | None = None


def check(header: Header, asked: Asked) -> None:
    """Refuse what cannot be. Raises: Refused in QEMU's words."""
    version = asked.version or header.version
    has_data_file, is_raw = header.geometry.has_data_file, bool(header.autoclear & qcow2.AUTOCLEAR_RAW_DATA)
    changes_order = asked.refcount_order not in (None, header.refcount_order)
    names = asked.backing_file, asked.backing_format
    if asked.keys is not None:
        check_encryption(header)
    rules = (
        (asked.data_file is not None and not has_data_file, _NO_DATA_FILE),
        (bool(asked.is_data_file_raw) and not is_raw, "data-file-raw cannot be set on existing images"),
        (version < 3 and changes_order and asked.refcount_order != V2_REFCOUNT_ORDER, _NARROW),
        (names not in ((None, None), (header.backing_file, header.backing_format)), _BACKING),
        (version < 3 and bool(asked.lazy_refcounts) and not header.compatible & qcow2.LAZY_REFCOUNTS, _LAZY),
    )
    for is_broken, reason in rules:
        if is_broken:
            raise Refused(reason=reason)


_NO_DATA_FILE: Final = "data-file can only be set for images that use an external data file"
_NARROW: Final = (
    "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)"
)
_BACKING: Final = "Cannot amend the backing file\nYou can use 'qemu-img rebase' instead."
_LAZY: Final = "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)"


def check_encryption(header: Header) -> None:
    """Refuse an image that has no key slots. Raises: Refused in QEMU's words."""
    if not header.crypt_method:
        raise Refused(reason="Can't amend encryption options - encryption not present")
    if header.encryption_header is None:
        raise Refused(reason="Only LUKS encryption options can be amended")


def check_downgrade(image: Image, asked: Asked) -> None:
    """Refuse an image that version 2 has no form for. Raises: Refused in QEMU's words."""
    header = image.header
    order = header.refcount_order if asked.refcount_order is None else asked.refcount_order
    features = header.incompatible & ~(qcow2.COMPRESSION_TYPE | qcow2.DIRTY)
    size_bytes = asked.size_bytes or header.size_bytes
    rules = (
        (order != V2_REFCOUNT_ORDER, "compat=0.10 requires refcount_bits=16"),
        (header.geometry.has_data_file, "Cannot downgrade an image with a data file"),
        (any(_is_large(each, size_bytes) for each in image.snapshots), SNAPSHOTS),
        (bool(features), f"Cannot downgrade an image with incompatible features 0x{features:x} set"),
    )
    for is_broken, reason in rules:
        if is_broken:
            raise Refused(reason=reason)


SNAPSHOTS: Final = "Internal snapshots prevent downgrade of image"
PACKED: Final = "Cannot downgrade an image with zstd compression type and existing compressed clusters"


def _is_large(snapshot: Snapshot, size_bytes: int) -> bool:
    return snapshot.vm_state_bytes > _V2_VM_STATE_BYTES_MAX or snapshot.size_bytes != size_bytes


def needs_longer_entries(image: Image) -> bool:
    """Whether some snapshot lacks what version 3 wants to know of it."""
    return any(len(each.extra_data) < V3_EXTRA_BYTES for each in image.snapshots)


def amended(header: Header, asked: Asked) -> Header:
    """The header with all that needs nothing else to change; a version that goes down is not among it."""
    if asked.version is not None and asked.version > header.version:
        header = header._replace(
            version=asked.version,
            header_length=V3_HEADER_BYTES,
            extensions=with_extension(header.extensions, qcow2.feature_table()),
        )
    if asked.lazy_refcounts is not None and header.version >= 3:
        others = header.compatible & ~qcow2.LAZY_REFCOUNTS
        header = header._replace(compatible=others | (qcow2.LAZY_REFCOUNTS if asked.lazy_refcounts else 0))
    if asked.is_data_file_raw is False:
        header = header._replace(autoclear=header.autoclear & ~qcow2.AUTOCLEAR_RAW_DATA)
    if asked.data_file is not None:
        new = Extension(qcow2.DATA_FILE_NAME, qcow2.encode_name(asked.data_file))
        others_ = without_extension(header.extensions, qcow2.DATA_FILE_NAME)
        header = header._replace(extensions=with_extension(header.extensions, new) if asked.data_file else others_)
    return header


_V3_EXTENSIONS: Final = (qcow2.FEATURE_NAMES, qcow2.BITMAPS)


def downgraded(header: Header) -> Header:
    """The header as version 2 has it."""
    return header._replace(
        version=2,
        header_length=qcow2.V3_START,
        incompatible=0,
        compatible=0,
        autoclear=0,
        compression_type=qcow2.ZLIB,
        unknown_fields=b"",
        extensions=tuple(each for each in header.extensions if each.type not in _V3_EXTENSIONS),
    )


def check_width(image: Image, references: References, order: int) -> None:
    """Refuse a width that some count does not fit in. Raises: Refused in QEMU's words."""
    bits = 1 << order
    most = (1 << bits) - 1
    cluster = references.first_above(most)
    if cluster is not None:
        offset, count = cluster << image.header.cluster_bits, references.uses(np.array([cluster]))[0]
        where = f"Cluster at offset {offset:#x} has a refcount of {count}"
        raise Refused(reason=f"Cannot decrease refcount entry width to {bits} bits: {where}")


def zero_entries(geometry: Geometry, held: Tables) -> Mask:
    """Which entries say that a cluster reads as zeroes, for which version 2 has no word."""
    found: Mask = np.isin(tables.classify(geometry, held.entries), ZEROES)
    return found


class Pool(NamedTuple):
    """Clusters of zeroes that lie side by side; so many users each takes, and so many there are so far."""

    first_cluster: int
    room: int
    user_count: int = 0


def zero_users(geometry: Geometry, held: Tables, users: Offsets) -> tuple[int, int]:
    """How many users the zero clusters of these tables have, and the most that one has. `users` are those of each
    table.
    """
    count = np.count_nonzero(zero_entries(geometry, held), axis=1)
    return int((count * users).sum()), int(users[count > 0].max(initial=0))


def from_pool(geometry: Geometry, held: Tables, users: Offsets, pool: Pool) -> tuple[Tables, Pool]:
    """The same tables, where such entries name clusters of zeroes; no two of these have more users than there is room
    for, and those of one entry. Returns: them, and the pool as it is then.
    """
    is_zero = zero_entries(geometry, held)
    weight = np.where(is_zero, users[:, None], 0)
    reach = pool.user_count + np.cumsum(weight).reshape(weight.shape)
    host = (pool.first_cluster + (reach - weight) // pool.room) << geometry.cluster_bits
    entries = np.where(is_zero, host.astype(np.uint64), held.entries)
    return held._replace(entries=entries), pool._replace(user_count=pool.user_count + int(weight.sum()))


def without_zeroes(geometry: Geometry, held: Tables) -> Tables:
    """The same tables, where such entries say nothing."""
    entries = np.where(zero_entries(geometry, held), np.uint64(0), held.entries)
    return held._replace(entries=entries)
