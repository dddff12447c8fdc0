"""Owns the proof that a raw layer is replaced as a whole, or stays as it was."""

import pytest

from cowtree.chain.view import Chain, open_chain
from cowtree.images.renew import own_bytes, renewed
from cowtree.images.tally import Tally
from cowtree.storage.contract import Access
from tests.pictures import CLUSTER_BYTES, Family, family


def opened() -> tuple[Family, Chain]:
    made = family("--------", "-" * 4 + "ABCD", raw_base=True)
    return made, open_chain(made.files, made.names[1], "raw", Access.WRITE)


def test_the_copy_holds_what_the_layer_held_and_takes_its_place():
    made, chain = opened()
    old, tally = made.files.identity(made.names[1]), Tally(None)
    expected_bytes = own_bytes(chain, 0)
    with renewed(made.files, chain, 0, tally) as copy:
        copy.top.file.pwrite(4 * CLUSTER_BYTES, b"X" * CLUSTER_BYTES)
        assert made.seen(1) == "0000ABCD"
    chain.close()
    assert made.seen(1) == "0000XBCD"
    assert made.files.identity(made.names[1]) != old
    assert tally.moved_bytes == expected_bytes > 0
    assert not made.files.held()


def test_what_fails_leaves_the_layer_as_it_was():
    made, chain = opened()
    before = made.files.snapshot()

    def fail() -> None:
        with renewed(made.files, chain, 0, Tally(None)) as copy:
            copy.top.file.pwrite(0, b"X")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    chain.close()
    assert made.files.snapshot() == before
    assert not made.files.held()
