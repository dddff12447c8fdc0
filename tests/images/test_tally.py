"""Owns the proof that what is moved is added up, and that whoever watches is told of all of it."""

from cowtree.images.tally import Tally
from cowtree.monitor import Counting


def test_what_is_moved_is_added_up_and_passed_on():
    watcher = Counting()
    tally = Tally(watcher)
    tally.expect(100)
    tally.advance(30)
    tally.advance(12)
    assert tally.moved_bytes == 42
    assert (watcher.total_bytes, watcher.moved_bytes) == (100, 42)


def test_what_need_not_be_moved_is_done_but_not_moved():
    watcher = Counting()
    tally = Tally(watcher)
    tally.skip(58)
    assert (tally.moved_bytes, watcher.moved_bytes) == (0, 58)


def test_nobody_needs_to_watch():
    tally = Tally(None)
    tally.expect(1)
    tally.advance(1)
    assert tally.moved_bytes == 1
