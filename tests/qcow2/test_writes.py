"""Owns the proof that writes come in crash order: at every stop, and whatever a lost cache leaves of the writes since
the last flush, an image is sound and each guest cluster holds its old content or its new one.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cowtree.chain import gate, load
from cowtree.extents import DATA, single
from cowtree.plan.create import NewImage
from cowtree.plan.growth import lengthen_l1
from cowtree.qcow2 import bitmaps, refcounts, writes
from cowtree.qcow2 import header as qcow2
from cowtree.qcow2.allocate import allocate
from cowtree.qcow2.header import Header
from cowtree.qcow2.header_writes import header_write
from cowtree.qcow2.image import Image, Slice, lookup
from cowtree.qcow2.tables import COPIED, HOST_OFFSET, Tables
from cowtree.steps import Flush, Move, Step, Truncate, Write
from cowtree.storage.file import LocalFiles
from cowtree.storage.memory import MemoryFiles
from tests.pictures import draw
from tests.qemu import assert_clean, qemu_img

CLUSTER = 512
PER_TABLE = CLUSTER // 8
NEW = b"N" * CLUSTER


# A tiny interpreter of steps over bytes: what is durable, and what a power cut may keep of the rest.


def put(data: bytes, step: Step) -> bytes:
    """The bytes of a file after one step."""
    match step:
        case Write(offset, words):
            return data[:offset].ljust(offset, b"\0") + words + data[offset + len(words) :]
        case Move(_, target):
            return put(data, Write(int(target[0]), NEW))
        case Truncate(size_bytes):
            return data[:size_bytes].ljust(size_bytes, b"\0")
    return data


def put_all(data: bytes, steps: list[Step]) -> bytes:
    for step in steps:
        data = put(data, step)
    return data


def crashes(data: bytes, steps: list[Step]) -> Iterator[bytes]:
    """What may be left: all that was flushed, and of what came after it a beginning, one alone, all but one, or
    one that was torn behind its first sector.
    """
    pending: list[Step] = []
    for step in [*steps, Flush()]:
        if isinstance(step, Flush):
            for index in range(len(pending)):
                yield put_all(data, pending[:index])
                yield put(data, pending[index])
                yield put_all(data, pending[:index] + pending[index + 1 :])
                for part in torn(pending[index]):
                    yield put(data, part)
            data, pending = put_all(data, pending), []
            yield data
        else:
            pending.append(step)


def torn(step: Step) -> list[Step]:
    """The two parts of a write that reaches into a second sector."""
    if not isinstance(step, Write):
        return []
    length = CLUSTER - step.offset % CLUSTER
    parts = Write(step.offset, step.data[:length]), Write(step.offset + length, step.data[length:])
    return [*parts] if parts[1].data else []


def words_at(data: bytes, offset: int, count: int) -> list[int]:
    return list(struct.unpack_from(f">{count}Q", data.ljust(offset + count * 8, b"\0"), offset))


def seen(data: bytes) -> dict[int, bytes]:
    """What the guest sees: its clusters that are not holes. Fails when the image is not sound: every cluster that a
    table names must be counted as often, by 64-bit counts.
    """
    header = qcow2.parse("image", data[:CLUSTER], len(data))
    assert header.geometry.refcount_bits == 64
    users = dict.fromkeys([0], 1)
    found: dict[int, bytes] = {}

    def use(offset: int, count: int = 1) -> None:
        assert offset % CLUSTER == 0
        for cluster in range(offset // CLUSTER, offset // CLUSTER + count):
            users[cluster] = users.get(cluster, 0) + 1

    use(header.refcount_table_offset, header.refcount_table_cluster_count)
    use(header.l1_table_offset, -(-header.l1_entry_count * 8 // CLUSTER))
    blocks = words_at(data, header.refcount_table_offset, header.refcount_table_cluster_count * PER_TABLE)
    for block in filter(None, blocks):
        use(block)
    for l1_index, pointer in enumerate(words_at(data, header.l1_table_offset, header.l1_entry_count)):
        if pointer:
            table = pointer & int(HOST_OFFSET)
            use(table)
            for column, entry in enumerate(words_at(data, table, PER_TABLE)):
                if entry:
                    use(entry & int(HOST_OFFSET))
                    start = entry & int(HOST_OFFSET)
                    found[l1_index * PER_TABLE + column] = data[start : start + CLUSTER].ljust(CLUSTER, b"\0")
    for cluster, count in users.items():
        block = blocks[cluster // PER_TABLE]
        counted = words_at(data, block + cluster % PER_TABLE * 8, 1)[0] if block else 0
        assert counted >= count, f"cluster {cluster} is used {count} times and counts {counted}"
    return found


def assert_crash_order(data: bytes, steps: list[Step], changed: set[int]) -> bytes:
    """Every state that a crash leaves is sound and shows old or new clusters. Returns: the last state."""
    after = put_all(data, steps)
    old, new, states = seen(data), seen(after), 0
    assert {at for at in old.keys() | new.keys() if old.get(at) != new.get(at)} == changed
    for state in crashes(data, steps):
        states += 1
        for at, content in seen(state).items():
            assert content in (old.get(at), new.get(at)), f"guest cluster {at} is neither old nor new"
        assert {at for at in old if at not in seen(state)} <= changed
    assert states > len(steps)
    return after


def start(picture: str, order: int = 6) -> tuple[bytes, Slice]:
    """An image in 512-byte clusters, and all its tables and blocks in memory."""
    files = MemoryFiles()
    draw(files, NewImage("image", "qcow2", len(picture) * CLUSTER, 9, refcount_order=order), picture)
    layer = gate.open_layer(files, "image")
    image = load.load_image(layer)
    assert image is not None
    held = load.load_tables(layer.file, image, 0, layer.size_bytes)
    counts = load.load_blocks(layer.file, image, 0, len(image.refcount_table))
    layer.close()
    return files.content("image"), Slice(image, held, counts)


def point(piece: Slice, guest: int, host: int) -> Slice:
    """Let a guest cluster be held by a host cluster, or by none; its L2 table is there."""
    entries = piece.tables.entries.copy()
    row = piece.tables.rows_of(np.array([guest // PER_TABLE]))[0]
    entries[row, guest % PER_TABLE] = np.uint64(host * CLUSTER) | (COPIED if host else np.uint64(0))
    return piece._replace(tables=piece.tables._replace(entries=entries))


def free(piece: Slice, host: int) -> Slice:
    return piece._replace(counts=piece.counts.put(np.array([host]), np.zeros(1, np.uint64)))


def add_table(piece: Slice, l1_index: int, host: int) -> Slice:
    """An empty L2 table behind all others."""
    held, l1 = piece.tables, piece.image.l1.copy()
    l1[l1_index] = np.uint64(host * CLUSTER) | COPIED
    more = Tables(
        np.append(held.l1_index, l1_index),
        np.append(held.host_offset, host * CLUSTER),
        np.concatenate((held.entries, np.zeros((1, PER_TABLE), np.uint64))),
        np.empty((len(held.l1_index) + 1, 0), np.uint64),
    )
    return piece._replace(image=piece.image._replace(l1=l1), tables=more)


def move_to(host: int) -> Move:
    return Move(single(0, CLUSTER, DATA, layer=1), np.array([host * CLUSTER]))


def host_of(piece: Slice, guest: int) -> int:
    entries, _ = lookup(piece.tables, piece.image.geometry, np.array([guest]))
    return int(entries[0] & HOST_OFFSET) // CLUSTER


def fill_up(data: bytes, piece: Slice, block_count: int) -> tuple[bytes, Slice]:
    """Count all clusters of so many refcount blocks, though nothing uses them: leaks, which are no damage."""
    missing = (block_count - len(piece.counts.block_index)) * (PER_TABLE - 1)
    _, after = allocate(piece, len(piece.counts.free(PER_TABLE)) + missing)
    return put_all(data, writes.order(piece, after)), after


FAR = 2 * PER_TABLE + 5
SMALL = "AB" + "-" * (3 * PER_TABLE)


# Room in the block that is there; in a new block; in a new block that a longer refcount table names.
@pytest.mark.parametrize("full_block_count", [0, 1, PER_TABLE])
def test_new_data_in_a_new_table_comes_in_crash_order(full_block_count):
    data, piece = start(SMALL)
    if full_block_count:
        data, piece = fill_up(data, piece, full_block_count)
    hosts, new = allocate(piece, 2)
    table, host = hosts.tolist()
    new = point(add_table(new, 2, table), FAR, host)
    after = assert_crash_order(data, writes.order(piece, new, move_to(host)), {FAR})
    assert seen(after)[FAR] == NEW
    has_moved = new.image.header.refcount_table_offset != piece.image.header.refcount_table_offset
    has_grown = len(new.counts.block_index) > len(piece.counts.block_index)
    assert (has_grown, has_moved) == (full_block_count > 0, full_block_count == PER_TABLE)


def test_a_cluster_that_is_replaced_is_counted_down_last():
    data, piece = start(SMALL)
    old_host = host_of(piece, 0)
    hosts, new = allocate(piece, 1)
    new = free(point(new, 0, int(hosts[0])), old_host)
    steps = writes.order(piece, new, move_to(int(hosts[0])))
    after = assert_crash_order(data, steps, {0})
    assert seen(after)[0] == NEW
    assert [type(step).__name__ for step in steps] == ["Write", "Move", "Flush", "Write", "Flush", "Write"]
    block = int(piece.counts.host_offset[0])
    assert steps[-1] == Write(block + old_host * 8, bytes(8))


def test_a_pointer_that_goes_away_is_gone_before_its_count():
    data, piece = start(SMALL)
    new = free(point(piece, 1, 0), host_of(piece, 1))
    steps = writes.order(piece, new)
    assert 1 not in seen(assert_crash_order(data, steps, {1}))
    assert [type(step).__name__ for step in steps] == ["Flush", "Write", "Flush", "Write"]


def test_a_longer_l1_table_comes_in_crash_order():
    data, piece = start(SMALL)
    steps, image = lengthen_l1(piece, CLUSTER * PER_TABLE * 200)
    after = assert_crash_order(data, steps, set())
    header = qcow2.parse("image", after[:CLUSTER], len(after))
    assert header == image.header
    assert (header.l1_entry_count, header.size_bytes) == (200, piece.image.header.size_bytes)


def test_nothing_is_written_when_nothing_changes():
    _, piece = start(SMALL)
    assert writes.order(piece, piece) == []


@pytest.mark.parametrize(
    "drop", [lambda steps: [step for step in steps if step != Flush()], lambda steps: [*steps[::-1]]]
)
def test_a_wrong_order_is_found(drop):
    data, piece = start(SMALL)
    hosts, new = allocate(piece, 2)
    new = point(add_table(new, 2, int(hosts[0])), FAR, int(hosts[1]))
    with pytest.raises(AssertionError):
        assert_crash_order(data, drop(writes.order(piece, new, move_to(int(hosts[1])))), {FAR})


@pytest.mark.parametrize("order", range(7), ids=lambda order: f"{1 << order} bits")
def test_a_count_that_changes_alone_leaves_its_neighbours(order):
    data, piece = start("A", order)
    counts = piece.counts
    used = np.flatnonzero(counts.counts[0])
    changed = counts.put(np.array([used[-1] + 2]), np.ones(1, counts.counts.dtype))
    steps = writes.order(piece, piece._replace(counts=changed))
    assert [len(step.data) for step in steps if isinstance(step, Write)] == [max((1 << order) // 8, 1)]
    block = int(counts.host_offset[0])
    after = put_all(data, steps)[block : block + CLUSTER].ljust(CLUSTER, b"\0")
    read = refcounts.decode(piece.image.geometry, counts.block_index, counts.host_offset, after)
    assert (read.counts == changed.counts).all()


# The header and its bits.


def parsed(data: bytes) -> Header:
    return qcow2.parse("image", data[: qcow2.first_cluster_bytes(data)], len(data))


def with_header(image: Image, **fields: Any) -> Image:
    return image._replace(header=image.header._replace(**fields))


def test_the_dirty_bit_is_durable_before_all_else_and_unknown_autoclear_bits_go():
    data, piece = start("A")
    image = with_header(piece.image, autoclear=0b111)
    steps, begun = writes.begin(image)
    assert [type(step) for step in steps] == [Write, Flush]
    header = parsed(put_all(data, steps))
    assert header == begun.header
    assert (header.is_dirty, header.autoclear) == (True, qcow2.KNOWN_AUTOCLEAR)
    assert writes.begin(begun) == ([], begun)


def test_the_dirty_bit_goes_once_all_is_durable():
    data, piece = start("A")
    begin, begun = writes.begin(piece.image)
    steps, finished = writes.finish(begun)
    assert [type(step) for step in steps] == [Flush, Write, Flush]
    assert finished == piece.image
    assert put_all(data, [*begin, *steps]) == data
    assert writes.finish(finished) == ([Flush()], finished)


def test_version_2_has_no_dirty_bit():
    _, piece = start("A")
    image = with_header(piece.image, version=2, header_length=72)
    assert writes.begin(image) == ([], image)
    assert writes.finish(image) == ([Flush()], image)


def test_tables_change_under_the_dirty_bit_and_bitmaps_stay_valid():
    data, piece = start("A")
    image = with_header(piece.image, autoclear=0b1011)
    steps, begun = writes.begin_tables(image)
    assert [type(step) for step in steps] == [Flush, Write, Flush]
    header = parsed(put_all(data, steps))
    assert (header.is_dirty, header.autoclear) == (True, qcow2.KNOWN_AUTOCLEAR)
    assert writes.begin_tables(begun) == ([], begun)
    old = with_header(piece.image, version=2, header_length=72)
    assert writes.begin_tables(old) == ([], old)


def test_a_repair_keeps_what_it_knows_and_ends_with_a_good_name():
    data, piece = start("A")
    wrong = qcow2.DIRTY | qcow2.CORRUPT
    image = with_header(piece.image, autoclear=0b1011, incompatible=wrong)
    steps, begun = writes.begin_repair(image)
    assert [type(step) for step in steps] == [Flush, Write, Flush]
    header = parsed(put_all(data, steps))
    assert (header.autoclear, header.incompatible) == (0b11, wrong)
    steps, ended = writes.finish_repair(begun)
    assert parsed(put_all(data, steps)).incompatible == ended.header.incompatible == 0
    assert writes.finish_repair(ended) == ([], ended)


def test_only_a_free_end_is_cut_off():
    _, piece = start("A")
    image = piece.image._replace(file_size_bytes=10 * CLUSTER)
    assert writes.shrink(image, 9) == [Truncate(9 * CLUSTER)]
    assert writes.shrink(image, 10) == writes.shrink(image, 11) == []


# Bitmaps.


@pytest.fixture
def tracked(tmp_path: Path) -> Path:
    """An image with a bitmap that records and one that does not."""
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", path, "8M")
    for name in ("records", "rests"):
        qemu_img("bitmap", "--add", *(["--disable"] if name == "rests" else []), path, name)
    return path


def image_at(path: Path) -> Image:
    layer = gate.open_layer(LocalFiles(), str(path), "qcow2")
    image = load.load_image(layer)
    layer.close()
    assert image is not None
    return image


def carry_out(path: Path, steps: list[Step]) -> None:
    path.write_bytes(put_all(path.read_bytes(), steps))


def test_a_bitmap_that_records_is_marked_in_use_before_the_first_change(tracked):
    steps, _ = writes.begin(image_at(tracked))
    assert [type(step) for step in steps] == [Write, Flush, Write, Flush]
    carry_out(tracked, steps[:2])
    image = image_at(tracked)
    assert not image.header.is_dirty
    assert {each.name: each.is_in_use for each in image.bitmaps} == {"records": True, "rests": False}
    flags = {each.name: each.flags for each in image.bitmaps}
    assert flags == {"records": bitmaps.AUTO | bitmaps.IN_USE, "rests": 0}
    assert [step.offset for step in writes.begin(image)[0] if isinstance(step, Write)] == [0]
    assert_clean(tracked)


def test_a_bitmap_that_is_too_short_for_the_new_size_is_given_up(tracked):
    image = image_at(tracked)
    short = max(each.disk_bytes_max(16) for each in image.bitmaps)
    steps, grown = writes.resize(image, short)
    assert [type(step) for step in steps] == [Flush, Write, Flush]
    steps, grown = writes.resize(image, short + CLUSTER)
    assert [type(step) for step in steps] == [Write, Write, Flush, Write, Flush]
    assert grown.header.size_bytes == short + CLUSTER
    carry_out(tracked, steps[:3])
    assert [each.is_in_use for each in image_at(tracked).bitmaps] == [True, True]
    assert image_at(tracked).header.size_bytes == 8 << 20


def test_the_header_switches_when_all_before_is_durable_and_is_durable_itself():
    header = Header(3, 16, 1 << 20, 1, 0x30000, 0x10000, 1)
    changed = header._replace(snapshot_count=2, snapshot_table_offset=0x70000, l1_table_offset=0x90000)
    first, write, last = writes.switch(changed)
    assert first == last == Flush()
    assert write == header_write(changed)
    assert isinstance(write, Write)
    assert write.offset + len(write.data) <= qcow2.SECTOR_BYTES
