"""Measures what the project promises of speed and memory, against the stock tool in the same run: `make bench`.

Exits with 1 when a promise is not kept.
"""

import compileall
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cowtree
from bench.clone_merge import clone_verbs, estimates
from bench.images import make_dense, make_filled, make_huge, make_pair, qemu_img, scatter_runs
from bench.planning import planning
from bench.serve import serve
from bench.snapshots import snapshot_lists
from bench.timing import BIN, Candidate, Promise, in_turn, measure, on_copies
from bench.verbs import delete_base, fingerprints, forest, merge_verbs
from cowtree.images.family import permit_commit
from cowtree.images.merge import Into, Outcome, commit, pull
from cowtree.storage.file import LocalFiles
from cowtree.units import GIB, MIB, format_size
from tests.mounts import KINDS, mounted, used_bytes

COWTREE = (BIN / "cowtree", "img")
QEMU_IMG = ("qemu-img",)
ROUND_COUNT = 5
START_ROUND_COUNT = 25

MERGE_RATIO_MAX = 0.6
START_RATIO_MAX = 3.0
SNAPSHOT_RATIO_MAX = 1.0
CLONE_DISK_BYTES = 3 * GIB
CLONE_S_MAX = 0.1
CLONE_TABLE_BYTES_MAX = 2 * MIB
PEAK_BYTES_MAX = 256 * MIB


def merge_speed(folder: Path) -> list[Promise]:
    """Commit, full rebase and rebase to another base of 1 GiB of scattered 64 KiB clusters."""
    base, overlay = make_pair(folder)
    other = folder / "other.qcow2"
    qemu_img("create", "-f", "qcow2", other, "8G")
    cases = (
        ("commit of 1 GiB", ("commit", "-q"), base),
        ("rebase of 1 GiB to nothing", ("rebase", "-q", "-b", ""), overlay),
        ("rebase of 1 GiB to another base", ("rebase", "-q", "-b", other.name, "-F", "qcow2"), overlay),
    )
    found = []
    for name, words, written in cases:
        ours, theirs = (
            _on_copies(folder, (base, overlay, other), (*tool, *words), written) for tool in (COWTREE, QEMU_IMG)
        )
        ratio, text = in_turn(ours, theirs, ROUND_COUNT)
        found.append(Promise(name, text, ratio <= MERGE_RATIO_MAX))
    return found


def _on_copies(folder: Path, images: tuple[Path, ...], words: tuple[str | Path, ...], written: Path) -> Candidate:
    """The command on fresh copies of the images; its last image is the overlay."""
    scene = folder / f"scene-{Path(words[0]).name}"
    overlay = scene / images[1].name
    return on_copies(scene, images, (*words, overlay), scene / written.name, overlay)


def snapshots(folder: Path) -> list[Promise]:
    """Create and delete an internal snapshot of 100 GiB with a million clusters: as a guest has written them, and in
    the order of the disk.
    """
    ordered = make_filled(folder / "ordered.qcow2")
    scattered = folder / "scattered.qcow2"
    measure(Candidate(("cp", "--sparse=always", ordered, scattered)))
    scatter_runs(scattered, 7)
    found = []
    for image in (scattered, ordered):
        for verb, option in (("create", "-c"), ("delete", "-d")):
            ours, theirs = (
                _on_copies(folder, (image, image), (*tool, "snapshot", option, "bench"), image)
                for tool in (COWTREE, QEMU_IMG)
            )
            ratio, text = in_turn(ours, theirs, ROUND_COUNT)
            name = f"snapshot {verb} of 100 GiB with a million clusters, {image.stem}"
            text += f"; numpy alone {_numpy_s():.3f} s"
            found.append(Promise(name, text, ratio <= SNAPSHOT_RATIO_MAX))
            measure(Candidate((*COWTREE, "snapshot", option, "bench", image)))
    return found


def _numpy_s() -> float:
    """How long an interpreter takes that imports numpy, as we do, and nothing else: docs/decisions/0005-start-up.md."""
    words = ("env", "OPENBLAS_NUM_THREADS=1", BIN / "python3", "-c", "import numpy")
    return statistics.median(measure(Candidate(words)).wall_s for _ in range(ROUND_COUNT))


