"""Owns the proof that a converted image shows what its sources show: by picture, by model, and against qemu-img.

How it is stopped in the middle is tried in test_safety_convert.py.
"""

import random
from pathlib import Path

import numpy as np
import pytest

from cowtree.chain import gate
from cowtree.errors import BrokenCluster, CowtreeError, ImageLocked, MissingImage, Refused, WrongUse
from cowtree.images.convert import Manner, convert, convert_into
from cowtree.monitor import Counting
from cowtree.plan.create import NewImage
from cowtree.qcow2.header import ZLIB, ZSTD
from cowtree.storage.contract import Access, FileSystem
from cowtree.storage.file import LocalFiles
from cowtree.storage.memory import MemoryFiles
from tests.pictures import CLUSTER_BITS, CLUSTER_BYTES, draw, family, hold, see
from tests.qemu import SECTOR, RandomChain, assert_clean, content, qemu_img, qemu_io, random_chain, run
from tests.sparse import MEMORY_MIB_MAX, peak_memory_mib, sparse_image

FILES = LocalFiles()
PACKED = Manner(is_compressed=True)
OUT = NewImage("out", "qcow2", 0, CLUSTER_BITS)


def source_of(made: RandomChain) -> tuple[str, str]:
    return str(made.top), made.formats[-1]


def assert_shows_the_same(made: RandomChain, out: NewImage) -> None:
    """Hold a converted image against its source, as qemu-img sees both."""
    words = ("qemu-img", "compare", "-f", made.formats[-1], "-F", out.format, made.top, out.path)
    assert run(*words).stdout == "Images are identical.\n", out
    if out.format == "qcow2":
        assert_clean(Path(out.path))


def converted(*layers: str, new: NewImage = OUT, manner: Manner = Manner()) -> str:  # noqa: B008
    """Convert a family's top, and show what the new image holds."""
    made = family(*layers)
    convert(made.files, [(made.top, "qcow2")], new, manner)
    assert see(made.files, "out", new.format) == made.seen()
    return hold(made.files, "out", new.format)


def test_only_data_is_written():
    assert converted("A-0oB", "-aCC-") == "AA--B"


def test_compressed_clusters_are_read_and_written():
    assert converted("Aa0oB", manner=PACKED) == "aa--b"
    assert converted("Aa0oB", new=OUT._replace(compression_type=ZSTD), manner=PACKED) == "aa--b"


def test_a_cluster_is_taken_when_any_of_its_bytes_is_not_zero():
    assert converted("A---0oo0----B--0", new=OUT._replace(cluster_bits=CLUSTER_BITS + 2)) == "A000--------B000"


def test_the_whole_disk_is_written_out_on_demand():
    full = Manner(sparse_bytes=0)
    assert converted("A-0o", manner=full) == "A000"
    assert converted("A-0o", new=OUT._replace(format="raw"), manner=full) == "A000"
    assert converted("A-", manner=full._replace(is_compressed=True)) == "a0"


@pytest.mark.parametrize("version", [2, 3])
def test_over_a_backing_file_only_what_the_top_holds_is_written(version: int):
    made = family("A0-oC-", "BBB-CD")
    new = OUT._replace(backing_file=made.names[1], backing_format="qcow2", version=version)
    convert(made.files, [(made.top, "qcow2")], new)
    assert see(made.files, "out") == "A0B0CD"
    assert hold(made.files, "out") == "A0-0C-"


@pytest.mark.parametrize(
    ("other", "held"), [("X", "AB-DE"), ("AXXDX", "AB0DE"), ("AB-DEFGHIJ", "AB0DE"), ("-----", "AB0DE")]
)
def test_over_a_backing_file_of_any_length_a_disk_that_had_none_is_written_whole(other: str, held: str):
    made = family("AB-DE")
    draw(made.files, NewImage("other", "qcow2", len(other) * CLUSTER_BYTES, CLUSTER_BITS), other)
    convert(made.files, [(made.top, "qcow2")], OUT._replace(backing_file="other", backing_format="qcow2"))
    assert see(made.files, "out") == "AB0DE"
    assert hold(made.files, "out") == held


@pytest.mark.parametrize(
    ("bits", "seen", "held"), [(CLUSTER_BITS, "AXX0DX", "A--0D-"), (CLUSTER_BITS + 1, "AXX0DX", "AXX0DX")]
)
def test_over_another_backing_file_that_one_shows_through(bits: int, seen: str, held: str):
    made = family("A--0D-", "BBBBBB")
    draw(made.files, NewImage("other", "qcow2", 6 * CLUSTER_BYTES, CLUSTER_BITS), "XXXXXX")
    said: list[str] = []
    new = OUT._replace(backing_file="other", backing_format="qcow2", cluster_bits=bits)
    convert(made.files, [(made.top, "qcow2")], new, Manner(warn=said.append))
    assert see(made.files, "out") == seen
    assert hold(made.files, "out") == held
    assert said == ["'other' is not what backs 'layer-0': what the source shows of its own backing file is not copied"]


