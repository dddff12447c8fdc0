"""The snapshot table: a list of entries of differing length, each with an L1 table of its own.

The standard library only, for `img info` lists snapshots.
"""

from collections.abc import Iterable
from typing import NamedTuple

from cowtree.errors import BrokenTable
from cowtree.qcow2.geometry import L1_BYTES_MAX, L1_ENTRY_BYTES, round_up
from cowtree.qcow2.header import Header, decode_name, encode_name
from cowtree.records import record

# Source: qcow2 specification, "Snapshots".
SNAPSHOT = record(
    (0, ">u8", "l1_table_offset"),
    (8, ">u4", "l1_size"),
    (12, ">u2", "id_size"),
    (14, ">u2", "name_size"),
    (16, ">u4", "date_sec"),
    (20, ">u4", "date_nsec"),
    (24, ">u8", "vm_clock_nsec"),
    (32, ">u4", "vm_state_size"),
    (36, ">u4", "extra_data_size"),
    size=40,
)
# What is known of the extra data, which may be longer or shorter.
EXTRA_DATA = record(
    (0, ">u8", "vm_state_size"),
    (8, ">u8", "disk_size"),
    (16, ">u8", "icount"),
    size=24,
)
NO_ICOUNT = (1 << 64) - 1
EXTRA_DATA_BYTES_MAX = 1024
# Source: QEMU refuses a larger table.
TABLE_BYTES_MAX = 64 << 20


class Snapshot(NamedTuple):
    """One internal snapshot."""

    id: str
    name: str
    l1_table_offset: int
    l1_entry_count: int
    time_s: int
    time_ns: int
    vm_clock_ns: int
    vm_state_bytes: int
    size_bytes: int
    icount: int | None
    extra_data: bytes

    @property
    def has_size(self) -> bool:
        """Whether it says itself how large the disk was, which older entries do not."""
        return len(self.extra_data) >= 16

    @property
    def l1_bytes(self) -> int:
        """Length of the snapshot's L1 table."""
        return self.l1_entry_count * L1_ENTRY_BYTES


def parse(path: str, header: Header, data: bytes) -> tuple[tuple[Snapshot, ...], int]:
    """Read all the entries that the header counts; `data` starts at the table.
    Returns: the snapshots, and the length of the table in bytes.
    Raises: BrokenTable when an entry breaks a rule or runs past the end of `data`.
    """
    found, length = parse_entries(path, header, data)
    end = 0
    for snapshot in sorted(found, key=lambda each: each.l1_table_offset):
        what = wrong_l1(header, snapshot)
        if snapshot.l1_table_offset < end and snapshot.l1_entry_count:
            what = "L1 table lies inside that of another snapshot"
        if what:
            raise BrokenTable(path=path, reason=f"snapshot '{snapshot.name}': {what}")
        end = max(end, snapshot.l1_table_offset + snapshot.l1_bytes)
    return found, length


def wrong_l1(header: Header, snapshot: Snapshot) -> str:
    """What rule the place of a snapshot's L1 table breaks; empty when it breaks none."""
    if snapshot.l1_table_offset % (1 << header.cluster_bits):
        return "L1 table is not cluster aligned"
    return "L1 table is too large" if snapshot.l1_bytes > L1_BYTES_MAX else ""


def parse_entries(path: str, header: Header, data: bytes) -> tuple[tuple[Snapshot, ...], int]:
    """Read all the entries, wherever they say that their L1 tables are.
    Raises: BrokenTable when one runs past the end of `data` or says too much.
    Source: qcow2 specification, "Snapshots".
    """
    snapshots, position = [], 0
    for index in range(header.snapshot_count):
        if position + SNAPSHOT.size_bytes > len(data):
            raise BrokenTable(
                path=path, reason=f"Snapshot {index} of {header.snapshot_count} lies past the table's end"
            )
        snapshot, position = parse_entry(path, header, data, (index, position))
        snapshots.append(snapshot)
    return tuple(snapshots), position


def parse_entry(path: str, header: Header, data: bytes, place: tuple[int, int]) -> tuple[Snapshot, int]:
    """Read one entry; `place` is its number and where it begins. Returns: it, and where the next one begins.
    Raises: BrokenTable when it runs past the end of `data` or says too much.
    """
    index, position = place
    fields = SNAPSHOT.integers(data, position)
    extra_start = position + SNAPSHOT.size_bytes
    id_start = extra_start + fields["extra_data_size"]
    name_start = id_start + fields["id_size"]
    end = name_start + fields["name_size"]
    if fields["extra_data_size"] > EXTRA_DATA_BYTES_MAX:
        what, waste = f"Too much extra metadata in snapshot table entry {index}", "this extra metadata"
        raise BrokenTable(path=path, reason=f"{what}\nYou can force-remove {waste} with qemu-img check -r all")
    if end > TABLE_BYTES_MAX:
        what, waste = "Snapshot table is too big", f"all {header.snapshot_count - index} overhanging snapshots"
        raise BrokenTable(path=path, reason=f"{what}\nYou can force-remove {waste} with qemu-img check -r all")
    if end > len(data):
        raise BrokenTable(path=path, reason="Snapshot table entry runs past the end of the table")
    extra = data[extra_start:id_start]
    # Older entries know neither the 64-bit state size, nor the disk size, nor the instruction count.
    vm_state_bytes = int.from_bytes(extra[:8], "big") if len(extra) >= 8 else fields["vm_state_size"]
    size_bytes = int.from_bytes(extra[8:16], "big") if len(extra) >= 16 else header.size_bytes
    icount = int.from_bytes(extra[16:24], "big") if len(extra) >= 24 else None
    snapshot = Snapshot(
        id=decode_name(data[id_start:name_start]),
        name=decode_name(data[name_start:end]),
        l1_table_offset=fields["l1_table_offset"],
        l1_entry_count=fields["l1_size"],
        time_s=fields["date_sec"],
        time_ns=fields["date_nsec"],
        vm_clock_ns=fields["vm_clock_nsec"],
        vm_state_bytes=vm_state_bytes,
        size_bytes=size_bytes,
        icount=None if icount == NO_ICOUNT else icount,
        extra_data=extra,
    )
    return snapshot, round_up(end, 8)


def pack(snapshots: Iterable[Snapshot]) -> bytes:
    """The table as it stands on disk; every entry says all that is known, and extra data that nobody knows is kept."""
    return b"".join(map(_pack_entry, snapshots))


def _pack_entry(snapshot: Snapshot) -> bytes:
    identifier, name = encode_name(snapshot.id), encode_name(snapshot.name)
    known = EXTRA_DATA.pack(
        vm_state_size=snapshot.vm_state_bytes,
        disk_size=snapshot.size_bytes,
        icount=NO_ICOUNT if snapshot.icount is None else snapshot.icount,
    )
    extra = known + snapshot.extra_data[EXTRA_DATA.size_bytes :]
    fields = SNAPSHOT.pack(
        l1_table_offset=snapshot.l1_table_offset,
        l1_size=snapshot.l1_entry_count,
        id_size=len(identifier),
        name_size=len(name),
        date_sec=snapshot.time_s,
        date_nsec=snapshot.time_ns,
        vm_clock_nsec=snapshot.vm_clock_ns,
        # Who knows only 32 bits shall take a larger state for none.
        vm_state_size=snapshot.vm_state_bytes if snapshot.vm_state_bytes < 1 << 32 else 0,
        extra_data_size=len(extra),
    )
    data = fields + extra + identifier + name
    return data.ljust(round_up(len(data), 8), b"\0")
