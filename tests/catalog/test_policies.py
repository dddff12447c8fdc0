"""Policies of domains: set, replaced, removed, and gone with their domain."""

from cowtree.catalog import domains, policies
from cowtree.catalog.policies import Policy


def test_a_policy_is_what_was_put_last(catalog, domain):
    assert policies.find(catalog, domain) is None
    policies.put(catalog, domain, Policy("24h", 4))
    policies.put(catalog, domain, Policy("7d"))
    assert policies.find(catalog, domain) == Policy("7d", None)


def test_a_policy_can_be_removed_once(catalog, domain):
    policies.put(catalog, domain, Policy("24h"))
    assert policies.remove(catalog, domain)
    assert not policies.remove(catalog, domain)
    assert policies.find(catalog, domain) is None


def test_a_policy_goes_with_its_domain(catalog, domain):
    policies.put(catalog, domain, Policy("24h"))
    domains.remove(catalog, domain)
    assert catalog.read("SELECT * FROM policy") == []