def test_over_a_copy_of_what_backs_it_the_disk_stays_the_same_however_it_is_written():
    made = family("A--0D-b-", "BBBBB")
    for manner in (Manner(), PACKED, Manner(sparse_bytes=0), PACKED._replace(sparse_bytes=0)):
        for bits in (CLUSTER_BITS, CLUSTER_BITS + 2):
            new = OUT._replace(backing_file=made.names[1], backing_format="qcow2", cluster_bits=bits)
            said: list[str] = []
            convert(made.files, [(made.top, "qcow2")], new, manner._replace(warn=said.append))
            assert see(made.files, "out").ljust(8, "0") == "ABB0D0B0"
            assert not said


def test_disks_are_joined_in_their_order():
    made = family("A-a")
    for name, picture in (("second", "0Bb-"), ("third", "c")):
        draw(made.files, NewImage(name, "qcow2", len(picture) * CLUSTER_BYTES, CLUSTER_BITS), picture)
    sources = [(made.top, None), ("second", None), ("third", None), ("second", "qcow2")]
    for new in (OUT, OUT._replace(cluster_bits=CLUSTER_BITS + 3), OUT._replace(format="raw")):
        convert(made.files, sources, new)
        assert see(made.files, "out", new.format).ljust(12, "0") == "A0A0BB0C0BB0"


def test_what_is_there_is_written_over():
    made = family("A-0oB", "-C---")
    draw(made.files, NewImage("base", "qcow2", 8 * CLUSTER_BYTES, CLUSTER_BITS), "ZZZZZZZZ")
    target = NewImage("target", "qcow2", 8 * CLUSTER_BYTES, CLUSTER_BITS, backing_file="base", backing_format="qcow2")
    draw(made.files, target, "--YYyY-y")
    convert_into(made.files, [(made.top, "qcow2")], ("target", "qcow2"))
    assert see(made.files, "target") == "AC00BYZY"
    assert see(made.files, "base") == "ZZZZZZZZ"


def test_a_larger_cluster_keeps_what_lies_behind_the_source():
    made = family("AB")
    draw(made.files, NewImage("target", "qcow2", 8 * CLUSTER_BYTES, CLUSTER_BITS + 2), "ZZZZZZZZ")
    convert_into(made.files, [(made.top, "qcow2")], ("target", "qcow2"))
    assert see(made.files, "target") == "ABZZZZZZ"


def test_a_target_that_is_too_small_is_refused():
    made = family("AAAA")
    draw(made.files, NewImage("target", "qcow2", 3 * CLUSTER_BYTES, CLUSTER_BITS), "ZZZ")
    before = made.files.snapshot()
    with pytest.raises(Refused, match="output file is smaller than input file"):
        convert_into(made.files, [(made.top, "qcow2")], ("target", "qcow2"))
    assert made.files.snapshot() == before


@pytest.mark.parametrize(
    ("new", "manner", "source_count"),
    [
        (OUT, Manner(), 0),
        (OUT._replace(backing_file="layer-0", backing_format="qcow2"), Manner(), 2),
        (OUT._replace(format="raw"), PACKED, 1),
        (OUT._replace(preallocation="metadata"), PACKED, 1),
        (OUT._replace(data_file="data"), PACKED, 1),
        (OUT._replace(preallocation="metadata", backing_file="layer-0", backing_format="qcow2"), Manner(), 1),
    ],
)
def test_what_makes_no_sense_together_changes_nothing(new: NewImage, manner: Manner, source_count: int):
    made = family("A")
    before = made.files.snapshot()
    with pytest.raises((WrongUse, Refused)):
        convert(made.files, [(made.top, "qcow2")] * source_count, new, manner)
    assert made.files.snapshot() == before


@pytest.mark.parametrize("is_local", [False, True])
def test_an_image_is_not_converted_onto_a_layer_of_its_own_chain(tmp_path: Path, is_local: bool):
    made = family("A-", "BB")
    files: FileSystem = made.files
    folder = ""
    if is_local:
        files, folder = FILES, f"{tmp_path}/"
        for name, data in made.files.snapshot().items():
            (tmp_path / name).write_bytes(data)
    for name in made.names:
        with pytest.raises(ImageLocked):
            convert(files, [(folder + made.top, "qcow2")], OUT._replace(path=folder + name))
    assert see(files, folder + made.top) == "AB"


