"""Messages as a client gets them."""

import json

import pytest

from cowtree.errors import RequestFailed
from cowtree.qmp import wire


def test_a_greeting_tells_the_version_whose_words_are_spoken():
    told = json.loads(wire.greeting())["QMP"]
    assert (told["version"]["qemu"]["major"], told["version"]["qemu"]["minor"]) == (7, 2)
    assert told["capabilities"] == ["oob"]


def test_an_answer_bears_the_mark_of_its_question():
    assert wire.answer({}, {"id": [1]}) == b'{"return": {}, "id": [1]}\r\n'
    assert wire.answer([], {}) == b'{"return": []}\r\n'
    refusal = wire.refusal(wire.GENERIC_ERROR, "why", {"id": None})
    assert json.loads(refusal) == {"error": {"class": "GenericError", "desc": "why"}, "id": None}


def test_an_event_tells_when():
    told = json.loads(wire.event("X", {"a": 1}, 1_700_000_000_000_123))
    assert told == {"event": "X", "data": {"a": 1}, "timestamp": {"seconds": 1_700_000_000, "microseconds": 123}}
    assert "data" not in json.loads(wire.event("X", None, 0))


def test_a_name_that_is_no_text_is_marked():
    line = wire.answer({"file": b"a\xffb".decode("utf-8", "surrogateescape"), "text": "\u00e9\U0001f600"}, {})
    assert json.loads(line)["return"]["text"] == "\u00e9\U0001f600"
    assert "\N{REPLACEMENT CHARACTER}" in json.loads(line)["return"]["file"]
    assert line.count(b"\n") == 1


def test_a_failed_command_is_a_failed_request_and_has_one_of_the_classes_of_stock():
    error = wire.CommandFailed("no such job", wire.DEVICE_NOT_ACTIVE)
    assert isinstance(error, RequestFailed)
    assert (error.reason, error.kind) == ("no such job", "DeviceNotActive")
    assert wire.CommandFailed("{odd}").reason == "{odd}"
    assert {wire.CommandFailed("").kind, error.kind} <= set(wire.ERROR_CLASSES)


def test_no_message_is_sent_that_is_no_json():
    with pytest.raises(ValueError, match="not JSON compliant"):
        wire.answer(float("nan"), {})
