"""Bits on their way into an image: windows, rescaling, sizes, and what is remembered of what was written."""

import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cowtree.chain import gate
from cowtree.chain.gate import Layer
from cowtree.chain.load import load_image
from cowtree.chain.view import Chain
from cowtree.errors import BrokenTable, TruncatedImage
from cowtree.execute import bitmaps
from cowtree.execute.bitmaps import BitmapWriter, Recorder, Stored, mark, open_stored, try_stored
from cowtree.execute.writer import LayerWriter
from cowtree.extents import Ranges
from cowtree.plan import bitmap as plan
from cowtree.plan.bitmap import Wanted
from cowtree.qcow2.bitmaps import AUTO, IN_USE, Bitmap
from cowtree.qcow2.image import Image
from cowtree.storage.contract import Access
from cowtree.storage.file import LocalFiles
from cowtree.storage.memory import MemoryFiles
from tests.crash import assert_sound
from tests.dirty import Spans, dirty_through_nbd, read_bitmaps, table_of
from tests.qemu import assert_clean, qemu_img, qemu_io

CLUSTER = 512


def ranges(*pairs: tuple[int, int]) -> Ranges:
    """Ranges from pairs."""
    flat = np.array(pairs, np.int64).reshape(-1, 2)
    return Ranges(flat[:, 0].copy(), flat[:, 1].copy())


def stored(granularity_bits: int, *rows: bytes | int) -> Stored:
    """A bitmap of these clusters; a number is a table entry."""
    file = MemoryFiles({"a": b"".join(row for row in (bytes(CLUSTER), *rows) if isinstance(row, bytes))})
    entries, place = [], CLUSTER
    for row in rows:
        entries.append(row if isinstance(row, int) else place)
        place += 0 if isinstance(row, int) else CLUSTER
    bitmap = Bitmap("a", 0, len(entries), 0, granularity_bits, 0)
    layer = Layer("a", "raw", file.open("a", Access.READ), 0, None, None, False)
    return Stored(layer, CLUSTER, bitmap, np.array(entries, np.uint64))


def test_bits_are_read_wherever_a_window_lies():
    data = random.Random(1).randbytes(CLUSTER)
    bits = stored(9, data, 0, 1, data)
    whole = data + bytes(CLUSTER) + b"\xff" * CLUSTER + data
    for start, stop in ((0, len(whole)), (0, 1), (511, 513), (600, 1500), (2047, 2048), (7, 7)):
        assert bits.read(start, stop).tobytes() == whole[start:stop]


@pytest.mark.parametrize(("own_bits", "window_bits"), [(9, 9), (9, 10), (9, 13), (12, 9), (10, 9), (9, 20)])
def test_windows_side_by_side_show_what_one_window_shows(own_bits: int, window_bits: int):
    choose = random.Random(own_bits * 100 + window_bits)
    rows = [bytes(choose.choice([0, 0, 0, 8, 255]) for _ in range(CLUSTER)) for _ in range(3)]
    bits = stored(own_bits, rows[0], 0, rows[1], 1, rows[2])
    granule_count = -(-(5 * CLUSTER * 8 << own_bits) // (1 << window_bits))
    size = -(-granule_count // 64) * 8
    whole = np.zeros(size, np.uint8)
    bits.paint(whole, 0, window_bits)
    parts = []
    for first in range(0, size * 8, 64):
        parts.append(np.zeros(8, np.uint8))
        bits.paint(parts[-1], first, window_bits)
    assert np.concatenate(parts).tobytes() == whole.tobytes()
    expected = {
        at >> window_bits << window_bits
        for number in np.flatnonzero(np.unpackbits(bits.read(0, 5 * CLUSTER), bitorder="little"))
        for at in range(int(number) << own_bits, int(number + 1) << own_bits, 1 << min(own_bits, window_bits))
    }
    found = np.flatnonzero(np.unpackbits(whole, bitorder="little")) << window_bits
    assert set(found.tolist()) == expected


def test_a_window_behind_the_end_of_a_bitmap_stays_clean():
    window = np.zeros(64, np.uint8)
    stored(9, b"\xff" * CLUSTER).paint(window, 8 * CLUSTER, 9)
    stored(9, b"\xff" * CLUSTER).paint(window, 80 * CLUSTER, 12)
    assert not window.any()


@pytest.mark.parametrize(
    ("first", "pairs", "expected"),
    [(0, [(0, 3)], [7, 0]), (8, [(0, 3)], [0, 0]), (8, [(6, 10), (23, 99)], [3, 128]), (64, [(6, 10)], [0, 0])],
)
def test_bits_are_marked_inside_a_window_only(first: int, pairs: Spans, expected: list[int]):
    window = np.zeros(2, np.uint8)
    mark(window, first, ranges(*pairs))
    assert window.tolist() == expected


# Whole images.


def made(path: Path, size: str = "1M", options: str = "cluster_size=512") -> Path:
    """An image with a bitmap that records, one that does not, and data."""
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, size)
    qemu_img("bitmap", "--add", "-g", "512", path, "records")
    qemu_img("bitmap", "--add", "-g", "4k", path, "rests")
    qemu_io(path, "write 3k 9k", "write 1000k 10k")
    qemu_img("bitmap", "--disable", path, "rests")
    return path


def opened(path: Path) -> tuple[Layer, Image]:
    """The image, open for writing."""
    layer = gate.open_layer(LocalFiles(), str(path), "qcow2", Access.WRITE)
    image = load_image(layer)
    assert image is not None
    return layer, image


def test_an_image_can_have_many_windows_of_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = made(tmp_path / "image", "40M")
    qemu_io(path, "write 30M 1M", "write 17M 512")
    expected = read_bitmaps(path.read_bytes())["records"].dirty
    monkeypatch.setattr(bitmaps, "WINDOW_BYTES", 1024)
    layer, image = opened(path)
    new = Wanted("new", 0, 9, None, (plan.Part(image.bitmaps[0], is_own=True),))
    writer = BitmapWriter(layer, image)
    writer.store([*map(plan.keep, image.bitmaps), new])
    layer.close()
    assert read_bitmaps(path.read_bytes())["new"].dirty == expected == dirty_through_nbd(path, "new")
    assert_clean(path)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 512, 5 << 20, 1 << 30, 512, 8192, 1000 << 10])