def test_a_damaged_source_leaves_no_target():
    made = family("Aa")
    file = made.files.open(made.top, Access.WRITE)
    data = made.files.content(made.top)
    file.pwrite(len(data) - CLUSTER_BYTES, b"\xff" * CLUSTER_BYTES)
    file.close()
    before = made.files.snapshot()
    with pytest.raises(BrokenCluster):
        convert(made.files, [(made.top, "qcow2")], OUT)
    with pytest.raises(MissingImage):
        convert(made.files, [(made.top, "qcow2"), ("nothing", None)], OUT)
    assert made.files.snapshot() == before


@pytest.mark.parametrize("bits", range(9, 22))
def test_an_empty_disk_becomes_an_empty_image(tmp_path: Path, bits: int):
    (tmp_path / "empty").touch()
    new = NewImage(str(tmp_path / "out"), "qcow2", 0, bits)
    assert convert(FILES, [(str(tmp_path / "empty"), "raw")], new) == 0
    assert_clean(tmp_path / "out")


def test_progress_ends_where_it_said():
    made, counting = family("A-b0" * 8), Counting()
    assert convert(made.files, [(made.top, "qcow2")], OUT, monitor=counting) == counting.total_bytes
    assert counting.moved_bytes == counting.total_bytes == 16 * CLUSTER_BYTES


KINDS = (
    NewImage("", "raw", 0),
    NewImage("", "raw", 0, preallocation="full"),
    NewImage("", "qcow2", 0),
    NewImage("", "qcow2", 0, version=2),
    NewImage("", "qcow2", 0, cluster_bits=9),
    NewImage("", "qcow2", 0, cluster_bits=9, refcount_order=0),
    NewImage("", "qcow2", 0, cluster_bits=12, refcount_order=6, lazy_refcounts=True),
    NewImage("", "qcow2", 0, cluster_bits=21),
    NewImage("", "qcow2", 0, has_subclusters=True),
    NewImage("", "qcow2", 0, cluster_bits=12, preallocation="metadata"),
    NewImage("", "qcow2", 0, preallocation="falloc"),
)
OVERLAYS = tuple(kind for kind in KINDS if kind.format == "qcow2" and kind.preallocation == "off")
MANNERS = (Manner(), PACKED, Manner(sparse_bytes=SECTOR), Manner(sparse_bytes=0), Manner(sparse_bytes=65536))


@pytest.mark.slow
@pytest.mark.soak
def test_every_kind_of_image_shows_the_same(tmp_path: Path, seed: int):
    made, choose = random_chain(tmp_path, seed), random.Random(seed)
    for kind in KINDS:
        manner = choose.choice(MANNERS)
        may_pack = kind.format == "qcow2" and kind.preallocation == "off"
        new = kind._replace(path=str(tmp_path / "out"))
        if may_pack and kind.version == 3:
            new = new._replace(compression_type=choose.choice([ZLIB, ZSTD]))
        manner = manner._replace(is_compressed=manner.is_compressed and may_pack)
        convert(FILES, [source_of(made)], new, manner)
        assert_shows_the_same(made, new)


@pytest.mark.slow
@pytest.mark.soak
def test_every_kind_of_overlay_shows_the_same(tmp_path: Path, seed: int):
    made = random_chain(tmp_path, seed, 3)
    choose = random.Random(seed)
    for kind in OVERLAYS:
        backing = str(made.paths[1])
        new = kind._replace(path=str(tmp_path / "out"), backing_file=backing, backing_format=made.formats[1])
        convert(FILES, [source_of(made)], new, choose.choice(MANNERS))
        assert_shows_the_same(made, new)


@pytest.mark.slow
@pytest.mark.soak
def test_over_any_other_backing_file_the_top_layer_alone_is_laid_as_qemu_lays_it(tmp_path: Path, seed: int):
    made, other = random_chain(tmp_path, seed, 3), tmp_path / "other"
    other.mkdir()
    stranger, choose = random_chain(other, seed + 1000, 1), random.Random(seed)
    path, image_format = choose.choice([(made.paths[0], made.formats[0]), (stranger.top, stranger.formats[0])])
    # Behind the end of what backs the source QEMU may let the new backing file show where the source is zero.
    end = gate.open_layer(FILES, str(made.paths[1]), made.formats[1]).size_bytes
    for kind in OVERLAYS:
        new = kind._replace(path=str(tmp_path / "out"), backing_file=str(path), backing_format=image_format)
        convert(FILES, [source_of(made)], new)
        expected, options = tmp_path / "expected", f"cluster_size={1 << kind.cluster_bits}"
        words = ("-O", "qcow2", "-B", path, "-F", image_format, "-o", options)
        qemu_img("convert", "-f", made.formats[-1], *words, made.top, expected)
        assert content(Path(new.path))[:end] == content(expected)[:end]
        assert_clean(Path(new.path))


