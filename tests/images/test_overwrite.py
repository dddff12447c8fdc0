"""Owns the proof that a disk is written over another one as a whole, plainly or compressed."""

import pytest

from cowtree.chain.view import open_chain
from cowtree.errors import Refused
from cowtree.images.joined import Joined
from cowtree.images.overwrite import Fit, overwrite
from cowtree.images.tally import Tally
from cowtree.monitor import Silent
from cowtree.storage.contract import Access
from tests.crash import assert_sound
from tests.pictures import Family, family

SOURCE = ("AB00-a--", "--C-D---")


def write_over(made: Family, target: Family, fit: Fit) -> None:
    """Write what one family shows over the top of another."""
    source, chain = open_chain(made.files, made.top), open_chain(target.files, target.top, None, Access.WRITE)
    try:
        overwrite(chain, Joined([source]), fit, Tally(Silent()))
    finally:
        source.close()
        chain.close()


@pytest.mark.parametrize("is_compressed", [False, True])
def test_what_the_source_shows_hides_what_was_there(is_compressed: bool):
    made = family(*SOURCE)
    target = family("--------ZZ", "XXXXXXXXXX")
    write_over(made, target, Fit(4096, hides=True, is_compressed=is_compressed))
    assert target.seen() == "AB00DA00ZZ"
    assert target.held().lower()[:2] == "ab"
    assert (target.held()[:2] == "ab") == is_compressed
    assert_sound(target.files, target.top, is_done=True)


def test_zeroes_may_be_left_out_where_the_target_is_zero():
    target = family("--------Z-")
    write_over(family(*SOURCE), target, Fit(512))
    assert target.held() == "AB--DA--Z-"


def test_a_cluster_that_is_there_is_not_compressed_over():
    target = family("--X-----")
    write = family("AB-C----")
    write_over(write, target, Fit(512, is_compressed=True))
    assert target.seen() == "ABXC0000"
    with pytest.raises(Refused, match="error while writing at byte 1024: Input/output error"):
        write_over(family("AABB----"), family("--X-----"), Fit(512, is_compressed=True))


def test_what_a_refusal_leaves_is_sound():
    target = family("--X-----")
    with pytest.raises(Refused):
        write_over(family("AABB----"), target, Fit(512, is_compressed=True))
    assert_sound(target.files, target.top, is_done=True)
