"""Internal snapshots: by picture, by model, and on images that are damaged or that have no room."""

import random
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from cowtree.chain import gate
from cowtree.chain.load import load_image
from cowtree.chain.view import open_chain
from cowtree.errors import BrokenTable, CowtreeError, ImageError, MarkedCorrupt, Refused
from cowtree.images.snapshot import apply, create, delete, list_snapshots
from cowtree.qcow2.header import DIRTY
from cowtree.qcow2.snapshots import pack
from cowtree.storage.contract import FileSystem
from cowtree.storage.file import LocalFiles
from cowtree.storage.memory import MemoryFiles
from tests.crash import assert_sound, snapshot_views, write_more
from tests.damage import DAMAGES, damage, find_words, put_word, rich_image, simple_image
from tests.pictures import CLUSTER_BYTES, family
from tests.qemu import assert_clean, content, qemu_img, qemu_io, run

FILES = LocalFiles()
CPU_S_MAX = 2.0
SNAPSHOTS_OFFSET, SIZE_OFFSET = 64, 24

Act = Callable[[FileSystem, str], object]
ACTS: dict[str, Act] = {
    "create": lambda files, path: create(files, path, "qcow2", name="new"),
    "apply": lambda files, path: apply(files, path, "qcow2", wanted="1"),
    "delete": lambda files, path: delete(files, path, "qcow2", name="first"),
}


def draw(files: MemoryFiles, path: str, picture: str) -> None:
    """Let a guest write clusters where the picture has letters."""
    signs = enumerate(picture)
    write_more(files, path, {at * CLUSTER_BYTES: sign.encode() * CLUSTER_BYTES for at, sign in signs if sign != "."})


def shown(files: MemoryFiles, path: str) -> dict[str, str]:
    """The picture of each snapshot, `-` where it holds nothing."""
    found = {}
    for name, data in snapshot_views(files, path).items():
        starts = data[::CLUSTER_BYTES]
        found[name] = "".join(chr(byte) if byte else "-" for byte in starts)
    return found


@pytest.mark.parametrize("version", [2, 3])
def test_a_snapshot_keeps_what_was_there(version: int):
    made = family("AB-D", version=version)
    create(made.files, made.top, name="one")
    draw(made.files, made.top, ".XY.")
    assert made.seen() == "AXYD"
    create(made.files, made.top, name="two")
    draw(made.files, made.top, "Z...")
    assert shown(made.files, made.top) == {"one": "AB-D", "two": "AXYD"}
    assert [each.id for each in list_snapshots(made.files, made.top)] == ["1", "2"]
    assert_sound(made.files, made.top, is_done=True)


def test_an_applied_snapshot_is_what_the_guest_sees():
    made = family("AB-Doo")
    create(made.files, made.top, name="one")
    draw(made.files, made.top, "XXXXXX")
    create(made.files, made.top, name="two")
    apply(made.files, made.top, wanted="one")
    assert made.seen() == "AB0D00"
    assert made.held() == "AB-Doo"
    draw(made.files, made.top, "Z.....")
    assert shown(made.files, made.top) == {"one": "AB-D--", "two": "XXXXXX"}
    assert_sound(made.files, made.top, is_done=True)


def test_a_deleted_snapshot_gives_its_clusters_back():
    made = family("ABC-")
    create(made.files, made.top, name="one")
    size = len(made.files.content(made.top))
    draw(made.files, made.top, "XYZ.")
    delete(made.files, made.top, name="one")
    assert_sound(made.files, made.top, is_done=True)
    grown = len(made.files.content(made.top))
    draw(made.files, made.top, "...W")
    assert size < grown == len(made.files.content(made.top))
    assert made.seen() == "XYZW"
    assert list_snapshots(made.files, made.top) == ()


def test_holes_let_a_base_show_through_after_all_of_it():
    made = family("A--", "-B-", "CCC")
    create(made.files, made.top, name="one")
    draw(made.files, made.top, ".XX")
    apply(made.files, made.top, wanted="one")
    assert made.seen() == "ABC"
    delete(made.files, made.top, name="one")
    assert made.seen() == "ABC"


