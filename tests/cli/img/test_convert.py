"""`cowtree img convert` beside qemu-img."""

import contextlib
import io
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cowtree.cli.main import main
from tests.cli.img.differential import Shape, run_both, run_cowtree, run_stock
from tests.qemu import qemu_img, qemu_io

ChainOf = Callable[[Shape], Path]

SHAPES = (
    Shape(),
    Shape("raw", 512, "0.10"),
    Shape("qcow2", 2 << 20, "1.1", (9001, 9001, 9001, 9001)),
    Shape("raw", 65536, "1.1", (1001, 2048, 3001, 4096)),
    Shape("qcow2", 4096, "1.1", (4096, 3001, 2048, 1001)),
)
CALLS = (
    "l3 out",
    "-O raw -p l2 out",
    "-O qcow2 l3 out",
    "-O qcow2 -c l3 out",
    "-O qcow2 -c -o compression_type=zstd,cluster_size=4k l3 out",
    "-O qcow2 -o cluster_size=512 l3 out",
    "-O qcow2 -o cluster_size=2M,refcount_bits=1 -m 4 -W l3 out",
    "-O qcow2 -o compat=0.10 -t none -T writeback l1 out",
    "-O qcow2 -o lazy_refcounts=on,refcount_bits=64 -S 0 l3 out",
    "-O qcow2 -o preallocation=metadata l3 out",
    "-O qcow2 -o preallocation=full l3 out",
    "-O raw -o preallocation=falloc l3 out",
    "-S 0 l3 out",
    "-S 512 -q -p l3 out",
    "-S 64k l3 out",
    "-f qcow2 -O qcow2 -o size=5 l3 l3.new",
    "-f qcow2 -U l1 l2 l3 out",
    "-O qcow2 -c l3 l0 out",
    "-O qcow2 -B l2 -F qcow2 l3 out",
    "-O qcow2 -o backing_file=l0,backing_fmt={base} l1 out",
    "-O qcow2 -B l2 -F qcow2 -c l3 out",
    "-O qcow2 -B l2 -F qcow2 -o compat=0.10 l3 out",
    "-O qcow2 -r 1G -C l3 out",
    "--salvage -O qcow2 l3 out",
    "--image-opts driver=qcow2,file.filename=l3 out",
    "-O qcow2 l3 l0",
    "-O qcow2 l3 l3",
    "-O qcow2 l2 l3",
)


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_convert_makes_what_stock_makes(chain_of: ChainOf, tmp_path: Path, shape: Shape, call: str):
    words = call.format(base=shape.base_format).split()
    run_both(chain_of(shape), tmp_path, "convert", *words).assert_same()


MISTAKES = (
    "",
    "l3",
    "-z l3 out",
    "-S 3 l3 out",
    "-S 17M l3 out",
    "-S x l3 out",
    "-m 0 l3 out",
    "-m 17 l3 out",
    "-m x l3 out",
    "-r x l3 out",
    "-c l3 out",
    "-c -C -O qcow2 l3 out",
    "-S 4k -C l3 out",
    "-C --salvage l3 out",
    "--target-is-zero l3 out",
    "--target-image-opts l3 out",
    "--skip-broken-bitmaps l3 out",
    "-n -o size=1 l3 out",
    "-o ,x l3 out",
    "-O qcow2 -o junk=1 l3 out",
    "-O qcow2 -o cluster_size=3 l3 out",
    "-O qcow2 -o compat=0.9 l3 out",
    "-O strange l3 out",
    "-f strange l3 out",
    "-t slow l3 out",
    "-T slow l3 out",
    "-p l9 out",
    "l3 l9 out",
    "l3 nowhere/out",
    "-n l3 out",
    "-n -O qcow2 l3 l0",
    "-O qcow2 -B l0 l3 out",
    "-B l0 -F raw l3 out",
    "-O qcow2 -F raw l3 out",
    "-O qcow2 -B l0 -F raw l3 l2 out",
    "-O qcow2 -c -o preallocation=full l3 out",
    "-l nosnap l3 out",
    "-l snapshot.id=1 l3 out",
    "-l snapshot.junk=1 l3 out",
    "-l a l3 l2 out",
    "--bitmaps l3 out",
    "--bitmaps -O qcow2 l0 out",
    "--bitmaps -O qcow2 l3 l2 out",
    "--image-opts -f qcow2 driver=qcow2,file.filename=l3 out",
)


