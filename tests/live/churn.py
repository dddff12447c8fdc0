"""A server that takes snapshots and merges layers at random, without end: to be killed.

python -m tests.live.churn SOCKET FOLDER SEED        the disk is FOLDER/overlay0.qcow2 at first
"""

import os
import random
import sys
import time
from pathlib import Path

from cowtree.live.commit import Commit, Wanted
from cowtree.live.snapshot import snapshot
from cowtree.storage.file import LocalFiles
from tests.live.writers import open_disk, served
from tests.permits import permit_for

LAYER_COUNT_MAX = 6


def overlay(folder: Path, number: int) -> str:
    """The path of an overlay."""
    return str(folder / f"overlay{number}.qcow2")


def main() -> None:
    """Serve."""
    place, folder, choose = sys.argv[1], Path(sys.argv[2]), random.Random(sys.argv[3])
    files, count = LocalFiles(), 0
    disk = open_disk(files, overlay(folder, 0))
    with served([disk], place):
        print("ready", flush=True)
        while True:
            time.sleep(choose.uniform(0, 0.03))
            layers = disk.layers.chain.layers
            if len(layers) < choose.randint(3, LAYER_COUNT_MAX):
                count += 1
                snapshot(files, [disk], [overlay(folder, count)])
                continue
            first = choose.randrange(1, len(layers) - 1)
            last = choose.randrange(first + 1, len(layers))
            top, base = layers[first].path, layers[last].path
            done = Commit(files, disk, Wanted(top, base, permit_for(files, top))).run()
            for path in done.paths if done else ():
                os.unlink(path)


if __name__ == "__main__":
    main()
