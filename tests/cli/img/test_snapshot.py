"""`cowtree img snapshot` beside qemu-img."""

import errno
import itertools
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cowtree.cli.img.snapshot import code_of, complaint
from cowtree.errors import BrokenTable, CowtreeError, MissingImage, Refused, StorageFailed
from tests.cli.img.differential import Both, content_of, held, read_both, run_both, run_cowtree, run_stock
from tests.cli.img.zoo import EXTRA_DATA, SNAPSHOTS_OFFSET, field, patch
from tests.qemu import qemu_img, qemu_io

pytestmark = pytest.mark.slow

SIZE_OFFSET = 24
WRITES = ("write -P 1 0 300k", "write -P 2 900k 50k", "write -z 128k 64k")
LATER = ("write -P 3 100k 500k", "write -z 0 64k", "discard 900k 64k")

# Options of the image, and what is done to it: words of qemu-io, `snapshot NAME`, `resize SIZE`, or `bitmap NAME`.
SNAPPED = (*WRITES, "snapshot one", *LATER, "snapshot two", "write -P 4 0 10k", "snapshot 1", "snapshot one")
IMAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "v3": ("", SNAPPED),
    "v2": ("compat=0.10", SNAPPED),
    "small": ("cluster_size=512", SNAPPED),
    "large": ("cluster_size=2M", SNAPPED),
    "wide": ("cluster_size=4k,refcount_bits=64", SNAPPED),
    "byte": ("cluster_size=4k,refcount_bits=8,lazy_refcounts=on", SNAPPED),
    "narrow": ("cluster_size=512,refcount_bits=4", SNAPPED),
    "full": ("refcount_bits=2", (*WRITES, "snapshot one", "snapshot two")),
    "single": ("refcount_bits=1", WRITES),
    "extended": ("cluster_size=16k,extended_l2=on", SNAPPED),
    "zstd": ("compression_type=zstd", ("write -c -P 7 0 64k", "write -c -P 8 64k 64k", *SNAPPED[3:])),
    "packed": ("", ("write -c -P 7 0 64k", "write -c -P 8 64k 64k", *SNAPPED[3:])),
    "prepared": ("preallocation=metadata", SNAPPED),
    "empty": ("", ("snapshot one",)),
    "none": ("", ()),
    "grown": ("cluster_size=512", (*WRITES, "snapshot one", "resize 2M", "write -P 5 1900k 9k", "snapshot two")),
    "shrunk": ("cluster_size=512", (*WRITES, "snapshot one", "resize 400k", "write -P 5 100k 9k", "snapshot two")),
    "marked": ("", (*WRITES, "snapshot one", "bitmap b")),
    "state": ("cluster_size=512", (*SNAPPED[:2], "resize 2M", "write -P 9 1500k 20k", "state", *SNAPPED[4:])),
    "over": ("cluster_size=4k", SNAPPED),
    "gone": ("", ()),
    "data": ("data_file=data.raw", ()),
}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder with the image of this name; not to be written to."""
    return cache(lambda name: _make(tmp_path_factory.mktemp("snapshot") / name, name))


def _make(folder: Path, name: str) -> Path:
    folder.mkdir()
    image = folder / "a.qcow2"
    options, commands = IMAGES[name]
    options = options.replace("=data.raw", f"={folder}/data.raw")
    words: list[str | Path] = ["-o", options] if options else []
    if name in ("over", "gone"):
        qemu_img("create", "-q", "-f", "qcow2", folder / "base", "1M")
        qemu_io(folder / "base", "write -P 77 0 1M")
        words += ["-b", "base", "-F", "qcow2"]
    qemu_img("create", "-q", "-f", "qcow2", *words, image, "1000k")
    for command in commands:
        _do(image, command)
    if name == "gone":
        (folder / "base").unlink()
    return folder


def _do(image: Path, command: str) -> None:
    verb, _, rest = command.partition(" ")
    if verb == "snapshot":
        qemu_img("snapshot", "-c", rest, image)
    elif verb == "resize":
        qemu_img("resize", "-q", "--shrink", image, rest)
    elif verb == "bitmap":
        qemu_img("bitmap", "--add", image, rest)
    elif verb == "state":
        # As a guest's state lies there: past the end of the disk.
        patch(image, SIZE_OFFSET, ">Q", 1000 << 10)
        qemu_img("snapshot", "-c", "with state", image)
        patch(image, field(image, SNAPSHOTS_OFFSET) + EXTRA_DATA, ">Q", 20 << 10)
    else:
        qemu_io(image, command)


def listed(image: Path) -> list[dict[str, Any]]:
    """What an image says of its snapshots, but for the time."""
    found = json.loads(qemu_img("info", "--output=json", image)).get("snapshots", [])
    return [{key: value for key, value in each.items() if not key.startswith("date")} for each in found]


def saved(image: Path) -> list[bytes]:
    """What QEMU reads from each snapshot."""
    found, plain = [], image.parent.parent / "plain"
    for each in listed(image):
        words = f"snapshot.id={each['id']},snapshot.name={each['name']}"
        qemu_img("convert", "-f", "qcow2", "-O", "raw", "-l", words, image, plain)
        found.append(plain.read_bytes())
    return found


def assert_same_snapshots(both: Both) -> None:
    """Fail unless both images have the same snapshots, and these hold the same."""
    stock, own = (folder / "a.qcow2" for folder in (both.stock_folder, both.own_folder))
    assert listed(own) == listed(stock), both.words
    assert saved(own) == saved(stock), both.words


CALLS = ("-c new", "-q -c one", "-a one", "-a 1", "-a two", "-d one", "-d 1", "-d two")
FEW_CALLS = ("-c new", "-a one", "-a 2", "-d one")
MUCH = ("v3", "v2", "small", "extended", "packed", "state")
DONE = (*MUCH, "large", "wide", "byte", "narrow", "zstd", "prepared")
OTHERS = (
    *(("empty", call) for call in ("-c new", "-a one", "-d one")),
    *(("grown", call) for call in ("-c new", "-a one", "-a two", "-d one", "-d two")),
    *(("shrunk", call) for call in ("-c new", "-a one", "-a two", "-d one", "-d two")),
    *(("over", call) for call in ("-c new", "-a one", "-d one", "-a 2")),
    *(("marked", call) for call in ("-c new", "-d one")),
    *(("full", call) for call in ("-d one", "-d two")),
    *(("none", call) for call in ("-c new", "-c ''", "-c 5", "", "-q")),
    ("none", "--image-opts -c x driver=qcow2,file.filename="),
    ("v3", "-c " + "long-ü" * 60),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "call"),
    [*itertools.product(MUCH, CALLS), *itertools.product(DONE[len(MUCH) :], FEW_CALLS), *OTHERS],
)
def test_snapshots_come_and_go_as_with_stock(make: Callable[[str], Path], tmp_path: Path, name: str, call: str):
    both = run_both(make(name), tmp_path, "snapshot", *words_of(call))
    assert (both.own.status, both.own.stderr) == (both.stock.status, both.stock.stderr) == (0, "")
    both.assert_same()
    assert_same_snapshots(both)


def words_of(call: str) -> list[str]:
    """The words, and the image behind them."""
    words = [word.strip("'") for word in call.split()]
    if words and words[-1].endswith("="):
        return [*words[:-1], words[-1] + "a.qcow2"]
    return [*words, "a.qcow2"]


REFUSED = (
    *(("v3", call) for call in ("-a nope", "-d nope", "-d 4", "-z", "-c", "-l -c x", "-c a -c b", "-a one -d one")),
    *(("v3", call) for call in ("-U -c x", "-U", "-f qcow2 -l", "--quiet -l", "a.qcow2 -l")),
    *(("single", call) for call in ("-c new", "-a one", "-d one")),
    *(("full", call) for call in ("-c new", "-a one")),
    *(("marked", call) for call in ("-a one", "-a nope")),
    *(("gone", call) for call in ("-l", "-c new", "-d one", "")),
    *(("data", call) for call in ("-c new", "-a one", "-d one")),
)


@pytest.mark.parametrize(("name", "call"), REFUSED)
def test_what_stock_refuses_is_refused(make: Callable[[str], Path], tmp_path: Path, name: str, call: str):
    run_both(make(name), tmp_path, "snapshot", *words_of(call)).assert_same_failure()


@pytest.mark.parametrize("call", ["-c new", "-a new", "-d new", "-c new nothere", "-l text"])
def test_raw_images_have_no_snapshots(tmp_path: Path, call: str):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.qcow2").write_bytes(b"no image" * 1000)
    words = ["snapshot", *words_of(call)]
    run_both(folder, tmp_path, *words).assert_same_failure()


@pytest.mark.parametrize("name", [*DONE, "grown", "none", "data", "over", "full"])
def test_the_list_is_that_of_stock(make: Callable[[str], Path], name: str):
    both = read_both(make(name), "snapshot", "-l", "a.qcow2")
    both.assert_same_reading()
    assert bool(both.own.stdout) == bool(listed(make(name) / "a.qcow2"))


@pytest.mark.parametrize("words", ["-l raw.img", "-U -l vm.qcow2", "-q -l late.qcow2", "-l snapshots.qcow2", "-l aes"])
def test_odd_images_are_listed_as_stock_lists_them(zoo: Path, words: str):
    read_both(zoo, "snapshot", *words.split()).assert_same_reading()


def test_a_snapshot_that_is_taken_says_when(make: Callable[[str], Path], tmp_path: Path):
    both = run_both(make("none"), tmp_path, "snapshot", "-c", "now", "a.qcow2")
    lines = [run_cowtree(folder, "snapshot", "-l", "a.qcow2").stdout for folder in (both.own_folder, both.stock_folder)]
    own, stock = (re.sub(r"\d\d:\d\d:\d\d {3}", "", text) for text in lines)
    assert own == stock


def test_all_four_in_turn_with_stock(make: Callable[[str], Path], tmp_path: Path):
    both = run_both(make("small"), tmp_path, "snapshot", "-c", "a", "a.qcow2")
    for number, words in enumerate((("-d", "one"), ("-c", "b"), ("-a", "2"), ("-c", "c"), ("-d", "a"), ("-a", "b"))):
        first, second = (run_stock, run_cowtree) if number % 2 else (run_cowtree, run_stock)
        results = [
            run(folder, "snapshot", *words, "a.qcow2")
            for run, folder in ((first, both.stock_folder), (second, both.own_folder))
        ]
        assert results[0] == results[1] == (0, "", ""), words
        both.assert_same_images()
        assert_same_snapshots(both)


def test_an_image_in_use_is_left_alone(make: Callable[[str], Path], tmp_path: Path):
    folder = run_both(make("v3"), tmp_path, "snapshot", "-l", "a.qcow2").own_folder
    with held(folder / "a.qcow2"):
        before = content_of(folder)
        for words in (("-c", "x"), ("-a", "one"), ("-d", "one"), ("-l",), ()):
            stock, own = (run(folder, "snapshot", *words, "a.qcow2") for run in (run_stock, run_cowtree))
            assert (own.status, own.stdout) == (stock.status, stock.stdout) == (1, "")
            assert own.stderr.startswith(stock.stderr.splitlines()[0]), words
        shared = [run(folder, "snapshot", "-U", "-l", "a.qcow2") for run in (run_stock, run_cowtree)]
        assert shared[0] == shared[1]
        assert content_of(folder) == before


FULL = StorageFailed(path="a", action="write", reason="No space left on device", errno=errno.ENOSPC)
LOW = BrokenTable(path="a", reason="host cluster 5 is in use but counted 0 times", cause="EINVAL")


@pytest.mark.parametrize(
    ("action", "error", "said"),
    [
        ("-c", FULL, "-28 (No space left on device)"),
        ("-a", FULL, "Failed to load snapshot: No space left on device"),
        ("-d", FULL, "Failed to remove snapshot from snapshot list: No space left on device"),
        ("-c", LOW, "-22 (Invalid argument)"),
        ("-d", LOW, "Failed to free the cluster and L1 table: Invalid argument"),
        ("-d", Refused(reason="", cause="ENOTSUP"), "snapshot not found"),
        ("-a", Refused(reason="", cause="ENOTSUP", format="raw"), "Block driver does not support snapshots"),
        ("-a", Refused(reason="", cause="ENOTSUP", format="qcow2"), "Failed to load snapshot: Operation not supported"),
    ],
)
def test_what_went_wrong_is_said_as_stock_says_it(action: str, error: CowtreeError, said: str):
    code = code_of(error)
    assert code is not None
    assert complaint(action, error, code) == said


def test_what_is_wrong_with_the_file_itself_is_said_by_whoever_opens_it():
    assert code_of(MissingImage(path="a", reason="No such file or directory", errno=errno.ENOENT)) is None


def test_help_is_no_failure(tmp_path: Path):
    result = run_cowtree(tmp_path, "snapshot", "--help")
    assert result.status == 0
    assert result.stdout.startswith("usage: qemu-img snapshot [-l]")
