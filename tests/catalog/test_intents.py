"""Intents are there until they are ended."""

from cowtree.catalog import domains, intents


def test_an_intent_is_found_until_it_is_ended(catalog, domain):
    first = intents.begin(catalog, domain, "create", {"paths": ["/a\udcff"]})
    second = intents.begin(catalog, domain, "revert", {})
    assert intents.found(catalog, domain) == [first, second]
    assert first.started_ns == 7_000
    intents.end(catalog, first)
    assert intents.found(catalog, domain) == [second]


def test_each_guest_has_its_own(catalog, domain):
    other = domains.add(catalog, "other", "0-2", "")
    intents.begin(catalog, domain, "create", {})
    assert intents.found(catalog, other) == []
