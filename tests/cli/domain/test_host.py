"""What most verbs begin with: the host, and the snapshot that is meant."""

import pytest

from cowtree.cli.domain.host import CURRENT, SNAPSHOT, failing, open_host, warn
from cowtree.cli.domain.words import Command, Given, parse
from cowtree.errors import Refused

COMMAND = Command("look", "look", (SNAPSHOT, CURRENT), lambda given: 0)


def given(*words: str) -> Given:
    return parse(COMMAND, words)


def test_a_catalogue_is_made_only_where_something_is_to_be_noted_down(catalog):
    with open_host(given()):
        assert not catalog.exists()
    with open_host(given(), creates=True) as host:
        assert (catalog.exists(), host.catalog.path) == (True, str(catalog))


def test_the_catalogue_can_be_named(tmp_path):
    with open_host(given("--catalog", str(tmp_path / "x")), creates=True) as host:
        assert host.catalog.path == str(tmp_path / "x")


def test_a_warning_goes_to_standard_error(capsys: pytest.CaptureFixture[str]):
    warn("the chain of \x1b was changed")
    assert capsys.readouterr() == ("", "warning: the chain of \\x1b was changed\n")


def test_an_error_begins_with_what_could_not_be_done():
    with pytest.raises(Refused) as caught, failing("Failed to look"):
        raise Refused(reason="it is dark")
    assert caught.value.facts["before"] == ["Failed to look"]
