"""What overlays tell of the moments below them is put right when a merge has changed what lies there: names, parents
and links as they are now, for whoever loses the catalogue later.
"""

from contextlib import suppress

from cowtree.catalog import snapshots
from cowtree.catalog.domains import Domain
from cowtree.catalog.snapshots import EXTERNAL, MANUAL, NO, Snapshot
from cowtree.catalog.store import Identity
from cowtree.chain import gate
from cowtree.chain.load import load_image
from cowtree.chain.view import Chain
from cowtree.domain.definition import parse
from cowtree.errors import CowtreeError, StorageFailed
from cowtree.execute.run import run
from cowtree.monitor import Silent
from cowtree.operations import needs
from cowtree.operations.host import Host
from cowtree.qcow2 import header as qcow2
from cowtree.qcow2.header_writes import rewrite
from cowtree.qcow2.moment import Moment, find_moment, with_moment
from cowtree.storage.contract import Access

Below = dict[tuple[str, Identity], Snapshot]


def renew(host: Host, domain: Domain) -> None:
    """Let those files of a guest that are ours tell of what lies below them now. What cannot be written stays as it is,
    for nothing but a lost catalogue would need it. Raises: StorageFailed: a disk that is broken is never passed over.
    """
    below = _below(host, domain)
    for path, target in _files(host, domain).items():
        try:
            if needs.is_ours(host, path):
                _renew(host, domain, path, target, below)
        except StorageFailed:
            raise
        except CowtreeError:
            continue


def _below(host: Host, domain: Domain) -> Below:
    """Which snapshot each file shows by itself, by disk."""
    found: Below = {}
    for number, disks in snapshots.all_disks(host.catalog, domain).items():
        for held in disks:
            if held.mode == EXTERNAL and held.lost is None:
                with suppress(CowtreeError):
                    found[held.target, host.files.identity(held.source)] = snapshots.get(host.catalog, number)
    return found


def _files(host: Host, domain: Domain) -> dict[str, str]:
    """All files of a guest that can be read, and of which disk each is."""
    heads = [(disk.target, disk.source, disk.format) for disk in parse(domain.xml).disks if disk.source is not None]
    for disks in snapshots.all_disks(host.catalog, domain).values():
        heads += [(held.target, held.source, held.format) for held in disks if held.mode not in (NO, MANUAL)]
    found: dict[str, str] = {}
    for target, path, image_format in heads:
        with suppress(CowtreeError):
            for layer in gate.walk(host.files, path, image_format or gate.RAW, Access.PROBE):
                layer.close()
                if layer.path in found:
                    break
                if layer.format == gate.QCOW2:
                    found[layer.path] = target
    return found


def _renew(host: Host, domain: Domain, path: str, target: str, below: Below) -> None:
    layer = gate.open_alone(host.files, path, gate.QCOW2, Access.PROBE)
    header = layer.header
    layer.close()
    if header is None:
        return
    base = None if header.backing_file is None else host.files.identity(gate.locate(path, header.backing_file))
    snapshot = None if base is None else below.get((target, base))
    old, is_true = find_moment(header)
    wanted = Moment(domain.name, domain.uuid, target, "", "", "", 0, old.made_ns if old else 0, path=path)
    if snapshot is not None:
        parent = "" if snapshot.parent is None else snapshots.get(host.catalog, snapshot.parent).name
        wanted = wanted._replace(
            name=snapshot.name,
            parent=parent,
            description=snapshot.description,
            created_ns=snapshot.created_ns,
            is_tip=snapshot.is_tip,
        )
    if old != wanted or not is_true:
        _write(host, path, wanted)


def _write(host: Host, path: str, wanted: Moment) -> None:
    layer = gate.open_alone(host.files, path, gate.QCOW2, Access.WRITE)
    try:
        image = load_image(layer)
        if image is None or image.header.is_corrupt:
            return
        header = with_moment(image.header, wanted)
        if header != image.header:
            header = header._replace(autoclear=header.autoclear & qcow2.KNOWN_AUTOCLEAR)
            steps = rewrite(image, layer.file.pread(0, 1 << header.cluster_bits), header)
            run(steps, layer.file, Chain((layer,), (image,)), Silent())
    finally:
        layer.close()