@pytest.mark.slow
@pytest.mark.soak
def test_several_disks_are_joined_byte_for_byte(tmp_path: Path, seed: int):
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
    made = [random_chain(folder, seed + 1000 * index, 2) for index, folder in enumerate(folders)]
    expected = b"".join(content(each.top, each.formats[-1]) for each in made)
    choose = random.Random(seed)
    sources, path = [source_of(each) for each in made], tmp_path / "out"
    kinds = [(NewImage("", "raw", 0), Manner())]
    kinds += [(NewImage("", "qcow2", 0, choose.randint(9, 21)), Manner(is_packed)) for is_packed in (False, True)]
    for kind, manner in kinds:
        convert(FILES, sources, kind._replace(path=str(path)), manner)
        assert content(path, kind.format) == expected
    for is_raw, how in ((False, "off"), (False, "metadata"), (True, "metadata")):
        data = tmp_path / "data"
        new = NewImage(str(path), "qcow2", 0, data_file=str(data), is_data_file_raw=is_raw, preallocation=how)
        convert(FILES, sources, new)
        assert content(path) == expected
        assert not is_raw or data.read_bytes() == expected
        assert_clean(path)


@pytest.mark.slow
@pytest.mark.soak
def test_any_image_can_be_written_over(tmp_path: Path, seed: int):
    for name in ("source", "target"):
        (tmp_path / name).mkdir()
    made, target = random_chain(tmp_path / "source", seed), random_chain(tmp_path / "target", seed + 1000)
    wanted, choose = content(made.top, made.formats[-1]), random.Random(seed)
    overlay = tmp_path / "target/overlay"
    options = f"cluster_size={1 << choose.randint(9, 21)}"
    size = max(len(wanted), len(content(target.top, target.formats[-1]))) + SECTOR * choose.randint(0, 99)
    qemu_img(
        "create", "-q", "-f", "qcow2", "-o", options, "-b", target.top, "-F", target.formats[-1], overlay, str(size)
    )
    qemu_io(overlay, *(f"write -P {choose.randint(1, 255)} {choose.randrange(size - 999)} 999" for _ in range(5)))
    before, below = content(overlay), content(target.top, target.formats[-1])
    convert_into(
        FILES, [source_of(made)], (str(overlay), "qcow2"), choose.choice(MANNERS)._replace(is_compressed=False)
    )
    assert content(overlay) == wanted + before[len(wanted) :]
    assert content(target.top, target.formats[-1]) == below
    assert_clean(overlay)


def test_damage_of_any_kind_ends_with_our_error(seed: int):
    made = family("Aa0o-b", "cD")
    choose = np.random.default_rng(seed)
    for _ in range(30):
        damaged = {name: bytearray(data) for name, data in made.files.snapshot().items()}
        for data in damaged.values():
            for at in choose.integers(0, len(data), 3).tolist():
                data[at] = int(choose.integers(0, 256))
        files = MemoryFiles({name: bytes(data) for name, data in damaged.items()})
        try:
            convert(files, [(made.top, "qcow2")], OUT)
        except CowtreeError:
            assert "out" not in files.snapshot()


@pytest.mark.slow
@pytest.mark.parametrize("words", ["raw 16 0", "qcow2 16 0", "qcow2 12 0", "qcow2 16 1"])
def test_a_million_clusters_take_little_memory(tmp_path: Path, words: str):
    path = sparse_image(tmp_path / "large", 1 << 20, seed=1)
    qemu_io(path, *(f"write -P {number} {number * 100}M 1M" for number in range(1, 40)))
    code = """if True:
        import sys
        from cowtree.images.convert import Manner, convert
        from cowtree.plan.create import NewImage
        from cowtree.storage.file import LocalFiles
        source, target, image_format, bits, is_packed = sys.argv[1:]
        new = NewImage(target, image_format, 0, int(bits))
        convert(LocalFiles(), [(source, "qcow2")], new, Manner(is_packed == "1"))"""
    out = tmp_path / "out"
    assert peak_memory_mib(code, path, out, *words.split()) < MEMORY_MIB_MAX
    compared = run("qemu-img", "compare", "-f", "qcow2", "-F", words.split(maxsplit=1)[0], path, out)
    assert compared.stdout == "Images are identical.\n"
