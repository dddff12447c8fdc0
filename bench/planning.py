"""Owns how planning is measured: long chains and an image with many overlays, whose layers hold clusters where a guest
would have written them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from bench.timing import BIN, Candidate, Promise, measure
from cowtree.chain.view import Chain
from cowtree.execute.run import run
from cowtree.extents import Offsets
from cowtree.monitor import Silent
from cowtree.plan import convert as plan
from cowtree.plan.create import NewImage
from cowtree.qcow2.tables import COPIED, encode_words
from cowtree.storage.file import LocalFiles
from cowtree.units import GIB, MIB, format_size

CLUSTER_BITS: Final = 16
DISK_BYTES: Final = 8 * GIB
LAYER_COUNT: Final = 256
OVERLAY_COUNT: Final = 100
RUN_CLUSTER_COUNT: Final = 8
LAYER_CLUSTER_COUNT: Final = 500
BASE_CLUSTER_COUNT: Final = 20_000
ROUND_COUNT: Final = 3
PLAN_S_MAX: Final = 5
PEAK_BYTES_MAX: Final = 256 * MIB


def make_chain(folder: Path) -> list[Path]:
    """A chain of as many layers as there may be, the base first: it holds much, the others some runs of clusters."""
    choose, paths = np.random.default_rng(7), list[Path]()
    folder.mkdir()
    for number in range(LAYER_COUNT):
        count = LAYER_CLUSTER_COUNT if number else BASE_CLUSTER_COUNT
        paths.append(_make_layer(folder / f"layer-{number:03}.qcow2", _runs(count, choose), paths[-1:]))
    return paths


def make_bush(folder: Path) -> Path:
    """An image that alone holds what its many overlays lie on. Returns: the image."""
    choose = np.random.default_rng(8)
    folder.mkdir()
    base = _make_layer(folder / "base.qcow2", _runs(2 * LAYER_CLUSTER_COUNT, choose), [])
    for number in range(OVERLAY_COUNT):
        _make_layer(folder / f"overlay-{number:03}.qcow2", _runs(LAYER_CLUSTER_COUNT, choose), [base])
    return base


def planning(folder: Path) -> list[Promise]:
    """Plan merges of as many layers as a chain may have, and of an image with many overlays."""
    chain, image = make_chain(folder / "chain"), make_bush(folder / "bush")
    cases: tuple[tuple[str, tuple[str | Path, ...]], ...] = (
        ("shorten of 256 layers to 8", ("shorten", chain[-1], "--max-depth", "8")),
        ("commit over 200 layers", ("commit", chain[220], "--base", chain[20])),
        ("pull over 200 layers", ("pull", chain[220], "--base", chain[20])),
        ("flatten of 256 layers", ("flatten", chain[-1])),
        ("delete of an image with 100 overlays", ("delete", image)),
    )
    found = []
    for name, words in cases:
        runs = [measure(Candidate((BIN / "cowtree", "plan", *words))) for _ in range(ROUND_COUNT)]
        # What others do to a shared machine only adds to it.
        wall_s, peak_bytes = min(each.wall_s for each in runs), max(each.peak_bytes for each in runs)
        text = f"{wall_s:.1f} s at best of {ROUND_COUNT}, {format_size(peak_bytes)} at the most"
        text += f"; limits {PLAN_S_MAX} s and {format_size(PEAK_BYTES_MAX)}"
        is_kept = wall_s < PLAN_S_MAX and peak_bytes < PEAK_BYTES_MAX
        found.append(Promise(f"plan of a {name}", text, is_kept))
    return found


def _runs(count: int, choose: np.random.Generator) -> Offsets:
    starts = choose.integers(0, (DISK_BYTES >> CLUSTER_BITS) - RUN_CLUSTER_COUNT, -(-count // RUN_CLUSTER_COUNT))
    return np.unique(starts[:, None] + np.arange(RUN_CLUSTER_COUNT))


def _make_layer(path: Path, clusters: Offsets, backing: Sequence[Path]) -> Path:
    """An image in which these clusters have a host cluster of their own, which is a hole of the file."""
    new = NewImage(str(path), "qcow2", DISK_BYTES, CLUSTER_BITS)
    for each in backing:
        new = new._replace(backing_file=each.name, backing_format="qcow2")
    header, layout = plan.begin(new)
    l1 = np.zeros(header.l1_entry_count, np.uint64)
    file = LocalFiles().create(new.path, 0o644)
    hosts, layout = plan.take(layout, len(clusters))
    entered, layout = plan.enter(layout, clusters, plan.data_words(header.geometry, hosts))
    closed, layout = plan.close(layout)
    for filled in (entered, closed):
        first, count = filled.first_cluster, len(filled.l1_index)
        l1[filled.l1_index] = np.arange(first, first + count, dtype=np.uint64) << np.uint64(CLUSTER_BITS) | COPIED
        file.pwrite(first << CLUSTER_BITS, encode_words(filled.words))
    run(plan.finish(layout, header, l1, np.empty(0, np.int64)), file, Chain((), ()), Silent())
    file.close()
    return path
