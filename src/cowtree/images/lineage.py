"""Whether a base is still what it was when its overlay was made.

An overlay keeps a record of its base in its header, and where that has no room the catalogue may keep it. What is cheap
is asked first: when length and times are the same nobody has written to the base. Else its fingerprint decides.

A record says what the base was when the record was made. A merge that changes a base and knows that all who read it see
the same as before lets them keep a new one: `record`.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from cowtree.chain import gate, load
from cowtree.chain.gate import Layer
from cowtree.chain.view import Chain
from cowtree.errors import CowtreeError, MarkedCorrupt, Refused, StaleBase, StorageFailed
from cowtree.execute.run import run
from cowtree.images.fingerprint import fingerprint
from cowtree.monitor import Silent
from cowtree.plan.create import NewImage
from cowtree.qcow2 import lineage
from cowtree.qcow2.header import Header
from cowtree.qcow2.lineage import BaseRecord
from cowtree.storage.contract import Access, FileSystem, Times

if TYPE_CHECKING:
    from cowtree.catalog.store import Catalog

# What a comparison may find. A base is touched when its times have changed and its fingerprint has not: a copy, a
# snapshot, or a change so small that no sample shows it.
UNCHANGED, TOUCHED, CHANGED, UNKNOWN = STATES = ("unchanged", "touched", "changed", "unknown")
# The clocks of file systems tick as slowly as this: what changes twice within a tick has the same time.
TICK_NS: Final = 3_000_000_000
_64_BITS: Final = (1 << 64) - 1


class Finding(NamedTuple):
    """What became of one overlay's base. `overlay` and `base` are paths; the note says why nothing is known."""

    overlay: str
    base: str
    state: str
    note: str | None = None


def observe(files: FileSystem, name: str, image_format: str | None) -> BaseRecord:
    """What identifies a base as it is now. It is read without locks: a guest that uses it is not in the way.
    Raises: what opening and reading raise.
    """
    with _opened(files, name, image_format) as layer:
        times = _times(files, layer)
        is_settled = time.time_ns() - times.ctime_ns > TICK_NS
        return BaseRecord(times.size_bytes, times.mtime_ns, times.ctime_ns if is_settled else 0, fingerprint(layer))


def noted(files: FileSystem, new: NewImage) -> NewImage:
    """The new overlay, with a record of its base as that is now; without one when the base cannot be looked at."""
    if new.backing_file is None or new.format != gate.QCOW2:
        return new
    try:
        known = observe(files, gate.locate(new.path, new.backing_file), new.backing_format)
    except CowtreeError:
        return new
    return new._replace(base_record=known)


def record(files: FileSystem, path: str, image_format: str | None = None, *, catalog: "Catalog | None" = None) -> bool:
    """Let an overlay keep a record of its base as that is now. Without room in its header only the catalogue keeps it.
    Returns: whether anything keeps it.
    Raises: Refused when it has no base, MarkedCorrupt, and what opening, reading and writing raise.
    """
    layer = gate.open_alone(files, path, image_format, Access.WRITE)
    try:
        header, image = layer.header, load.load_image(layer)
        if header is None or image is None or header.backing_file is None:
            raise Refused(reason=f"{layer.path} has no backing file")
        if header.is_corrupt:
            raise MarkedCorrupt(path=layer.path)
        known = observe(files, _base_name(files, layer.path, header), header.backing_format)
        steps = lineage.record_steps(image, layer.file.pread(0, 1 << header.cluster_bits), known)
        run(steps, layer.file, Chain((layer,), (image,)), Silent())
        if catalog is not None:
            catalog.remember_base(files.identity(layer.path), lineage.link_of(header), lineage.pack(known))
        return catalog is not None or lineage.has_room(lineage.with_record(header, known))
    finally:
        layer.close()


def forget(layer: Layer) -> None:
    """Let an overlay that is open for writing keep no record: durable when this returns, and no word is better than a
    wrong one. Raises: StorageFailed.
    """
    header, image = layer.header, load.load_image(layer)
    if header is not None and image is not None and lineage.find_record(header)[0] is not None:
        steps = lineage.record_steps(image, layer.file.pread(0, 1 << header.cluster_bits), None)
        run(steps, layer.file, Chain((layer,), (image,)), Silent())


def record_quietly(files: FileSystem, path: str, image_format: str | None = None) -> None:
    """The same where a record is welcome and not the purpose: what cannot be recorded is not.
    Raises: StorageFailed: a disk that is full or broken is never passed over.
    """
    try:
        record(files, path, image_format)
    except StorageFailed:
        raise
    except CowtreeError:
        return


def compare(files: FileSystem, path: str, header: Header, catalog: "Catalog | None" = None) -> Finding:
    """Compare the base of an overlay, whose header this is, with what was known of it.
    Raises: what opening and reading the base raise.
    """
    name = _base_name(files, path, header)
    known, note = lineage.find_record(header)
    if known is None and note is None and catalog is not None:
        known = _recall(files, path, header, catalog)
    with _opened(files, name, header.backing_format) as base:
        if known is None:
            return Finding(path, base.path, UNKNOWN, note)
        return Finding(path, base.path, _judge(files, base, known))


def stale(files: FileSystem, chain: Chain) -> list[StaleBase]:
    """The layers of an open chain whose base was changed after they were made, the top first. What cannot be compared
    is left out.
    """
    found = []
    for above in chain.layers[:-1]:
        # What the caller gave as a base is not what the image names.
        if above.header is None or (above.address and above.address.backing):
            continue
        with suppress(CowtreeError):
            finding = compare(files, above.path, above.header)
            if finding.state == CHANGED:
                found.append(StaleBase(path=above.path, base=finding.base))
    return found


def _judge(files: FileSystem, base: Layer, known: BaseRecord) -> str:
    times = _times(files, base)
    size_and_mtime = (times.size_bytes & _64_BITS, times.mtime_ns & _64_BITS)
    is_same = size_and_mtime == (known.size_bytes, known.mtime_ns)
    if is_same and known.ctime_ns and times.ctime_ns & _64_BITS == known.ctime_ns:
        return UNCHANGED
    if fingerprint(base) != known.fingerprint:
        return CHANGED
    return UNCHANGED if is_same else TOUCHED


def _times(files: FileSystem, layer: Layer) -> Times:
    """Length and times of a layer, its external data file taken together with it."""
    found = [files.times(layer.path)]
    if layer.header and layer.header.geometry.has_data_file and layer.data is not None:
        found.append(files.times(layer.data.path))
    return Times(
        sum(each.size_bytes for each in found),
        max(each.mtime_ns for each in found),
        max(each.ctime_ns for each in found),
    )


def _recall(files: FileSystem, path: str, header: Header, catalog: "Catalog") -> BaseRecord | None:
    """What the catalogue knows. Only for an overlay whose header cannot keep a record: any other one that has none may
    have been made anew since, under the same number.
    """
    if lineage.has_room(header):
        return None
    data = catalog.recall_base(files.identity(path), lineage.link_of(header))
    return None if data is None else lineage.parse(data)


def _base_name(files: FileSystem, path: str, header: Header) -> str:
    """What the base of an overlay is opened by. Raises: Refused, ChainError."""
    name = header.backing_file
    if name is None:
        raise Refused(reason=f"{path} has no backing file")
    if not files.follows_addresses:
        gate.refuse_address(path, name)
    return gate.locate(path, name)


@contextmanager
def _opened(files: FileSystem, name: str, image_format: str | None) -> Iterator[Layer]:
    layer = gate.open_layer(files, name, image_format, Access.SHARED)
    try:
        yield layer
    finally:
        layer.close()
