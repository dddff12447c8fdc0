"""What another tool did to a guest's files behind our back: noticed, and told; nothing is guessed.

How the chains were is noted when a command of ours ends. What guests do to the active image is no surprise; whatever
else differs is.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress

from cowtree.catalog import domains
from cowtree.catalog.domains import Layer
from cowtree.catalog.snapshots import Held
from cowtree.chain import gate
from cowtree.chain.view import open_chain
from cowtree.domain.definition import Disk
from cowtree.errors import ChangedBehind, CowtreeError
from cowtree.images import lineage
from cowtree.operations.host import Host, Subject
from cowtree.storage.contract import Access, is_there


def explain(host: Host, subject: Subject) -> None:
    """Tell how the chains differ from what they were when a command of ours left them."""
    left = domains.left(host.catalog, subject.domain)
    for disk in subject.definition.disks:
        then = left.get(disk.target)
        # What a definition has named since is what somebody wants.
        if then and disk.source == then[0].path:
            for sentence in differences(host, disk, then):
                host.tell(f"disk {disk.target}: {sentence}")


def differences(host: Host, disk: Disk, then: Sequence[Layer]) -> Iterator[str]:
    """How a chain differs from what it was."""
    active = then[0].path
    try:
        now = layers(host, active, disk.format or gate.RAW)
    except CowtreeError as error:
        yield f"its chain cannot be read any more: {error.reason if len(then) == 1 else error.message}"
        return
    if [each.path for each in now] != [each.path for each in then]:
        yield f"it was {_drawn(then)}, and another tool has made it {_drawn(now)}"
        return
    for old, new in zip(then, now, strict=True):
        if old.identity != new.identity:
            yield f"{new.path} was replaced by another file of the same name"
    changed = [depth for depth in range(1, len(now)) if _is_written(then[depth], now[depth])]
    for depth in changed:
        if _shows_something_else(host, now[depth - 1].path):
            yield f"{now[depth].path} was written to, although {now[depth - 1].path} lies on it and relies on it"


def _drawn(layers: Sequence[Layer]) -> str:
    return " <- ".join(each.path for each in reversed(layers))


def _is_written(old: Layer, new: Layer) -> bool:
    return (old.identity, old.size_bytes, old.mtime_ns) != (new.identity, new.size_bytes, new.mtime_ns)


def _shows_something_else(host: Host, overlay: str) -> bool:
    """Whether the base of an overlay is not what it was; what cannot be told is taken for a change."""
    layer = gate.open_alone(host.files, overlay, gate.QCOW2, Access.SHARED)
    try:
        if layer.header is None:
            return True
        state = lineage.compare(host.files, overlay, layer.header, host.catalog).state
        return state in (lineage.CHANGED, lineage.UNKNOWN)
    finally:
        layer.close()


def refuse_changed(host: Host, held: Held) -> None:
    """Raises: ChangedBehind when the file that an external snapshot froze is not what it was then."""
    if held.overlay is None or not is_there(host.files, held.overlay):
        return
    layer = gate.open_alone(host.files, held.overlay, gate.QCOW2, Access.SHARED)
    try:
        base = layer.header and layer.header.backing_file
        if layer.header is None or base is None:
            return
        if host.files.identity(gate.locate(held.overlay, base)) != host.files.identity(held.source):
            return
        if lineage.compare(host.files, held.overlay, layer.header, host.catalog).state == lineage.CHANGED:
            reason = f"{held.source} was written to since the snapshot of disk {held.target} was taken"
            raise ChangedBehind(reason=reason, hint="--force goes on with what it shows now")
    finally:
        layer.close()


def note(host: Host, subject: Subject) -> None:
    """Note down how the chains are."""
    chains = {}
    for disk in subject.definition.disks:
        if disk.source is not None:
            with suppress(CowtreeError):
                chains[disk.target] = layers(host, disk.source, disk.format or gate.RAW)
    domains.leave(host.catalog, subject.domain, chains)


def layers(host: Host, path: str, image_format: str) -> list[Layer]:
    """The chain of an image as it is. Raises: what opening raises."""
    chain = open_chain(host.files, path, image_format, Access.PROBE)
    try:
        found = []
        for layer in chain.layers:
            times = host.files.times(layer.path)
            found.append(Layer(layer.path, host.files.identity(layer.path), times.size_bytes, times.mtime_ns))
        return found
    finally:
        chain.close()