def test_bitmaps_follow_the_size_of_the_disk_as_in_qemu(tmp_path: Path, size: int):
    path, other = made(tmp_path / "image"), made(tmp_path / "other")
    qemu_img("resize", "-q", *(["--shrink"] if size < 1 << 20 else []), other, str(size))
    layer, image = opened(path)
    if size < 1 << 20:
        BitmapWriter(layer, image).resize(size)
    else:
        writer = LayerWriter(Chain((layer,), (image,)), 0)
        writer.prepare_growth(size)
        writer.grow(size)
        writer.finish()
    layer.close()
    if size >= 1 << 20:
        assert_clean(path)
    assert read_bitmaps(path.read_bytes()) == read_bitmaps(other.read_bytes())


def test_a_broken_bitmap_does_not_follow(tmp_path: Path):
    path = made(tmp_path / "image")
    data = bytearray(path.read_bytes())
    struct.pack_into(">Q", data, table_of(data, "rests"), 1 << 40)
    path.write_bytes(data)
    layer, image = opened(path)
    assert not BitmapWriter(layer, image).resize(512)
    layer.close()
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    ("change", "error"),
    [({"table_offset": 1 << 40}, TruncatedImage), ({"table_entry_count": 1 << 20}, TruncatedImage)],
    ids=str,
)
def test_a_table_past_the_end_is_not_read(tmp_path: Path, change: dict[str, Any], error: type[Exception]):
    layer, image = opened(made(tmp_path / "image"))
    wrong = image.bitmaps[0]._replace(**change)
    with pytest.raises(error):
        open_stored(layer, image, wrong)
    assert try_stored(layer, image, wrong) is None
    layer.close()


@pytest.mark.parametrize("entry", [1 << 40, 0x1001, 0x1100, 2, 1 << 60])
def test_an_entry_that_breaks_a_rule_is_not_followed(tmp_path: Path, entry: int):
    path = made(tmp_path / "image")
    data = bytearray(path.read_bytes())
    struct.pack_into(">Q", data, table_of(data, "records"), entry)
    path.write_bytes(data)
    layer, image = opened(path)
    with pytest.raises(BrokenTable, match="Could not read bitmap_table table from image for bitmap 'records'"):
        open_stored(layer, image, image.bitmaps[0])
    layer.close()


# What is remembered.


def recorder(image: Image, *written: tuple[int, int]) -> Recorder:
    """One that has noted this."""
    found = Recorder(image)
    found.note(ranges(*written))
    return found


def test_what_was_written_is_joined_and_written_down(tmp_path: Path):
    path = made(tmp_path / "image")
    before = read_bitmaps(path.read_bytes())
    layer, image = opened(path)
    found = recorder(image, (100, 200), (70000, 70001))
    found.note(ranges((200, 600)))
    records, rests = found.wanted(layer, image)
    assert rests == plan.keep(image.bitmaps[1])
    assert records.touched is not None
    assert [each.tolist() for each in records.touched] == [[0, 69632], [1024, 70144]]
    BitmapWriter(layer, image).settle(found)
    layer.close()
    after = read_bitmaps(path.read_bytes())
    assert after["rests"] == before["rests"]
    assert after["records"].dirty == sorted([(0, 1024), (69632, 70144), *(before["records"].dirty or [])])
    assert_sound(LocalFiles(), str(path), is_done=True)


def test_nothing_written_means_only_that_nobody_uses_it_any_more(tmp_path: Path):
    layer, image = opened(made(tmp_path / "image"))
    found = recorder(image)
    assert not found.has_noted
    marked = image.bitmaps[0]._replace(flags=AUTO | IN_USE)
    used = image._replace(bitmaps=(marked, image.bitmaps[1]))
    assert found.wanted(layer, used) == (plan.keep(marked)._replace(flags=AUTO), plan.keep(image.bitmaps[1]))
    layer.close()


def test_a_bitmap_that_was_broken_before_stays_so(tmp_path: Path):
    layer, image = opened(made(tmp_path / "image"))
    broken = image.bitmaps[0]._replace(flags=AUTO | IN_USE)
    image = image._replace(bitmaps=(broken,))
    assert recorder(image, (0, 512)).wanted(layer, image) == (plan.keep(broken),)
    layer.close()


def test_what_cannot_all_be_remembered_leaves_bitmaps_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bitmaps, "RANGE_COUNT_MAX", 4)
    monkeypatch.setattr(bitmaps, "RANGES_PER_JOIN", 2)
    layer, image = opened(made(tmp_path / "image"))
    found = recorder(image, *((at, at + 512) for at in range(0, 6144, 1024)))
    assert found.has_noted
    assert found.wanted(layer, image)[0].kept == image.bitmaps[0]
    layer.close()


def test_remembering_many_small_writes_costs_little(tmp_path: Path):
    layer, image = opened(made(tmp_path / "image"))
    found = Recorder(image)
    for at in range(0, 20000 * 1024, 1024):
        found.note(ranges((at, at + 512)))
    records = found.wanted(layer, image)[0]
    assert records.touched is not None
    assert records.touched.total_bytes == 20000 * 512
    layer.close()
