"""`cowtree img amend` beside qemu-img."""

import contextlib
from itertools import product
from pathlib import Path

import pytest

from tests.cli.img.differential import read_both, run_both, run_stock
from tests.qemu import qemu_img, qemu_io

pytestmark = pytest.mark.slow

SHAPES = {
    "v2": "cluster_size=4k,compat=0.10",
    "v3": "cluster_size=4k",
    "lazy": "cluster_size=4k,lazy_refcounts=on,refcount_bits=8",
    "narrow": "cluster_size=512,refcount_bits=1",
    "zstd": "cluster_size=4k,compression_type=zstd",
    "backed": "cluster_size=4k",
    "snapshots": "cluster_size=4k",
    "snapshots over a base": "cluster_size=4k",
    "bitmaps": "cluster_size=4k",
    "zstd packed": "cluster_size=4k,compression_type=zstd",
    "snapshots v2": "cluster_size=4k,compat=0.10",
    "extended": "cluster_size=16k,extended_l2=on",
    "data file": "cluster_size=4k,data_file=outside",
}
CALLS = (
    "-o compat=0.10",
    "-o compat=v3",
    "-o compat=1.1,lazy_refcounts=on",
    "-o lazy_refcounts=off",
    "-o refcount_bits=1",
    "-o refcount_bits=64",
    "-p -o refcount_bits=16 -o compat=v2",
    "-q -o backing_file=base",
    "-o backing_file=base,backing_fmt=qcow2",
    "-f qcow2 -t none --force -o size=2M",
    "-o data_file=outside",
    "-o data_file_raw=on",
)
WRONG = (
    "image",
    "-o compat=0.9 image",
    "-o cluster_size=64k image",
    "-o preallocation=off,compat=1.1 image",
    "-o nothing=on image",
    "-o encrypt.state=active image",
    "-o refcount_bits=7 image",
    "-o refcount_bits=128 image",
    "-o lazy_refcounts=maybe image",
    "-o size=nothing image",
    "-o ,compat=1.1 image",
    "-o compat=1.1",
    "-o compat=1.1 image image",
    "-t nothing -o compat=1.1 image",
    "-f nothing -o compat=1.1 image",
    "-f raw -o size=1M image",
    "-o compat=1.1 missing",
)
HELP = ("-f qcow2 -o help", "-f qcow2 -o compat=1.1,help image", "-o help image", "-f raw -o help", "-f no -o help")


def make(folder: Path, shape: str) -> Path:
    """Make an image with data, zero clusters and holes."""
    folder.mkdir()
    # A data file is looked for from where the program runs.
    with contextlib.chdir(folder):
        backing = []
        if shape in ("backed", "snapshots over a base"):
            qemu_img("create", "-q", "-f", "qcow2", "base", "1M")
            qemu_io(Path("base"), "write -P 66 0 1M")
            backing = ["-b", "base", "-F", "qcow2"]
        qemu_img("create", "-q", "-f", "qcow2", "-o", SHAPES[shape], *backing, "image", "1M")
        qemu_io(Path("image"), "write -P 65 0 200k", "write -P 67 500k 90k", "write -z 8k 8k", "write -zu 300k 40k")
        if shape.startswith("snapshots"):
            qemu_img("snapshot", "-c", "before", "image")
            qemu_io(Path("image"), "write -P 68 4k 12k")
        if shape == "zstd packed":
            qemu_io(Path("image"), "write -c -P 69 640k 4k")
        if shape == "bitmaps":
            qemu_img("bitmap", "--add", "image", "one")
            qemu_io(Path("image"), "write -P 68 4k 12k")
    return folder


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.slow
def test_amendments_end_as_those_of_qemu(tmp_path: Path, shape: str) -> None:
    folder = make(tmp_path / "images", shape)
    for number, words in enumerate(CALLS):
        place = tmp_path / str(number)
        place.mkdir()
        both = run_both(folder, place, "amend", *words.split(), "image")
        if both.stock.status:
            both.assert_same_failure()
        elif shape == "data file":
            both.assert_same_result()
            infos = [run_stock(each, "info", "image") for each in (both.stock_folder, both.own_folder)]
            assert infos[0].text == infos[1].text
            assert (both.stock_folder / "outside").read_bytes() == (both.own_folder / "outside").read_bytes()
        else:
            both.assert_same()


@pytest.mark.parametrize("words", WRONG)
def test_wrong_words_fail_as_those_of_qemu(tmp_path: Path, words: str) -> None:
    folder = make(tmp_path / "images", "v3")
    run_both(folder, tmp_path, "amend", *words.split()).assert_same_failure()


@pytest.mark.parametrize("words", HELP)
def test_help_is_that_of_qemu(tmp_path: Path, words: str) -> None:
    folder = make(tmp_path / "images", "v3")
    read_both(folder, "amend", *words.split()).assert_same_reading()


@pytest.mark.parametrize(("compat", "bits"), [*product(("0.10", "1.1"), (1, 2, 4, 8, 16, 32, 64))])
def test_every_width_can_be_had_from_16_bits(tmp_path: Path, compat: str, bits: int) -> None:
    folder = make(tmp_path / "images", "v2" if compat == "0.10" else "v3")
    both = run_both(folder, tmp_path, "amend", "-o", f"compat=1.1,refcount_bits={bits}", "image")
    both.assert_same()


@pytest.mark.parametrize(("shape", "option"), [("v3", "refcount_bits=8"), ("backed", "compat=0.10")])
def test_progress_goes_from_nothing_to_all(tmp_path: Path, shape: str, option: str) -> None:
    both = run_both(make(tmp_path / "images", shape), tmp_path, "amend", "-p", "-o", option, "image")
    both.assert_same_result()
    for steps in (both.own.steps, both.stock.steps):
        assert steps[0] == 0
        assert steps[-1] == 100
        assert steps == sorted(steps)
    assert both.own.stdout.endswith("\n")
