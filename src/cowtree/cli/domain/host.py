"""The host that the verbs work on, opened: the files of this machine and the catalogue that was named; and what most
of the verbs on snapshots begin with.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cowtree.cli.domain.words import CATALOG, Given, Option
from cowtree.cli.tree import printable
from cowtree.errors import CowtreeError, NoSuchSnapshot, WrongUse

if TYPE_CHECKING:
    from cowtree.catalog.domains import Domain
    from cowtree.catalog.snapshots import Snapshot
    from cowtree.operations.host import Host

SNAPSHOT = Option("snapshotname", "the name of a snapshot", "snapshotname")
CURRENT = Option("current", "the current snapshot, on which the disks lie now")


@contextmanager
def open_host(given: Given, *, creates: bool = False) -> Iterator["Host"]:
    """The host for one command; without `creates` a catalogue that is not there is empty. Raises: CatalogError."""
    from cowtree.catalog.store import open_catalog  # noqa: PLC0415  help needs none of it
    from cowtree.operations.host import Host  # noqa: PLC0415
    from cowtree.storage.file import LocalFiles  # noqa: PLC0415

    with open_catalog(given.get(CATALOG.name), creates=creates) as catalog:
        yield Host(LocalFiles(), catalog, warn)


def warn(sentence: str) -> None:
    """Say what nobody asked for and everybody should know."""
    sys.stdout.flush()
    print(f"warning: {printable(sentence)}", file=sys.stderr)


def find_snapshot(given: Given, host: "Host", domain: "Domain") -> "Snapshot":
    """The snapshot that is named by `--snapshotname`, or is current. Raises: NoSuchSnapshot, WrongUse."""
    from cowtree.catalog import snapshots  # noqa: PLC0415

    name, is_current = given.get(SNAPSHOT.name), given.has(CURRENT.name)
    if name is not None and is_current:
        raise WrongUse(reason=f"--{SNAPSHOT.name} and --{CURRENT.name} are mutually exclusive")
    if name is not None:
        return snapshots.find(host.catalog, domain, name)
    if not is_current:
        hint = f"cowtree snapshot-list {domain.name}"
        raise WrongUse(reason=f"--{SNAPSHOT.name} or --{CURRENT.name} is required", hint=hint)
    return current_snapshot(host, domain)


def current_snapshot(host: "Host", domain: "Domain") -> "Snapshot":
    """The snapshot on which a domain's disks lie. Raises: NoSuchSnapshot when they lie on none."""
    from cowtree.catalog import snapshots  # noqa: PLC0415

    if domain.current is None:
        raise NoCurrentSnapshot(domain=domain.name)
    return snapshots.get(host.catalog, domain.current)


class NoCurrentSnapshot(NoSuchSnapshot):
    """A domain's disks lie on no snapshot."""

    text = "Domain snapshot not found: the domain does not have a current snapshot"


@contextmanager
def failing(what: str) -> Iterator[None]:
    """Let an error begin with what could not be done because of it, as stock does."""
    try:
        yield
    except CowtreeError as error:
        error.facts["before"] = [what]
        raise