def test_guests_write_in_place_again_once_no_snapshot_shares():
    made = family("AB")
    before = made.files.content(made.top)
    create(made.files, made.top, name="one")
    delete(made.files, made.top, name="one")
    draw(made.files, made.top, "XY")
    # The snapshot's own tables took two clusters; nothing else was added.
    assert len(made.files.content(made.top)) <= len(before) + 2 * CLUSTER_BYTES
    assert made.seen() == "XY"


def test_compressed_clusters_are_shared():
    made = family("aBc")
    create(made.files, made.top, name="one")
    draw(made.files, made.top, "X.Y")
    assert_sound(made.files, made.top, is_done=True)
    apply(made.files, made.top, wanted="1")
    assert made.seen() == "ABC"
    delete(made.files, made.top, name="one")
    assert made.held() == "aBc"
    assert_sound(made.files, made.top, is_done=True)


def test_an_id_goes_before_a_name_and_names_may_come_twice():
    made = family("A")
    create(made.files, made.top, name="2")
    draw(made.files, made.top, "B")
    create(made.files, made.top, name="2")
    draw(made.files, made.top, "C")
    assert apply(made.files, made.top, wanted="2").id == "2"
    assert made.seen() == "B"
    assert delete(made.files, made.top, name="2").id == "1"
    assert create(made.files, made.top, name="x").id == "3"
    assert [(each.id, each.name) for each in list_snapshots(made.files, made.top)] == [("2", "2"), ("3", "x")]


def test_a_snapshot_says_when_it_was_taken():
    made = family("A")
    entry = create(made.files, made.top, name="one", time_ns=1_234_567_890_123_456_789)
    assert list_snapshots(made.files, made.top) == (entry,) or entry.extra_data
    (found,) = list_snapshots(made.files, made.top)
    assert (found.time_s, found.time_ns, found.vm_clock_ns, found.icount) == (1_234_567_890, 123_456_000, 0, 0)


def test_raw_images_have_no_list():
    files = MemoryFiles({"raw": bytes(5000)})
    assert list_snapshots(files, "raw") == ()
    with pytest.raises(Refused) as refused:
        create(files, "raw", name="one")
    assert refused.value.facts["cause"] == "ENOTSUP"


@pytest.mark.parametrize(("act", "wanted"), [(apply, "wanted"), (delete, "name")])
def test_what_is_not_there_is_refused(act: Callable[..., object], wanted: str):
    made = family("A")
    before = made.files.snapshot()
    with pytest.raises(Refused, match="has no such snapshot") as refused:
        act(made.files, made.top, **{wanted: "nope"})
    assert refused.value.facts["cause"] == "ENOENT"
    assert made.files.snapshot() == before


def image(folder: Path, options: str, *commands: str, size: str = "1M") -> Path:
    path = folder / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, size)
    qemu_io(path, *commands or ("read 0 512",))
    return path


@pytest.mark.parametrize("bits", [1, 2, 4, pytest.param(8, marks=pytest.mark.slow)])
def test_a_count_that_is_full_is_refused_before_anything_changes(tmp_path: Path, bits: int):
    path = image(tmp_path, f"refcount_bits={bits}", "write -P 1 0 64k")
    most = (1 << bits) - 1
    for number in range(most - 1):
        create(FILES, str(path), name=f"s{number}")
    assert_clean(path)
    before = path.read_bytes()
    for act in (
        lambda: create(FILES, str(path), name="one more"),
        *([lambda: apply(FILES, str(path), wanted="1")] if most > 1 else []),
    ):
        with pytest.raises(Refused, match=f"is counted {most} times, and {most} is the most") as refused:
            act()
        assert refused.value.facts["cause"] == "EINVAL"
    assert path.read_bytes() == before


def test_a_dirty_image_is_mended_first(tmp_path: Path):
    path = image(tmp_path, "lazy_refcounts=on,cluster_size=4k")
    # What was written is not counted, as after a guest was killed.
    run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 100k", "-c", "abort", path)
    assert path.read_bytes()[79] == DIRTY
    with pytest.raises(Refused):
        delete(FILES, str(path), name="nope")
    assert path.read_bytes()[79] == 0
    assert_clean(path)
    run("qemu-io", "-f", "qcow2", "-c", "write -P 2 200k 100k", "-c", "abort", path)
    view = content(path)
    create(FILES, str(path), name="one")
    assert_clean(path)
    assert content(path) == view


