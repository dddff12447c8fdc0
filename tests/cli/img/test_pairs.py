"""Lists of options as QEMU reads them."""

import pytest

from cowtree.cli.img.pairs import join_lists, parse_pairs, parse_switch, wants_help
from cowtree.errors import WrongUse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("a=1", {"a": "1"}),
        ("a=1,b=2,a=3", {"b": "2", "a": "3"}),
        ("a=1,,2,b=,c==", {"a": "1,2", "b": "", "c": "="}),
        ("a=1,,", {"a": "1,"}),
        ("a,nob,c=no", {"a": "on", "b": "off", "c": "no"}),
        ("id=x,a=1", {"a": "1"}),
        ("=1", {"": "1"}),
    ],
)
def test_keys_and_values_are_told_apart(text: str, expected: dict[str, str]):
    found = parse_pairs(text)
    assert (found, list(found)) == (expected, list(expected))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("help", True), ("a=1,?", True), ("help=1", False), ("a=help", False), ("", False), ("nohelp", False)],
)
def test_help_is_asked_for_by_a_word_alone(text: str, *, expected: bool):
    assert wants_help(text) == expected


def test_lists_are_joined():
    assert join_lists([]) == ""
    assert join_lists(["a=1", "b=2,,", "c"]) == "a=1,b=2,,,c"


@pytest.mark.parametrize("text", ["", ",a", "a,", "a,,,"])
def test_a_list_that_would_change_its_neighbours_is_refused(text: str):
    with pytest.raises(WrongUse, match=r"^Invalid option list: "):
        join_lists(["a=1", text])


def test_switches_have_four_spellings():
    assert [parse_switch("a", word) for word in ("on", "yes", "true", "y")] == [True] * 4
    assert [parse_switch("a", word) for word in ("off", "no", "false", "n")] == [False] * 4
    with pytest.raises(WrongUse, match=r"^Parameter 'a' expects 'on' or 'off'$"):
        parse_switch("a", "On")