def start_up(folder: Path) -> list[Promise]:
    """`img info` against an interpreter that does nothing."""
    path = folder / "small.qcow2"
    qemu_img("create", "-f", "qcow2", path, "1G")
    ours, theirs = Candidate((*COWTREE, "info", path)), Candidate((BIN / "python3", "-c", "pass"))
    ratio, text = in_turn(ours, theirs, START_ROUND_COUNT)
    return [Promise("img info, against python3 -c pass", text, ratio <= START_RATIO_MAX)]


def clones(folder: Path) -> list[Promise]:
    """Commit and pull of 1 GiB that lies in one piece, where files can share blocks; in a Python that runs already."""
    found = []
    for kind in KINDS:
        with mounted(kind, folder, CLONE_DISK_BYTES) as place:
            for name, merge in (("commit", _commit), ("pull", pull)):
                times_s, taken = zip(*(_clone_once(place, merge) for _ in range(ROUND_COUNT)), strict=True)
                # What others do to a shared machine only adds to it.
                text = (
                    f"{min(times_s):.3f} s at best of {ROUND_COUNT}, {statistics.median(times_s):.3f} s in the middle"
                )
                text += f", {format_size(max(*taken, 0))} of new blocks"
                is_kept = min(times_s) < CLONE_S_MAX and max(taken) < CLONE_TABLE_BYTES_MAX
                found.append(Promise(f"{name} of 1 GiB by clone on {kind}", text, is_kept))
    return found


def _commit(files: LocalFiles, path: str) -> Outcome:
    return commit(files, path, into=Into(permit_commit(files, path)))


def _clone_once(place: Path, merge: Callable[[LocalFiles, str], Outcome]) -> tuple[float, int]:
    """Merge fresh images. Returns: how many seconds it took, and how many bytes more are in use then."""
    base, overlay = make_dense(place, in_overlay=merge is _commit)
    before = used_bytes(place)
    start_s = time.monotonic()
    moved_bytes = merge(LocalFiles(), str(overlay)).moved_bytes
    wall_s = time.monotonic() - start_s
    taken = used_bytes(place) - before
    if moved_bytes != GIB:
        raise SystemExit(f"bench: {moved_bytes} bytes were moved")
    base.unlink()
    overlay.unlink()
    return wall_s, taken


def memory(folder: Path) -> list[Promise]:
    """Peak memory on a sparse image of 1 TiB with a million allocated clusters."""
    overlay = make_huge(folder)
    found = []
    create, delete = ("snapshot", "-c", "bench"), ("snapshot", "-d", "bench")
    for words in (("map", "--output=json"), ("check",), ("commit", "-q", "-d"), create, delete):
        run = measure(Candidate((*COWTREE, *words, overlay)))
        text = f"{format_size(run.peak_bytes)} at the most, in {run.wall_s:.1f} s"
        found.append(
            Promise(f"{' '.join(words)} of 1 TiB with a million clusters", text, run.peak_bytes < PEAK_BYTES_MAX)
        )
    return found


def main(names: list[str]) -> int:
    """Measure all, or what is named. Returns: the exit status."""
    benches: dict[str, Callable[[Path], list[Promise]]] = {
        "speed": merge_speed,
        "snapshots": snapshots,
        "clones": clones,
        "clone-verbs": clone_verbs,
        "seconds": estimates,
        "start": start_up,
        "memory": memory,
        "planning": planning,
        "delete": delete_base,
        "verbs": merge_verbs,
        "forest": forest,
        "fingerprint": fingerprints,
        "lists": snapshot_lists,
        "serve": serve,
    }
    # As pip does when it installs.
    compileall.compile_dir(Path(cowtree.__file__).parent, quiet=1)
    promises = []
    for name in names or benches:
        # Not in /tmp, which may be memory: the data have to reach a disk.
        with tempfile.TemporaryDirectory(prefix="cowtree-bench-", dir="/var/tmp") as folder:
            # Nothing reads or writes the catalogue of whoever measures.
            os.environ["COWTREE_CATALOG"] = f"{folder}/state/catalog.db"
            for promise in benches[name](Path(folder)):
                print(f"{'kept  ' if promise.is_kept else 'BROKEN'}  {promise.name}: {promise.text}", flush=True)
                promises.append(promise)
    return 0 if all(promise.is_kept for promise in promises) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
