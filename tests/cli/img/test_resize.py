"""`cowtree img resize` beside qemu-img."""

import shutil
from pathlib import Path

import pytest

from tests.cli.img.differential import run_both, run_cowtree, run_stock
from tests.qemu import assert_clean, check_of, content, qemu_img, qemu_io

pytestmark = pytest.mark.slow

MIB = 1 << 20
SIZE = 3 * MIB
SHAPES = {
    "raw": "raw",
    "512": "cluster_size=512",
    "4k": "cluster_size=4k",
    "64k": "cluster_size=64k",
    "2M": "cluster_size=2M",
    "v2": "cluster_size=4k,compat=0.10",
    "lazy": "cluster_size=4k,lazy_refcounts=on,refcount_bits=1",
    "extended": "cluster_size=16k,extended_l2=on",
    "backed": "cluster_size=4k",
    "backed v2": "cluster_size=512,compat=0.10",
    "backed extended": "cluster_size=64k,extended_l2=on",
    "snapshots": "cluster_size=4k",
    "bitmaps": "cluster_size=4k",
    "data file": "cluster_size=4k,data_file=outside",
    "raw data file": "cluster_size=4k,data_file=outside,data_file_raw=on",
}
CALLS = (
    "image 5M",
    "-q image +1",
    "image +512",
    "-f FMT image 70M",
    "image 3145728",
    "--shrink image 1M",
    "--shrink image 100k",
    "--shrink -q image -512",
    "--shrink image -- -1000k",
    "--preallocation=metadata image +1M",
    "--preallocation=falloc image 4000k",
    "--preallocation full image 4M",
    "--image-opts driver=FMT,file.filename=image +64k",
)


def make(folder: Path, shape: str) -> str:
    """Make `image` of a shape, with something in it. Returns: its format."""
    folder.mkdir()
    path, options = folder / "image", SHAPES[shape]
    image_format = "raw" if options == "raw" else "qcow2"
    words = ["create", "-q", "-f", image_format]
    if "backed" in shape:
        qemu_img("create", "-q", "-f", "qcow2", folder / "base", "8M")
        qemu_io(folder / "base", "write -P 9 0 8M")
        words += ["-b", "base", "-F", "qcow2"]
    run_stock(folder, *words, *([] if options == "raw" else ["-o", options]), "image", str(SIZE))
    shown = ["write -P 1 0 1M", "write -P 2 1000k 300k", "write -P 3 2M 1M"]
    if shape == "bitmaps":
        qemu_img("bitmap", "--add", path, "one")
        qemu_img("bitmap", "--add", path, "two")
        qemu_img("bitmap", "--disable", path, "two")
    if "data" in shape:
        run_in(folder, shown[:2])
        return image_format
    qemu_io(path, *shown, image_format=image_format)
    if shape == "snapshots":
        qemu_img("snapshot", "-c", "first", path)
        qemu_io(path, "write -P 4 2500k 100k", "discard 2M 100k")
        qemu_img("snapshot", "-c", "second", path)
        qemu_io(path, "write -P 5 0 10k")
    return image_format


def run_in(folder: Path, commands: list[str]) -> None:
    """Let the guest write by `bench`, for a data file is found from the folder of the process."""
    for command in commands:
        _, _, byte, start, length = command.split()
        words = ("-w", "-c", "1", "-o", start, "-s", length, f"--pattern={byte}")
        assert run_stock(folder, "bench", *words, "image").status == 0


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("shape", SHAPES)
def test_resize_does_what_stock_does(tmp_path: Path, shape: str, call: str):
    image_format = make(tmp_path / "images", shape)
    both = run_both(tmp_path / "images", tmp_path, "resize", *call.replace("FMT", image_format).split())
    both.assert_same_result()
    if both.stock.status:
        both.assert_same_failure()
        return
    if "data" not in shape:
        both.assert_same_images()
        return
    for program in (run_stock, run_cowtree):
        for folder in (both.stock_folder, both.own_folder):
            assert program(folder, "convert", "-O", "raw", "image", "plain").status == 0
            (folder / "plain").rename(folder / program.__name__)
    seen = {(folder / name).read_bytes() for folder in both[2:4] for name in ("run_stock", "run_cowtree")}
    assert len(seen) == 1
    # QEMU lets a data file end with a whole cluster.
    outside = [(folder / "outside").read_bytes()[: len(min(seen))] for folder in both[2:4]]
    assert outside[0] == outside[1]
    assert run_stock(both.own_folder, "check", "image").status == 0


