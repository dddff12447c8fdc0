"""Measures what the commands promise of merges that need no copying, on XFS and btrfs."""

import json
import statistics
import subprocess
import time
from pathlib import Path

from bench.images import qemu_img
from bench.timing import BIN, Promise
from cowtree.units import GIB, MIB
from tests.mounts import KINDS, mounted, used_bytes

DISK_BYTES = 3 * GIB
MERGE_S_MAX = 0.1
TABLE_BYTES_MAX = 2 * MIB
ROUND_COUNT = 4
FACTOR_MAX = 5


def clone_verbs(folder: Path) -> list[Promise]:
    """`cowtree commit` and `cowtree pull` of 1 GiB that lies in one piece."""
    return [_promise(folder, kind, verb) for kind in KINDS for verb in ("commit", "pull")]


def _promise(folder: Path, kind: str, verb: str) -> Promise:
    catalog = f"--catalog={folder}/{kind}-{verb}.db"
    with mounted(kind, folder, DISK_BYTES) as place:
        rounds = [_merge(place, verb, catalog) for _ in range(ROUND_COUNT)]
    # The first one makes the catalogue.
    merge_s = statistics.median(each[0] for each in rounds[1:])
    new_bytes = max(each[1] for each in rounds)
    text = f"{merge_s:.3f} s more than to plan it; {new_bytes} bytes of new blocks"
    is_kept = merge_s < MERGE_S_MAX and new_bytes < TABLE_BYTES_MAX
    return Promise(f"cowtree {verb} of 1 GiB by clone on {kind}", text, is_kept)


def _merge(place: Path, verb: str, catalog: str) -> tuple[float, int]:
    """Returns: how much longer it takes to merge than to plan, and how many bytes of blocks that takes."""
    top = _make(place, verb)
    planned, plan_s = _run(verb, top, "--dry-run", "--output=json", catalog)
    before = used_bytes(place)
    done, elapsed_s = _run(verb, top, "--output=json", catalog)
    new_bytes = used_bytes(place) - before
    if not done["cloned"] == done["moved"] == planned["to-clone"] == GIB:
        raise SystemExit(f"bench: {done['cloned']} of {done['moved']} bytes were cloned")
    for each in place.iterdir():
        each.unlink()
    return elapsed_s - plan_s, new_bytes


def estimates(folder: Path) -> list[Promise]:
    """How long a merge of 1 GiB is said to take: the first time by measuring, the second time from memory."""
    found = []
    for name in ("measured", "remembered"):
        top = _make(folder, "pull")
        planned, plan_s = _run("pull", top, "--dry-run", "--output=json", f"--catalog={folder}/c.db")
        _, elapsed_s = _run("pull", top, "--output=json", f"--catalog={folder}/c.db")
        said_s, origin = planned["seconds"], planned["seconds-from"]
        took_s = max(elapsed_s - plan_s, 0.001)
        is_kept = origin == name and isinstance(said_s, float) and 1 / FACTOR_MAX < said_s / took_s < FACTOR_MAX
        text = f"said {said_s}, {origin}; took {took_s:.2f} s"
        found.append(Promise(f"seconds of a merge of 1 GiB, {name}", text, is_kept))
        for each in folder.glob("*.qcow2*"):
            each.unlink()
    return found


def _make(place: Path, verb: str) -> Path:
    """A base and an overlay, and 1 GiB in the one that the verb reads. Neither can just take the place of the other: of
    a commit the base holds something compressed, which would be copied, and for a pull another one needs the base.
    Returns: the overlay.
    """
    base, top = place / "base.qcow2", place / "top.qcow2"
    qemu_img("create", "-f", "qcow2", base, "2G")
    qemu_img("create", "-f", "qcow2", "-b", base, "-F", "qcow2", top, "2G")
    if verb == "commit":
        _write(base, "write -c -P 2 1536M 64k")
        _write(top, f"write -P 1 0 {GIB}")
    else:
        qemu_img("create", "-f", "qcow2", "-b", base, "-F", "qcow2", place / "other.qcow2")
        _write(base, f"write -P 1 0 {GIB}")
    subprocess.run(["sync", "-f", str(place)], check=True)
    return top


def _write(image: Path, command: str) -> None:
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, str(image)], check=True, stdout=subprocess.DEVNULL)


def _run(*words: str | Path) -> tuple[dict[str, object], float]:
    start_s = time.monotonic()
    ran = subprocess.run([str(BIN / "cowtree"), *map(str, words)], check=True, capture_output=True, text=True)
    return json.loads(ran.stdout), time.monotonic() - start_s
