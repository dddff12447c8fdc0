"""Owns what the verbs that know the whole tree promise, as whole commands, against the only way that stock has."""

import random
from pathlib import Path

from bench.images import DISK_BYTES, make_pair, make_stack, qemu_img
from bench.timing import BIN, Candidate, Promise, in_turn, measure, on_copies
from cowtree.units import MIB
from tests.families import stamp

COWTREE = (BIN / "cowtree",)
ROUND_COUNT = 5

BASE_BYTES, OVERLAY_BYTES = 1843 * MIB, 200 * MIB
DELETE_RATIO_MAX = 0.3
VERB_RATIO_MAX = 0.6
FOREST_COUNT = 10_000
FOREST_S_MAX = 5.0
FAMILY_S_MAX = 5.0
FINGERPRINT_S_MAX = 0.5


def delete_base(folder: Path) -> list[Promise]:
    """Delete a base of 1.8 GiB below an overlay of 200 MiB; stock has to pull the base into the overlay."""
    base, overlay = make_stack(folder, BASE_BYTES, OVERLAY_BYTES)
    scenes = folder / "ours", folder / "theirs"
    ours = on_copies(
        scenes[0], (base, overlay), (*COWTREE, "delete", "--delete", scenes[0] / base.name), scenes[0] / overlay.name
    )
    words = ("qemu-img", "rebase", "-q", "-b", "", scenes[1] / overlay.name)
    theirs = on_copies(scenes[1], (base, overlay), words, scenes[1] / overlay.name)
    ratio, text = in_turn(ours, theirs, ROUND_COUNT)
    qemu_img("compare", "-q", scenes[0] / overlay.name, scenes[1] / overlay.name)
    return [Promise("delete of a 1.8 GiB base below 200 MiB", text, ratio <= DELETE_RATIO_MAX)]


def merge_verbs(folder: Path) -> list[Promise]:
    """Commit and pull of 1 GiB of scattered 64 KiB clusters, with all that is looked for before."""
    base, overlay = make_pair(folder)
    cases = (
        ("commit", ("commit", "--delete"), ("commit", "-q", "-d"), base),
        ("pull", ("pull",), ("rebase", "-q", "-b", ""), overlay),
    )
    found = []
    for name, own, stock, written in cases:
        ours, theirs = (
            on_copies(scene, (base, overlay), (*words, scene / overlay.name), scene / written.name)
            for scene, words in ((folder / "ours", (*COWTREE, *own)), (folder / "theirs", ("qemu-img", *stock)))
        )
        ratio, text = in_turn(ours, theirs, ROUND_COUNT)
        qemu_img("compare", "-q", folder / "ours" / written.name, folder / "theirs" / written.name)
        found.append(Promise(f"cowtree {name} of 1 GiB", text, ratio <= VERB_RATIO_MAX))
    return found


def forest(folder: Path) -> list[Promise]:
    """Read 10,000 images, which hang on each other at random, and plan a merge among them."""
    choose = random.Random(1)
    parents = [None, *(choose.randrange(max(number - 200, 0), number) for number in range(1, FOREST_COUNT))]
    last = stamp(folder / "images", parents)[-1]
    cases = (
        ("tree of 10,000 images", ("tree", last.parent), FOREST_S_MAX),
        ("plan of a merge among 10,000 images", ("plan", "pull", last), FAMILY_S_MAX),
    )
    return [_in_time(name, words, limit_s) for name, words, limit_s in cases]


def fingerprints(folder: Path) -> list[Promise]:
    """Compare an overlay with the fingerprint of its base, which has 128 GiB of clusters."""
    base, overlay = folder / "base.qcow2", folder / "overlay.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", "preallocation=metadata", base, str(16 * DISK_BYTES))
    qemu_img("create", "-f", "qcow2", "-b", base.name, "-F", "qcow2", overlay)
    measure(Candidate((*COWTREE, "verify", "--record", overlay)))
    # Times that differ let the content be looked at.
    base.touch()
    return [_in_time("verify of a base of 128 GiB", ("verify", overlay), FINGERPRINT_S_MAX)]


def _in_time(name: str, words: tuple[str | Path, ...], limit_s: float) -> Promise:
    """Run a command of ours a few times. What others do to a shared machine only adds to it."""
    times_s = sorted(measure(Candidate((*COWTREE, *words))).wall_s for _ in range(ROUND_COUNT))
    text = f"{times_s[0]:.3f} s at best of {ROUND_COUNT}, {times_s[ROUND_COUNT // 2]:.3f} s in the middle"
    return Promise(name, text, times_s[0] < limit_s)
