"""Owns the images that are measured: real ones made by qemu-io, and a huge sparse one written table by table."""

import random
import subprocess
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cowtree.extents import Offsets
from cowtree.plan.create import NewImage, create_steps
from cowtree.qcow2 import tables
from cowtree.qcow2.geometry import Geometry
from cowtree.steps import Truncate, Write
from cowtree.units import GIB, KIB, TIB

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


def make_huge(path: Path, backing: Path | None = None) -> None:
    """Write a sparse image of 1 TiB with a million allocated clusters at random places; their data are holes.
    Its tables say nothing of refcounts that a checker would miss: every cluster is counted once.
    """
    geometry = Geometry(3, 16, 4)
    places = np.sort(np.random.default_rng(7).choice(TIB // CLUSTER_BYTES, HUGE_CLUSTER_COUNT, replace=False))
    l1_index = np.unique(places // geometry.l2_entry_count)
    l1_count = geometry.l1_entry_count(TIB)
    used = _fixed_count(geometry, l1_count) + len(l1_index) + HUGE_CLUSTER_COUNT
    block_count = -(-used // geometry.refcount_block_entry_count) + 1
    name = (str(backing.name), "qcow2") if backing else (None, None)
    new = NewImage(str(path), "qcow2", TIB, backing_file=name[0], backing_format=name[1])
    with path.open("wb") as file:
        for step in create_steps(new):
            if isinstance(step, Truncate):
                file.truncate(step.size_bytes)
            elif isinstance(step, Write):
                file.seek(step.offset)
                file.write(step.data)
        _write_tables(file, geometry, (places, l1_index), block_count)


def _fixed_count(geometry: Geometry, l1_count: int) -> int:
    """Clusters of header, refcount table, one refcount block and L1 table, as a new image has them."""
    return 3 + geometry.cluster_count(l1_count * 8)


def _write_tables(file: BinaryIO, geometry: Geometry, guest: tuple[Offsets, Offsets], block_count: int) -> None:
    places, l1_index = guest
    size = geometry.cluster_size_bytes
    fixed = _fixed_count(geometry, geometry.l1_entry_count(TIB))
    more_blocks = fixed + np.arange(block_count - 1)
    table_hosts = fixed + block_count - 1 + np.arange(len(l1_index))
    hosts = int(table_hosts[-1]) + 1 + np.random.default_rng(8).permutation(HUGE_CLUSTER_COUNT)
    total = fixed + block_count - 1 + len(l1_index) + HUGE_CLUSTER_COUNT
    file.truncate(total * size)
    blocks = np.concatenate(([2], more_blocks)).astype(np.uint64) * np.uint64(size)
    _put(file, size, tables.encode_words(blocks))
    counts = np.zeros(block_count * geometry.refcount_block_entry_count, ">u2")
    counts[:total] = 1
    for index, offset in enumerate(blocks.tolist()):
        first = index * geometry.refcount_block_entry_count
        _put(file, offset, counts[first : first + geometry.refcount_block_entry_count].tobytes())
    l1 = np.zeros(geometry.l1_entry_count(TIB), np.uint64)
    l1[l1_index] = (table_hosts * size).astype(np.uint64) | tables.COPIED
    _put(file, 3 * size, tables.encode_words(l1))
    entries = (hosts * size).astype(np.uint64) | tables.COPIED
    borders = np.searchsorted(places // geometry.l2_entry_count, l1_index)
    for row, (first, last) in enumerate(zip(borders, [*borders[1:], len(places)], strict=True)):
        words = np.zeros(geometry.l2_entry_count, np.uint64)
        words[places[first:last] % geometry.l2_entry_count] = entries[first:last]
        _put(file, int(table_hosts[row]) * size, tables.encode_words(words))


def _put(file: BinaryIO, offset: int, data: bytes) -> None:
    file.seek(offset)
    file.write(data)
