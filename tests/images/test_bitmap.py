"""Bitmaps of one image: what each action does to the bits, random actions by both tools in turn, damage, size."""

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from cowtree.errors import CowtreeError, ImageLocked, MarkedCorrupt, Refused
from cowtree.images.bitmap import change
from cowtree.plan.bitmap import Action
from cowtree.storage.contract import Access
from cowtree.storage.file import LocalFiles
from cowtree.storage.memory import MemoryFiles
from tests.crash import assert_sound, guest_view, write_more
from tests.dirty import AUTO, IN_USE, Spans, dirty_through_nbd, entry_of, read_bitmaps, table_of
from tests.permits import commit
from tests.qemu import assert_clean, qemu_img, qemu_io
from tests.sparse import MEMORY_MIB_MAX, peak_memory_mib

FILES = LocalFiles()
GRANULE = 4096
GRANULES = 16


def do(path: Path, name: str, *words: str, granularity: int | None = None, source: Path | None = None) -> None:
    """Actions on one bitmap, such as `add` and `merge other`."""
    other = (str(source), "qcow2") if source else None
    change(FILES, (str(path), "qcow2"), name, [action(word, granularity) for word in words], other)


def action(words: str, granularity: int | None = None) -> Action:
    """An action, as `add` or `merge other`."""
    verb, _, other = words.partition(" ")
    return Action(verb, other, granularity)


