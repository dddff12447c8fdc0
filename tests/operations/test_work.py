"""One command at a time for each guest."""

import pytest

from cowtree.catalog import domains, intents
from cowtree.errors import NoSuchDomain, Refused
from cowtree.operations import work
from cowtree.operations.work import at_work, look_at
from tests.lab import Lab


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path / "lab")


def test_two_commands_do_not_work_on_one_guest(lab, monkeypatch):
    monkeypatch.setattr(work, "WAIT_S", 0.1)
    with lab.at_work(), pytest.raises(Refused, match="another command is at work on domain 'guest'"), lab.at_work():
        pass
    with lab.at_work():
        pass


def test_looking_waits_for_nobody(lab):
    with lab.at_work() as (host, found):
        intents.begin(host.catalog, found.domain, "remove", {"paths": []})
        assert look_at(host, "guest").domain == found.domain
        assert "another command is at work" in lab.told[0]
    lab.settle()
    with lab.host() as host:
        assert intents.found(host.catalog, domains.find(host.catalog, "guest")) == []


def test_how_the_chains_are_is_noted_when_all_went_well(lab):
    with lab.host() as host, pytest.raises(ZeroDivisionError), at_work(host, "guest"):
        raise ZeroDivisionError
    with lab.host() as host:
        domain = domains.find(host.catalog, "guest")
        assert domains.left(host.catalog, domain) == {}
        with at_work(host, "guest"):
            pass
        assert list(domains.left(host.catalog, domain)) == ["vda"]


def test_nobody_is_found_who_is_not_there(lab):
    with lab.host() as host, pytest.raises(NoSuchDomain):
        look_at(host, "other")
