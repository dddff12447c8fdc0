"""Giving a disk of a guest another size: its active image alone changes, and only when nobody else relies on it."""

from typing import Final

from cowtree.catalog import intents
from cowtree.catalog.intents import Intent
from cowtree.chain import gate
from cowtree.chain.view import open_chain
from cowtree.errors import CowtreeError, Refused, WrongUse
from cowtree.images.resize import resize
from cowtree.operations.host import Host, Subject
from cowtree.operations.layers import find_disk
from cowtree.operations.revert import relies_on
from cowtree.qcow2.geometry import round_up
from cowtree.storage.contract import Access
from cowtree.units import SECTOR_BYTES, format_size

VERB: Final = "blockresize"


def blockresize(host: Host, subject: Subject, word: str, size_bytes: int, *, shrinks: bool = False) -> None:
    """Give a disk another size, rounded up to whole sectors.
    Raises: WrongUse when there is no such disk, Refused when somebody else relies on its image, or when it would become
    smaller and that is not meant; and what opening and writing raise.
    """
    stack, layer = find_disk(host, subject, word)
    path, image_format = stack.paths[0], stack.disk.format or gate.RAW
    if layer:
        raise Refused(reason=f"{stack.paths[layer]} is not the active image of disk {stack.target}", hint=stack.target)
    if size_bytes <= 0:
        raise WrongUse(reason=f"invalid argument: a disk cannot have {size_bytes} bytes", hint="cowtree domblkinfo")
    if relies_on(host, path):
        reason = f"a snapshot or an image relies on {path} as it is, which is the active image of disk {stack.target}"
        raise Refused(reason=reason, hint="take a snapshot first, and resize the disk that goes on")
    size_bytes = round_up(size_bytes, SECTOR_BYTES)
    old_bytes = _size_bytes(host, path, image_format)
    if size_bytes < old_bytes and not shrinks:
        past = f"all that lies past {format_size(size_bytes)} would be lost"
        raise Refused(reason=f"{path} has {format_size(old_bytes)}: {past}", hint="--shrink, if that is meant")
    content = {"target": stack.target, "path": path, "format": image_format, "old": old_bytes, "size": size_bytes}
    intent = intents.begin(host.catalog, subject.domain, VERB, content)
    try:
        _resize(host, intent)
    except CowtreeError:
        # Either nothing was changed, or all but what the next call does.
        intents.end(host.catalog, intent)
        raise
    intents.end(host.catalog, intent)


def _size_bytes(host: Host, path: str, image_format: str) -> int:
    chain = open_chain(host.files, path, image_format, Access.PROBE)
    chain.close()
    return chain.size_bytes


def _resize(host: Host, intent: Intent) -> None:
    chain = open_chain(host.files, intent.content["path"], intent.content["format"], Access.WRITE)
    try:
        resize(chain, intent.content["size"])
    finally:
        chain.close()


def settle(host: Host, subject: Subject, intent: Intent) -> None:
    """Complete what was cut short. Raises: what opening and writing raise."""
    content = intent.content
    # Somebody may have given it yet another size meanwhile.
    if _size_bytes(host, content["path"], content["format"]) in (content["old"], content["size"]):
        _resize(host, intent)
    intents.end(host.catalog, intent)
    host.tell(f"resizing disk {content['target']} was cut short: it was completed")
