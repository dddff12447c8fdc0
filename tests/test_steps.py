"""Owns the proof that a move is written from the front of the file to its end."""

import numpy as np

from cowtree import extents as ex
from cowtree.steps import by_target


def test_a_move_is_sorted_by_where_it_goes():
    source = ex.concatenate([ex.single(start, start + 5, ex.DATA, host_offset=start * 10) for start in (0, 5, 10)])
    move = by_target(source, np.array([300, 100, 200]))
    assert move.target_offset.tolist() == [100, 200, 300]
    assert move.source.host_offset.tolist() == [50, 100, 0]
    assert move.total_bytes == 15
