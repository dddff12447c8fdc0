"""Owns the proof that compressed clusters get places of their own, side by side, each of them counted."""

import numpy as np
import pytest

from cowtree.errors import Refused
from cowtree.plan import pack
from cowtree.steps import Write
from tests.plan.test_put import opened


def test_compressed_clusters_lie_side_by_side():
    piece = opened("A---")
    fates = pack.decide(piece.image, piece.tables, np.array([1, 2]))
    steps, _ = pack.place(piece, fates, [b"x" * 100, b"y" * 200])
    first = steps[0]
    assert isinstance(first, Write)
    assert first.data == (b"x" * 100 + b"y" * 200).ljust(512, b"\0")


def test_a_cluster_that_the_layer_holds_alone_is_refused():
    piece = opened("-A")
    with pytest.raises(Refused, match="error while writing at byte 512: Input/output error"):
        pack.decide(piece.image, piece.tables, np.array([0, 1]))
