"""`cowtree img bitmap` and `convert --bitmaps` beside qemu-img: the same words on the same images."""

import contextlib
import re
import shutil
import struct
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from cowtree.storage.file import LocalFiles
from tests.cli.img.differential import Both, held, run_both, run_cowtree
from tests.crash import assert_sound
from tests.dirty import AUTO, BITMAPS_EXTENSION, Found, dirty_through_nbd, entry_of, read_bitmaps
from tests.qemu import assert_clean, qemu_img, qemu_io

pytestmark = pytest.mark.slow

# QEMU calls a node that nobody named by a number that changes; we call it by its path.
NODE = re.compile(r"#block\d+")

IMAGES = {
    "large": ("cluster_size=64k", "4M"),
    "small": ("cluster_size=512", "1M"),
    "odd": ("cluster_size=4k", "1000448"),
    "wide": ("cluster_size=256k", "4M"),
    "sub": ("extended_l2=on", "4M"),
    "data": ("data_file=data.raw", "4M"),
    "names": ("cluster_size=4k", "4M"),
    "bare": ("cluster_size=64k", "4M"),
}
# What is made in each image, and what is written after it.
BITMAPS = (
    (("--add", "fine", "-g", "4k"), "write 0 70k"),
    (("--add", "rough", "-g", "128k"), "write 300k 200k"),
    (("--add", "frozen"), None),
    (("--disable", "frozen"), "write 900k 5k"),
    (("--add", "tiny", "-g", "512"), "write 700k 1000"),
)
LONG = "n" * 1023
FILES = {*IMAGES, "broken", "old", "raw"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with bitmaps, with a broken one, with none, and such as cannot have any."""
    folder = tmp_path_factory.mktemp("bitmaps")
    for name, (options, size) in IMAGES.items():
        path = folder / name
        qemu_img("create", "-q", "-f", "qcow2", "-o", options.replace("data.raw", f"{folder}/data.raw"), path, size)
        if name != "bare":
            for words, command in BITMAPS:
                qemu_img("bitmap", words[0], *words[2:], path, words[1])
                if command:
                    qemu_io(path, command)
    shutil.copy(folder / "large", folder / "broken")
    break_bitmap(folder / "broken", "fine")
    for _ in range(3):
        qemu_img("bitmap", "--add", folder / "names", f"{_}" + "ü" * 100)
    qemu_img("create", "-q", "-f", "qcow2", "-o", "compat=0.10", folder / "old", "4M")
    qemu_img("create", "-q", "-f", "raw", folder / "raw", "4M")
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", "gone", "-F", "qcow2", folder / "overlay", "4M")
    return folder


def break_bitmap(path: Path, name: str) -> None:
    """Mark a bitmap as in use, as a program does that is killed."""
    data = bytearray(path.read_bytes())
    data[entry_of(data, name) + 15] |= 1
    path.write_bytes(data)


def compare(both: Both, *, looks: bool = False) -> None:
    """Fail unless both did the same, and said the same in the first line; with `looks` QEMU must see the same bits."""
    both.assert_same_result()
    assert "Traceback" not in both.own.stderr
    expected = next((line for line in both.stock.stderr.splitlines() if line.startswith("qemu-img: ")), "")
    pattern = ".*".join(map(re.escape, NODE.split(expected.rstrip("."))))
    assert re.match(pattern, both.own.stderr), (both.words, both.stock.stderr, both.own.stderr)
    assert bool(expected) == bool(both.own.stderr), (both.words, both.own.stderr)
    for stock in sorted(both.stock_folder.iterdir()):
        data, own = stock.read_bytes(), both.own_folder / stock.name
        if own.read_bytes() == data or data[:4] != b"QFI\xfb":
            continue
        found = read_bitmaps(own.read_bytes())
        assert found == read_bitmaps(data), both.words
        assert list(found) == list(read_bitmaps(data)), both.words
        with contextlib.chdir(both.own_folder):
            assert_clean(own)
        for name, each in found.items() if looks else ():
            assert each.dirty is None or dirty_through_nbd(own, name) == each.dirty, (both.words, name)


def one_image(images: Path, place: Path, *names: str) -> Path:
    """A folder that holds only what a call needs."""
    folder = place / "input"
    folder.mkdir()
    for name in (*names, "data.raw"):
        shutil.copy(images / name, folder / name)
    return folder


ACTIONS = (
    *("--add NAME new", "--add -g 512 NAME new", "--add -g 2G NAME new", "--add NAME fine", "--add -g 0 NAME new"),
    *("--remove NAME fine", "--remove NAME frozen", "--clear NAME fine", "--clear NAME frozen"),
    *("--enable NAME frozen", "--enable NAME fine", "--disable NAME fine", "--disable NAME frozen"),
    *("--merge rough NAME fine", "--merge fine NAME rough", "--merge tiny NAME frozen", "--merge fine NAME fine"),
    "--add --merge fine --disable NAME new",
    "--add -g 1M --merge tiny --merge rough NAME new",
    "--remove --add -g 4k --merge rough NAME fine",
    "--clear --merge tiny --disable NAME rough",
    "--disable --enable --disable --clear --clear NAME tiny",
    "--merge tiny --merge rough --merge fine --merge frozen NAME tiny",
)


@pytest.mark.slow
@pytest.mark.parametrize("image", [*IMAGES, "broken"])
def test_every_action_does_the_same(images: Path, tmp_path: Path, image: str):
    folder = one_image(images, tmp_path, image)
    for number, words in enumerate(ACTIONS):
        place = tmp_path / str(number)
        place.mkdir()
        both = run_both(folder, place, "bitmap", *(image if word == "NAME" else word for word in words.split()))
        compare(both, looks=image in ("large", "odd") and number % 4 == 0)


WRONG = (
    *("large fine", "--add large", "--add large fine more", "--add -F raw large new", "--add -b raw large new"),
    *("--add -g 4x large new", "--add -g 1000 large new", "--add -g 256 large new", "--add -g 4G large new"),
    *("--add -g 4295032832 large new", "--remove -g 4k large fine", "--add -g 0 -g 7 large new"),
    *("--merge nothing large fine", "--clear large nothing", "--enable large nothing", "--disable large nothing"),
    *("--remove large nothing", "--merge fine large nothing", "--remove --remove large fine"),
    *("--add large fine", "--add --add large new", "--add --merge nothing large new", "--remove --clear large fine"),
    *("--add old new", "--remove old new", "--add raw new", "--add -f raw raw new", "--remove raw new"),
    *("--clear broken fine", "--enable broken fine", "--disable broken fine", "--merge rough broken fine"),
    *("--merge fine broken rough", "--clear --merge fine broken rough", "--add broken fine", "--remove broken fine"),
    *("--remove --add broken fine", "--add missing new", "--add -f raw large new", "--add -f nothing large new"),
    *("--add --image-opts driver=qcow2,file.filename=large new", "--add --image-opts -f qcow2 large new"),
    *("--bogus large fine", "--add -q large fine", "--merge", "--add -g", "--add bare " + LONG),
    *("--add bare " + LONG + "n", "--merge fine -b wide large rough", "--merge fine -b odd large rough"),
    *("--merge fine -b wide -F qcow2 bare new", "--add --merge fine -b wide -F qcow2 bare new"),
    *("--merge fine -b large large rough", "--merge fine -b raw -F raw large rough", "--merge fine -b old large rough"),
    *(
        "--merge fine -b missing large rough",
        "--merge fine -b wide -F raw large rough",
        "--merge x -b broken large fine",
    ),
    *(
        "--merge fine -b broken large fine",
        "--add --merge tiny -b sub -g 64k data new",
        "--merge tiny -b data sub fine",
    ),
    *("--source-file wide --source-format qcow2 --merge tiny large fine", "--granularity 8k --add --clear bare b"),
)


@pytest.mark.slow
@pytest.mark.parametrize("words", WRONG, ids=lambda words: words.replace(LONG, "LONG"))
def test_words_mean_the_same(images: Path, tmp_path: Path, words: str):
    given = words.split()
    folder = one_image(images, tmp_path, *sorted(set(given) & FILES))
    if "--image-opts" in given:
        shutil.copy(images / "large", folder / "large")
    compare(run_both(folder, tmp_path, "bitmap", *given))


def test_an_empty_name_is_refused(images: Path, tmp_path: Path):
    compare(run_both(one_image(images, tmp_path, "large"), tmp_path, "bitmap", "--add", "large", ""))


def test_a_bitmap_of_an_empty_disk_is_refused_before_it_is_lost(tmp_path: Path):
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "image", "0")
    before = (tmp_path / "image").read_bytes()
    result = run_cowtree(tmp_path, "bitmap", "--add", "image", "new")
    assert (result.status, result.stdout) == (1, "")
    assert result.stderr.startswith("qemu-img: Operation add on bitmap new failed: Can't make bitmap 'new' persistent")
    assert (tmp_path / "image").read_bytes() == before


def test_an_image_that_somebody_has_open_is_left_alone(images: Path, tmp_path: Path):
    folder = one_image(images, tmp_path, "large")
    with held(folder / "large"):
        result = run_cowtree(folder, "bitmap", "--clear", "large", "rough")
    assert result.status == 1
    assert result.stderr.startswith("qemu-img: Could not open 'large': Failed to get ")


def test_an_image_that_is_marked_corrupt_is_refused(images: Path, tmp_path: Path):
    folder = one_image(images, tmp_path, "large")
    data = bytearray((folder / "large").read_bytes())
    data[79] |= 2
    (folder / "large").write_bytes(data)
    both = run_both(folder, tmp_path, "bitmap", "--clear", "large", "rough")
    assert both.own.status == both.stock.status == 1
    assert "Image is corrupt; cannot be opened read/write" in both.own.stderr
    both.assert_unchanged()


def test_what_backs_the_image_is_not_opened(images: Path, tmp_path: Path):
    folder = one_image(images, tmp_path, "overlay")
    assert run_cowtree(folder, "bitmap", "--add", "overlay", "new").status == 0
    assert read_bitmaps((folder / "overlay").read_bytes()) == {"new": Found(65536, AUTO, [])}
    assert_sound(LocalFiles(), str(folder / "overlay"), is_done=True)


def test_bitmaps_that_a_program_without_them_left_behind_are_gone(images: Path, tmp_path: Path):
    folder = one_image(images, tmp_path, "large")
    data = bytearray((folder / "large").read_bytes())
    assert struct.pack(">I", BITMAPS_EXTENSION) in data[:4096]
    data[95] = 0
    (folder / "large").write_bytes(data)
    both = run_both(folder, tmp_path, "bitmap", "--add", "large", "fine")
    assert both.own.status == both.stock.status == 0
    assert read_bitmaps((both.own_folder / "large").read_bytes()) == read_bitmaps(
        (both.stock_folder / "large").read_bytes()
    )


# Conversion.


def conversions() -> Iterator[str]:
    """Words that copy bitmaps, or shall not."""
    for source, target in product(("large", "small", "odd", "wide", "sub", "data", "names", "bare"), ("64k", "512")):
        yield f"--bitmaps -O qcow2 -o cluster_size={target} {source} out"
    yield from (
        *("--bitmaps -O raw large out", "--bitmaps large out", "--bitmaps -O qcow2 -o compat=0.10 large out"),
        *("--bitmaps -O qcow2 raw out", "--bitmaps -O qcow2 old out", "--bitmaps -O qcow2 large bare out"),
        *("--bitmaps -O qcow2 broken out", "--bitmaps --skip-broken-bitmaps -O qcow2 broken out"),
        *("--skip-broken-bitmaps -O qcow2 broken out", "--bitmaps -c -O qcow2 large out", "-O qcow2 large out"),
        *("--bitmaps -n -O qcow2 large bare", "--bitmaps -n -O qcow2 large sub", "--bitmaps -n -O qcow2 odd bare"),
        *("--bitmaps -n -O raw large raw", "--bitmaps -n -O qcow2 large old", "--bitmaps -n -O qcow2 bare large"),
        *("-n -O qcow2 large sub", "--bitmaps -O qcow2 -o preallocation=metadata large out"),
        "--bitmaps -O qcow2 -o data_file=out.raw large out",
    )


@pytest.mark.slow
@pytest.mark.parametrize("words", list(conversions()))
def test_bitmaps_are_copied_the_same(images: Path, tmp_path: Path, words: str):
    given = words.split()
    folder = one_image(images, tmp_path, *sorted(set(given) & FILES))
    both = run_both(folder, tmp_path, "convert", *given)
    if both.stock.status == 0 or "-n" in given:
        compare(both, looks=words == "--bitmaps -O qcow2 -o cluster_size=512 large out")
        return
    # QEMU makes the target before it refuses to copy.
    assert (both.own.status, both.own.stdout) == (1, "")
    assert both.own.stderr.startswith(both.stock.stderr.splitlines()[0].removesuffix("."))
    both.assert_unchanged()


# Merges.


@pytest.mark.slow
@pytest.mark.parametrize("words", ["commit top", "commit -d top", "commit -b large top"])
@pytest.mark.parametrize("granularity", ["64k", "256k"])
def test_the_bitmaps_of_a_base_know_what_a_commit_wrote_as_with_qemu(
    images: Path, tmp_path: Path, words: str, granularity: str
):
    folder = one_image(images, tmp_path, "large")
    base, top = folder / "large", folder / "top"
    qemu_img("bitmap", "--add", "-g", granularity, base, "backup")
    for name in ("fine", "tiny"):
        qemu_img("bitmap", "--disable", base, name)
    qemu_img("create", "-q", "-f", "qcow2", "-b", "large", "-F", "qcow2", top)
    qemu_img("bitmap", "--add", top, "own")
    qemu_io(top, "write -P 3 100k 300k", "write -z 1M 128k", "write -P 4 3M 1k", "discard 2M 64k")
    compare(run_both(folder, tmp_path, *words.split()), looks=True)


@pytest.mark.slow
@pytest.mark.parametrize("backing", ["", "wide"])
def test_the_bitmaps_of_a_top_know_at_least_what_a_rebase_wrote(images: Path, tmp_path: Path, backing: str):
    folder = one_image(images, tmp_path, "large", "wide")
    top = folder / "top"
    qemu_img("create", "-q", "-f", "qcow2", "-b", "large", "-F", "qcow2", top)
    qemu_img("bitmap", "--add", "-g", "4k", top, "own")
    qemu_io(top, "write -P 3 100k 30k")
    words = ["rebase", "-b", backing, *(["-F", "qcow2"] if backing else []), "top"]
    both = run_both(folder, tmp_path, *words)
    both.assert_same()
    stock, own = (read_bitmaps((each / "top").read_bytes())["own"] for each in (both.stock_folder, both.own_folder))
    assert own.flags == stock.flags == AUTO
    # QEMU looks at sectors, we at clusters.
    assert all(any(low <= start and stop <= high for low, high in own.dirty or []) for start, stop in stock.dirty or [])
