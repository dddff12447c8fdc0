"""JSON as QEMU prints it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowtree.cli.img.qobject import bucket, dumps, ordered, quote


def test_keys_are_printed_in_the_order_of_a_hash_table():
    assert [bucket(key) for key in ("virtual-size", "filename", "format")] == sorted(
        bucket(key) for key in ("virtual-size", "filename", "format")
    )
    keys = ["filename", "format", "dirty-flag", "virtual-size", "actual-size"]
    assert [key for key, _ in ordered(dict.fromkeys(keys, 1))] == [
        *("virtual-size", "filename", "format", "actual-size", "dirty-flag")
    ]


def test_keys_that_share_a_chain_are_printed_last_first():
    keys = [f"key-{number}" for number in range(2000)]
    first, second = next(
        (first, second) for first in keys for second in keys if first < second and bucket(first) == bucket(second)
    )
    assert [key for key, _ in ordered({first: 1, second: 2})] == [second, first]
    assert [key for key, _ in ordered({second: 1, first: 2})] == [first, second]


def test_containers_are_indented_by_four():
    assert dumps({"a": [1, {"b": None}], "flag": True}).count("\n" + " " * 12 + '"b": null') == 1
    assert dumps([]) == "[\n]"
    assert dumps({}) == "{\n}"
    assert dumps([False, -1]) == "[\n    false,\n    -1\n]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('a"b\\c', r'"a\"b\\c"'),
        ("\b\f\n\r\t\x01\x7f", r'"\b\f\n\r\t\u0001\u007F"'),
        ("ü中", r'"\u00FC\u4E2D"'),
        ("𝄞", r'"\uD834\uDD1E"'),
        ("bad-\udcff", r'"bad-\uFFFD"'),
    ],
)
def test_text_is_escaped(text: str, expected: str):
    assert quote(text) == expected


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(VALUES)
def test_any_parser_reads_it_back(value: object):
    assert json.loads(dumps(value)) == value  # type: ignore[arg-type]