MISTAKES = (
    "",
    "image",
    "-q image",
    "image image 1M",
    "-f qcow2",
    "-z image 1M",
    "image 1M --shrink",
    "image 0",
    "image -3M",
    "image -9M",
    "image 1x",
    "image +",
    "image x",
    "image 1000",
    "image --5",
    "image 1M",
    "image -1M",
    "image 99E",
    "image 7.9E",
    "image 8191P",
    "image +8191P",
    "--preallocation=much image 4M",
    "--preallocation=full image 3M",
    "--preallocation=full --shrink image 1M",
    "-f strange image 5M",
    "nothing 5M",
    "--image-opts -f raw image 5M",
    "--image-opts driver=qcow2,file.filename=nothing 5M",
)


@pytest.mark.parametrize("call", MISTAKES)
def test_resize_refuses_what_stock_refuses(tmp_path: Path, call: str):
    make(tmp_path / "images", "512")
    run_both(tmp_path / "images", tmp_path, "resize", *call.split()).assert_same_failure()


def test_an_old_image_with_snapshots_is_refused(tmp_path: Path):
    make(tmp_path / "images", "v2")
    qemu_img("snapshot", "-c", "one", tmp_path / "images" / "image")
    for number, call in enumerate(("image 4M", "--shrink image 1M", "image 3M")):
        run_both(tmp_path / "images", _folder(tmp_path, number), "resize", *call.split()).assert_same_failure()


def test_a_bitmap_that_is_in_use_is_refused(tmp_path: Path):
    make(tmp_path / "images", "bitmaps")
    path = tmp_path / "images" / "image"
    data = bytearray(path.read_bytes())
    at = data.rindex(b"one") - 24 + 15
    assert data[at] == 2
    data[at] |= 1
    path.write_bytes(data)
    run_both(tmp_path / "images", tmp_path, "resize", "image", "4M").assert_same_failure()


def test_a_raw_disk_takes_any_size(tmp_path: Path):
    make(tmp_path / "images", "raw")
    for number, call in enumerate(("image 5000001", "--shrink image 1000", "image 3145728")):
        both = run_both(tmp_path / "images", _folder(tmp_path, number), "resize", "-f", "raw", *call.split())
        both.assert_same_result()
        assert (both.own_folder / "image").read_bytes() == (both.stock_folder / "image").read_bytes()


def _folder(place: Path, number: int) -> Path:
    folder = place / str(number)
    folder.mkdir()
    return folder


@pytest.mark.parametrize("shape", ["512", "4k", "v2", "extended", "snapshots"])
def test_what_was_cut_off_never_comes_back(tmp_path: Path, shape: str):
    make(tmp_path / "images", shape)
    path = tmp_path / "images" / "image"
    before = content(path)
    for size in (2 * MIB + 1536, 2 * MIB + 5120, 700 * 1024 + 512, 3 * MIB):
        assert run_cowtree(tmp_path / "images", "resize", "-q", "--shrink", "image", str(size)).status == 0
        before = before[:size].ljust(size, b"\0")
        assert content(path) == before
        assert_clean(path)


def test_a_disk_that_grew_may_shrink_to_the_file_that_it_was(tmp_path: Path):
    make(tmp_path / "images", "4k")
    path = tmp_path / "images" / "image"
    before = check_of(path)["image-end-offset"]
    for call in ("--preallocation=metadata image 40M", "--shrink image 3M"):
        assert run_cowtree(tmp_path / "images", "resize", *call.split()).status == 0
    assert check_of(path)["image-end-offset"] <= before + 64 * 1024
    assert_clean(path)


def test_encrypted_disks_are_resized_with_their_key(tmp_path: Path):
    secret = "secret,id=key,data=1234"
    options = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10,cluster_size=4k"
    qemu_img("create", "-q", "--object", secret, "-f", "qcow2", "-o", options, tmp_path / "image", "1M")
    name = "driver=qcow2,file.filename=image,encrypt.key-secret=key"
    words = ("--object", secret, "--image-opts", name)
    for call in ("2M", "--shrink 300k", "--preallocation=full 1M"):
        *options_given, size = call.split()
        assert run_cowtree(tmp_path, "resize", *options_given, *words, size).status == 0
        assert run_stock(tmp_path, "convert", *words, "-O", "raw", "plain").status == 0
        assert not any((tmp_path / "plain").read_bytes())
    shutil.copy(tmp_path / "image", tmp_path / "other")
    both = run_stock(tmp_path, "resize", "image", "3M"), run_cowtree(tmp_path, "resize", "other", "3M")
    assert both[0].status == both[1].status == 1
