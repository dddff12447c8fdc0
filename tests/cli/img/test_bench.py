"""`cowtree img bench` beside qemu-img."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.img.differential import Both, Shape, run_both, run_cowtree
from tests.qemu import qemu_img

ChainOf = Callable[[Shape], Path]

SHAPES = (Shape(), Shape("raw", 512, "0.10"), Shape("raw", 65536, "1.1", (1001, 2048, 3001, 4096)))
CALLS = (
    "-c 10 l3",
    "-c 0x100 -d 2 -s 512 -S 4k -o 64k -f qcow2 l3",
    "-c 020 -d 1 -s 0 l1",
    "-c 0 l3",
    "-c 300 -S 1k -s 3k -o 100 -U l2",
    "-c 100 -t none -n l3",
    "-c 100 -i threads -t directsync -q l3",
    "--image-opts -c 5 driver=qcow2,file.filename=l3",
    "-w -c 100 l3",
    "-w -c 100 --pattern 65 -s 3000 -S 5000 -o 77 l3",
    "-w -c 250 -d 8 --pattern 0xff -s 512 -S 2k --flush-interval 50 l3",
    "-w -c 64 --pattern 7 --flush-interval 64 --no-drain l3",
    "-w -c 20 -s 64k -S 40k --pattern 9 -t writeback l3",
)


def masked(both: Both) -> Both:
    """The same without the time that it took."""
    results = (
        each._replace(stdout=re.sub(r"in +\d+\.\d{3} seconds", "in ? seconds", each.stdout))
        for each in (both.stock, both.own)
    )
    return Both(*both[:4], *results)


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bench_does_what_stock_does(chain_of: ChainOf, tmp_path: Path, shape: Shape, call: str):
    masked(run_both(chain_of(shape), tmp_path, "bench", *call.split())).assert_same()


MISTAKES = (
    "",
    "l3 l2",
    "-z l3",
    "-c -1 l3",
    "-c 3000000000 l3",
    "-c 5x l3",
    "-d x l3",
    "-s 3G l3",
    "-s x l3",
    "-S 3G l3",
    "-o x l3",
    "-t slow l3",
    "-i slow l3",
    "-n l3",
    "-i native l3",
    "--pattern 256 -w l3",
    "--flush-interval 10 l3",
    "--flush-interval 10 -w l3",
    "--flush-interval x -w l3",
    "-w -U l3",
    "l9",
    "-f raw -c",
    "-f strange l3",
)


@pytest.mark.parametrize("call", MISTAKES)
def test_bench_refuses_what_stock_refuses(chain_of: ChainOf, tmp_path: Path, call: str):
    run_both(chain_of(Shape("raw")), tmp_path, "bench", *call.split()).assert_same_failure()


@pytest.mark.parametrize("call", ["-c 5 -o 9M l3", "-w -c 3 -o 1048064 l3"])
def test_a_request_past_the_end_fails(chain_of: ChainOf, tmp_path: Path, call: str):
    both = run_both(chain_of(Shape()), tmp_path, "bench", *call.split())
    both.assert_same_failure()
    assert both.own.stdout.startswith("Sending ")


def test_a_disk_of_no_size_answers_no_request(tmp_path: Path):
    qemu_img("create", "-q", "-f", "raw", tmp_path / "image", "0")
    result = run_cowtree(tmp_path, "bench", "-f", "raw", "-c", "1", "image")
    assert (result.status, result.stderr[:41]) == (1, "qemu-img: Failed request: Input/output er")


def test_help_is_no_failure(tmp_path: Path):
    result = run_cowtree(tmp_path, "bench", "-h")
    assert result.status == 0
    assert result.stdout.startswith("usage: qemu-img bench ")
