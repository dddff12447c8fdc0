"""What was begun and cut short: found by the next command, explained, and taken back or completed."""

from collections.abc import Callable
from typing import Final

from cowtree.catalog import domains, intents
from cowtree.catalog.domains import Domain
from cowtree.catalog.intents import Intent
from cowtree.operations import copy, create, delete, jobs, needs, resize, revert
from cowtree.operations.host import Host, Subject, subject

# What each verb does with its own intent; it ends the intent, or raises and says why that cannot be.
SETTLERS: Final[dict[str, Callable[[Host, Subject, Intent], None]]] = {
    create.VERB: create.settle,
    revert.VERB: revert.settle,
    needs.VERB: needs.settle,
    delete.VERB: delete.settle,
    jobs.VERB: jobs.settle,
    jobs.DONE: jobs.settle_done,
    copy.VERB: copy.settle,
    resize.VERB: resize.settle,
}


def settle(host: Host, domain: Domain, leaves: Callable[[Intent], bool] = lambda intent: False) -> list[Intent]:
    """Settle all that was begun for a guest and not ended, but for what the caller `leaves`. Returns: that.
    Raises: what stands against it.
    """
    found = intents.found(host.catalog, domain)
    for intent in found:
        if leaves(intent):
            continue
        SETTLERS[intent.verb](host, subject(host, domains.find(host.catalog, domain.uuid)), intent)
    return [intent for intent in found if leaves(intent)]
