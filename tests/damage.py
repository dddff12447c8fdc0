"""Owns images with everything in them that qemu-img can make, and how their metadata is damaged."""

import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from tests.qemu import SECTOR, qemu_img, qemu_io, run

OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00
COPIED, COMPRESSED = 1 << 63, 1 << 62
EXTENDED_L2 = 1 << 4
DAMAGES_AT_ONCE_MAX = 3


class Rich(NamedTuple):
    """An image with snapshots, bitmaps, compressed clusters and so on, as its seed wills."""

    path: Path
    has_snapshots: bool
    has_bitmaps: bool


def rich_image(folder: Path, seed: int) -> Rich:
    """Make an image of any geometry. What one kind of image cannot have is left out, and qemu-img says when."""
    choose = random.Random(seed)
    cluster_bits = choose.choice((9, 10, 12, 14, 16, 16, 18))
    options, has_data_file = _options(choose, folder, cluster_bits)
    path = folder / "rich.qcow2"
    sectors = choose.choice((2048, 6144, 2053) if cluster_bits >= 12 else (512, 2048, 100))
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, str(sectors * SECTOR))
    verbs = ["write -P 5", "write -P 77", "write -z", "write -zu", "discard"]
    verbs += [] if has_data_file else ["write -c -P 9"]
    _write(choose, path, verbs, sectors)
    has_snapshots = has_bitmaps = False
    for index in range(choose.choice((0, 0, 1, 2, 3))):
        has_snapshots |= run("qemu-img", "snapshot", "-c", f"s{index}", path).returncode == 0
        _write(choose, path, verbs, sectors)
    for index in range(choose.choice((0, 0, 1, 3))):
        words = "bitmap", "--add", "-g", choose.choice(("512", "64k")), path, f"b{index}"
        has_bitmaps |= run("qemu-img", *words).returncode == 0
    _write(choose, path, verbs, sectors)
    return Rich(path, has_snapshots, has_bitmaps)


def _options(choose: random.Random, folder: Path, cluster_bits: int) -> tuple[str, bool]:
    options = f"cluster_size={1 << cluster_bits}"
    if choose.random() < 0.2:
        return f"{options},compat=0.10", False
    options += f",refcount_bits={choose.choice((1, 2, 4, 8, 16, 16, 16, 32, 64))}"
    options += choose.choice(("", "", ",compression_type=zstd"))
    if cluster_bits >= 14 and choose.random() < 0.3:
        return f"{options},extended_l2=on", False
    kind = choose.random()
    if kind < 0.12:
        return f"{options},data_file={folder}/data.raw{choose.choice((',data_file_raw=on', ''))}", True
    return f"{options},preallocation=metadata" if kind > 0.8 else options, False


def _write(choose: random.Random, path: Path, verbs: Sequence[str], sectors: int) -> None:
    commands = ["-c", "read 0 512"]
    for _ in range(choose.randint(0, 12)):
        start = choose.randrange(sectors)
        length = min(choose.randint(1, 400), sectors - start)
        commands += ["-c", f"{choose.choice(verbs)} {start * SECTOR} {length * SECTOR}"]
    # Some are refused, such as a compressed write that is not aligned.
    run("qemu-io", "-f", "qcow2", *commands, path)


class Words(NamedTuple):
    """Where the metadata words of an image lie; each is 8 bytes."""

    data: bytes
    cluster_bits: int
    l1: list[int]
    l2: list[int]
    refcount_table: list[int]
    refcount_block: list[int]
    snapshot_table: list[int]

    @property
    def l2_entries(self) -> list[int]:
        """The L2 entries without the subcluster bitmaps between them."""
        is_extended = _number(self.data, 4, 4) == 3 and self.data[79] & EXTENDED_L2
        return [place for place in self.l2 if place % 16 == 0 or not is_extended]

    @property
    def places(self) -> list[list[int]]:
        """Each kind that there is."""
        return [each for each in self[2:] if each]


