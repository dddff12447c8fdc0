"""What was cut short is settled in the order in which it was begun, each by its own verb."""

from cowtree.catalog import domains, intents
from cowtree.operations import settle
from tests.lab import Lab


def test_each_verb_settles_its_own(tmp_path, monkeypatch):
    lab, seen = Lab(tmp_path / "lab"), []

    def note(host, subject, intent):
        seen.append(intent.content["number"])
        intents.end(host.catalog, intent)

    monkeypatch.setitem(settle.SETTLERS, "one", note)
    monkeypatch.setitem(settle.SETTLERS, "two", note)
    with lab.host() as host:
        domain = domains.find(host.catalog, "guest")
        for number, verb in enumerate(["one", "two", "one"]):
            intents.begin(host.catalog, domain, verb, {"number": number})
        settle.settle(host, domain)
        assert intents.found(host.catalog, domain) == []
    assert seen == [0, 1, 2]
