"""Owns the proof of the proof: it reads what has another owner afterwards, and tells every byte that differs there."""

import random
from pathlib import Path

import pytest

from cowtree.chain.view import open_chain
from cowtree.errors import ProofFailed
from cowtree.images import proof
from cowtree.images.digest import CHUNK_BYTES, digest
from cowtree.images.order import Order
from cowtree.plan.family import Family, Member, Merge
from cowtree.storage.contract import Access
from cowtree.storage.file import LocalFiles
from cowtree.storage.memory import MemoryFiles
from tests.crash import guest_view
from tests.pictures import family
from tests.sparse import sparse_image
from tests.trees import Tree, carry_out, grow, random_parents

LEAF, MIDDLE, ROOT = range(3)


def line(*pictures: str) -> tuple[MemoryFiles, Family]:
    """Images that lie on each other, the leaf first."""
    made = family(*pictures)
    count = len(pictures)
    members = [
        Member(name, "qcow2", len(picture) * 512, index + 1 if index + 1 < count else None)
        for index, (name, picture) in enumerate(zip(made.names, pictures, strict=True))
    ]
    return made.files, Family(tuple(members))


@pytest.mark.parametrize("mode", proof.MODES)
@pytest.mark.parametrize("target", [LEAF, MIDDLE, ROOT])
def test_a_good_merge_is_proven(mode: str, target: int):
    files, members = line("A--0----", "-BB0--B-", "DDDDDD-0")
    acts = (Merge((LEAF, MIDDLE, ROOT), target, ROOT),)
    order = Order(members, acts, stamp="then", sights=proof.look(files, members, acts, mode))
    assert [(sight.leaf, sight.place) for sight in order.sights] == [(LEAF, target)]
    carry_out(files, members, acts)
    proof.prove(files, order)


@pytest.mark.parametrize("mode", proof.MODES)
def test_a_byte_that_differs_is_told_by_the_name_of_the_leaf(mode: str):
    files, members = line("A--0----", "-BB0--B-", "DDDDDD-0")
    acts = (Merge((LEAF, MIDDLE), LEAF, LEAF),)
    order = Order(members, acts, stamp="then", sights=proof.look(files, members, acts, mode))
    carry_out(files, members, acts)
    file = files.open(members.path(LEAF), Access.WRITE)
    at = files.snapshot()[members.path(LEAF)].index(b"B" * 512)
    file.pwrite(at + 511, b"x")
    file.close()
    with pytest.raises(ProofFailed, match="layer-0: shows something else than before the merge") as caught:
        proof.prove(files, order)
    assert caught.value.exit_status == 22


def test_an_image_that_cannot_be_read_any_more_is_no_proof():
    files, members = line("A--0----", "-BB0--B-")
    acts = (Merge((0, 1), 0, 0),)
    order = Order(members, acts, stamp="then", sights=proof.look(files, members, acts, proof.FULL))
    files.unlink(members.path(0))
    with pytest.raises(ProofFailed):
        proof.prove(files, order)


def test_only_what_changes_its_owner_is_looked_at():
    chunk = CHUNK_BYTES // 512
    files, members = line(
        "A" * chunk + "-" * 3 * chunk, "B" * 2 * chunk + "-" * 2 * chunk, "-" * 2 * chunk + "CD" * chunk
    )
    acts = (Merge((LEAF, MIDDLE), LEAF, LEAF),)
    (sight,) = proof.look(files, members, acts, proof.CHANGED)
    assert sight.ranges == ((CHUNK_BYTES, 2 * CHUNK_BYTES),)
    (sight,) = proof.look(files, members, acts, proof.FULL)
    assert sight == (LEAF, LEAF, digest(files, members.path(LEAF)), None)


def test_many_small_pieces_are_kept_as_few_large_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(proof, "RANGE_COUNT_MAX", 8)
    path = sparse_image(tmp_path / "large", 1 << 12, seed=1)
    chain = open_chain(LocalFiles(), str(path))
    ranges = proof.owned(chain, [0])
    assert 0 < len(ranges.start) <= 8
    assert not (ranges.start % CHUNK_BYTES).any()
    chain.close()


@pytest.mark.soak
def test_what_leaves_show_is_proven_on_random_trees(seed: int):
    choose = random.Random(seed)
    tree: Tree = grow(random_parents(choose.randint(2, 8), choose), seed, sizes=[8, 12, 16])
    members = tree.family
    tops = [index for index, each in enumerate(members.members) if each.parent is not None]
    top = choose.choice(tops)
    parent = members.members[top].parent
    assert parent is not None
    acts = (Merge((top, parent), top, top),)
    order = Order(members, acts, stamp="then", sights=proof.look(tree.files, members, acts, choose.choice(proof.MODES)))
    assert {sight.leaf for sight in order.sights} == {
        leaf for leaf in members.leaves if {top, parent} & {*members.line(leaf)}
    }
    carry_out(tree.files, members, acts)
    proof.prove(tree.files, order)
    assert all(guest_view(tree.files, order.result.path(leaf)) for leaf in order.result.leaves)
