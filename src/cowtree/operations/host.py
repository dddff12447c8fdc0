"""The host whose guests are spoken of: its files and its catalogue, and what every verb needs to know of one guest."""

from collections.abc import Callable
from typing import NamedTuple

from cowtree.catalog.domains import Domain
from cowtree.catalog.store import Catalog
from cowtree.domain.definition import Definition, parse
from cowtree.guests.driver import Guest
from cowtree.guests.offline import Offline
from cowtree.storage.contract import FileSystem


class Host(NamedTuple):
    """Where guests are defined. `tell` hears, in a sentence, what nobody asked for and everybody should know."""

    files: FileSystem
    catalog: Catalog
    tell: Callable[[str], None]


class Subject(NamedTuple):
    """The guest that a verb is about."""

    domain: Domain
    definition: Definition
    guest: Guest

    def source(self, target: str) -> str:
        """The active file of a disk that has one."""
        path = next(disk.source for disk in self.definition.disks if disk.target == target)
        if path is None:
            raise KeyError(target)
        return path


def subject(host: Host, domain: Domain) -> Subject:
    """What there is to know of a guest."""
    return Subject(domain, parse(domain.xml), Offline(host.files))
