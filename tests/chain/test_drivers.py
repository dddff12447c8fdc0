"""Options that drivers take."""

import pytest

from cowtree.chain.drivers import check_options, to_text
from cowtree.chain.relaxed import Value
from cowtree.errors import ChainError


def test_values_are_text_as_on_the_command_line():
    assert [to_text(value) for value in (True, False, 512, "a")] == ["on", "off", "512", "a"]


def test_options_that_steer_caches_are_taken():
    check_options(
        "a", "qcow2", {"l2-cache-size": "1M", "lazy-refcounts": True, "cache.direct": "off", "discard": "unmap"}
    )
    check_options("a", "file", {"filename": "a", "aio": "threads", "locking": "auto"})


@pytest.mark.parametrize(
    ("driver", "options", "reason"),
    [
        ("qcow2", {"nope": 1}, "Block format 'qcow2' does not support the option 'nope'"),
        ("file", {"nope": 1}, "Block protocol 'file' doesn't support the option 'nope'"),
        ("qcow2", {"read-only": "x"}, "Parameter 'read-only' expects 'on' or 'off'"),
        ("qcow2", {"cache-size": "x"}, "Parameter 'cache-size' expects a non-negative number"),
        ("qcow2", {"discard": "x"}, "Invalid discard option"),
        ("qcow2", {"detect-zeroes": "unmap"}, "setting detect-zeroes to unmap is not allowed"),
        ("qcow2", {"overlap-check": "x"}, "Unsupported value 'x' for qcow2 option 'overlap-check'"),
        ("file", {"aio": "x"}, "invalid parameter value: x"),
        ("file", {"aio-max-batch": "x"}, "expects a number"),
    ],
)
def test_what_makes_no_sense_is_refused_in_qemus_words(driver: str, options: dict[str, Value], reason: str):
    with pytest.raises(ChainError, match=reason):
        check_options("a", driver, options)
