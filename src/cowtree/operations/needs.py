"""Who needs a file: snapshots, guests, and images that lie on it. What is not ours, or is needed, is never removed.

Removing files is the last part of several verbs. Which ones is noted in the transaction that makes them superfluous,
so that a run which is cut short leaves nothing behind.
"""

import os
from collections.abc import Iterable, Iterator
from typing import Final

from cowtree.catalog import intents, snapshots
from cowtree.catalog.intents import Intent
from cowtree.chain import gate
from cowtree.errors import CowtreeError, MissingImage
from cowtree.images.family import find
from cowtree.operations.host import Host, Subject
from cowtree.operations.places import places
from cowtree.storage.contract import Access, is_there

VERB: Final = "remove"


def who_needs(host: Host, path: str) -> Iterator[str]:
    """Who needs a file that is there, in words, each as a reason not to remove it."""
    yield from (f"snapshot '{name}' of domain '{domain}'" for domain, name in snapshots.holders(host.catalog, path))
    yield from (f"domain '{name}'" for name in snapshots.users(host.catalog, path))
    kin = find(host.files, path, places(host))
    index = kin.find(host.files, path)
    yield from kin.family.paths(kin.family.overlays(index))
    if kin.family.members[index].use is not None:
        yield "another process"


def is_ours(host: Host, path: str) -> bool:
    """Whether a file is the very one that we made under this name. Raises: MissingImage when that cannot be told."""
    made = snapshots.made(host.catalog, path)
    return made is not None and is_there(host.files, path) and host.files.identity(path) == made


def with_ours_below(host: Host, paths: Iterable[str]) -> list[str]:
    """Files and those of ours on which they lie, each before what is below it."""
    found: dict[str, None] = {}
    for path in paths:
        step: str | None = path
        while step is not None and step not in found and is_ours(host, step):
            found[step] = None
            step = below(host, step)
    return list(found)


def below(host: Host, path: str) -> str | None:
    """The file on which an image of ours lies; None when there is none, or that cannot be read."""
    try:
        layer = gate.open_alone(host.files, path, gate.QCOW2, Access.SHARED)
    except CowtreeError:
        return None
    backing = layer.header.backing_file if layer.header else None
    layer.close()
    return None if backing is None else os.path.abspath(gate.locate(path, backing))


def begin_removal(host: Host, subject: Subject, paths: list[str]) -> Intent | None:
    """Note which files go when nobody needs them; belongs into the transaction that makes them superfluous."""
    return intents.begin(host.catalog, subject.domain, VERB, {"paths": paths}) if paths else None


def remove(host: Host, intent: Intent | None) -> None:
    """Remove those of the files that are ours and that nobody needs."""
    if intent is None:
        return
    folders = set()
    for path in intent.content["paths"]:
        if is_ours(host, path) and not any(who_needs(host, path)):
            host.files.unlink(path)
            folders.add(os.path.dirname(path) or ".")
    for folder in sorted(folders):
        host.files.sync_folder(folder)
    with host.catalog.together():
        for path in intent.content["paths"]:
            if not _is_there(host, path):
                snapshots.forget_made(host.catalog, path)
        intents.end(host.catalog, intent)


def _is_there(host: Host, path: str) -> bool:
    try:
        return is_there(host.files, path)
    except MissingImage:
        return True


def settle(host: Host, subject: Subject, intent: Intent) -> None:
    """Remove what a run that was cut short has left."""
    remove(host, intent)
