"""`cowtree img dd` beside qemu-img."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.img.differential import Shape, run_both, run_cowtree
from tests.qemu import qemu_img, qemu_io

ChainOf = Callable[[Shape], Path]

SHAPES = (
    Shape(),
    Shape("raw", 512, "0.10"),
    Shape("qcow2", 4096, "1.1", (4096, 3001, 2048, 1001)),
    Shape("raw", 65536, "1.1", (1001, 2048, 3001, 4096)),
)
CALLS = (
    "if=l3 of=out",
    "-O qcow2 if=l3 of=out",
    "-f qcow2 -O qcow2 bs=64k if=l3 of=out",
    "-U bs=4k count=100 if=l3 of=out",
    "-O qcow2 bs=1M count=1 if=l2 of=out",
    "bs=4k skip=33 if=l3 of=out",
    "-O qcow2 bs=3k skip=7 count=50 if=l3 of=out",
    "bs=4k count=10 skip=20 if=l3 of=out",
    "bs=1000 count=333 skip=1 if=l3 of=out",
    "-O qcow2 bs=7 count=1001 skip=77 if=l1 of=out",
    "skip=100000 if=l3 of=out",
    "-O qcow2 skip=9000000000000000000 if=l3 of=out",
    "bs=1G count=9000000000 if=l3 of=out",
    "count=0 if=l3 of=out",
    "of=out if=l1 bs=1k bs=2k count=1 count=5",
    "-O qcow2 if=l1 of=l3",
)


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dd_makes_what_stock_makes(chain_of: ChainOf, tmp_path: Path, shape: Shape, call: str):
    both = run_both(chain_of(shape), tmp_path, "dd", *call.split())
    both.assert_same()
    assert both.own.stderr == both.stock.stderr


MISTAKES = (
    "",
    "if=l3",
    "of=out",
    "-z if=l3 of=out",
    "if=l3 of=out noise",
    "if=l3 of=out conv=sparse",
    "if=l3 of=out bs",
    "bs=0 if=l3 of=out",
    "bs=3G if=l3 of=out",
    "bs=x if=l3 of=out",
    "bs= if=l3 of=out",
    "count=-1 if=l3 of=out",
    "count=x if=l3 of=out",
    "skip=9E if=l3 of=out",
    "if=l9 of=out -O strange",
    "if=l3 of=out -O strange",
    "if=l3 of=out -f strange",
    "if=l3 of=out -f raw -O",
    "if=l3 of=nowhere/out",
    "-f qcow2 if=l0 of=out",
    "--image-opts -f qcow2 if=driver=qcow2,file.filename=l3 of=out",
)


@pytest.mark.parametrize("call", MISTAKES)
def test_dd_refuses_what_stock_refuses(chain_of: ChainOf, tmp_path: Path, call: str):
    run_both(chain_of(Shape("raw")), tmp_path, "dd", *call.split()).assert_same_failure()


def test_a_list_of_options_names_the_source(chain_of: ChainOf, tmp_path: Path):
    words = ["--image-opts", "bs=4k", "skip=3", "if=driver=qcow2,file.filename=l3", "of=out"]
    run_both(chain_of(Shape()), tmp_path, "dd", *words).assert_same()


@pytest.mark.slow
def test_zeroes_are_written_out_as_dd_does(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    qemu_img("create", "-q", "-f", "raw", tmp_path / "folder" / "in", "1M")
    both = run_both(tmp_path / "folder", tmp_path, "dd", "-O", "qcow2", "if=in", "of=out")
    maps = [qemu_img("map", "--output=json", folder / "out") for folder in (both.stock_folder, both.own_folder)]
    assert [each.count('"data": true') for each in maps] == [1, 1]


@pytest.mark.slow
def test_dd_of_any_blocks_does_what_stock_does(tmp_path: Path, seed: int):
    choose = random.Random(seed)
    size = 512 * choose.randint(1, 3000)
    (tmp_path / "in").mkdir()
    options = choose.choice(["extended_l2=on", f"cluster_size={1 << choose.randint(9, 18)}", "compat=0.10"])
    image = tmp_path / "in" / "image"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, image, str(size))
    starts = [512 * choose.randrange(size // 512) for _ in range(5)]
    qemu_io(image, *(f"write -P {choose.randint(0, 255)} {at} {min(size - at, 200 * 512)}" for at in starts))
    words = [f"bs={choose.choice([1, 100, 512, 4096, 70000]) * choose.randint(1, 9)}", "if=image", "of=out"]
    for name in ("count", "skip"):
        if choose.random() < 0.7:
            words.append(f"{name}={choose.randint(0, 300)}")
    choose.shuffle(words)
    run_both(tmp_path / "in", tmp_path, "dd", "-O", choose.choice(["raw", "qcow2"]), *words).assert_same()


def test_help_is_no_failure(tmp_path: Path):
    result = run_cowtree(tmp_path, "dd", "-h")
    assert result.status == 0
    assert result.stdout.startswith("usage: qemu-img dd ")