def find_words(data: bytes) -> Words:
    """Find the metadata words of a sound image: those in use, and a few others."""
    cluster_bits = _number(data, 20, 4)
    size = 1 << cluster_bits
    l1 = _table(_number(data, 40, 8), _number(data, 36, 4))
    refcount_table = _table(_number(data, 48, 8), _number(data, 56, 4) * size // 8)
    l2 = [place for table in _targets(data, l1) for place in _table(table, size // 8) if _number(data, place, 8)]
    blocks = [place for table in _targets(data, refcount_table) for place in _table(table, min(size // 8, 32))]
    snapshots = _table(_number(data, 64, 8), 12) if _number(data, 60, 4) else []
    return Words(data, cluster_bits, l1, l2, refcount_table[:8], blocks, snapshots)


def _number(data: bytes | bytearray, offset: int, length: int) -> int:
    return int.from_bytes(data[offset : offset + length], "big")


def _table(offset: int, count: int) -> list[int]:
    return [offset + 8 * index for index in range(count)]


def _targets(data: bytes, places: Sequence[int]) -> list[int]:
    return [target for place in places if (target := _number(data, place, 8) & OFFSET_MASK)]


def put_word(data: bytearray, place: int, value: int) -> None:
    """Change one metadata word."""
    data[place : place + 8] = value.to_bytes(8, "big")


def damage(words: Words, choose: random.Random) -> bytes:
    """Change a few metadata words, or cut the file."""
    if choose.random() < 0.1:
        return words.data[: choose.randrange(512, len(words.data))]
    data = bytearray(words.data)
    for _ in range(choose.randint(1, DAMAGES_AT_ONCE_MAX)):
        kind = choose.choice(words.places)
        place = choose.choice(kind)
        put_word(data, place, _damaged(words, choose, _number(data, place, 8), kind))
    return bytes(data)


def _damaged(words: Words, choose: random.Random, value: int, kind: list[int]) -> int:
    """Another value: a bit the other way, a target inside or outside the file, not aligned, shared, or noise."""
    flags, end = value & ~OFFSET_MASK, -(-len(words.data) >> words.cluster_bits)
    choices = (
        value ^ 1 << choose.randrange(64),
        value ^ COPIED,
        flags | choose.randrange(end + 2) << words.cluster_bits,
        flags | (end + choose.randrange(9)) << words.cluster_bits,
        value ^ SECTOR,
        0,
        _number(words.data, choose.choice(kind), 8),
        value & ~0xFFFF | choose.randrange(1 << 16),
    )
    return choose.choice(choices)


@cache
def template(options: str, size: str) -> bytes:
    """An image with data, zeroes, a compressed cluster and a snapshot, some of which shares clusters."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "disk"
        qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, size)
        qemu_io(path, "write -P 1 0 24k", "write -z 24k 8k", "write -c -P 3 32k 4k", "write -P 4 64k 16k")
        qemu_img("snapshot", "-c", "first", path)
        qemu_io(path, "write -P 5 8k 8k")
        return path.read_bytes()


def simple_image(path: Path, options: str = "cluster_size=4096", size: str = "4M") -> Words:
    """Put a small image there."""
    path.write_bytes(template(options, size))
    return find_words(template(options, size))


def word(words: Words, place: int) -> int:
    return int.from_bytes(words.data[place : place + 8], "big")


Damage = Callable[[Words, bytearray], None]
END = 1 << 40
DAMAGES: dict[str, Damage] = {
    "the refcount of a cluster is 0": lambda words, data: put_word(data, words.refcount_block[1], 0),
    "the refcount of a cluster is too high": lambda words, data: put_word(data, words.refcount_block[1], 2**48 - 1),
    "a cluster is leaked": lambda words, data: put_word(data, words.l2[0], 0),
    "an L2 entry points past the end": lambda words, data: put_word(data, words.l2[0], END | COPIED),
    "an L2 entry is not aligned": lambda words, data: put_word(data, words.l2[0], word(words, words.l2[0]) + 512),
    "an L2 entry is a mere flag": lambda words, data: put_word(data, words.l2[0], COPIED),
    "an L2 entry points at the L1 table": lambda words, data: put_word(data, words.l2[0], words.l1[0] | COPIED),
    "an L2 entry points at the refcount table": lambda words, data: put_word(
        data, words.l2[0], words.refcount_table[0] | COPIED
    ),
    "an L2 entry points at a refcount block": lambda words, data: put_word(
        data, words.l2[0], words.refcount_block[0] & ~0xFFF | COPIED
    ),
    "two L2 entries share a cluster": lambda words, data: put_word(data, words.l2[0], word(words, words.l2[1])),
    "reserved bits of an L2 entry are set": lambda words, data: put_word(
        data, words.l2[0], word(words, words.l2[0]) | 6 | 1 << 57
    ),
    "a flag is missing": lambda words, data: put_word(data, words.l2[3], word(words, words.l2[3]) ^ COPIED),
    "the flag of an L1 entry is wrong": lambda words, data: put_word(
        data, words.l1[0], word(words, words.l1[0]) ^ COPIED
    ),
    "an L1 entry points past the end": lambda words, data: put_word(data, words.l1[0], END),
    "an L1 entry is not aligned": lambda words, data: put_word(data, words.l1[0], word(words, words.l1[0]) + 512),
    "an L1 entry is gone": lambda words, data: put_word(data, words.l1[0], 0),
    "two L1 entries share a table": lambda words, data: put_word(data, words.l1[0] + 8, word(words, words.l1[0])),
    "a refcount block is not aligned": lambda words, data: put_word(
        data, words.refcount_table[0], word(words, words.refcount_table[0]) + 512
    ),
    "a refcount block is past the end": lambda words, data: put_word(data, words.refcount_table[0], END),
    "a refcount block has reserved bits": lambda words, data: put_word(
        data, words.refcount_table[0], word(words, words.refcount_table[0]) + 1
    ),
    "a refcount block is used twice": lambda words, data: put_word(
        data, words.refcount_table[1], word(words, words.refcount_table[0])
    ),
    "the refcount table is empty": lambda words, data: put_word(data, words.refcount_table[0], 0),
    "a snapshot's L1 table is not aligned": lambda words, data: put_word(
        data, words.snapshot_table[0], word(words, words.snapshot_table[0]) + 512
    ),
    "a snapshot's L1 table is past the end": lambda words, data: put_word(data, words.snapshot_table[0], END),
    "a snapshot says too little": lambda words, data: put_word(data, words.snapshot_table[4], 0),
    "the file is cut in its data": lambda words, data: data.__delitem__(slice(len(data) - 5000, None)),
    "the file is cut in its tables": lambda words, data: data.__delitem__(slice(words.l1[0] + 512, None)),
}
