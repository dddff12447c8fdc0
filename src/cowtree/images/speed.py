"""How long a plan will take: by how fast the last large merge was on its disk, or else by how fast that writes now.

A speed counts what is read and written, as a price does. It is an estimate: nothing depends on it, and whatever keeps
it from being found is left out and fails nothing.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

from cowtree.catalog import speeds
from cowtree.catalog.store import open_catalog
from cowtree.errors import CatalogError
from cowtree.images.wish import Planned
from cowtree.units import MIB

# To write this takes less time than to move it, and of a plan that moves less nobody waits for the end.
SMALL_BYTES: Final = 64 * MIB
PROBE_BYTES: Final = 16 * MIB
PROBE_S: Final = 1.0
# What one hard disk does without seeking. It says only that a small merge is a matter of a moment.
ASSUMED_BYTES_PER_S: Final = 100 * MIB
REMEMBERED, MEASURED, ASSUMED = "remembered", "measured", "assumed"


class Estimate(NamedTuple):
    """How long something takes, and where that is known from."""

    seconds: float
    origin: str


def estimate(planned: Planned, catalog_path: str | None = None) -> tuple[Estimate | None, ...]:
    """How long each act of a plan will take; None where nobody knows. Each device is asked once."""
    traffic: dict[int, int] = {}
    folders: dict[int, str] = {}
    targets = [planned.family.members[act.target] for act in planned.plan.acts]
    for target, cost in zip(targets, planned.plan.costs, strict=True):
        traffic[target.device] = traffic.get(target.device, 0) + cost.traffic_bytes
        folders[target.device] = os.path.dirname(target.path) or "."
    found = {device: _speed(device, folders[device], traffic[device], catalog_path) for device in traffic}
    pairs = zip(targets, planned.plan.costs, strict=True)
    return tuple(_at(found[target.device], cost.traffic_bytes) for target, cost in pairs)


def total(estimates: Sequence[Estimate | None]) -> Estimate | None:
    """All acts together, one after the other; the least that is known of it decides."""
    known = [each for each in estimates if each is not None]
    if not known or len(known) < len(estimates):
        return None
    origins = {each.origin for each in known}
    origin = next(each for each in (ASSUMED, MEASURED, REMEMBERED) if each in origins)
    return Estimate(sum(each.seconds for each in known), origin)


def _at(speed: tuple[int, str] | None, traffic_bytes: int) -> Estimate | None:
    return None if speed is None else Estimate(traffic_bytes / speed[0], speed[1])


def _speed(device: int, folder: str, traffic_bytes: int, catalog_path: str | None) -> tuple[int, str] | None:
    with suppress(CatalogError), open_catalog(catalog_path, creates=False) as catalog:
        if remembered := speeds.recall(catalog, device):
            return remembered, REMEMBERED
    if traffic_bytes <= SMALL_BYTES:
        return ASSUMED_BYTES_PER_S, ASSUMED
    measured = measure(folder)
    return None if measured is None else (measured, MEASURED)


def measure(folder: str) -> int | None:
    """How many bytes a second can be written in a folder, durably: in a file without a name, which is gone at once.
    None where that cannot be found out.
    """
    try:
        descriptor = os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        # What reads as zeroes, or the same again and again, some disks need not write.
        content = os.urandom(MIB)
        start_s, written_bytes = time.monotonic(), 0
        while written_bytes < PROBE_BYTES and time.monotonic() - start_s < PROBE_S:
            written_bytes += os.write(descriptor, content)
        os.fdatasync(descriptor)
        return max(int(written_bytes / max(time.monotonic() - start_s, 1e-6)), 1)
    except OSError:
        return None
    finally:
        os.close(descriptor)


@contextmanager
def remembering(planned: Planned, catalog_path: str | None = None) -> Iterator[None]:
    """Keep how fast what is done inside was, when it is a plan on one device that is large enough to tell."""
    start_s = time.monotonic()
    yield
    elapsed_s = max(time.monotonic() - start_s, 1e-6)
    devices = {planned.family.members[act.target].device for act in planned.plan.acts}
    traffic_bytes = planned.plan.cost.traffic_bytes
    if len(devices) != 1 or traffic_bytes <= SMALL_BYTES:
        return
    with suppress(CatalogError), open_catalog(catalog_path) as catalog:
        speeds.note(catalog, devices.pop(), max(int(traffic_bytes / elapsed_s), 1))
