"""Owns the proof that nobody sees what is written beside a tree before the switch, and everybody does afterwards."""

import pytest

from cowtree.chain.view import open_chain, resolve
from cowtree.execute.beside import BesideWriter
from cowtree.plan.put import Wish
from cowtree.storage.contract import Access
from tests.crash import assert_sound
from tests.pictures import CLUSTER_BYTES, family


@pytest.mark.parametrize("own", ["A--D", "----", "AAAA"])
def test_the_old_tree_is_whole_until_the_switch(own: str):
    made = family(own, "EFGH")
    before = made.held()
    chain = open_chain(made.files, made.top, "qcow2", Access.WRITE)
    writer = BesideWriter(chain, 0, 4 * CLUSTER_BYTES)
    size_bytes = chain.size_bytes
    below, shown = resolve(chain, 0, size_bytes, first=1), resolve(chain, 0, size_bytes)
    writer.put(Wish(below, shown, shown, has_backing_after=True), 0, size_bytes)
    writer.flush()
    assert made.files.copy().content(made.top)
    assert made.held() == before
    writer.switch()
    writer.finish()
    chain.close()
    assert made.held() == "EFGH"
    assert_sound(made.files, made.top, is_done=True)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_later_window_of_a_table_that_has_moved_leaves_the_old_tree_whole_too(width: int):
    made = family("ABCD", "EFGH")
    before = made.held()
    chain = open_chain(made.files, made.top, "qcow2", Access.WRITE)
    writer = BesideWriter(chain, 0, 4 * CLUSTER_BYTES)
    for first in range(0, 4, width):
        start, stop = first * CLUSTER_BYTES, min(first + width, 4) * CLUSTER_BYTES
        below, shown = (resolve(chain, start, stop, first=index) for index in (1, 0))
        writer.put(Wish(below, shown, shown, has_backing_after=True), start, stop)
        writer.flush()
        assert made.held() == before
    writer.switch()
    writer.finish()
    chain.close()
    assert made.held() == "EFGH"
    assert_sound(made.files, made.top, is_done=True)


def test_without_a_change_nothing_is_switched():
    made = family("A--D", "EFGH")
    before = made.files.snapshot()
    chain = open_chain(made.files, made.top, "qcow2", Access.WRITE)
    writer = BesideWriter(chain, 0, 4 * CLUSTER_BYTES)
    writer.switch()
    writer.finish()
    chain.close()
    assert made.files.snapshot() == before


def test_a_raw_layer_has_no_tree():
    made = family("--", "AB", raw_base=True)
    chain = open_chain(made.files, made.names[1], "raw", Access.WRITE)
    with pytest.raises(AssertionError):
        BesideWriter(chain, 0, 1024)
    chain.close()
