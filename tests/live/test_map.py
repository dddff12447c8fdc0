"""The guest map."""

import random

import numpy as np

from cowtree import extents as ex
from cowtree.live import map as guest_map
from cowtree.live.map import GuestMap, Piece, Window

DATA_OF_0 = guest_map.code_of(0, ex.DATA)
OWN_OF_0 = guest_map.code_of(0, ex.DATA, is_own=True)
ZERO_OF_0 = guest_map.code_of(0, ex.ZERO)


def window_of(*extents: ex.Extents, own: ex.Ranges | None = None, stop: int = 100) -> Window:
    """A window from 0 on."""
    none = ex.one_range(0, 0)
    return guest_map.make_window(ex.concatenate(list(extents)), own or none, np.arange(3), (0, stop))


def pieces(window: Window) -> list[Piece]:
    """All its pieces."""
    found, offset = [], 0
    while offset < window.start[-1]:
        found.append(window.find(offset))
        offset = found[-1][1]
    return found


def test_a_window_has_no_gaps():
    held = ex.single(10, 30, ex.DATA, layer=2, host_offset=1000)
    assert pieces(window_of(held)) == [
        (0, 10, guest_map.NOTHING, 0),
        (10, 30, guest_map.code_of(2, ex.DATA), 1000),
        (30, 100, guest_map.NOTHING, 0),
    ]


def test_what_may_be_written_in_place_is_told_apart():
    held = ex.single(10, 40, ex.DATA, host_offset=1000)
    found = pieces(window_of(held, own=ex.one_range(20, 30)))
    assert found[1:4] == [(10, 20, DATA_OF_0, 1000), (20, 30, OWN_OF_0, 1010), (30, 40, DATA_OF_0, 1020)]


def test_only_data_of_the_top_is_written_in_place():
    held = ex.single(0, 10, ex.DATA, layer=1), ex.single(10, 20, ex.ALLOCATED, host_offset=10)
    assert not any(code & guest_map.OWN for _, _, code, _ in pieces(window_of(*held, own=ex.one_range(0, 20))))


def test_a_piece_that_is_put_cuts_what_was_there():
    window = window_of(ex.single(10, 40, ex.DATA, host_offset=1000))
    window.put((20, 30, ZERO_OF_0, 0))
    assert pieces(window)[1:4] == [(10, 20, DATA_OF_0, 1000), (20, 30, ZERO_OF_0, 0), (30, 40, DATA_OF_0, 1020)]


def test_neighbours_that_go_on_are_one_piece():
    window = window_of()
    window.put((40, 50, OWN_OF_0, 140))
    window.put((50, 60, OWN_OF_0, 150))
    window.put((30, 40, OWN_OF_0, 130))
    window.put((60, 70, OWN_OF_0, 500))
    assert pieces(window)[1:3] == [(30, 60, OWN_OF_0, 130), (60, 70, OWN_OF_0, 500)]


def test_compressed_clusters_stay_apart():
    window = window_of()
    code = guest_map.code_of(0, ex.COMPRESSED)
    window.put((0, 10, code, 77))
    window.put((10, 20, code, 77))
    assert pieces(window)[:2] == [(0, 10, code, 77), (10, 20, code, 77)]


def test_any_row_of_changes_ends_as_a_plain_array_would(seed: int):
    choose = random.Random(seed)
    window, model = window_of(), [(guest_map.NOTHING, 0)] * 100
    for _ in range(200):
        start = choose.randrange(100)
        stop = min(start + choose.randint(1, 30), 100)
        code, host = choose.choice((OWN_OF_0, DATA_OF_0, ZERO_OF_0)), choose.randint(1, 3) * 1000 + start
        host = host if guest_map.kind_of(code) == ex.DATA else 0
        window.put((start, stop, code, host))
        model[start:stop] = [(code, host + at if host else 0) for at in range(stop - start)]
        for at in range(100):
            begin, end, found, place = window.find(at)
            assert begin <= at < end
            assert (found, place + at - begin if place else 0) == model[at]


def test_the_oldest_windows_go_when_there_are_too_many_pieces():
    known = GuestMap(1000, 4, piece_count_max=5 * (guest_map.WINDOW_WEIGHT + 1))
    for index in range(10):
        known.add(index, window_of(stop=16))
        assert index in known.windows
        assert len(known.windows) <= 5
    assert list(known.windows) == sorted(known.windows)


def test_a_change_reaches_every_window_that_is_known():
    known = GuestMap(300, 6)
    for index in (0, 2):
        start, stop = known.range_of(index)
        empty = ex.one_range(0, 0)
        known.add(index, guest_map.make_window(ex.empty(), empty, np.arange(1), (start, stop)))
    known.put(10, 200, OWN_OF_0, 1010)
    assert [piece for piece in known.known() if piece[2]] == [(10, 64, OWN_OF_0, 1010), (128, 192, OWN_OF_0, 1128)]
