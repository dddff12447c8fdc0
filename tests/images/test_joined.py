"""Owns the proof that joined disks are read as one, and a span of one as a disk of its own."""

from cowtree import extents as ex
from cowtree.chain.view import open_chain
from cowtree.execute.read import pages
from cowtree.images.joined import Joined, find_solid, grain_of
from tests.pictures import CLUSTER_BYTES, family


def shown(joined: Joined) -> bytes:
    """All bytes of the joined disk."""
    seen = joined.data(0, joined.size_bytes)
    return b"".join(bytes(page.data) for page in pages(joined.chain, seen, ex.one_range(0, joined.size_bytes)))


def test_disks_lie_one_behind_the_other():
    made = family("A-", "-b")
    joined = Joined([open_chain(made.files, made.top, access="shared") for _ in range(2)])
    assert shown(joined) == (b"A" * CLUSTER_BYTES + b"B" * CLUSTER_BYTES) * 2
    assert list(joined.windows()) == [(0, 4 * CLUSTER_BYTES)]


def test_a_span_is_a_disk_of_its_own():
    made = family("AbC-")
    joined = Joined([open_chain(made.files, made.top)], (500, 1600))
    assert shown(joined) == b"A" * 12 + b"B" * 512 + b"C" * 512 + bytes(64)
    assert list(joined.windows()) == [(0, 1100)]


def test_solid_parts_are_more_than_zeroes():
    made = family("A0oB")
    joined = Joined([open_chain(made.files, made.top)])
    seen = joined.data(0, joined.size_bytes)
    assert find_solid(joined, seen, grain_of(512, 4096)).total_bytes == 2 * CLUSTER_BYTES


def test_a_top_says_what_it_holds_and_what_lies_behind_the_end_below():
    made = family("-A0o---b", "BBBBB")
    chain = open_chain(made.files, made.top)
    joined = Joined([chain], top_only=True)
    held = joined.held(0, joined.size_bytes)
    assert list(zip(held.start // CLUSTER_BYTES, held.stop // CLUSTER_BYTES, strict=True)) == [(1, 4), (5, 8)]
    assert shown(joined)[:CLUSTER_BYTES] == b"B" * CLUSTER_BYTES
    for everywhere in (Joined([chain]), Joined([chain.below(1)], top_only=True)):
        held = everywhere.held(700, 1024)
        assert (held.start.tolist(), held.stop.tolist()) == ([700], [1024])