def picture(path: Path, name: str, granule: int = GRANULE, count: int = GRANULES) -> str:
    """A bitmap, one sign a granule: # where it is dirty; `?` when it is in use."""
    found = read_bitmaps(path.read_bytes())[name].dirty
    if found is None:
        return "?" * count
    return "".join(
        "#" if any(start <= index * granule < stop for start, stop in found) else "." for index in range(count)
    )


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image of 16 granules, a bitmap `left` that knows the first four, `right` that knows the last two."""
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", path, str(GRANULE * GRANULES))
    qemu_img("bitmap", "--add", path, "left")
    qemu_io(path, "write 0 16k")
    qemu_img("bitmap", "--disable", path, "left")
    qemu_img("bitmap", "--add", path, "right")
    qemu_io(path, "write 56k 8k")
    return path


def test_a_new_bitmap_is_clean_and_then_knows_what_qemu_writes(image: Path):
    do(image, "new", "add")
    assert picture(image, "new") == "................"
    qemu_io(image, "write 5k 9k")
    assert picture(image, "new") == ".###............"


def test_a_merge_adds_what_the_other_knows(image: Path):
    do(image, "left", "merge right")
    assert picture(image, "left") == "####..........##"
    assert picture(image, "right") == "..............##"


def test_a_merge_into_something_coarse_rounds_up(image: Path):
    do(image, "new", "add", "merge right", granularity=32768)
    assert picture(image, "new") == "........########"


def test_a_merge_into_something_fine_keeps_all(image: Path):
    do(image, "new", "add", "merge left", granularity=512)
    assert picture(image, "new") == "####............"
    assert read_bitmaps(image.read_bytes())["new"].granularity == 512


def test_a_clear_bitmap_is_clean(image: Path):
    do(image, "left", "clear")
    assert picture(image, "left") == "................"
    assert_clean(image)


def test_a_disabled_bitmap_sees_nothing_until_it_is_enabled(image: Path):
    do(image, "right", "disable")
    write_more(FILES, str(image), {0: b"x"})
    assert picture(image, "right") == "..............##"
    do(image, "right", "enable")
    write_more(FILES, str(image), {GRANULE: b"x"})
    assert picture(image, "right") == ".#............##"
    assert picture(image, "left") == "####............"


def test_what_we_write_is_dirty_to_the_granule(image: Path):
    write_more(FILES, str(image), {5 * GRANULE + 7: b"x", 8 * GRANULE - 1: b"xx"})
    assert picture(image, "right") == ".....#.##.....##"
    assert_clean(image)


def test_a_bitmap_of_another_image_is_merged(image: Path, tmp_path: Path):
    other = tmp_path / "other"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", other, str(GRANULE * GRANULES))
    qemu_img("bitmap", "--add", "-g", "512", other, "far")
    qemu_io(other, "write 20k 512")
    do(image, "right", "merge far", source=other)
    assert picture(image, "right") == ".....#........##"


def test_what_came_before_a_refusal_stays_done(image: Path):
    with pytest.raises(Refused, match="Operation merge on bitmap new failed: Dirty bitmap 'gone' not found"):
        do(image, "new", "add", "merge gone", "disable")
    assert read_bitmaps(image.read_bytes())["new"].flags == AUTO


def test_nothing_is_written_when_nothing_changes(image: Path):
    before = image.stat().st_mtime_ns
    do(image, "right", "enable", "merge right")
    with pytest.raises(Refused):
        do(image, "left", "add")
    assert image.stat().st_mtime_ns == before


def test_an_image_that_is_open_or_corrupt_is_refused(image: Path):
    with pytest.raises(ImageLocked):
        do(image, "right", "merge left", source=image)
    data = bytearray(image.read_bytes())
    data[79] |= 2
    image.write_bytes(data)
    with pytest.raises(MarkedCorrupt):
        do(image, "right", "clear")


def test_all_that_a_removed_bitmap_had_is_free_again(image: Path):
    before = image.stat().st_size
    for _ in range(5):
        do(image, "new", "add", "merge left", granularity=512)
        do(image, "new", "remove")
    assert image.stat().st_size <= before + 8 * 4096
    assert_clean(image)


# Both tools in turn.


class Model:
    """What the bitmaps of an image must be after each step: granularity, whether it records, and the dirty granules."""

    def __init__(self, seed: int, path: Path) -> None:
        self.choose = random.Random(seed)
        self.path = path
        self.size = 512 * self.choose.randint(200, 4000)
        self.known: dict[str, tuple[int, bool, set[int]]] = {}
        bits = self.choose.choice([9, 10, 12, 16])
        qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={1 << bits}", path, str(self.size))

    def step(self) -> None:
        """Do something, with one tool or the other."""
        some = sorted(self.known)
        verbs = ["add"] if not some else ["add", "remove", "clear", "enable", "disable", "merge", "merge", "write"] * 1
        verb = self.choose.choice([*verbs, "write", "write"])
        if verb == "write":
            self.write()
            return
        name = self.choose.choice(some) if verb != "add" else f"b{self.choose.randint(0, 99)}"
        if verb == "add" and name in self.known:
            return
        other = self.choose.choice(some) if verb == "merge" else ""
        bits = self.choose.choice([9, 10, 12, 14, 16, 20])
        if self.choose.random() < 0.6:
            do(self.path, name, f"{verb} {other}".strip(), granularity=1 << bits if verb == "add" else None)
        else:
            words = [f"--{verb}", *([other] if other else []), *(["-g", str(1 << bits)] if verb == "add" else [])]
            qemu_img("bitmap", *words, self.path, name)
        self._remember(verb, name, other, bits)

    def _remember(self, verb: str, name: str, other: str, bits: int) -> None:
        if verb == "add":
            self.known[name] = bits, True, set()
            return
        if verb == "remove":
            del self.known[name]
            return
        bits, records, dirty = self.known[name]
        if verb == "merge":
            old, _, more = self.known[other]
            dirty = dirty.union(*(self._granules(index << old, (index + 1) << old, bits) for index in more))
        records = {"enable": True, "disable": False}.get(verb, records)
        self.known[name] = bits, records, set() if verb == "clear" else dirty

    def _granules(self, start: int, stop: int, bits: int) -> range:
        return range(start >> bits, -(-min(stop, self.size) // (1 << bits)))

    def write(self) -> None:
        """Write some sectors."""
        start = 512 * self.choose.randrange(self.size // 512)
        length = min(512 * self.choose.randint(1, 200), self.size - start)
        if self.choose.random() < 0.5:
            write_more(FILES, str(self.path), {start: bytes([self.choose.randint(1, 255)]) * length})
        else:
            qemu_io(self.path, f"write -P 7 {start} {length}")
        for bits, records, dirty in self.known.values():
            if records:
                dirty.update(self._granules(start, start + length, bits))

    def expected(self) -> dict[str, tuple[int, int, Spans]]:
        """What a reader must find."""
        return {
            name: (1 << bits, AUTO if records else 0, self._spans(dirty, bits))
            for name, (bits, records, dirty) in self.known.items()
        }

    def _spans(self, dirty: set[int], bits: int) -> Spans:
        spans: Spans = []
        for index in sorted(dirty):
            start, stop = index << bits, min((index + 1) << bits, self.size)
            if spans and spans[-1][1] == start:
                start = spans.pop()[0]
            spans.append((start, stop))
        return spans


@pytest.mark.slow
@pytest.mark.soak
def test_random_actions_of_both_tools_keep_every_bit_right(tmp_path: Path, seed: int):
    model = Model(seed, tmp_path / "image")
    for _ in range(14):
        model.step()
        assert {name: tuple(each) for name, each in read_bitmaps(model.path.read_bytes()).items()} == model.expected()
    assert_clean(model.path)
    for name, (_, _, spans) in list(model.expected().items())[:2]:
        assert dirty_through_nbd(model.path, name) == spans


# Hostile images.


DAMAGE: dict[str, Callable[[bytearray], None]] = {
    "a table that points at the header": lambda data: struct.pack_into(">Q", data, table_of(data, "left"), 1 << 63),
    "a cluster past the end": lambda data: struct.pack_into(">Q", data, table_of(data, "left"), 1 << 40),
    "a cluster that is no cluster": lambda data: struct.pack_into(">Q", data, table_of(data, "left"), 0x1200),
    "a cluster of the refcount table": lambda data: struct.pack_into(">Q", data, table_of(data, "left"), 0x1000),
    "a cluster that has no count": lambda data: struct.pack_into(
        ">Q", data, table_of(data, "left"), len(data) // 4096 * 4096
    ),
    "a cluster of another bitmap": lambda data: struct.pack_into(
        ">Q", data, table_of(data, "left"), struct.unpack_from(">Q", data, table_of(data, "right"))[0]
    ),
    "a table in the header": lambda data: struct.pack_into(">Q", data, entry_of(data, "left"), 0x1000),
    "a table past the end": lambda data: struct.pack_into(">Q", data, entry_of(data, "left"), 1 << 40),
    "a huge table": lambda data: struct.pack_into(">I", data, entry_of(data, "left") + 8, 1 << 17),
    "a table of the wrong length": lambda data: struct.pack_into(">I", data, entry_of(data, "left") + 8, 2),
    "a wrong type": lambda data: struct.pack_into(">B", data, entry_of(data, "left") + 16, 7),
    "an endless name": lambda data: struct.pack_into(">H", data, entry_of(data, "left") + 18, 65535),
    "two of a name": lambda data: data.__setitem__(
        slice(entry_of(data, "left") + 24, entry_of(data, "left") + 28), b"left"
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("words", ["add", "clear", "merge right", "disable", "remove", "write", "commit"])
def test_damage_is_refused_or_left_behind(image: Path, damage: str, words: str):
    data = bytearray(image.read_bytes())
    DAMAGE[damage](data)
    files = MemoryFiles({"image": bytes(data)})
    seen = guest_view(MemoryFiles({"image": image.read_bytes()}), "image")
    name = "new" if words == "add" else "left"
    try:
        if words == "write":
            write_more(files, "image", {0: seen[:1]})
        elif words == "commit":
            files = MemoryFiles(files.snapshot() | {"top": overlay(image)})
            commit(files, "top", "qcow2")
        else:
            change(files, ("image", "qcow2"), name, [action(words)])
    except CowtreeError:
        # What is refused is refused before a byte changes.
        assert files.content("image") == data
    else:
        assert guest_view(files, "image") == seen


def overlay(image: Path) -> bytes:
    """An overlay that shows what the image shows."""
    top = image.with_name("top")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "image", "-F", "qcow2", top)
    return top.read_bytes()


def test_a_bitmap_that_cannot_be_followed_stays_in_use_after_a_write(image: Path):
    data = bytearray(image.read_bytes())
    struct.pack_into(">Q", data, table_of(data, "right"), 1 << 40)
    image.write_bytes(data)
    write_more(FILES, str(image), {0: b"x"})
    assert read_bitmaps(image.read_bytes()[:])["right"].flags == AUTO | IN_USE


def test_a_broken_bitmap_can_be_removed(image: Path):
    data = bytearray(image.read_bytes())
    data[entry_of(data, "right") + 15] |= IN_USE
    image.write_bytes(data)
    do(image, "right", "remove", "add")
    assert picture(image, "right") == "................"
    assert_clean(image)


def test_a_leak_of_a_stopped_run_is_mended_by_the_next(image: Path):
    data = bytearray(image.read_bytes())
    data[79] |= 1
    image.write_bytes(data + bytes(4096))
    do(image, "right", "clear")
    assert_sound(FILES, str(image), is_done=True)


def test_files_are_closed_when_something_is_refused(image: Path):
    with pytest.raises(Refused):
        do(image, "gone", "clear")
    FILES.open(str(image), Access.WRITE).close()


# Size.

BITMAPS = """
import sys
from cowtree.images.bitmap import change
from cowtree.plan.bitmap import Action
from cowtree.storage.file import LocalFiles

