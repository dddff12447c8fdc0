"""Owns how the tests talk to qemu-img and qemu-io, the oracle of content and format, and random chains made by them."""

import json
import random
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

SECTOR = 512
TIMEOUT_S = 120
TRIES = 20

# QEMU measures how fast this processor derives keys, and gives up when the clock's tick was too coarse to tell.
COARSE_CLOCK = "Unable to get accurate CPU usage"


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, whatever its exit status; again when QEMU only stumbled over the clock."""
    words = [str(word) for word in command]
    for _ in range(TRIES):
        result = subprocess.run(words, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
        if COARSE_CLOCK not in result.stderr:
            break
    return result


def run_well(*command: str | Path) -> str:
    """Run a command that must succeed, and return what it printed."""
    result = run(*command)
    assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
    return result.stdout


def qemu_img(*arguments: str | Path) -> str:
    """Run qemu-img, which must succeed."""
    return run_well("qemu-img", *arguments)


def qemu_io(path: Path, *commands: str, image_format: str = "qcow2") -> str:
    """Run qemu-io commands such as `write -P 65 0 64k` on an image; all of them must succeed."""
    words = [word for command in commands for word in ("-c", command)]
    printed = run_well("qemu-io", "-f", image_format, *words, path)
    assert "failed" not in printed, printed
    return printed


def check_of(path: Path) -> dict[str, Any]:
    """What `qemu-img check` finds, as its JSON says it."""
    result = run("qemu-img", "check", "-f", "qcow2", "--output=json", path)
    assert result.stdout, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def assert_clean(path: Path) -> None:
    """Fail unless qemu-img finds neither an error nor a leak in a qcow2 image."""
    found = check_of(path)
    wrong = {key: found[key] for key in ("check-errors", "corruptions", "leaks") if found.get(key)}
    assert not wrong, f"{path.name}: {wrong}"


def content(path: Path, image_format: str = "qcow2") -> bytes:
    """What the guest sees, as QEMU reads it. For small images."""
    plain = path.with_name(path.name + ".plain")
    qemu_img("convert", "-f", image_format, "-O", "raw", path, plain)
    data = plain.read_bytes()
    plain.unlink()
    return data


class RandomChain(NamedTuple):
    """Images that qemu-img and qemu-io made, the base first; `formats` says raw or qcow2 for each."""

    paths: list[Path]
    formats: list[str]

    @property
    def top(self) -> Path:
        """The image at the end of the chain."""
        return self.paths[-1]


class RandomLayer(NamedTuple):
    """What one layer of a random chain is made with."""

    path: Path
    format: str
    size_bytes: int
    cluster_bytes: int = SECTOR
    refcount_bits: int = 16
    is_preallocated: bool = False


def random_chain(folder: Path, seed: int, layer_count: int | None = None) -> RandomChain:
    """Make a chain of 1 to 8 layers: random writes, zeroes and discards, compressed clusters, internal snapshots,
    preallocation, subclusters, cluster sizes of 512 B to 2 MiB, both versions, sizes that are no multiple of a cluster,
    and overlays shorter and longer than their base.
    """
    choose = random.Random(seed)
    noise = folder / "noise"
    # A length that divides nothing, so that bytes from the wrong place show.
    noise.write_bytes(choose.randbytes(7919))
    chain = RandomChain([], [])
    for index in range(layer_count or choose.randint(1, 8)):
        layer = _create_random_layer(choose, folder / f"layer-{index}", chain)
        chain.paths.append(layer.path)
        chain.formats.append(layer.format)
        _fill_random_layer(choose, layer, noise)
    noise.unlink()
    return chain


def _create_random_layer(choose: random.Random, path: Path, below: RandomChain) -> RandomLayer:
    size = SECTOR * choose.randint(1, 4096 if choose.random() < 0.8 else 16384)
    if not below.paths and choose.random() < 0.3:
        layer = RandomLayer(path.with_suffix(".raw"), "raw", size)
        qemu_img("create", "-q", "-f", "raw", layer.path, str(size))
        return layer
    cluster, refcount_bits = 1 << choose.randint(9, 21), 16
    options = f"cluster_size={cluster}"
    if choose.random() < 0.25:
        options += ",compat=0.10"
    else:
        refcount_bits = 1 << choose.randint(0, 6)
        options += f",compat=1.1,refcount_bits={refcount_bits}"
        options += choose.choice(["", ",lazy_refcounts=on", ",compression_type=zstd"])
        options += ",extended_l2=on" * (cluster >= 1 << 14 and choose.random() < 0.4)
    backing = ["-b", below.top.name, "-F", below.formats[-1]] if below.paths else []
    is_preallocated = not backing and choose.random() < 0.3
    options += ",preallocation=metadata" * is_preallocated
    layer = RandomLayer(path.with_suffix(".qcow2"), "qcow2", size, cluster, refcount_bits, is_preallocated)
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, *backing, layer.path, str(size))
    return layer


def _fill_random_layer(choose: random.Random, layer: RandomLayer, noise: Path) -> None:
    can_pack = layer.format == "qcow2" and not layer.is_preallocated
    packed = _compressed_writes(choose, layer) if can_pack and choose.random() < 0.4 else []
    qemu_io(layer.path, *packed, *_random_commands(choose, layer.size_bytes, noise), image_format=layer.format)
    if layer.format == "qcow2" and layer.refcount_bits >= 8 and choose.random() < 0.25:
        qemu_img("snapshot", "-c", "before", layer.path)
        qemu_io(layer.path, *_random_commands(choose, layer.size_bytes, noise))
    if layer.format == "raw" and choose.random() < 0.3:
        with layer.path.open("r+b") as file:
            file.truncate(max(layer.size_bytes - choose.randint(1, 3 * SECTOR), 1))


def _compressed_writes(choose: random.Random, layer: RandomLayer) -> list[str]:
    """Fill some clusters compressed; it must be done while they hold nothing."""
    cluster, size = layer.cluster_bytes, layer.size_bytes
    starts = choose.sample(range(-(-size // cluster)), min(choose.randint(1, 12), -(-size // cluster)))
    spans = [(start * cluster, min(cluster, size - start * cluster)) for start in starts]
    return [f"write -c -P {choose.randint(1, 255)} {start} {length}" for start, length in spans]


def _random_commands(choose: random.Random, size: int, noise: Path) -> list[str]:
    verbs = [*["write -P {byte}"] * 2, *["write -s {noise}"] * 2, "write -z", "write -zu", "discard"]
    commands = []
    for _ in range(choose.randint(0, 24)):
        unit = 1 if choose.random() < 0.1 else SECTOR
        start = choose.randrange(size // unit) * unit
        length = min(unit * choose.randint(1, 256), size - start)
        verb = choose.choice(verbs).format(byte=choose.randint(1, 255), noise=noise)
        commands.append(f"{verb} {start} {length}")
    return commands or ["read 0 512"]
