"""What is kept of each domain: which snapshots, and how deep its chains may be."""

from typing import NamedTuple

from cowtree.catalog.domains import Domain
from cowtree.catalog.store import Catalog


class Policy(NamedTuple):
    """What is kept. `keep` is a rule as `keep.py` reads it, empty when all stay; `max_depth` counts images."""

    keep: str
    max_depth: int | None = None


def put(catalog: Catalog, domain: Domain, policy: Policy) -> None:
    """Give a domain this policy, in place of the one that it had."""
    catalog.change("INSERT OR REPLACE INTO policy (domain, keep, max_depth) VALUES (?, ?, ?)", domain.id, *policy)


def find(catalog: Catalog, domain: Domain) -> Policy | None:
    """The policy of a domain, if it has one."""
    rows = catalog.read("SELECT keep, max_depth FROM policy WHERE domain = ?", domain.id)
    return Policy(*rows[0]) if rows else None


def remove(catalog: Catalog, domain: Domain) -> bool:
    """Let a domain have no policy. Returns: whether it had one."""
    return catalog.change("DELETE FROM policy WHERE domain = ?", domain.id) > 0
