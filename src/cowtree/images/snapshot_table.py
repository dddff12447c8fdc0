"""Reading a snapshot table that may say anything, as far as a check needs it, and what a repair drops of it."""

from typing import Final, NamedTuple

from cowtree.chain.gate import Layer
from cowtree.qcow2 import snapshots
from cowtree.qcow2.geometry import SNAPSHOT_COUNT_MAX, round_up
from cowtree.qcow2.header import Header
from cowtree.qcow2.snapshots import EXTRA_DATA_BYTES_MAX, SNAPSHOT, TABLE_BYTES_MAX, Snapshot

FILE_TOO_LARGE: Final = "File too large"
INVALID_ARGUMENT: Final = "Invalid argument"
# Source: QEMU counts the bytes of the table in 31 bits.
END_MAX: Final = (1 << 31) - 1
# Not more: entries may lie far apart.
WINDOW_BYTES: Final = 4096


class Found(NamedTuple):
    """What a snapshot table holds. Units: `length_bytes` is how far it goes in the file.

    - `dropped_count`: snapshots behind those that the limits allow; only a repair drops them.
    - `cut_count`: snapshots that lost extra data, which only a repair takes from them.
    - `remarks`: what a repair says of these.
    - `failure`: why the table cannot be read: a sentence, advice and the system's word for it; None when it can.
    """

    snapshots: tuple[Snapshot, ...] = ()
    length_bytes: int = 0
    dropped_count: int = 0
    cut_count: int = 0
    remarks: tuple[str, ...] = ()
    failure: tuple[str, str, str] | None = None


def read(layer: Layer, header: Header, *, mends: bool) -> Found:
    """Read the table that the header names; with `mends` what is too much is dropped, else it is a failure."""
    count, remarks = header.snapshot_count, []
    if count > SNAPSHOT_COUNT_MAX:
        over = count - SNAPSHOT_COUNT_MAX
        if not mends:
            advice = f"You can force-remove all {over} overhanging snapshots with qemu-img check -r all"
            return Found(failure=("ERROR snapshot table too large", advice, FILE_TOO_LARGE))
        remarks.append(f"Discarding {over} overhanging snapshots")
        count = SNAPSHOT_COUNT_MAX
    if count and (header.snapshot_table_offset % (1 << header.cluster_bits) or header.snapshot_table_offset >> 63):
        return Found(failure=("ERROR snapshot table offset invalid", "", INVALID_ARGUMENT))
    return _read_entries(layer, header, count, remarks, mends=mends)


def _read_entries(layer: Layer, header: Header, count: int, remarks: list[str], *, mends: bool) -> Found:
    found: list[Snapshot] = []
    table = _Bytes(layer, header)
    position = kept_bytes = cut_count = 0
    for index in range(count):
        start = round_up(position, 8)
        snapshot, end, size = _read_entry(table, layer.path, header, start)
        if size > EXTRA_DATA_BYTES_MAX:
            if not mends:
                what = f"Too much extra metadata in snapshot table entry {index}"
                return _failed(what, "this extra metadata")
            cut_count += 1
            what = f"Discarding too much extra metadata in snapshot table entry {index}"
            remarks.append(f"{what} ({size} > {EXTRA_DATA_BYTES_MAX})")
        kept_bytes = round_up(kept_bytes, 8) + end - start - size + len(snapshot.extra_data)
        if kept_bytes > TABLE_BYTES_MAX or end > END_MAX:
            over = count - index
            if not mends:
                return _failed("Snapshot table is too big", f"all {over} overhanging snapshots")
            remarks.append(f"Discarding {over} overhanging snapshots (snapshot table is too big)")
            break
        found.append(snapshot)
        position = end
    return Found(tuple(found), position, header.snapshot_count - len(found), cut_count, tuple(remarks))


def _failed(reason: str, what: str) -> Found:
    advice = f"You can force-remove {what} with qemu-img check -r all"
    return Found(failure=(f"ERROR failed to read the snapshot table: {reason}", advice, FILE_TOO_LARGE))


class _Bytes:
    """The bytes of the table, a window of them in memory; past the end of the file there are zeroes."""

    def __init__(self, layer: Layer, header: Header) -> None:
        self._file, self._offset = layer.file, header.snapshot_table_offset
        self._start, self._held = 0, b""

    def read(self, start: int, length: int) -> tuple[bytes, int]:
        """Bytes of which so many from `start` on are known. Returns: them, and where in them that is."""
        if not self._start <= start <= start + length <= self._start + len(self._held):
            # Past the largest offset there is no file.
            place = min(self._offset + start, self._file.size_bytes)
            self._start, self._held = start, self._file.pread(place, max(length, WINDOW_BYTES))
        return self._held, start - self._start


def _read_entry(table: _Bytes, path: str, header: Header, start: int) -> tuple[Snapshot, int, int]:
    """Read one entry, with as much extra data as is allowed. Returns: it, its end, and the size of its extra data."""
    data, at = table.read(start, SNAPSHOT.size_bytes)
    fields = SNAPSHOT.integers(data, at)
    size, names_bytes = fields["extra_data_size"], fields["id_size"] + fields["name_size"]
    end = start + SNAPSHOT.size_bytes + size + names_bytes
    if size <= EXTRA_DATA_BYTES_MAX:
        data, at = table.read(start, end - start)
    else:
        kept_bytes = SNAPSHOT.size_bytes + EXTRA_DATA_BYTES_MAX
        head, at = table.read(start, kept_bytes)
        extra = head[at + SNAPSHOT.size_bytes : at + kept_bytes]
        names, at = table.read(end - names_bytes, names_bytes)
        names = names[at : at + names_bytes]
        data, at = SNAPSHOT.pack(**fields | {"extra_data_size": EXTRA_DATA_BYTES_MAX}) + extra + names, 0
    snapshot, _ = snapshots.parse_entry(path, header, data, (0, at))
    return snapshot, end, size
