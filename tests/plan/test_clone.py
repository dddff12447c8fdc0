"""Parting a move: what is whole blocks here and there is shared, and every byte still goes where it shall."""

from itertools import pairwise

import numpy as np
import pytest

from cowtree import extents as ex
from cowtree.plan.clone import CUT_BYTES, PIECE_BYTES_MIN, Sharing, is_long, split, sure
from cowtree.steps import Move, by_target

BLOCK, LONG = 4096, PIECE_BYTES_MIN
FAR = 1 << 40
Pieces = set[tuple[int, int, int]]


def parted(*pieces: tuple[int, int, int], block_bytes: int = BLOCK, end_bytes: int = FAR) -> tuple[Pieces, Pieces]:
    """Part pieces of data (host offset, target offset, length) of one layer. Returns: those cloned, those copied."""
    parts = [ex.single(FAR + at, FAR + at + length, ex.DATA, host_offset=host) for host, at, length in pieces]
    move = Move(ex.concatenate(parts), np.array([at for _, at, _ in pieces], np.int64))
    cloned, rest = split(move, np.array([block_bytes]), np.array([end_bytes]))
    for each in (cloned, rest):
        assert (each.source.start == each.target_offset + FAR).all()
    return listed(cloned), listed(rest)


def listed(move: Move) -> Pieces:
    columns = (move.source.host_offset, move.target_offset, move.source.length)
    return set(zip(*(each.tolist() for each in columns), strict=True))


def test_whole_blocks_are_cloned():
    piece = (3 * BLOCK, 7 * BLOCK, LONG)
    assert parted(piece) == ({piece}, set())


def test_the_ends_of_a_piece_that_are_no_whole_blocks_are_copied():
    assert parted((BLOCK - 512, 5 * BLOCK - 512, LONG + BLOCK)) == (
        {(BLOCK, 5 * BLOCK, LONG)},
        {(BLOCK - 512, 5 * BLOCK - 512, 512), (BLOCK + LONG, 5 * BLOCK + LONG, BLOCK - 512)},
    )


@pytest.mark.parametrize("piece", [(0, 512, FAR), (0, BLOCK, LONG - BLOCK), (512, 512, LONG + BLOCK - 1024)])
def test_what_lies_askew_or_is_short_is_copied(piece):
    assert parted(piece) == (set(), {piece})


def test_the_block_that_the_file_ends_in_is_copied():
    piece = (0, 0, LONG + 2 * BLOCK)
    assert parted(piece, end_bytes=LONG + 100) == ({(0, 0, LONG)}, {(LONG, LONG, 2 * BLOCK)})
    assert parted(piece, end_bytes=LONG - 1) == (set(), {piece})
    assert parted((FAR, 0, LONG), end_bytes=LONG) == (set(), {(FAR, 0, LONG)})


def test_a_layer_that_shares_nothing_is_copied():
    piece = (0, 0, FAR)
    assert parted(piece, block_bytes=0) == (set(), {piece})


def test_only_data_is_cloned():
    for kind in (ex.ZERO, ex.ALLOCATED, ex.COMPRESSED, ex.TAIL):
        part = ex.single(0, FAR, kind)
        assert not is_long(part).any()
        cloned, rest = split(Move(part, part.start), np.array([BLOCK]), np.array([FAR]))
        assert (cloned.total_bytes, rest.total_bytes) == (0, FAR)


