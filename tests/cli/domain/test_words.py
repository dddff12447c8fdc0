"""Virsh's grammar: how words become options, and what is said of those that do not."""

import pytest

from cowtree.cli.domain.words import DOMAIN, Command, Given, Option, describe, paragraphs, parse, rows, usage
from cowtree.errors import WrongUse

COMMAND = Command(
    "shoot",
    "take a picture",
    (
        DOMAIN,
        Option("name", "how it is called", "name"),
        Option("quickly", "at once"),
        Option("bytes", "how much", "bytes", is_number=True, has_place=False),
        Option("spec", "how", "spec", is_repeatable=True),
    ),
    lambda given: 0,
    "It does not hurt.",
)


def given(*words: str) -> Given:
    return parse(COMMAND, words)


@pytest.mark.parametrize(
    "words",
    [
        "vm x --quickly",
        "--quickly vm x",
        "--domain vm --name x --quickly",
        "--name=x vm --quickly",
        "--quickly -- vm x",
    ],
)
def test_options_and_words_come_in_any_order(words: str):
    found = given(*words.split())
    assert (found.want("domain"), found.get("name"), found.has("quickly")) == ("vm", "x", True)


def test_words_fill_what_is_still_empty_and_the_last_takes_the_rest():
    found = given("--name", "x", "vm", "a", "--spec", "b", "c")
    assert (found.want("domain"), found.get("name"), found.all("spec")) == ("vm", "x", ["a", "b", "c"])


def test_a_value_may_look_like_an_option_and_hold_anything():
    assert given("vm", "--name", "--quickly").get("name") == "--quickly"
    assert given("vm", "--name=a=b").get("name") == "a=b"
    assert given("vm", "--name=").get("name") == ""
    assert given("--", "--quickly", "-h").want("domain") == "--quickly"
    assert given("vm", "-x").get("name") == "-x"
    assert given("vm", "--").get("name") is None


def test_what_was_not_given_is_none():
    found = given("vm")
    assert (found.get("name"), found.number("bytes"), found.all("spec"), found.has("quickly")) == (
        None,
        None,
        [],
        False,
    )


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("vm --foo", "command 'shoot' doesn't support option --foo"),
        ("vm --quick", "command 'shoot' doesn't support option --quick"),
        ("", "command 'shoot' requires <domain> option"),
        ("--quickly", "command 'shoot' requires <domain> option"),
        ("vm --name", "expected syntax: --name <string>"),
        ("vm --bytes", "expected syntax: --bytes <number>"),
        ("vm --quickly=1", "invalid '=' after option --quickly"),
        ("vm --name a --name b", "option --name already seen"),
        ("x --domain vm", "option --domain already seen"),
    ],
)
def test_wrong_words_are_refused_in_stock_words(words: str, complaint: str):
    with pytest.raises(WrongUse) as caught:
        given(*words.split())
    assert caught.value.message == complaint
    assert caught.value.advice == "cowtree shoot --help"


def test_too_many_words_are_refused():
    with pytest.raises(WrongUse, match="unexpected data 'b'"):
        parse(COMMAND._replace(options=COMMAND.options[:-1]), ["vm", "a", "b"])


def test_a_required_option_without_a_place_is_asked_for_by_name():
    size = Option("size", "how large", "size", is_required=True, has_place=False)
    with pytest.raises(WrongUse, match="command 'shoot' requires --size option"):
        parse(COMMAND._replace(options=(DOMAIN, size)), ["vm"])


def test_numbers_are_whole_and_fit_into_64_bits():
    assert given("vm", "--bytes", "18446744073709551615").number("bytes") == (1 << 64) - 1
    for text in ("18446744073709551616", "-1", "1k", "", "9" * 5000, "\N{SUPERSCRIPT TWO}"):
        with pytest.raises(WrongUse, match="for <bytes> option is malformed or out of range"):
            given("vm", f"--bytes={text}").number("bytes")


def test_options_that_exclude_or_need_each_other():
    with pytest.raises(WrongUse, match="Options --name and --quickly are mutually exclusive"):
        given("vm", "--name", "x", "--quickly").refuse_both("name", "quickly")
    given("vm", "--quickly").refuse_both("name", "quickly")
    with pytest.raises(WrongUse, match="Option --spec is required by option --quickly"):
        given("vm", "--quickly").refuse_without("quickly", "spec")


def test_help_needs_nothing_else():
    assert given("--help").has("help")
    assert given("-h").has("help")


def test_help_and_page_come_from_the_table():
    assert usage(COMMAND) == (
        "[--domain] <domain> [[--name] <name>] [--quickly] [--bytes <bytes>] [[--spec] <spec>]... [--catalog <file>] "
        "[--help]"
    )
    assert rows(COMMAND)[1:3] == [("--name <name>", "how it is called"), ("--quickly", "at once")]
    assert paragraphs(COMMAND) == ["Take a picture. It does not hurt."]
    text = describe(COMMAND)
    assert text.startswith("usage: cowtree shoot [--domain] <domain> ")
    assert all(option.help in text for option in COMMAND.options)
