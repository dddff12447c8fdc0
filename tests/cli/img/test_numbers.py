"""Sizes on the command line."""

import pytest

from cowtree.cli.img.numbers import NUMBER_MAX, parse_number
from cowtree.errors import WrongUse


def test_a_number_has_a_suffix_or_none():
    assert parse_number("rate limit", "64k") == 65536
    assert parse_number("rate limit", "512") == 512
    assert parse_number("rate limit", "8191P", high=NUMBER_MAX) == 8191 << 50


@pytest.mark.parametrize("text", ["", "fast", "12q", "-3", "1.5"])
def test_what_is_no_number_is_told_with_the_suffixes(text: str):
    with pytest.raises(WrongUse) as caught:
        parse_number("rate limit", text)
    assert str(caught.value).startswith("Invalid rate limit specified. You may use k, M, G, T, P or E suffixes for")


@pytest.mark.parametrize("text", ["8E", "1", "101"])
def test_a_number_out_of_range_is_told_with_the_range(text: str):
    with pytest.raises(WrongUse) as caught:
        parse_number("buffer size", text, low=2, high=100)
    assert str(caught.value) == "Invalid buffer size specified. Must be between 2 and 100."