def test_every_byte_goes_where_it_should(seed: int):
    choose = np.random.default_rng(seed)
    count, layers = 60, 3
    block_bytes = np.array([0, 1024, 4096])
    length = choose.integers(1, 3 * LONG, count)
    target = np.cumsum(length + choose.integers(0, 2, count) * 512) - length
    kind = np.where(choose.random(count) < 0.8, ex.DATA, ex.ZERO).astype(np.uint8)
    layer = choose.integers(0, layers, count).astype(np.int16)
    host = target + choose.choice([0, 512, 4096, 3 * 4096, 1024], count)
    end_bytes = choose.integers(int(target[count // 2]), int(target[-1]), layers)
    move = by_target(ex.Extents(target + FAR, length, kind, layer, host), target)
    cloned, rest = split(move, block_bytes, end_bytes)
    assert cloned.total_bytes + rest.total_bytes == move.total_bytes
    assert len(cloned.target_offset)
    for part in (cloned, rest):
        row = np.searchsorted(target, part.target_offset, "right") - 1
        shift = part.target_offset - target[row]
        assert (shift + part.source.length <= length[row]).all()
        assert (part.source.start == FAR + part.target_offset).all()
        assert (part.source.host_offset == host[row] + shift).all()
        assert (part.source.layer == layer[row]).all()
        assert (part.source.kind == kind[row]).all()
        assert (np.diff(part.target_offset) > 0).all()
    unit = block_bytes[cloned.source.layer]
    assert (unit > 0).all()
    for offset in (cloned.target_offset, cloned.source.host_offset, cloned.source.length):
        assert (offset % unit == 0).all()
    assert (cloned.source.host_offset + cloned.source.length <= end_bytes[cloned.source.layer]).all()


def surely(*pieces: tuple[int, int, int], block_bytes: int = BLOCK) -> list[tuple[int, int]]:
    """The guest's ranges that are surely cloned of pieces of data (guest and target offset, host offset, length)."""
    parts = [ex.single(at, at + length, ex.DATA, host_offset=host) for at, host, length in pieces]
    move = Move(ex.concatenate(parts), np.array([at for at, _, _ in pieces], np.int64))
    found = sure(move, Sharing(np.array([block_bytes]), np.array([FAR])))
    return list(zip(found.start.tolist(), found.stop.tolist(), strict=True))


def test_what_is_cloned_in_any_parts_is_surely_cloned():
    assert surely((512, 512, CUT_BYTES)) == [(BLOCK, CUT_BYTES)]
    assert surely((0, 0, 3 * CUT_BYTES + LONG)) == [(0, 3 * CUT_BYTES + LONG)]
    # Long enough as a whole, but neither side of where it may be cut.
    assert surely((CUT_BYTES - LONG // 2, 0, LONG)) == []
    assert surely((0, 0, CUT_BYTES), block_bytes=0) == []
    assert surely((0, 512, CUT_BYTES)) == []


@pytest.mark.soak
def test_a_move_that_is_cut_anywhere_it_may_be_clones_what_is_sure(seed: int):
    random = np.random.default_rng(seed)
    start = np.cumsum(random.integers(0, 4, 6) * LONG + random.integers(0, 9, 6) * 512)
    length = random.integers(1, 3 * CUT_BYTES // 512, 6) * 512
    start[1:] += np.cumsum(length)[:-1]
    pieces = list(zip(start.tolist(), (start % BLOCK).tolist(), length.tolist(), strict=True))
    cuts = [each for each in range(0, int(start[-1] + length[-1]) + CUT_BYTES, CUT_BYTES) if random.random() < 0.5]
    cloned: list[tuple[int, int]] = []
    for first, host, count in pieces:
        edges = [first, *(each for each in cuts if first < each < first + count), first + count]
        for low, high in pairwise(edges):
            part = Move(ex.single(low, high, ex.DATA, host_offset=host + low - first), np.array([low], np.int64))
            whole, _ = split(part, np.array([BLOCK]), np.array([FAR]))
            cloned += zip(whole.source.start.tolist(), whole.source.stop.tolist(), strict=True)
    assert all(any(low <= start and stop <= high for low, high in joined(cloned)) for start, stop in surely(*pieces))


def joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found = ex.merge_ranges(ex.Ranges(*(np.array(each, np.int64) for each in zip(*ranges, strict=True))))
    return list(zip(found.start.tolist(), found.stop.tolist(), strict=True))
