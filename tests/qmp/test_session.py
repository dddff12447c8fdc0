"""A conversation, beside a real daemon's."""

import json
from typing import Any

import pytest

from cowtree.qmp.session import Session
from tests.qmp.daemon import Monitor, storage_daemon
from tests.qmp.fakes import Fake

VERSION = {"execute": "query-version"}
OPEN = {"execute": "qmp_capabilities"}


def ours(session: Session, message: Any) -> list[dict[str, Any]]:
    data = message if isinstance(message, bytes) else json.dumps(message).encode()
    return [json.loads(answer) for answer in session.receive(data + b"\n")]


def theirs(stock: Monitor, message: Any) -> list[dict[str, Any]]:
    data = message if isinstance(message, bytes) else json.dumps(message).encode()
    # The last answer is to what is sent behind it, to know that it is the end.
    return stock.answers(data + b"\n")[:-1]


def plain(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the number of a version, which is everybody's own."""
    return [
        {**each, "return": sorted(each["return"])} if isinstance(each.get("return"), dict) else each for each in answers
    ]


ARGUMENTS: list[Any] = [{"enable": ["x"]}, {"enable": "oob"}, {"enable": [1]}, {"enable": {}}, [], None, "x"]
BEFORE: list[Any] = [
    *(VERSION, {"execute": "foo"}, {"execute": "block-commit"}, {"exec-oob": "query-version"}, {"id": 1}),
    *(
        b"nonsense",
        b"@",
        [],
        {},
        {"execute": 1, "id": 2},
        {**VERSION, "id": {"a": []}},
        {**OPEN, "arguments": {"x": 1}},
    ),
    *({**OPEN, "arguments": each} for each in ARGUMENTS),
]
AFTER: list[Any] = [
    *(OPEN, {**OPEN, "id": 3}, VERSION, {**VERSION, "id": None}, {**VERSION, "arguments": {}}, {**VERSION, "x": 1}),
    *(
        {**VERSION, "arguments": {"a": 1}},
        {"execute": "foo", "id": "7"},
        {"execute": ""},
        {"execute": "query-commands "},
    ),
    *({"exec-oob": "query-version"}, {"exec-oob": "query-version", "id": 1}, {"exec-oob": 1}, {"exec-oob": "foo"}),
    *(
        {"execute": "query-block-jobs"},
        {"execute": "query-jobs", "id": [1, {"a": None}]},
        {"execute": "nbd-server-stop"},
    ),
    *({"execute": "job-pause", "arguments": {"id": "x"}}, {"execute": "block-job-pause", "arguments": {"device": "x"}}),
    *(
        {"execute": "block-job-dismiss", "arguments": {"id": "x"}},
        {"execute": "block-job-pause", "arguments": {"id": "x"}},
    ),
    *({"arguments": {}}, [VERSION], "query-version", 1, None, b"{} {}", b"'x' }", b'{"execute":"a","execute":"b"}'),
]


@pytest.mark.parametrize("enable", [None, [], ["oob"], ["oob", "oob"]])
def test_a_conversation_goes_as_with_stock(enable: list[str] | None):
    session = Session(Fake())
    with storage_daemon() as connect:
        stock = connect()
        for message in BEFORE:
            assert ours(session, message) == theirs(stock, message), message
        opening = {**OPEN, **({} if enable is None else {"arguments": {"enable": enable}})}
        assert ours(session, opening) == theirs(stock, opening)
        assert session.hears_events
        for message in AFTER:
            assert plain(ours(session, message)) == plain(theirs(stock, message)), message
        stock.close()


def test_a_client_hears_events_when_it_has_its_answer_and_not_before():
    session = Session(Fake())
    answers = session.receive(json.dumps(OPEN).encode() + b"[]")
    assert b"return" in next(answers)
    assert not session.hears_events
    assert b"error" in next(answers)
    assert session.hears_events


def test_the_handler_gets_what_fits_and_nothing_else():
    fake = Fake()
    session = Session(fake)
    ours(session, {"execute": "quit"})
    ours(session, OPEN)
    ours(session, {"execute": "job-pause", "arguments": {}})
    ours(session, {"execute": "query-block"})
    assert fake.asked == []
    ours(session, {"execute": "blockdev-del", "arguments": {"node-name": "a"}, "id": 1})
    assert fake.asked == [("blockdev-del", {"node-name": "a"})]


def test_commands_are_those_that_the_handler_knows():
    session = Session(Fake())
    ours(session, OPEN)
    (answer,) = ours(session, {"execute": "query-commands"})
    names = [each["name"] for each in answer["return"]]
    assert {"qmp_capabilities", "query-version", "query-commands", "block-commit"} <= set(names)
    assert "query-block" not in names
    assert "no-word-of-stock" not in names
    for name in ("query-block", "no-word-of-stock"):
        (answer,) = ours(session, {"execute": name})
        assert answer["error"]["desc"] == f"The command {name} has not been found"
    assert names == sorted(set(names))


def test_an_error_of_ours_is_an_error_of_its_command():
    session = Session(Fake())
    ours(session, OPEN)
    (answer,) = ours(session, {"execute": "blockdev-add", "arguments": {"driver": "null-co"}, "id": 5})
    assert answer["error"]["class"] == "GenericError"
    assert "No such file or directory" in answer["error"]["desc"]
    assert answer["id"] == 5


def test_a_conversation_in_single_bytes_is_the_same():
    whole, single = Session(Fake()), Session(Fake())
    data = b"\n".join(json.dumps(each).encode() for each in (VERSION, OPEN, VERSION, {"execute": "foo"}))
    assert list(whole.receive(data)) == [answer for byte in data for answer in single.receive(bytes([byte]))]
