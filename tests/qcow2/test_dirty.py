"""The bits of dirty bitmaps, drawn as strings: # is dirty."""

import random

import numpy as np
import pytest

from cowtree import extents as ex
from cowtree.extents import Ranges
from cowtree.qcow2.bitmaps import Bitmap
from cowtree.qcow2.dirty import ALL_ONES, pack, rescale, to_bits, unpack, users
from cowtree.qcow2.geometry import Geometry

GEOMETRY = Geometry(3, 9, 4)


def ranges(*pairs: tuple[int, int]) -> Ranges:
    """Ranges from pairs."""
    flat = np.array(pairs, np.int64).reshape(-1, 2)
    return Ranges(flat[:, 0].copy(), flat[:, 1].copy())


def pairs(found: Ranges) -> list[tuple[int, int]]:
    """Pairs from ranges."""
    return list(zip(found.start.tolist(), found.stop.tolist(), strict=True))


def draw(packed: np.ndarray) -> str:
    """The bits as a picture."""
    return "".join("#" if bit else "." for bit in np.unpackbits(packed, bitorder="little"))


def drawn(picture: str) -> np.ndarray:
    """The bits that a picture shows."""
    return np.packbits([sign == "#" for sign in picture], bitorder="little")


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        ("................", []),
        ("#...............", [(0, 1)]),
        ("...............#", [(15, 16)]),
        ("################", [(0, 16)]),
        (".##....###.#....", [(1, 3), (7, 10), (11, 12)]),
    ],
)
def test_bits_become_ranges_and_bits_again(picture: str, expected: list[tuple[int, int]]):
    assert pairs(unpack(drawn(picture))) == expected
    assert draw(pack(ranges(*expected), 0, 16)) == picture


def test_the_first_granule_is_the_lowest_bit():
    assert pack(ranges((0, 1)), 0, 8).tolist() == [1]
    assert pack(ranges((9, 10)), 0, 16).tolist() == [0, 2]


def test_a_window_shows_only_its_own_bits():
    found = ranges((0, 3), (6, 12), (14, 40))
    assert draw(pack(found, 8, 16)) == "####..##########"
    assert draw(pack(found, 48, 8)) == "........"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ([(0, 1)], [(0, 1)]),
        ([(511, 513)], [(0, 2)]),
        ([(512, 1024)], [(1, 2)]),
        ([(0, 100), (200, 300), (1024, 1025)], [(0, 1), (2, 3)]),
    ],
)
def test_whoever_touches_a_granule_makes_it_dirty(written: list[tuple[int, int]], expected: list[tuple[int, int]]):
    assert pairs(to_bits(ranges(*written), 9)) == expected


def test_another_granularity_covers_at_least_the_same():
    found = ranges((1, 2), (7, 9))
    assert pairs(rescale(found, 9, 12)) == [(0, 2)]
    assert pairs(rescale(found, 12, 9)) == [(8, 16), (56, 72)]
    assert pairs(rescale(found, 9, 9)) == pairs(found)


def test_random_bits_survive_any_way_through_windows(seed: int):
    choose = random.Random(seed)
    bits = np.array([choose.random() < choose.choice([0.1, 0.5, 0.9]) for _ in range(256)])
    packed = np.packbits(bits, bitorder="little")
    found = unpack(packed)
    again = np.concatenate([pack(found, first, 64) for first in range(0, 256, 64)])
    assert again.tolist() == packed.tolist()
    shift = choose.randint(0, 4)
    coarse = np.packbits(bits.reshape(-1, 1 << shift).any(axis=1), bitorder="little")
    assert pairs(rescale(found, 9, 9 + shift)) == pairs(unpack(coarse))
    assert ex.subtract(found, rescale(rescale(found, 9, 9 + shift), 9 + shift, 9)).total_bytes == 0


def test_a_bitmap_uses_its_table_and_its_clusters():
    bitmap = Bitmap("a", 0x400, 70, 0, 9, 0)
    entries = np.zeros(70, np.uint64)
    entries[[3, 9]] = 0x2000, 0x1000
    entries[5] = ALL_ONES
    assert users(GEOMETRY, bitmap, entries).tolist() == [2, 3, 0x2000 >> 9, 0x1000 >> 9]
