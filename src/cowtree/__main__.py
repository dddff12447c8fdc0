"""The command `cowtree`; called through a link named `qemu-img` it is `cowtree img`."""

import gc
import os
import sys

from cowtree.cli.main import main as run

# Modules that are being loaded leave nothing to collect; Python would look through them forty times.
OBJECTS_PER_COLLECTION = 100_000


def main() -> None:
    """Run the command, and leave at once: all is written by then, and Python's way out takes longer than `img info`."""
    gc.set_threshold(OBJECTS_PER_COLLECTION)
    status = run()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
