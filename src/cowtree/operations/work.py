"""How every verb begins: one command at a time for each guest, what was cut short is settled, what others did told."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from cowtree.catalog import domains, intents
from cowtree.catalog.domains import Domain
from cowtree.catalog.intents import Intent
from cowtree.errors import CatalogError, CowtreeError, NoSuchDomain, Refused
from cowtree.operations import drift, jobs
from cowtree.operations.host import Host, Subject, subject
from cowtree.operations.settle import settle

LOCKS: Final = "locks"
WAIT_S: Final = 10.0
RETRY_S: Final = 0.05


@contextmanager
def at_work(host: Host, name: str, leaves: Callable[[Intent], bool] = lambda intent: False) -> Iterator[Subject]:
    """A guest that nobody else of ours touches meanwhile. What was cut short is settled first, but for what the verb
    itself goes on with; how its chains are is noted down when all went well.
    Raises: NoSuchDomain, Refused when another command is at work on it, and what settling raises.
    """
    domain = domains.find(host.catalog, name)
    with _locked(host, domain, WAIT_S):
        left = settle(host, domain, leaves)
        found = subject(host, domains.find(host.catalog, domain.uuid))
        if not left:
            drift.explain(host, found)
        yield found
        # A verb may have forgotten the guest altogether.
        with suppress(NoSuchDomain):
            drift.note(host, subject(host, domains.find(host.catalog, domain.uuid)))


def look_at(host: Host, name: str) -> Subject:
    """A guest that is only looked at. What was cut short is settled, unless another command is at work on it; a merge
    that was asked for by name is told of, for it may take long and harms nobody meanwhile.
    """
    domain = domains.find(host.catalog, name)
    left = list[Intent]()
    if intents.found(host.catalog, domain):
        try:
            with _locked(host, domain, wait_s=0):
                left = settle(host, domain, jobs.is_patient)
        # Whatever stands against that, it hinders nobody from looking.
        except CowtreeError as error:
            host.tell(str(error))
    found = subject(host, domains.find(host.catalog, domain.uuid))
    for intent in left:
        host.tell(jobs.sentence(intent))
    if not left:
        drift.explain(host, found)
    return found


@contextmanager
def _locked(host: Host, domain: Domain, wait_s: float) -> Iterator[None]:
    folder = os.path.join(os.path.dirname(host.catalog.path), LOCKS)
    path = os.path.join(folder, domain.uuid)
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CatalogError(path=path, reason=str(error.strerror)) from error
    try:
        _wait_for_lock(descriptor, domain, wait_s)
        yield
    finally:
        os.close(descriptor)


def _wait_for_lock(descriptor: int, domain: Domain, wait_s: float) -> None:
    end_s = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= end_s:
                reason = f"another command is at work on domain '{domain.name}'"
                raise Refused(reason=reason, hint="the same again when it is done") from None
            time.sleep(RETRY_S)