@pytest.mark.parametrize("call", MISTAKES)
def test_convert_refuses_what_stock_refuses(chain_of: ChainOf, tmp_path: Path, call: str):
    run_both(chain_of(Shape("raw")), tmp_path, "convert", *call.split()).assert_same_failure()


INTO = (
    "-n -O raw l3 raw",
    "-n -O qcow2 l3 full",
    "-n -p -O qcow2 l1 overlay",
    "-n -O qcow2 -S 0 l1 overlay",
    "-n -O qcow2 --target-is-zero l3 empty",
    "-n -W -O qcow2 -S 64k l3 l2 full",
    "-n --target-image-opts l3 driver=qcow2,file.filename=full",
    "-n --target-image-opts -l one snapshots driver=raw,file.filename=raw",
    "-O raw -l one snapshots out",
    "-O qcow2 -c -l 2 snapshots out",
    "-O qcow2 -l snapshot.name=two snapshots out",
    "-O qcow2 -l snapshot.id=1,snapshot.name=one snapshots out",
    "--bitmaps -O qcow2 snapshots out",
    "--bitmaps --skip-broken-bitmaps -O qcow2 l3 out",
)


def furnish(chain: Path, folder: Path) -> Path:
    """A chain, and beside it images that can be written over or have snapshots."""
    shutil.copytree(chain, folder)
    qemu_img("create", "-q", "-f", "raw", folder / "raw", "4M")
    qemu_io(folder / "raw", "write -P 7 0 4M", image_format="raw")
    qemu_img("create", "-q", "-f", "qcow2", folder / "empty", "4M")
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", folder / "full", "4M")
    qemu_io(folder / "full", "write -P 7 0 4M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "full", "-F", "qcow2", folder / "overlay")
    qemu_io(folder / "overlay", "write -P 8 100k 300k")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "l3", "-F", "qcow2", folder / "snapshots")
    for name, byte in (("one", 1), ("two", 2), ("1", 3)):
        qemu_io(folder / "snapshots", f"write -P {byte} {100 * byte}k 120k")
        qemu_img("snapshot", "-c", name, folder / "snapshots")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("call", INTO)
def test_convert_into_images_and_from_snapshots_does_what_stock_does(chain_of: ChainOf, tmp_path: Path, call: str):
    folder = furnish(chain_of(Shape("raw", 65536, "1.1", (1001, 2048, 3001, 4096))), tmp_path / "folder")
    run_both(folder, tmp_path, "convert", *call.split()).assert_same()


def test_a_snapshot_has_the_size_that_the_disk_had_then(tmp_path: Path):
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", image, "1M")
    qemu_io(image, "write -P 1 0 1M")
    qemu_img("snapshot", "-c", "old", image)
    qemu_img("resize", "-q", image, "2M")
    qemu_io(image, "write -P 2 0 2M")
    assert run_cowtree(tmp_path, "convert", "-l", "old", "image", "out").status == 0
    assert (tmp_path / "out").read_bytes() == b"\1" * (1 << 20)


def test_a_new_file_is_as_private_as_its_maker_wants(tmp_path: Path):
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "image", "1M")
    before = os.umask(0o077)
    try:
        for words in (("-O", "qcow2"), ("-O", "raw")):
            assert run_cowtree(tmp_path, "convert", *words, "image", "out").status == 0
            assert (tmp_path / "out").stat().st_mode & 0o777 == 0o600
            (tmp_path / "out").unlink()
    finally:
        os.umask(before)


def test_a_rate_is_kept(chain_of: ChainOf, tmp_path: Path):
    shutil.copytree(chain_of(Shape()), tmp_path / "chain")
    start_s = time.monotonic()
    assert run_cowtree(tmp_path / "chain", "convert", "-r", "2M", "l0", "out").status == 0
    assert 0.1 < time.monotonic() - start_s < 2


@pytest.mark.parametrize("words", [("-h",), ("-O", "qcow2", "-o", "help"), ("-O", "raw", "-o", "help", "l3", "out")])
def test_help_is_no_failure(chain_of: ChainOf, words: tuple[str, ...]):
    result = run_cowtree(chain_of(Shape("raw")), "convert", *words)
    assert result.status == 0
    if "-o" in words:
        assert result.stdout == run_stock(chain_of(Shape("raw")), "convert", *words).stdout


