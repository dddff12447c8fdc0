"""Owns the proof that the family of errors is the one that is drawn, and that an error says its facts."""

import re
from itertools import pairwise

import pytest

from cowtree import errors
from cowtree.errors import (
    BrokenHeader,
    BrokenTable,
    CowtreeError,
    ImageLocked,
    LoopInChain,
    MarkedCorrupt,
    MissingImage,
    NotAnImage,
    NotInChain,
    PlacedError,
    Refused,
    StorageFailed,
    TruncatedImage,
    UnknownFeature,
    with_advice,
)

FAMILY = {
    each.__name__: each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, CowtreeError)
}


def drawn() -> list[tuple[int, str, int]]:
    """Depth, name and exit status of each error in the tree at the top of the module."""
    rows = re.findall(r"^    ([ │├└─]*)(\w+) +(\d+)  \S", errors.__doc__ or "", re.MULTILINE)
    return [(len(indent) // 4, name, int(status)) for indent, name, status in rows]


def drawn_parents() -> dict[str, str]:
    path: list[str] = []
    parents: dict[str, str] = {}
    for depth, name, _ in drawn():
        path[depth:] = [name]
        parents.update({child: parent for parent, child in pairwise(path)})
    return parents


def test_every_error_is_drawn_with_its_exit_status():
    statuses = {name: status for _, name, status in drawn()}
    assert statuses == {name: each.exit_status for name, each in FAMILY.items() if each is not PlacedError}


def test_every_error_descends_from_the_one_that_it_is_drawn_below():
    parents = drawn_parents()
    assert set(parents) == set(FAMILY) - {"CowtreeError", "PlacedError"}
    for name, parent in parents.items():
        bases = [base for base in FAMILY[name].__mro__[1:] if base is not PlacedError]
        assert bases[0] is FAMILY[parent], name


def test_an_exit_status_of_its_own_is_unique():
    own = [each.exit_status for each in FAMILY.values() if "exit_status" in vars(each)]
    assert len(own) == len(set(own))
    assert 0 not in own


def test_only_a_cluster_that_cannot_be_inflated_exits_as_its_parent_does():
    inherited = {name for name, each in FAMILY.items() if "exit_status" not in vars(each)}
    assert inherited == {"PlacedError", "BrokenCluster"}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (NotAnImage(path="a", format="qcow2"), "a: Image is not in qcow2 format"),
        (
            TruncatedImage(path="a", what="the L1 table", offset=8, length=16, size_bytes=9),
            "a: the L1 table at byte 8 needs 16 bytes, but the file ends at 9",
        ),
        (UnknownFeature(path="a", features="x, y"), "a: Unsupported qcow2 feature(s): x, y"),
        (MarkedCorrupt(path="a"), "a: Image is corrupt; cannot be opened read/write"),
        (MissingImage(path="a", reason="gone", overlay="b"), "a: gone (it backs b)"),
        (LoopInChain(path="a", backing="b"), "a: Backing file 'b' creates an infinite loop."),
        (NotInChain(path="a", wanted="b"), "a: Did not find 'b' in the backing chain of 'a'"),
        (Refused(reason="no"), "no"),
        (
            ImageLocked(path="a", what='"write"'),
            'Failed to get "write" lock\nIs another process using the image [a]?',
        ),
        (StorageFailed(path="a", action="write", reason="No space left"), "a: write failed: No space left"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, CowtreeError) else "",
)
def test_an_error_says_what_is_wrong_and_where(error: CowtreeError, text: str):
    assert error.message == text
    assert str(error) == with_advice(text, error.advice)


def test_a_text_without_its_facts_fails_at_once():
    with pytest.raises(KeyError, match="features"):
        UnknownFeature(path="a")


def test_a_hint_names_the_file():
    assert BrokenTable(path="a.qcow2", reason="x").advice == "cowtree img check a.qcow2"


def test_a_hint_given_with_the_facts_wins():
    assert BrokenTable(path="a", reason="x", hint="look at {path}").advice == "look at a"
    assert MissingImage(path="a", reason="gone", overlay="b", hint="mount it").advice == "mount it"


def test_a_missing_backing_file_is_named_in_its_overlay():
    assert MissingImage(path="a", reason="gone", overlay="b").advice.endswith(" b")
    assert MissingImage(path="a", reason="gone").advice == "see whether the name is right, and the folder"


@pytest.mark.parametrize("path", ["{0}", "{path}", "{", "}{", "{reason!r:>9}", "a{size_bytes}.qcow2"])
def test_braces_in_a_path_are_only_text(path: str):
    error = str(BrokenHeader(path=path, reason="L1 {table} is odd"))
    assert error == f"{path}: L1 {{table}} is odd. Try: restore the first cluster of {path} from a copy"
    error = str(BrokenTable(path=path, reason="x"))
    assert error == f"{path}: x. Try: cowtree img check {path}"


def test_advice_follows_a_full_stop():
    assert with_advice("no", "yes") == "no. Try: yes"
    assert with_advice("no.", "yes") == "no. Try: yes"
    assert with_advice("why?", "yes") == "why? Try: yes"
    assert with_advice("no", "") == "no"
