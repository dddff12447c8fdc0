"""Owns file systems that a test makes for itself, in files, and mounts: those that let two files share blocks.

Only root may mount. Whatever happens to the test, nothing stays mounted.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cowtree.units import MIB
from tests.qemu import run, run_well

KINDS = ("xfs", "btrfs")
# mkfs.xfs makes no smaller one.
SIZE_BYTES = 400 * MIB


@contextmanager
def mounted(kind: str, folder: Path, size_bytes: int = SIZE_BYTES) -> Iterator[Path]:
    """A new file system of this kind, until the block ends."""
    image = folder / f"{kind}.image"
    image.touch()
    os.truncate(image, size_bytes)
    run_well(f"mkfs.{kind}", "-q", image)
    with mounted_image(image, kind) as place:
        yield place
    image.unlink()


@contextmanager
def mounted_image(image: Path, kind: str) -> Iterator[Path]:
    """The file system that a file holds, beside it, until the block ends."""
    assert os.geteuid() == 0, "only root may mount what this test needs. Try: sudo make test"
    place = image.with_suffix(".mounted")
    place.mkdir(exist_ok=True)
    run_well("mount", "-o", "loop", "-t", kind, image, place)
    try:
        yield place
    finally:
        # What failed may have left a file open.
        if run("umount", place).returncode:
            run_well("umount", "--lazy", place)
        place.rmdir()


def without_power(image: Path, kind: str) -> Path:
    """What the disk under a mounted file system would hold if the power went now, as another file."""
    # The loop device writes at once to the file below it; what the file system keeps for later is not there.
    copy = image.with_suffix(".cut")
    run_well("cp", "--sparse=always", image, copy)
    return copy


def used_bytes(place: Path) -> int:
    """How much of a file system is in use, when all is written down."""
    run_well("sync", "-f", place)
    found = os.statvfs(place)
    return (found.f_blocks - found.f_bfree) * found.f_frsize
