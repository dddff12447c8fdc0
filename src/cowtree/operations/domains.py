"""Guests become known and are forgotten: from libvirt's XML, or from their images alone. No image is changed by it."""

import os
from collections.abc import Sequence
from typing import NamedTuple

from cowtree.catalog import domains, snapshots
from cowtree.catalog.domains import Domain
from cowtree.chain import gate
from cowtree.chain.view import open_chain
from cowtree.domain import definition
from cowtree.domain.definition import Definition
from cowtree.errors import CowtreeError, NoSuchDomain, Refused, WrongUse
from cowtree.images.family import find
from cowtree.operations import drift
from cowtree.operations.host import Host, subject
from cowtree.operations.places import places
from cowtree.operations.work import at_work
from cowtree.storage.contract import Access


class Adopted(NamedTuple):
    """A disk of a guest that was adopted; `is_guessed` when its format is raw only because it is nothing else."""

    target: str
    path: str
    format: str
    is_guessed: bool


def define(host: Host, text: bytes | str) -> Definition:
    """Let a guest be known, or give one that is known another definition. What is not understood is kept, and told.
    Raises: BrokenXml, Refused when name and uuid are those of different guests.
    """
    wanted = definition.parse(text)
    if wanted.uuid is None:
        wanted = wanted.with_uuid(_new_uuid())
    known = _known(host, wanted)
    if unknown := definition.unknown(wanted):
        host.tell(f"kept, but not understood: {', '.join(unknown)}")
    _tell_formats(host, wanted)
    if known is None:
        _add(host, wanted)
    else:
        with at_work(host, known.uuid) as found:
            domains.redefine(host.catalog, found.domain, wanted.text)
    return wanted


def _new_uuid() -> str:
    import uuid  # noqa: PLC0415  it takes longer to load than most commands need

    return str(uuid.UUID(bytes=os.urandom(16), version=4))


def _known(host: Host, wanted: Definition) -> Domain | None:
    """The guest of this name and uuid. Raises: Refused when there is one with half of that."""
    same_name = next((each for each in domains.everyone(host.catalog) if each.name == wanted.name), None)
    same_uuid = next((each for each in domains.everyone(host.catalog) if each.uuid == wanted.uuid), None)
    if same_name is not None and same_name.uuid != wanted.uuid:
        reason = f"operation failed: domain '{same_name.name}' already exists with uuid {same_name.uuid}"
        raise Refused(reason=reason, hint="give the XML that uuid, or another name")
    if same_uuid is not None and same_uuid.name != wanted.name:
        reason = f"operation failed: domain '{same_uuid.name}' is already defined with uuid {same_uuid.uuid}"
        raise Refused(reason=reason, hint="leave <uuid> out, and one is made")
    return same_name


def _tell_formats(host: Host, wanted: Definition) -> None:
    """Tell of disks of which nothing is said, and which would be read as something else than they are."""
    for disk in wanted.disks:
        if disk.source is None or disk.format is not None:
            continue
        try:
            layer = gate.open_alone(host.files, disk.source, None, Access.PROBE)
        except CowtreeError:
            continue
        layer.close()
        if layer.format != gate.RAW:
            host.tell(
                f"disk {disk.target} is raw, for no <driver type=.../> says more; but {disk.source} looks like "
                f"{layer.format}"
            )


def _add(host: Host, new: Definition) -> None:
    made = domains.add(host.catalog, new.name, new.uuid or "", new.text)
    drift.note(host, subject(host, made))


def undefine(host: Host, name: str, *, drops_metadata: bool) -> str:
    """Forget a guest. Returns: its name. Raises: NoSuchDomain, Refused when it has snapshots that are not to be
    forgotten.
    """
    with at_work(host, name) as found:
        count = len(snapshots.rows(host.catalog, found.domain))
        if count and not drops_metadata:
            reason = f"Requested operation is not valid: cannot delete inactive domain with {count} snapshots"
            hint = "--snapshots-metadata forgets them too; their files stay, and cowtree does not know any more whose"
            raise Refused(reason=reason, hint=hint)
        domains.remove(host.catalog, found.domain)
        return found.domain.name


def adopt(host: Host, name: str, paths: Sequence[str], image_format: str | None = None) -> list[Adopted]:
    """Let a guest be known of whom there are only images. A format that is not given is told from the image, and kept.
    Raises: Refused when one is another guest's, WrongUse, and what opening raises.
    """
    _refuse_known(host, name)
    paths = [os.path.abspath(path) for path in paths]
    disks = [_look(host, f"vd{definition.letters(index)}", path, image_format) for index, path in enumerate(paths)]
    identities = [host.files.identity(path) for path in paths]
    for path, identity in zip(paths, identities, strict=True):
        if identities.count(identity) > 1:
            raise WrongUse(reason=f"{path} is named twice, and one guest has no two disks in one file")
        _refuse_others(host, path, identity)
    made = definition.make(name, _new_uuid(), [(disk.path, disk.format) for disk in disks])
    for path in paths:
        _tell_who_relies(host, path)
    _add(host, made)
    return disks


def _refuse_known(host: Host, name: str) -> None:
    try:
        known = domains.find(host.catalog, name)
    except NoSuchDomain:
        return
    reason = f"operation failed: domain '{known.name}' already exists with uuid {known.uuid}"
    raise Refused(reason=reason, hint="another name")


def _look(host: Host, target: str, path: str, image_format: str | None) -> Adopted:
    """What a disk is. Raises: what stands against reading its chain."""
    chain = open_chain(host.files, path, image_format, Access.PROBE)
    chain.close()
    top = chain.top
    return Adopted(target, path, top.format, top.was_probed and top.format == gate.RAW)


def _refuse_others(host: Host, path: str, identity: tuple[int, int]) -> None:
    for domain in domains.everyone(host.catalog):
        for disk in definition.parse(domain.xml).disks:
            if disk.source is not None and _is(host, disk.source, identity):
                reason = f"{path} is disk {disk.target} of domain '{domain.name}' already"
                raise Refused(reason=reason, hint=f"an overlay on it: cowtree img create -b {path} -F FORMAT NEW")


def _is(host: Host, path: str, identity: tuple[int, int]) -> bool:
    try:
        return host.files.identity(path) == identity
    except CowtreeError:
        return False


def _tell_who_relies(host: Host, path: str) -> None:
    """Tell of images and snapshots that show something else as soon as the guest writes."""
    kin = find(host.files, path, places(host))
    ruined = [*kin.family.paths(kin.family.overlays(kin.find(host.files, path)))]
    ruined += [f"snapshot '{name}' of domain '{domain}'" for domain, name in snapshots.holders(host.catalog, path)]
    if ruined:
        host.tell(f"{', '.join(ruined)} would be ruined as soon as the guest writes to {path}")
