"""Owns the images that are measured: real ones made by qemu-io, and a huge sparse one written table by table."""

import os
import random
import subprocess
from pathlib import Path

import numpy as np

from cowtree.chain import gate
from cowtree.chain.load import load_image, load_tables
from cowtree.chain.view import Chain
from cowtree.execute.run import run
from cowtree.monitor import Silent
from cowtree.qcow2.writes import entry_writes
from cowtree.storage.contract import Access
from cowtree.storage.file import LocalFiles
from cowtree.units import GIB, KIB
from tests.sparse import sparse_image

CLUSTER_BYTES = 64 * KIB
SCATTERED_COUNT = GIB // CLUSTER_BYTES
DISK_BYTES = 8 * GIB
HUGE_CLUSTER_COUNT = 1_000_000
RUN_CLUSTER_COUNT_MAX = 32


def qemu_img(*arguments: str | Path) -> None:
    """Run qemu-img, which must succeed."""
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def scatter(path: Path, seed: int) -> None:
    """Write 1 GiB in clusters of 64 KiB, at random places in random order, through qemu-io."""
    choose = random.Random(seed)
    places = choose.sample(range(DISK_BYTES // CLUSTER_BYTES), SCATTERED_COUNT)
    lines = [f"write -q -P {choose.randint(1, 255)} {place * CLUSTER_BYTES} {CLUSTER_BYTES}" for place in places]
    words = ["qemu-io", "-t", "unsafe", "-f", "qcow2", str(path)]
    subprocess.run(words, input="\n".join(lines), text=True, check=True, stdout=subprocess.DEVNULL)


def make_pair(folder: Path) -> tuple[Path, Path]:
    """A base with 1 GiB of scattered clusters, and an overlay with another one. Returns: base and overlay."""
    base, overlay = folder / "base.qcow2", folder / "overlay.qcow2"
    qemu_img("create", "-f", "qcow2", base, str(DISK_BYTES))
    scatter(base, 1)
    qemu_img("create", "-f", "qcow2", "-b", base.name, "-F", "qcow2", overlay)
    scatter(overlay, 2)
    return base, overlay


def make_dense(folder: Path, *, in_overlay: bool) -> tuple[Path, Path]:
    """A base and an overlay, one of which holds 1 GiB in one piece that is on disk and not in memory.
    Returns: base and overlay.
    """
    base, overlay = folder / "base.qcow2", folder / "overlay.qcow2"
    qemu_img("create", "-f", "qcow2", base, str(DISK_BYTES))
    qemu_img("create", "-f", "qcow2", "-b", base.name, "-F", "qcow2", overlay)
    filled = overlay if in_overlay else base
    words = ["qemu-io", "-f", "qcow2", "-c", f"write -q -P 65 {GIB} {GIB}", str(filled)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    with filled.open("rb") as file:
        os.fsync(file.fileno())
        # To let go of pages takes btrfs a second, whoever makes it do so.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return base, overlay


def make_stack(folder: Path, base_bytes: int, overlay_bytes: int) -> tuple[Path, Path]:
    """A base with so many bytes in one piece, and an overlay that hides half of its own size of them.
    Returns: base and overlay.
    """
    base, overlay = folder / "base.qcow2", folder / "overlay.qcow2"
    qemu_img("create", "-f", "qcow2", base, str(DISK_BYTES))
    qemu_img("create", "-f", "qcow2", "-b", base.name, "-F", "qcow2", overlay)
    start = base_bytes - overlay_bytes // 2
    for path, command in (
        (base, f"write -q -P 65 0 {base_bytes}"),
        (overlay, f"write -q -P 66 {start} {overlay_bytes}"),
    ):
        words = ["qemu-io", "-t", "unsafe", "-f", "qcow2", "-c", command, str(path)]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return base, overlay


def make_huge(folder: Path) -> Path:
    """Make an overlay of 1 TiB with a million clusters of 4 KiB, scattered, that have a host cluster of their own."""
    base, overlay = folder / "huge-base.qcow2", folder / "huge.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", "cluster_size=4k", base, "1T")
    sparse_image(overlay, HUGE_CLUSTER_COUNT, seed=7, cluster_bits=12)
    qemu_img("rebase", "-f", "qcow2", "-u", "-b", base.name, "-F", "qcow2", overlay)
    return overlay


def make_filled(path: Path) -> Path:
    """Make an image of 100 GiB with a million clusters, which lie in the file in the order of the disk."""
    qemu_img("create", "-f", "qcow2", "-o", "preallocation=metadata", path, str(HUGE_CLUSTER_COUNT * CLUSTER_BYTES))
    qemu_img("resize", "-f", "qcow2", path, "100G")
    return path


def scatter_runs(path: Path, seed: int) -> Path:
    """Let the clusters of an image lie in its file as if a guest had written files, of 1 to 32 clusters each, in random
    order.
    """
    layer = gate.open_layer(LocalFiles(), str(path), gate.QCOW2, Access.WRITE)
    image = load_image(layer)
    assert image is not None
    held = load_tables(layer.file, image, 0, layer.size_bytes)
    flat, choose = held.entries.ravel().copy(), np.random.default_rng(seed)
    used = np.flatnonzero(flat)
    starts = np.cumsum(choose.integers(1, RUN_CLUSTER_COUNT_MAX + 1, len(used)))
    runs = np.split(flat[used], starts[starts < len(used)])
    flat[used] = np.concatenate([runs[index] for index in choose.permutation(len(runs))])
    changed = held._replace(entries=flat.reshape(held.entries.shape))
    run(entry_writes(held, changed), layer.file, Chain((), ()), Silent())
    layer.close()
    return path