def test_bitmaps_stay_valid_and_forbid_to_apply(tmp_path: Path):
    path = image(tmp_path, "cluster_size=4k", "write -P 1 0 64k")
    create(FILES, str(path), name="one")
    qemu_img("bitmap", "--add", path, "b")
    qemu_io(path, "write -P 2 0 4k")
    before = qemu_img("map", "--output=json", path)
    create(FILES, str(path), name="two")
    delete(FILES, str(path), name="one")
    assert_clean(path)
    assert '"in-use"' not in qemu_img("info", "--output=json", path)
    assert qemu_img("map", "--output=json", path) == before
    with pytest.raises(Refused, match="Device has active dirty bitmaps"):
        apply(FILES, str(path), wanted="two")


def test_unknown_extra_data_of_other_snapshots_is_kept(tmp_path: Path):
    path = image(tmp_path, "cluster_size=64k", "write -P 1 0 64k")
    create(FILES, str(path), name="one")
    (entry,) = list_snapshots(FILES, str(path))
    table = int.from_bytes(path.read_bytes()[SNAPSHOTS_OFFSET : SNAPSHOTS_OFFSET + 8], "big")
    with path.open("r+b") as file:
        file.seek(table)
        file.write(pack([entry._replace(extra_data=entry.extra_data + b"something new")]))
    create(FILES, str(path), name="two")
    qemu_img("snapshot", "-c", "three", path)
    delete(FILES, str(path), name="two")
    found = list_snapshots(FILES, str(path))
    assert [(each.name, each.extra_data[24:]) for each in found] == [("one", b"something new"), ("three", b"")]
    assert_clean(path)


def test_an_empty_disk_has_snapshots_too(tmp_path: Path):
    path = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "0")
    create(FILES, str(path), name="one")
    qemu_img("resize", "-q", path, "1M")
    qemu_io(path, "write -P 1 0 1M")
    apply(FILES, str(path), wanted="one")
    assert_clean(path)
    assert content(path) == b""
    delete(FILES, str(path), name="one")
    assert_clean(path)
    qemu_img("resize", "-q", path, "1M")
    qemu_io(path, "write -P 1 0 1M")
    assert_clean(path)


def test_a_longer_l1_table_finds_a_place_side_by_side(tmp_path: Path):
    path = image(tmp_path, "cluster_size=512", "write -P 1 0 3M", "write -P 2 20M 1M", size="40M")
    create(FILES, str(path), name="one")
    qemu_io(path, "write -P 3 10M 2M", "discard 0 1M")
    apply(FILES, str(path), wanted="one")
    assert_clean(path)
    assert content(path)[3 << 20 : 20 << 20] == bytes(17 << 20)
    delete(FILES, str(path), name="one")
    assert_clean(path)


