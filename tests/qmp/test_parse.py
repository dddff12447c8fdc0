"""JSON as QEMU reads it, compared with a real daemon byte by byte."""

import random
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from cowtree.qmp.parse import MESSAGE_BYTES_MAX, NESTING_MAX, TOKEN_COUNT_MAX, Complaint, Reader, Value
from tests.qmp.daemon import Monitor, storage_daemon


@pytest.fixture(scope="module")
def stock() -> Iterator[Monitor]:
    with storage_daemon() as connect:
        monitor = connect()
        monitor.well("qmp_capabilities")
        yield monitor
        monitor.close()


def read(data: bytes, piece_bytes: int = 1 << 16) -> list[Value | Complaint]:
    reader = Reader()
    pieces = [data[begin : begin + piece_bytes] for begin in range(0, len(data), piece_bytes)]
    return [found for piece in pieces for found in reader.receive(piece)]


def value(data: bytes) -> Any:
    (found,) = read(data)
    assert isinstance(found, Value)
    return found.value


def complaints(data: bytes) -> list[str]:
    """What is said, as a daemon says it: a value that is no command has its complaint as well."""
    reasons = []
    for found in read(data + b"\xff\n"):
        if isinstance(found, Complaint):
            reasons.append(found.reason)
        elif isinstance(found.value, dict):
            reasons.append("a command")
        else:
            reasons.append("QMP input must be a JSON object")
    return reasons


def said(stock: Monitor, data: bytes) -> list[str]:
    answers = [each.get("error", {}) for each in stock.answers(data)]
    is_text = ("JSON ", "QMP input must be a JSON object")
    return [error["desc"] if str(error.get("desc")).startswith(is_text) else "a command" for error in answers]


NONSENSE = [
    *(rb'{"a":"\x"}', rb'{"a":"\u12"}', rb'{"a":"\ud800"}', rb'{"a":"\ud800\u0041"}', rb'{"a":"\udc00"}'),
    *(
        rb'"\ud83d\ude00"',
        rb'"\u0000"',
        rb'"\uffff"',
        rb'"\ufdd0"',
        rb'"\u"',
        b'"\xef\xbf\xbf"',
        rb'"\"\'\/\b\f\n\r\t"',
    ),
    *(
        b'{"a":"\xff"}',
        b'"\xc0\x80"',
        b'"\xc3("',
        b'"\xc3\xa9"',
        b'"\xed\xa0\x80"',
        b'"\xf4\x90\x80\x80"',
        b'"\xc1\x81"',
    ),
    *(b"{'execute':'query-version'}", b"""{'a':'it"s'}""", rb"'it\'s'", b'{"a":1,"a":2}', b"{1:2}", b'{"a":1 "b"}'),
    *(b'{"a"}', b'{"a":}', b'{"a":1,}', b"{,}", b'{"a":1]', b"[1 2]", b"[1,]", b"[,]", b"[}", b"{]", b"[{]}", b"[[1}"),
    *(b"@", b"{@}", b'{"a": 01}', b"-", b"--1", b"-x", b"1.x", b"1.", b"1.5", b"1e", b"1e+", b"1e5", b"0e1", b"0.5e-1"),
    *(
        b"-0",
        b"1x",
        b"12345678901234567890123",
        b"]",
        b"}",
        b":",
        b",",
        b"%p",
        b'{"a":%p}',
        b"tru",
        b"true false",
        b"TRUE",
    ),
    *(b"tru\xe9", b'{"a":12\xe9}', b"\x01", b"\x00", b'"a\x01b"', b'"a\nb"', b'{"execute":"query-version"}}', b'"open'),
    *(
        b'[1, "a\n',
        b"\xfe\xff{}",
        b"null",
        b"[null,true,false]",
        b"foo bar",
        b"{} {}",
        b"\t\r\n [] \t",
        b"@@ @\n@",
        b"\\",
    ),
]


@pytest.mark.parametrize("data", NONSENSE)
def test_nonsense_is_complained_of_as_stock_does(stock: Monitor, data: bytes):
    assert complaints(data) == said(stock, data)


def test_random_nonsense_is_complained_of_as_stock_does(stock: Monitor):
    words = [
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b",",
        b'"a"',
        b"'b'",
        b"1",
        b"-2.5e3",
        b"true",
        b"nul",
        b" ",
        b"\n",
        b'"',
        b"'",
    ]
    words += [b"\\", b"\xff", b"\xc3\xa9", b"\x7f", b"0", b"-", b".", b"e", b"{}", b"[]", rb'"\u00e9\n"', b"@", b"%"]
    words += [b'{"execute":"a","id":', b'{"execute":"query-version"}']
    numbers = random.Random(7)
    for _ in range(300):
        data = b"".join(numbers.choices(words, k=numbers.randrange(1, 12)))
        assert complaints(data) == said(stock, data), data


def test_a_value_is_what_stock_echoes(stock: Monitor):
    text = rb"""[1, -2, 0.5, 1e3, 18446744073709551615, -9223372036854775808, 123456789012345678901234567890, -0,
        "\u0000\u00e9\ud83d\ude00 \\ \/", 'a"b', true, null, {"x": {"y": []}}, {}]"""
    (answer,) = stock.answers(b'{"execute": "query-version", "id": ' + text + b"}")[:1]
    assert value(text) == answer["id"]


def test_pieces_of_any_size_make_the_same_of_it():
    data = b" ".join(NONSENSE)
    assert read(data, 1) == read(data, 7) == read(data)


def test_a_number_too_large_for_any_is_the_largest():
    assert value(b"[1e400, -1e400]") == [1.7976931348623157e308, -1.7976931348623157e308]
    assert value(b"[" + b"9" * 5000 + b"]") == [1.7976931348623157e308]


def test_depth_is_bounded_and_what_follows_is_read_again():
    deep = b"[" * NESTING_MAX + b"]" * NESTING_MAX
    assert isinstance(value(deep), list)
    assert complaints(b"[" + deep + b"]")[0] == "JSON nesting depth limit exceeded"
    assert complaints(b"[" + deep + b"] {}")[-2] == "a command"


def test_the_number_of_words_is_bounded():
    found = read(b"[" + b"1," * TOKEN_COUNT_MAX + b"1]")
    assert found[0] == Complaint("JSON token count limit exceeded")


@pytest.mark.parametrize("begin", [b'"', b'{"a": "', b"1", b"@", b"[" + b"1, " * 9000])
def test_the_size_of_a_message_is_bounded(begin: bytes):
    reader = Reader()
    tracemalloc.start()
    found = list(reader.receive(begin))
    for _ in range(40):
        found += reader.receive(b"1" * (1 << 17))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (Complaint("JSON token size limit exceeded") in found) is (begin != b"@")
    assert len(found) == 1
    assert peak_bytes < 8 * MESSAGE_BYTES_MAX


def test_a_byte_at_a_time_costs_no_more_than_its_length():
    reader = Reader()
    for _ in range(200_000):
        assert not list(reader.receive(b"a" if reader._word else b'"'))
