"""The grammar of options and names."""

import pytest

from cowtree.cli.img.command import (
    FORMAT,
    OUTPUT,
    QUIET,
    BadWords,
    Command,
    Given,
    Option,
    describe,
    parse,
    split_words,
    want_json,
    want_names,
)
from cowtree.errors import WrongUse

SPAN = Option(("-s", "--start-offset"), "begin there", "OFFSET")
COMMAND = Command("show", "Show it.", (FORMAT, OUTPUT, QUIET, SPAN), "NAME", lambda given: 0)


def parsed(*words: str) -> Given:
    return parse(COMMAND, words, "tool")


def test_options_may_stand_before_behind_and_between_names():
    given = parsed("-q", "a", "-fraw", "b", "--start-offset=3", "--", "-x")
    assert given.names == ["a", "b", "-x"]
    assert (given.has("-q"), given.last("-f"), given.last("-s")) == (True, "raw", "3")
    assert (given.has("--output"), given.last("--output"), given.all("-h")) == (False, None, [])


def test_an_option_has_one_name_whatever_its_spelling():
    given = parsed("--start-offset", "1", "-s", "2", "--start=3", "-qs4")
    assert given.all("-s") == ["1", "2", "3", "4"]
    assert given.last("-s") == "4"
    assert given.has("-q")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["-x"], "unrecognized option '-x'"),
        (["--nope"], "unrecognized option '--nope'"),
        (["-f"], "missing argument for option '-f'"),
        (["--output"], "missing argument for option '--output'"),
        (["-qx"], "unrecognized option '-qx'"),
        (["--quiet=1"], "unrecognized option '--quiet=1'"),
        (["--qui=1"], "unrecognized option '--qui=1'"),
        (["--nope=1", "--nope"], "unrecognized option '--nope=1'"),
        (["a", "--outp"], "missing argument for option '--outp'"),
        (["-qf"], "missing argument for option '-qf'"),
    ],
)
def test_what_the_grammar_does_not_know_is_named(words: list[str], complaint: str):
    with pytest.raises(BadWords, match=f"^{complaint}$"):
        parsed(*words)


def test_options_in_front_end_at_the_first_name():
    assert split_words(["-q", "show", "-q"], [QUIET], in_front=True) == ([("-q", "")], ["show", "-q"])


def test_names_are_counted():
    assert want_names(parsed("a"), 1, "One name") == ["a"]
    for words in ((), ("a", "b")):
        with pytest.raises(BadWords, match=r"^One name$"):
            want_names(parsed(*words), 1, "One name")


def test_output_is_human_or_json():
    assert [want_json(parsed(*words)) for words in ((), ("--output=human",), ("--output=json",))] == [
        False,
        False,
        True,
    ]
    with pytest.raises(WrongUse, match="must be used with human or json"):
        want_json(parsed("--output=xml"))


def test_help_is_made_from_the_same_table():
    text = describe(COMMAND, "tool")
    assert text.startswith("usage: tool show [-f FMT] [--output OFMT] [-q] [-s OFFSET] NAME\n\nShow it.\n\n")
    assert "\n  -s, --start-offset OFFSET     begin there\n" in text
    assert text.endswith("show this help and exit")
