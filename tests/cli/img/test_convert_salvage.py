"""`cowtree img convert --salvage` beside qemu-img: what cannot be read becomes zeroes, sector by sector."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cowtree.errors import StorageFailed
from cowtree.images.convert import Manner, convert, convert_into
from cowtree.plan.create import NewImage
from cowtree.storage.contract import FileSystem, Storage
from cowtree.storage.file import LocalFiles
from cowtree.storage.passing import PassingFile, PassingFiles
from tests.cli.img.differential import Result, run_cowtree, run_stock
from tests.qemu import SECTOR, assert_clean, content, qemu_img, qemu_io

CLUSTER, CLUSTER_COUNT = 4096, 256
UNREAD = re.compile(r"^qemu-img: warning: (error while reading offset \d+: .*)$", re.MULTILINE)
COPIED, OFFSET_MASK, PACKED_OFFSET_MASK = 1 << 63, 0x00FF_FFFF_FFFF_FE00, (1 << 58) - 1


def word(data: bytearray, place: int, value: int | None = None) -> int:
    """The 64-bit word at a place of a file, which may get another value."""
    if value is not None:
        data[place : place + 8] = value.to_bytes(8, "big")
    return int.from_bytes(data[place : place + 8], "big")


def break_packed(data: bytearray) -> None:
    """Make the second cluster, which is compressed, no deflate stream."""
    place = word(data, entry_place(data, 1)) & PACKED_OFFSET_MASK
    data[place : place + 8] = b"\xff" * 8


def entry_place(data: bytearray, cluster: int) -> int:
    """Where the L2 entry of a cluster lies."""
    return (word(data, word(data, 40)) & OFFSET_MASK) + 8 * cluster


def misplace(data: bytearray) -> None:
    """Let the third cluster lie where no cluster begins."""
    place = entry_place(data, 2)
    word(data, place, word(data, place) | 512)


def point_past_the_end(data: bytearray) -> None:
    """Let the third cluster lie past the end of the file, where QEMU silently reads zeroes."""
    word(data, entry_place(data, 2), COPIED | 1 << 40)


def misplace_table(data: bytearray) -> None:
    """Let the L2 table lie where no cluster begins."""
    place = word(data, 40)
    word(data, place, word(data, place) | 512)


DAMAGES: dict[str, tuple[Callable[[bytearray], None], range, bool]] = {
    "packed": (break_packed, range(CLUSTER, 2 * CLUSTER, SECTOR), True),
    "misplaced": (misplace, range(2 * CLUSTER, 3 * CLUSTER, SECTOR), True),
    "past the end": (point_past_the_end, range(2 * CLUSTER, 3 * CLUSTER, SECTOR), False),
    "table": (misplace_table, range(0, CLUSTER * CLUSTER_COUNT, SECTOR), True),
}
CALLS = ("", "-q", "-O qcow2", "-O qcow2 -c", "-S 0", "-O qcow2 -m 8 -W", "-n -O qcow2", "-n -O qcow2 -S 0")


def make(folder: Path, damage: str, *, has_backing: bool = False) -> Path:
    """Make a damaged image, and a target that is there."""
    folder.mkdir()
    path, backing = folder / "image", []
    if has_backing:
        qemu_img("create", "-q", "-f", "qcow2", folder / "base", "1M")
        qemu_io(folder / "base", "write -P 66 0 1M")
        backing = ["-b", "base", "-F", "qcow2"]
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={CLUSTER}", *backing, path, "1M")
    qemu_io(path, "write -c -P 9 0 8k", "write -P 5 8k 500k", "write -P 6 700k 100k")
    data = bytearray(path.read_bytes())
    DAMAGES[damage][0](data)
    path.write_bytes(data)
    qemu_img("create", "-q", "-f", "qcow2", folder / "target", "1M")
    qemu_io(folder / "target", "write -P 7 0 1M")
    return folder


def lost(result: Result) -> list[str]:
    """What could not be read, as it was said."""
    return UNREAD.findall(result.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_salvaged_is_what_qemu_salvages(tmp_path: Path, damage: str, call: str):
    folder = make(tmp_path / "folder", damage)
    words, name = call.split(), "target" if "-n" in call else "out"
    # QEMU notes in the image that it is corrupt, or not, as it opens it: each gets its own.
    copy = shutil.copytree(folder, tmp_path / "copy")
    stock = run_stock(copy, "convert", "--salvage", *words, "-f", "qcow2", "image", name)
    own = run_cowtree(folder, "convert", "--salvage", *words, "-f", "qcow2", "image", name)
    assert (own.status, own.stdout) == (stock.status, stock.stdout) == (0, "")
    image_format = "qcow2" if "qcow2" in call else "raw"
    assert content(folder / name, image_format) == content(copy / name, image_format)
    _, where, is_told = DAMAGES[damage]
    told = [] if "-q" in call else [f"error while reading offset {offset}: Input/output error" for offset in where]
    assert lost(own) == told
    assert not is_told or sorted(set(lost(stock))) == sorted(told)
    assert run_cowtree(folder, "convert", "-f", "qcow2", "image", "other").status == 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_lost_never_shows_what_lies_below(tmp_path: Path, damage: str):
    folder = make(tmp_path / "folder", damage, has_backing=True)
    assert run_cowtree(folder, "convert", "--salvage", "-O", "raw", "image", "out").status == 0
    where = DAMAGES[damage][1]
    assert not any((folder / "out").read_bytes()[where.start : where.stop])
    words = ("-O", "qcow2", "-B", "base", "-F", "qcow2", "image", "out")
    assert run_cowtree(folder, "convert", "--salvage", *words).status == 0
    assert not any(content(folder / "out")[where.start : where.stop])


class Unreadable(PassingFiles):
    """Files of which one has sectors that cannot be read."""

    def __init__(self, inner: FileSystem, path: str, sectors: Sequence[int]) -> None:
        super().__init__(inner)
        self._path, self._sectors = path, sectors

    def open(self, path: str, access: str) -> Storage:
        """Open a file."""
        file = super().open(path, access)
        return UnreadableFile(file, self._sectors) if path == self._path else file


class UnreadableFile(PassingFile):
    """A file with sectors that cannot be read."""

    def __init__(self, inner: Storage, sectors: Sequence[int]) -> None:
        super().__init__(inner)
        self._sectors = sectors

    def pread(self, offset: int, length: int) -> bytes:
        """Read, where that can be."""
        if any(offset < (sector + 1) * SECTOR and sector * SECTOR < offset + length for sector in self._sectors):
            raise StorageFailed(path=self.path, action="read", reason="Input/output error")
        return self.inner.pread(offset, length)

    def preadv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers, where that can be."""
        data = self.pread(offset, sum(map(len, buffers)))
        for buffer in buffers:
            buffer[:] = data[: len(buffer)]
            data = data[len(buffer) :]


