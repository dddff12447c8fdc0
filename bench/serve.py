"""Measures how fast a disk is served, against qemu-nbd on the same image in the same run, and through 20 layers against
one.

Each pair takes turns in short rounds, so both meet the same noise; what counts is the median of the ratios.
"""

import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from bench.images import qemu_img
from bench.timing import BIN, Promise
from cowtree.units import MIB

DISK_BYTES: Final = 512 * MIB
LAYER_COUNT: Final = 20
ROUND_COUNT: Final = 5
ROUND_S: Final = 1.0
WAIT_S: Final = 10.0
RATIO_MIN: Final = 1.0
# Two servers alike differ by so much from run to run.
DEEP_RATIO_MIN: Final = 0.9


class Load(NamedTuple):
    """What a client asks for: fio's words."""

    name: str
    pattern: str
    block: str
    depth: int


LOADS: Final = tuple(
    Load(f"{pattern} of {block} at depth {depth}", pattern, block, depth)
    for pattern, block, depth in (
        *(("randread", "4k", 1), ("randread", "4k", 16), ("randwrite", "4k", 1), ("randwrite", "4k", 16)),
        *(("randread", "64k", 1), ("randread", "64k", 16), ("randwrite", "64k", 1), ("randwrite", "64k", 16)),
        *(("read", "1m", 4), ("write", "1m", 4)),
    )
)


def requests_per_s(address: str, load: Load, length_s: float = ROUND_S) -> float:
    """How many requests a client gets answered in a second."""
    words = ["fio", "--name=bench", "--ioengine=nbd", f"--uri={address}", f"--rw={load.pattern}", f"--bs={load.block}"]
    words += [f"--iodepth={load.depth}", f"--runtime={length_s}", "--time_based", f"--size={DISK_BYTES}"]
    done = subprocess.run(
        [*words, "--randrepeat=0", "--output-format=json"], capture_output=True, text=True, check=True
    )
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    return float(job["read"]["iops"] + job["write"]["iops"])


@contextmanager
def serving(words: Sequence[str | Path], socket: Path) -> Iterator[str]:
    """A server while the block runs; yields its address."""
    with subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL) as process:
        try:
            end_s = time.monotonic() + WAIT_S
            while not socket.exists() and time.monotonic() < end_s:
                time.sleep(0.02)
            yield f"nbd+unix:///?socket={socket}"
        finally:
            process.terminate()


def ours(image: Path, socket: Path) -> Sequence[str | Path]:
    """The words of our server."""
    return BIN / "cowtree", "serve", "-f", "qcow2", "--socket", socket, image


def theirs(image: Path, socket: Path) -> Sequence[str | Path]:
    """The words of the stock one."""
    return "qemu-nbd", "-f", "qcow2", "--cache=writeback", "-t", "-e", "8", "-k", socket, image


def compare(first: str, second: str, loads: Sequence[Load], ratio_min: float = RATIO_MIN) -> list[Promise]:
    """Ask both servers in turn."""
    found = []
    for load in loads:
        pairs = [(requests_per_s(first, load), requests_per_s(second, load)) for _ in range(ROUND_COUNT)]
        ratios = sorted(mine / other for mine, other in pairs)
        mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(ratios)
        text = f"{mine:.0f} a second against {other:.0f}; ratio {ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        found.append(Promise(load.name, text, ratio >= ratio_min))
        print(f"{'kept  ' if found[-1].is_kept else 'BROKEN'}  {load.name}: {text}", flush=True)
    return found


def fill(*images: Path) -> None:
    """Let images hold all of their disks. All are copies that were made alike: how a file was written decides how the
    page cache holds it, which can double the time of a small write.
    """
    origin = images[0].with_name("origin.qcow2")
    qemu_img("create", "-f", "qcow2", origin, str(DISK_BYTES))
    words = ["qemu-io", "-f", "qcow2", "-c", f"write -P 7 0 {DISK_BYTES}", str(origin)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    for image in images:
        shutil.copy(origin, image)
    origin.unlink()
    os.sync()


def against_stock(folder: Path, loads: Sequence[Load]) -> list[Promise]:
    """Our server and the stock one, on copies of one image."""
    image, other = folder / "image.qcow2", folder / "other.qcow2"
    fill(image, other)
    mine, its = folder / "ours", folder / "theirs"
    with serving(ours(image, mine), mine) as first, serving(theirs(other, its), its) as second:
        return compare(first, second, loads)


def deep(folder: Path, loads: Sequence[Load]) -> list[Promise]:
    """A read through many layers, and through one."""
    flat, base = folder / "flat.qcow2", folder / "layer-0.qcow2"
    fill(flat, base)
    for index in range(1, LAYER_COUNT):
        layer = folder / f"layer-{index}.qcow2"
        qemu_img("create", "-f", "qcow2", "-b", base, "-F", "qcow2", layer)
        base = layer
    one, many = folder / "one", folder / "many"
    reads = [load._replace(name=f"{load.name}, {LAYER_COUNT} layers") for load in loads if "read" in load.pattern]
    with serving(ours(base, many), many) as first, serving(ours(flat, one), one) as second:
        return compare(first, second, reads, DEEP_RATIO_MIN)


def serve(folder: Path) -> list[Promise]:
    """All loads, against stock and through many layers."""
    places = folder / "stock", folder / "deep"
    for place in places:
        place.mkdir()
    return [*against_stock(places[0], LOADS), *deep(places[1], LOADS)]
