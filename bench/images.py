"""Owns the images that are measured: real ones made by qemu-io, and a huge sparse one written table by table."""

import random
import subprocess
from pathlib import Path

from cowtree.units import GIB, KIB
from tests.sparse import sparse_image

CLUSTER_BYTES = 64 * KIB
SCATTERED_COUNT = GIB // CLUSTER_BYTES
SCATTERED_DISK_BYTES = 8 * GIB
HUGE_CLUSTER_COUNT = 1_000_000


def qemu_img(*arguments: str | Path) -> None:
    """Run qemu-img, which must succeed."""
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def scatter(path: Path, seed: int) -> None:
    """Write 1 GiB in clusters of 64 KiB, at random places in random order, through qemu-io."""
    choose = random.Random(seed)
    places = choose.sample(range(SCATTERED_DISK_BYTES // CLUSTER_BYTES), SCATTERED_COUNT)
    lines = [f"write -q -P {choose.randint(1, 255)} {place * CLUSTER_BYTES} {CLUSTER_BYTES}" for place in places]
    words = ["qemu-io", "-t", "unsafe", "-f", "qcow2", str(path)]
    subprocess.run(words, input="\n".join(lines), text=True, check=True, stdout=subprocess.DEVNULL)


def make_pair(folder: Path) -> tuple[Path, Path]:
    """A base with 1 GiB of scattered clusters, and an overlay with another one. Returns: base and overlay."""
    base, overlay = folder / "base.qcow2", folder / "overlay.qcow2"
    qemu_img("create", "-f", "qcow2", base, str(SCATTERED_DISK_BYTES))
    scatter(base, 1)
    qemu_img("create", "-f", "qcow2", "-b", base.name, "-F", "qcow2", overlay)
    scatter(overlay, 2)
    return base, overlay


def make_huge(folder: Path) -> Path:
    """Make an overlay of 1 TiB with a million clusters of 4 KiB, scattered, that have a host cluster of their own."""
    base, overlay = folder / "huge-base.qcow2", folder / "huge.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", "cluster_size=4k", base, "1T")
    sparse_image(overlay, HUGE_CLUSTER_COUNT, seed=7, cluster_bits=12)
    qemu_img("rebase", "-f", "qcow2", "-u", "-b", base.name, "-F", "qcow2", overlay)
    return overlay
