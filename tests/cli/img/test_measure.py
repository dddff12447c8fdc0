"""Owns the proof that `measure` says what stock says: the same words through both programs."""

import itertools
from pathlib import Path

import pytest

from tests.cli.img.differential import read_both, run_stock
from tests.qemu import qemu_img, qemu_io

pytestmark = pytest.mark.slow

FORMS = (
    *("cluster_size=512", "cluster_size=4k", "", "cluster_size=2M", "compat=0.10", "refcount_bits=1"),
    *("refcount_bits=64,cluster_size=1k", "extended_l2=on", "extended_l2=on,cluster_size=16k", "lazy_refcounts=on"),
)
FILLS = ("", "preallocation=metadata", "preallocation=falloc", "preallocation=full", "backing_file=other")
SIZES = ("0", "1", "513", "64k", "1G", "16G")
NAMES = ("plain", "overlay", "marked", "packed", "raw", "old", "short", "hollow")
WRONG = (
    *(("--size", "1G", "plain"), ("--size", "x"), ("--size", "-1"), ("plain", "raw"), (), ("-f", "qcow2"), ("-l", "s")),
    *(("-O", "nothing", "--size", "1M"), ("-O", "qcow2", "--size", "1E"), ("--output=xml", "--size", "1M")),
    *(("-O", "qcow2", "-o", f"{each}", "--size", "1M") for each in ("cluster_size=3k", "compat=2", "refcount_bits=3")),
    *(("-O", "qcow2", "-o", f"{each}", "--size", "1M") for each in ("preallocation=x", "compat=0.10,refcount_bits=1")),
    *(("-O", "qcow2", "-o", "extended_l2=on,cluster_size=8k", "--size", "1M"), ("-l", "none", "plain"), ("missing",)),
    *(("-O", "qcow2", "-o", "cluster_size=512", "--size", "129G"), ("-o", ",", "--size", "1")),
)


def options(*texts: str) -> list[str]:
    joined = ",".join(text for text in texts if text)
    return ["-o", joined] if joined else []


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    qemu_img("create", "-q", "-f", "qcow2", folder / "plain", "10M")
    qemu_io(folder / "plain", "write 0 70k", "write 3M 1M", "write -z 5M 1M", "write 9M 4k")
    qemu_img("snapshot", "-c", "s", folder / "plain")
    qemu_io(folder / "plain", "write 6M 2M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "plain", "-F", "qcow2", folder / "overlay", "12M")
    qemu_io(folder / "overlay", "write 2M 1M", "write 11M 1k", "write -z 3M 64k")
    qemu_img("create", "-q", "-f", "qcow2", folder / "marked", "1G")
    for name, granularity in (("one", "64k"), ("a longer name", "512"), ("third", "2M")):
        qemu_img("bitmap", "--add", "-g", granularity, folder / "marked", name)
    qemu_img("convert", "-c", "-O", "qcow2", folder / "plain", folder / "packed")
    qemu_img("convert", "-O", "raw", folder / "plain", folder / "raw")
    qemu_img("create", "-q", "-f", "qcow2", "-o", "compat=0.10,cluster_size=4k", folder / "old", "5M")
    qemu_io(folder / "old", "write 4k 4k", "write 20k 1")
    (folder / "short").write_bytes(b"x" * 1000)
    qemu_img("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", folder / "hollow", "300M")
    return folder


@pytest.mark.parametrize(("form", "fill"), list(itertools.product(FORMS, FILLS)))
def test_an_empty_image_has_the_same_sizes(images: Path, form: str, fill: str):
    for size in SIZES:
        read_both(images, "measure", "-O", "qcow2", *options(form, fill), "--size", size).assert_same_reading()


@pytest.mark.parametrize(("name", "form"), list(itertools.product(NAMES, FORMS)))
def test_a_copy_has_the_same_sizes(images: Path, name: str, form: str):
    read_both(images, "measure", "-O", "qcow2", *options(form), name).assert_same_reading()


@pytest.mark.parametrize("words", [(), ("-O", "raw"), ("--output=json",), ("-O", "qcow2", "--output=json", "-U")])
@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_image_is_measured(images: Path, name: str, words: tuple[str, ...]):
    read_both(images, "measure", *words, name).assert_same_reading()


@pytest.mark.parametrize("snapshot", ["s", "1", "snapshot.name=s", "snapshot.id=1"])
def test_a_snapshot_is_measured(images: Path, snapshot: str):
    read_both(images, "measure", "-O", "qcow2", "-l", snapshot, "plain").assert_same_reading()


@pytest.mark.parametrize("words", WRONG)
def test_wrong_words_fail_in_the_same_words(images: Path, words: tuple[str, ...]):
    both = read_both(images, "measure", *words)
    both.assert_same_failure()


def test_the_size_of_a_converted_file_is_not_above_what_was_measured(images: Path, tmp_path: Path):
    for name in NAMES:
        measured = run_stock(images, "measure", "-O", "qcow2", name).stdout.split()
        qemu_img("convert", "-O", "qcow2", images / name, tmp_path / name)
        assert (tmp_path / name).stat().st_size <= int(measured[2])
