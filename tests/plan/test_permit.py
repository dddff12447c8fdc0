"""Permits: each refusal names the right images, and what is permitted harms nobody.

Drawings as in test_family.py.
"""

from dataclasses import replace
from typing import Any

import pytest

from cowtree.errors import Refused
from cowtree.plan.family import Family
from cowtree.plan.permit import objections, permit
from tests.plan.test_family import TREE, family, merge
from tests.trees import random_acts


def refused(found: Family, *acts: str, forced: str = "", kept: str = "") -> Refused:
    """Why acts are not permitted."""
    order = [member.path for member in found.members]
    with pytest.raises(Refused) as caught:
        permit(
            found,
            [merge(found, act) for act in acts],
            forced=[order.index(each) for each in forced],
            kept=[order.index(each) for each in kept],
        )
    return caught.value


def changed(found: Family, name: str, **changes: Any) -> Family:
    """The family with one member that is otherwise."""
    return replace(
        found, members=tuple(each._replace(**changes) if each.path == name else each for each in found.members)
    )


@pytest.mark.parametrize(
    ("act", "changes", "harmed"),
    [
        ("DCB>B", "B", ["E"]),
        ("DCBA>A", "A", ["E", "F"]),
        ("BA>A", "A", ["F"]),
        ("CB>B", "B", ["E"]),
        ("DCBA>D=A", "A", ["E", "F"]),
        ("DCBA>B=A", "B, A", ["E", "F"]),
    ],
)
def test_a_refusal_names_what_changes_and_who_would_see_it(act: str, changes: str, harmed: list[str]):
    error = refused(family(TREE), act)
    assert list(error.facts["harmed"]) == harmed
    verb = "read" if len(harmed) > 1 else "reads"
    assert error.reason == f"{changes} would change, and {', '.join(harmed)} {verb} it"
    assert "--with-dependants" in error.advice
    assert error.advice.endswith(" ".join(f"--force {name}" for name in harmed))


def test_all_that_hangs_on_who_is_in_the_way_is_harmed_as_well():
    error = refused(family("A<B<C B<D<E<F D<G"), "CB>B")
    assert list(error.facts["harmed"]) == ["D", "E", "F", "G"]
    assert "pulls into D first" in error.advice


@pytest.mark.parametrize("act", ["DC>C", "DC>D", "DC>C=D", "DCBA>D", "CB>C", "F>F"])
def test_what_harms_nobody_is_permitted(act: str):
    found = family(TREE)
    wanted = merge(found, act)
    assert permit(found, [wanted]).acts == (wanted,)


def test_each_act_is_judged_by_what_those_before_it_leave():
    found = family(TREE)
    acts = [merge(found, act) for act in ("EB>E", "DCB>B")]
    assert permit(found, acts).acts == tuple(acts)
    assert list(refused(found, "DCB>B", "EB>E").facts["harmed"]) == ["E"]


def test_who_is_given_up_must_be_named_altogether():
    found = family("A<B<C B<D<E")
    assert list(refused(found, "CB>B", forced="D").facts["harmed"]) == ["E"]
    assert permit(found, [merge(found, "CB>B")], forced=[4, 3]).forced == (3, 4)


def test_what_is_kept_is_neither_changed_nor_left_behind():
    found = family("A<B<C<D")
    assert "B is to be kept" in refused(found, "CB>B", kept="B").reason
    assert "C is to be kept" in refused(found, "DCB>D", kept="C").reason
    assert permit(found, [merge(found, "CB>C")], kept=[2]).acts
    # The top shows the same afterwards, under its own name.
    assert permit(found, [merge(found, "CB>B=C")], kept=[2]).acts


def test_a_file_takes_the_place_of_one_of_its_format_and_file_system_only():
    found = family("A<B<C")
    assert "C lies on another file system than B" in refused(changed(found, "C", device=7), "CB>C=B").reason
    raw = changed(found, "A", format="raw")
    assert "B is qcow2 and cannot take the place of A" in refused(raw, "BA>B=A").reason
    assert permit(raw, [merge(raw, "BA>A")]).acts
    assert permit(changed(found, "C", device=7), [merge(found, "CB>B")]).acts


def test_a_raw_image_gets_no_backing_file():
    found = changed(family("A<B<C"), "B", format="raw")
    assert "B is raw and cannot have a backing file" in refused(found, "CB>B").reason


@pytest.mark.parametrize("name", ["B", "C", "D"])
def test_an_image_that_cannot_be_read_stops_what_it_is_part_of_or_must_be_linked_by(name: str):
    found = changed(family("A<B<C<D"), name, why_not="broken header")
    assert refused(found, "CB>B").reason == f"{name}: broken header"
    elsewhere = changed(family("A<B<C<D"), "A", why_not="broken header")
    assert permit(elsewhere, [merge(elsewhere, "CB>B")]).acts


@pytest.mark.parametrize(
    ("act", "use", "users"),
    [
        # The top, the target and what lies on the top are opened for writing, what lies between for reading.
        ("CB>B", "read", "BCD"),
        ("CBA>A", "read", "ACD"),
        ("CBA>C", "read", "CD"),
        ("CBA>A", "written", "ABCD"),
        ("CB>C", "written", "BCD"),
    ],
)
def test_an_image_in_use_is_named_before_anything_is_done(act: str, use: str, users: str):
    found = family("A<B<C<D D<E")
    for name in "ABCDE":
        used = changed(found, name, use=use)
        if name not in users:
            assert permit(used, [merge(used, act)]).acts
            continue
        error = refused(used, act)
        verb = "reads" if use == "read" else "writes to"
        assert error.reason == f"{name} is in use: another process {verb} it"
        assert error.advice == f"stop what uses {name}"


@pytest.mark.parametrize(("act", "lost"), [("CB>B", "C"), ("CB>C", "BC"), ("DCB>B", "CD"), ("CB>B=C", "C")])
def test_internal_snapshots_are_not_left_behind(act: str, lost: str):
    found = family("A<B<C<D")
    for name in "ABCD":
        with_snapshots = changed(found, name, has_snapshots=True)
        if name in lost:
            assert f"{name} has internal snapshots" in refused(with_snapshots, act).reason
        forced = ["ABCD".index(name)] if name in lost else []
        assert permit(with_snapshots, [merge(found, act)], forced=forced).acts


def test_what_is_permitted_changes_nobody_elses_view(seed: int):
    for found, act in random_acts(seed, 10):
        # Whose line holds a name that shows something else, and not the top above it.
        seen = {
            each
            for each in range(len(found.members))
            if each not in act.group and set(found.line(each)) & set(act.changed) and act.top not in found.line(each)
        }
        harmed = {each for objection in objections(found, act) for each in objection.harmed}
        assert harmed == seen, act
