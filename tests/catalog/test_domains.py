"""Guests in the catalogue."""

import pytest

from cowtree.catalog import domains
from cowtree.catalog.domains import Layer
from cowtree.errors import NoSuchDomain, Refused


def test_a_guest_is_found_by_name_and_by_number(catalog, domain):
    assert domains.find(catalog, "guest") == domains.find(catalog, "0-1") == domain
    with pytest.raises(NoSuchDomain, match="failed to get domain 'other'"):
        domains.find(catalog, "other")


def test_name_and_number_are_taken_once(catalog, domain):
    with pytest.raises(Refused, match="name 'guest' already exists"):
        domains.add(catalog, "guest", "0-2", "")
    with pytest.raises(Refused, match="uuid '0-1' already exists"):
        domains.add(catalog, "other", "0-1", "")
    assert domains.everyone(catalog) == [domain]


def test_a_definition_is_replaced(catalog, domain):
    domains.redefine(catalog, domain, "<domain>2</domain>")
    assert domains.find(catalog, "guest").xml == "<domain>2</domain>"


def test_chains_are_noted_as_they_were_left(catalog, domain):
    chains = {
        "vda": [Layer("/top\udcff", (2**63 + 1, 2), 3, 4), Layer("/base", (1, 5), 6, 7)],
        "vdb": [Layer("/b", (1, 8), 9, 10)],
    }
    domains.leave(catalog, domain, {"vdc": chains["vda"]})
    domains.leave(catalog, domain, chains)
    assert domains.left(catalog, domain) == chains


def test_a_guest_is_forgotten_with_all_that_is_known_of_it(catalog, domain):
    domains.leave(catalog, domain, {"vda": [Layer("/a", (1, 2), 3, 4)]})
    domains.remove(catalog, domain)
    assert catalog.read("SELECT count(*) FROM layer") == [(0,)]
