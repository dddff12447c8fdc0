"""JSON as QEMU reads it in names."""

import pytest

from cowtree.chain.relaxed import loads


def test_strings_may_stand_between_single_quotes():
    assert loads("{'a': \"b'c\", \"d\": ['e', 1, -2.5, true, null]}") == {"a": "b'c", "d": ["e", 1, -2.5, True, None]}
    assert loads(' "\\u00e4\\ud83d\\ude00\\n" ') == "\u00e4\U0001f600\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting a JSON value"),
        ("{}{}", "Expecting at most one JSON value"),
        ('{"a":1', "premature EOI"),
        ('{"a":1,}', "expecting value"),
        ("{a:1}", "invalid keyword 'a'"),
        ("{1:1}", "key is not a string in object"),
        ('{"a" 1}', "missing : in object pair"),
        ('{"a":1 "b":2}', "expected separator in dict"),
        ("[1 2]", "expected separator in list"),
        ('{"a":1,"a":2}', "duplicate key"),
        ('"\\q"', "invalid escape sequence in string"),
        ('"x', "stray '\"x'"),
        ("01", "stray '01'"),
        ("[" * 5000, "nesting depth limit"),
    ],
)
def test_what_is_wrong_is_said_as_qemu_says_it(text: str, reason: str):
    with pytest.raises(ValueError, match=reason):
        loads(text)
