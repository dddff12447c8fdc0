"""Owns the proof that dd copies the blocks that it is asked for, safely."""

import pytest

from cowtree.images.dd import Blocks, dd
from cowtree.plan.create import NewImage
from cowtree.storage.memory import MemoryFiles
from tests.crash import stop_everywhere, trial_of_new
from tests.pictures import family, see

OUT = NewImage("out", "qcow2", 0, 9)


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        (Blocks(), (0, 1000)),
        (Blocks(100, 3), (0, 300)),
        (Blocks(100, 3, 2), (200, 300)),
        (Blocks(100, 30, 9), (900, 1000)),
        (Blocks(100, 3, 5), (500, 300)),
        (Blocks(512, None, 4), (2048, 1000)),
        (Blocks(1 << 30, 1 << 62), (0, 1000)),
    ],
)
def test_the_first_blocks_are_taken_and_of_them_some_are_skipped(blocks: Blocks, expected: tuple[int, int]):
    assert blocks.span(1000) == expected


@pytest.mark.parametrize(
    ("blocks", "picture", "is_long_enough"),
    [
        (Blocks(), "AC0Da0", True),
        (Blocks(skip=1), "C0Da0", True),
        (Blocks(1024, 2, 1), "0D", True),
        (Blocks(512, 6, 6), "", True),
        (Blocks(512, 6, 7), "", False),
    ],
)
def test_blocks_are_copied_through_a_chain(blocks: Blocks, picture: str, is_long_enough: bool):
    made = family("A-0-a-", "BC-D--")
    assert dd(made.files, (made.top, "qcow2"), OUT, blocks) == is_long_enough
    assert see(made.files, "out", "qcow2") == picture.upper()


def test_a_part_of_a_sector_is_filled_up():
    files = MemoryFiles({"in": bytes(range(256)) * 4})
    assert dd(files, ("in", "raw"), NewImage("out", "raw", 0), Blocks(7, 50, 3))
    assert files.content("out") == (bytes(range(256)) * 4)[21:350].ljust(512, b"\0")


@pytest.mark.slow
def test_dd_can_be_stopped_everywhere():
    made = family("A-0-", "BC-D")

    def operation(files):
        dd(files, (made.top, "qcow2"), OUT, Blocks(512, None, 1))

    stop_everywhere(trial_of_new(made.files.snapshot(), operation, ["out"]))