@pytest.mark.slow
@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
@pytest.mark.parametrize("target_format", ["raw", "qcow2"])
def test_single_sectors_that_cannot_be_read_are_lost_as_qemu_loses_them(
    tmp_path: Path, image_format: str, target_format: str
):
    path, sectors = tmp_path / "image", (1000, 1002, 1500)
    qemu_img("create", "-q", "-f", image_format, path, "1M")
    qemu_io(path, "write -P 5 0 1M", image_format=image_format)
    event = "read_aio" if image_format == "qcow2" else "none"
    errors = [{"event": event, "errno": 5, "sector": each, "iotype": "read", "once": False} for each in sectors]
    protocol = {"driver": "blkdebug", "image": {"driver": "file", "filename": str(path)}, "inject-error": errors}
    address = "json:" + json.dumps({"driver": image_format, "file": protocol})
    stock = run_stock(tmp_path, "convert", "--salvage", address, "-O", target_format, "stock")
    files, said = Unreadable(LocalFiles(), str(path), sectors), list[str]()
    manner, new = Manner(salvage=said.append), NewImage(str(tmp_path / "own"), target_format, 0)
    convert(files, [(str(path), image_format)], new, manner)
    assert said == lost(stock)
    assert len(said) == len(sectors)
    assert content(tmp_path / "own", target_format) == content(tmp_path / "stock", target_format)
    qemu_img("create", "-q", "-f", target_format, tmp_path / "old", "2M")
    convert_into(files, [(str(path), image_format)] * 2, (str(tmp_path / "old"), target_format), manner)
    assert said == lost(stock) * 3
    assert content(tmp_path / "old", target_format) == content(tmp_path / "own", target_format) * 2
    with pytest.raises(StorageFailed):
        convert(files, [(str(path), image_format)], new)


@pytest.mark.slow
@pytest.mark.soak
def test_of_any_damaged_table_all_that_is_sound_is_saved(tmp_path: Path, seed: int):
    folder = make(tmp_path / "folder", "packed")
    before = bytearray((folder / "image").read_bytes())
    broken = [(seed * 37 + 11 * step) % 120 + 3 for step in range(seed % 5 + 1)]
    for number, cluster in enumerate(broken):
        place = entry_place(before, cluster)
        word(before, place, (COPIED | 1 << 45, word(before, place) | 512, COPIED | 512)[number % 3])
    (folder / "image").write_bytes(before)
    own = run_cowtree(folder, "convert", "--salvage", "-O", "qcow2", "image", "out")
    assert own.status == 0
    assert_clean(folder / "out")
    expected = bytearray(1 << 20)
    expected[:CLUSTER] = b"\x09" * CLUSTER
    expected[8 << 10 : 508 << 10] = b"\x05" * (500 << 10)
    expected[700 << 10 : 800 << 10] = b"\x06" * (100 << 10)
    for cluster in broken:
        expected[cluster * CLUSTER : (cluster + 1) * CLUSTER] = bytes(CLUSTER)
    assert content(folder / "out") == expected
    assert len(lost(own)) == (len(set(broken)) + 1) * CLUSTER // SECTOR
