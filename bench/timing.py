"""Owns how a command is measured: as a whole process, in turn with the one it is compared with, medians of the ratios.

Absolute times mean nothing on shared machines. Two commands that take turns meet the same noise.
"""

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

BIN = Path(sys.executable).parent


class Promise(NamedTuple):
    """One line of the report."""

    name: str
    text: str
    is_kept: bool


class Run(NamedTuple):
    """One finished process. Units: seconds, bytes."""

    wall_s: float
    peak_bytes: int


class Candidate(NamedTuple):
    """A command; `prepare` makes its input anew before each run, `outputs` are synced inside the measured time."""

    words: Sequence[str | Path]
    prepare: Callable[[], None] = lambda: None
    outputs: Sequence[Path] = ()


def measure(candidate: Candidate) -> Run:
    """Run a command that must succeed. What it wrote is on disk when the clock stops."""
    candidate.prepare()
    start_s = time.monotonic()
    with subprocess.Popen(list(map(str, candidate.words)), stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    for path in candidate.outputs:
        _sync(path)
    wall_s = time.monotonic() - start_s
    if process.returncode != 0:
        raise SystemExit(f"bench: {' '.join(map(str, candidate.words))} ended with {process.returncode}")
    return Run(wall_s, usage.ru_maxrss * 1024)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def on_copies(scene: Path, images: Sequence[Path], words: Sequence[str | Path], *outputs: Path) -> Candidate:
    """The command on fresh copies of the images, in a folder of its own."""

    def prepare() -> None:
        shutil.rmtree(scene, ignore_errors=True)
        scene.mkdir()
        for image in images:
            measure(Candidate(("cp", "--sparse=always", image, scene), outputs=(scene,)))
        measure(Candidate(("sync", "-f", scene)))

    return Candidate(words, prepare, outputs)


def in_turn(ours: Candidate, theirs: Candidate, round_count: int) -> tuple[float, str]:
    """Measure both in turn, after one round that does not count. Returns: the median ratio, and a line for people."""
    measure(ours)
    measure(theirs)
    pairs = [(measure(ours).wall_s, measure(theirs).wall_s) for _ in range(round_count)]
    ratios = sorted(first / second for first, second in pairs)
    first_s, second_s = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(ratios)
    return ratio, f"{first_s:.3f} s against {second_s:.3f} s; ratio {ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