OVER = (
    "-O qcow2 -B {base} -F qcow2 top out",
    "-O qcow2 -c -B {base} -F qcow2 top out",
    "-O qcow2 -S 0 -B {base} -F qcow2 top out",
    "-O qcow2 -S 64k -m 8 -W -r 1G -B {base} -F qcow2 top out",
    "-O qcow2 -B {base} -F qcow2 -o extended_l2=on,cluster_size=128k top out",
    "-O qcow2 -B {base} -F qcow2 -o extended_l2=on,preallocation=metadata top out",
    "-O qcow2 -B {base} -F qcow2 -o compat=0.10 top out",
    "-O qcow2 -B {base} -F qcow2 -o cluster_size=4k top out",
    "-O qcow2 -B {base} -F qcow2 -l one snapshots out",
    "-O qcow2 -B {base} -F qcow2 raw out",
    "-n -O qcow2 -B {base} top target",
    "-n -O qcow2 -S 0 -B {base} top target",
    "-n -O qcow2 -c -B {base} top target",
    "-n -O qcow2 -c -S 0 raw empty",
    "-n -O qcow2 -B {base} -l one snapshots target",
    "-n -O qcow2 -B {base} raw target",
    "-n -O qcow2 top target",
    "-n -O raw -B {base} top raw",
    "-n -O qcow2 -B {base} top top target",
    "-O qcow2 -B {base} -F qcow2 top top out",
    "-O qcow2 -B nothing -F qcow2 top out",
)


@pytest.fixture(scope="module")
def overlays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain, and others that can back what is made of it or are there already."""
    folder = tmp_path_factory.mktemp("overlays") / "folder"
    folder.mkdir()
    chains = {"base": "", "parent": "base", "top": "parent", "snapshots": "top", "other": "", "short": "", "empty": ""}
    for name, backing in {**chains, "target": "other"}.items():
        words = ["-b", backing, "-F", "qcow2"] if backing else ["-o", "cluster_size=64k"]
        size = [] if backing else ["1M" if name == "short" else "2M"]
        qemu_img("create", "-q", "-f", "qcow2", *words, folder / name, *size)
    for number, name in enumerate(("base", "other")):
        qemu_io(folder / name, f"write -P {1 + number} 0 2M")
    qemu_io(folder / "short", "write -P 3 0 1M")
    qemu_io(folder / "parent", "write -P 4 256k 256k", "write -z 1M 128k")
    qemu_io(
        folder / "top", "write -P 5 512k 100k", "write -z 1200k 200k", "write -P 0 1500k 100k", "write -P 6 1800k 9k"
    )
    qemu_io(folder / "snapshots", "write -P 7 0 128k")
    qemu_img("snapshot", "-c", "one", folder / "snapshots")
    qemu_io(folder / "snapshots", "write -P 8 0 256k")
    qemu_io(folder / "target", "write -P 9 0 700k")
    qemu_img("create", "-q", "-f", "raw", folder / "raw", "2M")
    qemu_io(folder / "raw", "write -P 10 600k 500k", image_format="raw")
    return folder


def held_by(folder: Path, name: str) -> list[tuple[object, ...]]:
    """Which layer answers for what, and how; wherever its bytes are."""
    words = ("map", "-U", "-f", "raw" if name == "raw" else "qcow2", "--output=json", name)
    found: list[tuple[object, ...]] = []
    for entry in json.loads(run_stock(folder, *words).stdout):
        facts = (entry["depth"], entry["present"], entry["zero"], entry["data"])
        if not found or found[-1][1:] != facts:
            found.append((entry["start"], *facts))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("base", ["parent", "base", "other", "short"])
@pytest.mark.parametrize("call", OVER)
def test_what_lies_over_a_backing_file_is_what_stock_lays_there(overlays: Path, tmp_path: Path, call: str, base: str):
    words = call.format(base=base).split()
    both = run_both(overlays, tmp_path, "convert", *words)
    if both.stock.status:
        both.assert_same_failure()
        return
    both.assert_same()
    # As qemu-img does, it says nothing of a backing file that shows something else.
    assert not both.own.stderr
    maps = [held_by(folder, words[-1]) for folder in (both.stock_folder, both.own_folder)]
    assert maps[0] == maps[1]


def test_under_its_own_name_it_tells_of_a_backing_file_that_is_another_one(overlays: Path, tmp_path: Path):
    folder, words = shutil.copytree(overlays, tmp_path / "folder"), ("convert", "-O", "qcow2", "-F", "qcow2", "-B")
    said = []
    for base in ("parent", "other"):
        stderr = io.StringIO()
        with contextlib.chdir(folder), contextlib.redirect_stderr(stderr):
            assert main(["cowtree", "img", *words, base, "top", "out"]) == 0
        said.append(stderr.getvalue())
    assert said[0] == ""
    assert "warning: 'other' is not what backs 'top'" in said[1]