class Model:
    """An image on disk, and what its guest and each of its snapshots see."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.choose = path, random.Random(seed)
        version = self.choose.choice(["compat=0.10", "compat=1.1", f"refcount_bits={1 << self.choose.randint(3, 6)}"])
        cluster = self.choose.choice(["512", "512", "1k", "4k", "16k,extended_l2=on"])
        if "extended" in cluster and "0.10" in version:
            version = "compat=1.1"
        self.size = 512 * self.choose.randint(1, 600)
        qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster},{version}", path, str(self.size))
        self.view = bytearray(self.size)
        self.saved: list[tuple[str, str, bytes]] = []
        self.can_resize = "0.10" not in version

    def step(self) -> None:
        verb = self.choose.choice(
            [self.write, self.write, self.write, self.create, self.apply, self.delete, self.resize]
        )
        verb()

    def write(self) -> None:
        start = self.choose.randrange(self.size // 512) * 512
        length, byte = min(512 * self.choose.randint(1, 80), self.size - start), self.choose.randint(1, 255)
        is_zero = self.choose.random() < 0.3
        qemu_io(self.path, f"write -z {start} {length}" if is_zero else f"write -P {byte} {start} {length}")
        self.view[start : start + length] = bytes([0 if is_zero else byte]) * length

    def create(self) -> None:
        name = self.choose.choice("abc")
        number = str(max([0, *(int(number) for number, _, _ in self.saved)]) + 1)
        if self.choose.random() < 0.3:
            qemu_img("snapshot", "-c", name, self.path)
        else:
            create(FILES, str(self.path), name=name)
        self.saved.append((number, name, bytes(self.view)))

    def apply(self) -> None:
        if self.saved:
            number, _, data = self.choose.choice(self.saved)
            if self.choose.random() < 0.3:
                qemu_img("snapshot", "-a", number, self.path)
            else:
                apply(FILES, str(self.path), wanted=number)
            self.view, self.size = bytearray(data), len(data)

    def delete(self) -> None:
        if self.saved:
            name = self.choose.choice(self.saved)[1]
            index = next(index for index, each in enumerate(self.saved) if each[1] == name)
            if self.choose.random() < 0.3:
                qemu_img("snapshot", "-d", name, self.path)
            else:
                delete(FILES, str(self.path), name=name)
            del self.saved[index]

    def resize(self) -> None:
        if self.can_resize:
            self.size = 512 * self.choose.randint(1, 600)
            qemu_img("resize", "-q", "--shrink", "-f", "qcow2", self.path, str(self.size))
            self.view = self.view[: self.size].ljust(self.size, b"\0")

    def check(self) -> None:
        assert content(self.path) == bytes(self.view)
        assert_clean(self.path)
        listed = [(each.id, each.name) for each in list_snapshots(FILES, str(self.path))]
        assert listed == [(number, name) for number, name, _ in self.saved]
        plain = self.path.with_name("plain")
        for number, name, data in self.saved:
            words = f"snapshot.id={number},snapshot.name={name}"
            qemu_img("convert", "-f", "qcow2", "-O", "raw", "-l", words, self.path, plain)
            shown = plain.read_bytes()
            # QEMU gives a snapshot the size of the disk as it is now.
            length = min(len(shown), len(data))
            assert shown[:length] == data[:length]


@pytest.mark.slow
@pytest.mark.soak
def test_random_steps_do_what_a_model_does(tmp_path: Path, seed: int):
    model = Model(tmp_path / "a.qcow2", seed)
    for _ in range(14):
        model.step()
    model.check()


HOSTILE = {
    "too many snapshots": lambda data: data.__setitem__(slice(60, 64), b"\xff" * 4),
    "a table past the end": lambda data: data.__setitem__(slice(64, 72), (1 << 40).to_bytes(8, "big")),
    "a table in the header": lambda data: data.__setitem__(slice(64, 72), bytes(8)),
    "an L1 table in the refcount table": lambda data: _entry(data, 0, data[48:56]),
    "an L1 table that is too long": lambda data: _entry(data, 8, b"\xff" * 4),
    "an L1 table past the end": lambda data: _entry(data, 0, (1 << 41).to_bytes(8, "big")),
    "an L1 table that is the active one": lambda data: _entry(data, 0, data[40:48]),
    "too much extra data": lambda data: _entry(data, 36, b"\xff" * 4),
    "a long name": lambda data: _entry(data, 14, b"\xff" * 2),
    "a long ID": lambda data: _entry(data, 12, b"\xff" * 2),
    "a disk of all bytes": lambda data: _entry(data, 48, b"\xff" * 8),
    "a disk that is too large": lambda data: _entry(data, 48, (1 << 62).to_bytes(8, "big")),
}


def _entry(data: bytearray, offset: int, value: bytes | bytearray) -> None:
    table = int.from_bytes(data[64:72], "big")
    data[table + offset : table + offset + len(value)] = value


def attempt(path: Path, name: str) -> CowtreeError | None:
    """Do one of the three; whatever it says, it says it soon."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    error = None
    try:
        ACTS[name](FILES, str(path))
    except CowtreeError as caught:
        error = caught
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < CPU_S_MAX
    return error


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_table_changes_nothing(tmp_path: Path, name: str, act: str):
    path = tmp_path / "a.qcow2"
    data = bytearray(simple_image(path).data)
    HOSTILE[name](data)
    path.write_bytes(data)
    error = attempt(path, act)
    if name.startswith("a disk") and act != "apply":
        assert error is None
    else:
        assert isinstance(error, ImageError | Refused)
        assert path.read_bytes() == data


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused_before_anything_changes_or_made_no_worse(tmp_path: Path, name: str):
    path = tmp_path / "a.qcow2"
    for act in ACTS:
        words = simple_image(path)
        data = bytearray(words.data)
        DAMAGES[name](words, data)
        path.write_bytes(data)
        error = attempt(path, act)
        if error is not None:
            assert isinstance(error, ImageError | Refused), error
            assert path.read_bytes() == data


