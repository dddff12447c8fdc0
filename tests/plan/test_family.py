"""Families of images: who lies on whom, who would see something else, and what a merge leaves.

Drawn as `A<B` for "B lies on A": a member for each letter, in the order in which they are first named.
"""

import pytest

from cowtree.plan.family import Family, Member, Merge
from tests.trees import random_acts


def family(text: str) -> Family:
    """The family of a drawing such as `A<B<C A<D`."""
    parents: dict[str, str | None] = {}
    for line in text.split():
        names = line.split("<")
        parents.setdefault(names[0], None)
        parents |= dict(zip(names[1:], names, strict=False))
    order = list(parents)
    return Family(
        tuple(Member(name, "qcow2", 1, order.index(base) if base else None) for name, base in parents.items())
    )


def merge(found: Family, text: str) -> Merge:
    """The merge of a drawing such as `CBA>B=A`: the group from its top down, the target, the name."""
    order = [member.path for member in found.members]
    group, _, rest = text.partition(">")
    target, _, name = rest.partition("=")
    return Merge(tuple(map(order.index, group)), order.index(target), order.index(name or target))


def names(found: Family, indices: tuple[int, ...]) -> str:
    """The members of these indices, in one word."""
    return "".join(found.paths(indices))


def drawn(found: Family) -> set[str]:
    """Who lies on whom."""
    there = [(index, member) for index, member in enumerate(found.members) if index not in found.gone]
    return {f"{found.path(each.parent)}<{each.path}" if each.parent is not None else each.path for _, each in there}


TREE = "A<B<C<D B<E A<F"


def test_a_line_goes_down_to_the_root():
    assert names(family(TREE), family(TREE).line(3)) == "DCBA"


def test_overlays_lie_directly_and_readers_anywhere_on_an_image():
    found = family(TREE)
    assert names(found, found.overlays(0)) == "BF"
    assert names(found, found.readers(1)) == "CDE"
    assert names(found, found.leaves) == "DEF"


@pytest.mark.parametrize(
    ("act", "beside"),
    [
        # A commit changes all below its top.
        ("DC>C", ""),
        ("DCB>B", "E"),
        ("DCBA>A", "EF"),
        ("CB>B", "E"),
        ("BA>A", "F"),
        # A pull changes nothing but its top, which shows the same.
        ("DC>D", ""),
        ("DCBA>D", ""),
        # The file of the bottom in the place of the top is changed like one that is committed to.
        ("DCBA>A=D", "EF"),
        ("DCBA>B=D", "E"),
        # The file of the top in the place of the bottom changes what that name shows.
        ("DCBA>D=A", "EF"),
        ("DCBA>C=B", "E"),
    ],
)
def test_those_are_in_the_way_who_read_what_will_show_something_else(act: str, beside: str):
    found = family(TREE)
    assert names(found, found.in_the_way(merge(found, act))) == beside


@pytest.mark.parametrize(
    ("act", "left"),
    [
        ("DC>C", {"A", "A<B", "B<C", "B<E", "A<F"}),
        ("CB>C", {"A", "A<B", "A<C", "C<D", "B<E", "A<F"}),
        ("DCB>D", {"A", "A<B", "A<D", "B<E", "A<F"}),
        ("CB>B", {"A", "A<B", "B<D", "B<E", "A<F"}),
        ("DC>C=D", {"A", "A<B", "B<D", "B<E", "A<F"}),
        ("DC>D=C", {"A", "A<B", "B<C", "B<E", "A<F"}),
    ],
)
def test_a_merge_leaves_one_image_and_all_that_others_need(act: str, left: set[str]):
    found = family(TREE)
    assert drawn(found.after(merge(found, act))) == left


def test_a_result_is_as_long_as_what_it_shows_and_as_what_reads_it():
    found = Family((Member("A", "qcow2", 3), Member("B", "qcow2", 1, 0), Member("C", "qcow2", 2, 1)))
    assert found.after(Merge((2, 1), 1, 1)).members[1].size_bytes == 2
    assert found.after(Merge((1, 0), 0, 0)).members[0].size_bytes == 3
    assert found.after(Merge((1, 0), 1, 1)).members[1].size_bytes == 1


def brute_in_the_way(found: Family, act: Merge) -> set[int]:
    """Those outside the group who lie on a changed name, or on one above it that sees through to it."""
    touched = {each for each in act.group[1:] if set(act.changed) & set(found.line(each))}
    return {each for each, member in enumerate(found.members) if member.parent in touched and each not in act.group}


def test_random_families_have_in_the_way_whoever_sees_a_change(seed: int):
    for found, act in random_acts(seed, 12):
        assert set(found.in_the_way(act)) == brute_in_the_way(found, act)


def test_a_disk_is_as_large_as_the_top_s_unless_somebody_lies_on_it_who_saw_more():
    sizes, parents = (10, 20, 5), (None, 0, 1)
    members = [Member(str(index), "qcow2", *each) for index, each in enumerate(zip(sizes, parents, strict=True))]
    found = Family(tuple(members))
    assert found.result(Merge((2, 1, 0), 1, 1)).size_bytes == 5
    assert found.result(Merge((1, 0), 0, 0)).size_bytes == 20
    smaller = Family((members[0], members[1]._replace(size_bytes=4), members[2]))
    assert smaller.result(Merge((1, 0), 0, 0)).size_bytes == 10
    assert smaller.result(Merge((1, 0), 1, 1)).size_bytes == 4


def with_data(text: str, holder: str, data: str) -> Family:
    """The same family, where one image is the external data file of another one."""
    found = family(text)
    order = [member.path for member in found.members]
    members = list(found.members)
    members[order.index(holder)] = members[order.index(holder)]._replace(data=order.index(data))
    return Family(tuple(members))


@pytest.mark.parametrize(
    ("act", "beside"),
    # A<B<C, where D is the data file of B, and R lies on D.
    [("CB>B", "R"), ("CB>C", ""), ("BA>A", ""), ("BA>B", "R"), ("RD>D", "B"), ("RD>R", "")],
)
def test_a_data_file_changes_with_its_image_and_an_image_with_its_data_file(act: str, beside: str):
    found = with_data("A<B<C D<R", "B", "D")
    assert names(found, found.in_the_way(merge(found, act))) == beside


def test_a_data_file_is_needed_as_long_as_its_image_is():
    found = with_data("A<B D<R", "B", "D")
    assert found.left_over(merge(found, "RD>R")) == ()
    assert names(family("A<B D<R"), family("A<B D<R").left_over(merge(found, "RD>R"))) == "D"