def do(name, granularity, *words):
    change(LocalFiles(), (sys.argv[1], "qcow2"), name, [Action(*word, granularity) for word in words])

do("same", 1 << 16, ("add", ""), ("merge", "full"))
do("rough", 1 << 17, ("add", ""), ("merge", "full"))
do("full", None, ("remove", ""))
"""


@pytest.mark.slow
def test_the_bitmaps_of_16_tib_take_little_memory(tmp_path: Path):
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", path, "16T")
    qemu_img("bitmap", "--add", "-g", "64k", path, "full")
    fill(path)
    assert peak_memory_mib(BITMAPS, path) < MEMORY_MIB_MAX
    assert_clean(path)
    listed = json.loads(qemu_img("info", "--output=json", path))["format-specific"]["data"]["bitmaps"]
    assert [(each["name"], each["granularity"]) for each in listed] == [("same", 1 << 16), ("rough", 1 << 17)]


def fill(path: Path) -> None:
    """Let every third granule of the first sixth of a bitmap be dirty, and all of the last sixth."""
    with path.open("r+b") as file:
        data = file.read()
        table, size = struct.unpack_from(">QI", data, entry_of(data, "full"))
        end = -(-len(data) // 65536) * 65536
        for row in range(size // 6):
            for at, bits in ((row, b"\x49\x92\x24" * 21845 + b"\x49"), (size - 1 - row, b"\xff" * 65536)):
                file.seek(table + 8 * at)
                file.write(struct.pack(">Q", end))
                file.seek(end)
                file.write(bits)
                end += len(bits)
    qemu_img("check", "-q", "-r", "all", path)
