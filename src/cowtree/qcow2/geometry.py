"""The arithmetic of one image: how guest offsets fall into clusters, tables and reference count blocks.

guest offsets are what the VM sees, host offsets are inside the image file. The standard library only.
"""

from typing import NamedTuple

CLUSTER_BITS_MIN, CLUSTER_BITS_MAX = 9, 21
REFCOUNT_ORDER_MAX = 6
L1_BYTES_MAX = 32 << 20
REFCOUNT_TABLE_BYTES_MAX = 8 << 20
SNAPSHOT_COUNT_MAX = 65536
L1_ENTRY_BYTES = 8
SUBCLUSTER_COUNT = 32
# A subcluster is at least a sector.
SUBCLUSTER_CLUSTER_BITS_MIN = 14


def ceil_div(value: int, divisor: int) -> int:
    """Divide, rounding up."""
    return -(-value // divisor)


def round_up(value: int, multiple: int) -> int:
    """The next multiple that is not less than `value`."""
    return ceil_div(value, multiple) * multiple


class Geometry(NamedTuple):
    """What the header fixes for every other structure of the image."""

    version: int
    cluster_bits: int
    refcount_order: int
    has_subclusters: bool = False
    has_data_file: bool = False

    @property
    def cluster_size_bytes(self) -> int:
        """Length of a cluster."""
        return 1 << self.cluster_bits

    @property
    def subcluster_size_bytes(self) -> int:
        """Length of what is allocated, or reads as zeroes, on its own: a subcluster, or else a cluster."""
        return self.cluster_size_bytes // (SUBCLUSTER_COUNT if self.has_subclusters else 1)

    @property
    def l2_entry_bytes(self) -> int:
        """8, or 16 when entries carry a subcluster bitmap."""
        return 16 if self.has_subclusters else 8

    @property
    def l2_entry_count(self) -> int:
        """Entries of one L2 table, which fills one cluster."""
        return self.cluster_size_bytes // self.l2_entry_bytes

    @property
    def l2_span_bytes(self) -> int:
        """Guest bytes that one L2 table maps."""
        return self.l2_entry_count << self.cluster_bits

    @property
    def refcount_bits(self) -> int:
        """Width of one reference count."""
        return 1 << self.refcount_order

    @property
    def refcount_max(self) -> int:
        """The largest count that fits."""
        return (1 << self.refcount_bits) - 1

    @property
    def refcount_block_entry_count(self) -> int:
        """Counts in one refcount block, which fills one cluster."""
        return (self.cluster_size_bytes * 8) >> self.refcount_order

    def cluster_count(self, size_bytes: int) -> int:
        """Clusters that hold so many bytes."""
        return ceil_div(size_bytes, self.cluster_size_bytes)

    def l1_entry_count(self, size_bytes: int) -> int:
        """L1 entries that a guest disk of this size needs."""
        return ceil_div(size_bytes, self.l2_span_bytes)

    @property
    def compressed_offset_bits(self) -> int:
        """Bits of a compressed descriptor that are the host offset; the rest counts sectors.
        Source: qcow2 specification, "Compressed Clusters Descriptor".
        """
        return 62 - (self.cluster_bits - 8)
