"""Measures how long a list of very many snapshots takes, as a whole process: `python -m bench.snapshots`.

Exits with 1 when the promise is not kept.
"""

import random
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Final

from bench.images import qemu_img
from bench.timing import Candidate, measure
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


def main() -> int:
    """Measure, and say so. Returns: the exit status."""
    is_kept = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        disk = folder / "disk.qcow2"
        qemu_img("create", "-f", "qcow2", disk, "64M")
        for shape, reach in SHAPES.items():
            path = folder / f"{reach}.db"
            with open_catalog(str(path)) as catalog:
                fill(catalog, disk, reach)
            for words in (["--tree"], ["--parent"], ["--leaves", "--name"]):
                command: list[str | Path] = [
                    Path(sys.executable).parent / "cowtree",
                    "snapshot-list",
                    NAME,
                    *words,
                    "--catalog",
                    path,
                ]
                walls_s = sorted(measure(Candidate(command)).wall_s for _ in range(ROUND_COUNT))
                wall_s = walls_s[ROUND_COUNT // 2]
                is_kept = is_kept and wall_s < LIST_S_MAX
                print(f"{shape}: snapshot-list {' '.join(words)} of {SNAPSHOT_COUNT}: {wall_s:.2f} s")
    return 0 if is_kept else 1


if __name__ == "__main__":
    sys.exit(main())