@pytest.mark.slow
@pytest.mark.soak
def test_random_damage_is_never_a_surprise(tmp_path: Path, seed: int):
    choose = random.Random(seed)
    rich = rich_image(tmp_path, seed)
    words = find_words(rich.path.read_bytes())
    for _ in range(6):
        data = damage(words, choose)
        rich.path.write_bytes(data)
        error = attempt(rich.path, choose.choice(list(ACTS)))
        # Mending comes first where something says, or may be, that a run was stopped.
        if error is not None and data[7] >= 3 and not data[79] & DIRTY:
            assert rich.path.read_bytes() == data, error


def test_a_corrupt_bit_forbids_all_of_it(tmp_path: Path):
    path = image(tmp_path, "cluster_size=4k", "write -P 1 0 64k")
    create(FILES, str(path), name="first")
    data = bytearray(path.read_bytes())
    data[79] |= 2
    path.write_bytes(data)
    for act in ACTS.values():
        with pytest.raises(MarkedCorrupt):
            act(FILES, str(path))
    assert path.read_bytes() == data


def test_a_snapshot_whose_data_is_a_table_is_not_deleted(tmp_path: Path):
    path = tmp_path / "a.qcow2"
    words = simple_image(path)
    data = bytearray(words.data)
    layer = gate.open_layer(FILES, str(path), "qcow2")
    found = load_image(layer)
    layer.close()
    assert found is not None
    (l1,) = found.snapshot_l1s
    put_word(data, int(l1[0]) & 0x00FF_FFFF_FFFF_FE00, found.header.refcount_table_offset)
    path.write_bytes(data)
    with pytest.raises(BrokenTable, match="which holds a table"):
        delete(FILES, str(path), name="first")
    assert path.read_bytes() == data


def test_a_state_of_the_machine_past_the_end_of_the_disk_is_kept(tmp_path: Path):
    path = image(tmp_path, "cluster_size=512", "write -P 1 0 300k", "write -P 9 1500k 20k", size="2M")
    data = bytearray(path.read_bytes())
    put_word(data, SIZE_OFFSET, 1 << 20)
    path.write_bytes(data)
    create(FILES, str(path), name="one")
    qemu_io(path, "write -P 2 0 1M")
    apply(FILES, str(path), wanted="one")
    assert_clean(path)
    qemu_img("snapshot", "-a", "one", path)
    assert_clean(path)
    chain = open_chain(FILES, str(path))
    assert chain.images[0] is not None
    assert chain.images[0].l1[1500 << 10 >> 15]
    chain.close()
    delete(FILES, str(path), name="one")
    assert_clean(path)


@pytest.mark.parametrize("act", ["create", "delete"])
def test_a_count_that_is_too_low_is_found_before_it_frees_what_the_disk_uses(tmp_path: Path, act: str):
    path = image(tmp_path, "cluster_size=64k", "write -P 1 0 128k")
    create(FILES, str(path), name="first")
    data = bytearray(path.read_bytes())
    block = int.from_bytes(data[0x10000:0x10008], "big")
    shared = data[block : block + 64].index(b"\0\2")
    # A cluster of the disk and the snapshot, or of the snapshot's table.
    table = int.from_bytes(data[SNAPSHOTS_OFFSET : SNAPSHOTS_OFFSET + 8], "big") >> 16
    place = block + shared + 1 if act == "delete" else block + 2 * table + 1
    data[place] -= 1
    path.write_bytes(data)
    with pytest.raises(BrokenTable, match="is in use but counted"):
        ACTS[act](FILES, str(path))
    assert path.read_bytes() == data
