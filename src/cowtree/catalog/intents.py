"""Intents: what is being done to a domain's files, noted before the first of them is touched.

An intent goes away in the transaction that notes what it led to. One that is found open was cut short.
"""

import json
from typing import Any, NamedTuple

from cowtree.catalog.domains import Domain
from cowtree.catalog.store import Catalog


class Intent(NamedTuple):
    """Something begun; `content` is what its verb needs to go on or to go back. Units: nanoseconds since 1970."""

    id: int
    verb: str
    content: dict[str, Any]
    started_ns: int


def begin(catalog: Catalog, domain: Domain, verb: str, content: dict[str, Any]) -> Intent:
    """Note that something begins."""
    now_ns = catalog.now_ns()
    words = "INSERT INTO intent (domain, verb, content, started_ns) VALUES (?, ?, ?, ?)"
    number = catalog.add(words, domain.id, verb, json.dumps(content), now_ns)
    return Intent(number, verb, content, now_ns)


def found(catalog: Catalog, domain: Domain) -> list[Intent]:
    """What was begun for a domain and not ended, the first one first."""
    words = "SELECT id, verb, content, started_ns FROM intent WHERE domain = ? ORDER BY id"
    return [
        Intent(number, verb, json.loads(content), ns) for number, verb, content, ns in catalog.read(words, domain.id)
    ]


def end(catalog: Catalog, intent: Intent) -> None:
    """Note that it is done, or taken back; belongs into the transaction that notes the result."""
    catalog.change("DELETE FROM intent WHERE id = ?", intent.id)
