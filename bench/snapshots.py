"""Owns how long a list of very many snapshots takes, as a whole process."""

import random
import statistics
import uuid
from pathlib import Path
from typing import Final

from bench.images import qemu_img
from bench.timing import BIN, Candidate, Promise, measure
from cowtree.catalog import domains, snapshots
from cowtree.catalog.snapshots import INTERNAL, NO, SHUTOFF, Held, Snapshot
from cowtree.catalog.store import Catalog, open_catalog
from cowtree.chain.gate import QCOW2
from cowtree.domain import definition

SNAPSHOT_COUNT: Final = 10_000
ROUND_COUNT: Final = 5
LIST_S_MAX: Final = 1.0
NAME: Final = "guest"
SECOND_NS: Final = 1_000_000_000
# How far back the parent of a snapshot lies at the most: a chain of this length, and a bush.
SHAPES: Final = {"a bush": SNAPSHOT_COUNT, "long branches": 40}


def fill(catalog: Catalog, disk: Path, reach: int) -> None:
    """A domain with very many snapshots; each hangs on one of those before it."""
    choose = random.Random(reach)
    made = definition.make(NAME, str(uuid.UUID(int=10)), [(str(disk), QCOW2)])
    domain = domains.add(catalog, made.name, made.uuid or "", made.text)
    with catalog.together():
        numbers: list[int] = []
        for index in range(SNAPSHOT_COUNT):
            parent = choose.choice(numbers[-reach:]) if numbers else None
            new = Snapshot(0, f"snap-{index}", parent, "", index * SECOND_NS, SHUTOFF, NO, None, made.text)
            held = Held("vda", INTERNAL, str(disk), QCOW2, internal_id=str(index + 1))
            numbers.append(snapshots.add(catalog, domain, new, [held]).id)


def snapshot_lists(folder: Path) -> list[Promise]:
    """List very many snapshots, in trees of two shapes."""
    disk, found = folder / "disk.qcow2", []
    qemu_img("create", "-f", "qcow2", disk, "64M")
    for shape, reach in SHAPES.items():
        path = folder / f"{reach}.db"
        with open_catalog(str(path)) as catalog:
            fill(catalog, disk, reach)
        for words in (["--tree"], ["--parent"], ["--leaves", "--name"]):
            command: tuple[str | Path, ...] = (BIN / "cowtree", "snapshot-list", NAME, *words, "--catalog", path)
            wall_s = statistics.median(measure(Candidate(command)).wall_s for _ in range(ROUND_COUNT))
            name = f"snapshot-list {' '.join(words)} of {SNAPSHOT_COUNT} in {shape}"
            found.append(Promise(name, f"{wall_s:.2f} s; limit {LIST_S_MAX} s", wall_s < LIST_S_MAX))
    return found
