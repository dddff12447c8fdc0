"""`cowtree img compare` beside qemu-img."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.img.differential import Shape, make_chain, run_both, run_cowtree, run_stock
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
    "l3 l3",
    "-s l3 l3",
    "l3 l2",
    "-p l2 l3",
    "-s l1 l2",
    "-q l0 l3",
    "-f qcow2 -F qcow2 -T none -U l1 l3",
    "l3 copy",
    "-s -p copy l3",
    "l3 plain",
    "-F raw plain plain",
    "-p longer l3",
    "l3 longer",
    "-s longer l3",
    "l3 tail",
    "last l3",
)


@pytest.fixture(scope="session")
def zoo_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Shape], Path]:
    """A chain, and beside it images that show the same as its top, or nearly."""
    made: dict[Shape, Path] = {}

    def make(shape: Shape) -> Path:
        if shape not in made:
            folder = made[shape] = make_chain(tmp_path_factory.mktemp("zoo") / "zoo", shape)
            size = shape.sector_counts[-1] * 512
            qemu_img("convert", "-O", "qcow2", "-o", "cluster_size=4k", folder / "l3", folder / "copy")
            for name in ("plain", "longer", "tail", "last"):
                qemu_img("convert", "-O", "raw", folder / "l3", folder / name)
            for name in ("longer", "tail"):
                qemu_img("resize", "-q", "-f", "raw", folder / name, str(size + 70000 // 512 * 512))
            qemu_io(folder / "tail", f"write -P 7 {size + 1024} 512", image_format="raw")
            qemu_io(folder / "last", f"write -P 7 {size - 512} 512", image_format="raw")
        return made[shape]

    return make


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_compare_says_what_stock_says(zoo_of: ChainOf, shape: Shape, call: str):
    folder, words = zoo_of(shape), ["compare", *call.split()]
    stock, own = run_stock(folder, *words), run_cowtree(folder, *words)
    assert (own.status, own.text, own.steps[:1]) == (stock.status, stock.text, stock.steps[:1])


MISTAKES = (
    "",
    "l3",
    "l3 l2 l1",
    "-z l3 l2",
    "-T slow l3 l2",
    "-p -T slow l3 l2",
    "l3 l9",
    "-p l9 l3",
    "-f qcow2 l0 l3",
    "-F qcow2 l3 l0",
    "-F strange l3 l0",
    "--image-opts -F qcow2 driver=qcow2,file.filename=l3 driver=qcow2,file.filename=l3",
)


@pytest.mark.parametrize("call", MISTAKES)
def test_compare_refuses_what_stock_refuses(chain_of: ChainOf, tmp_path: Path, call: str):
    run_both(chain_of(Shape("raw")), tmp_path, "compare", *call.split()).assert_same_failure()


def damaged(folder: Path, *, is_table: bool) -> Path:
    """Two images that show the same; then one of them breaks."""
    folder.mkdir()
    plain, packed = folder / "plain", folder / "packed"
    plain.write_bytes(bytes(range(256)) * 4096)
    qemu_img("convert", "-c", "-O", "qcow2", plain, packed)
    data = bytearray(packed.read_bytes())
    l1_offset = int.from_bytes(data[40:48], "big")
    l2_offset = int.from_bytes(data[l1_offset : l1_offset + 8], "big") & 0x00FFFFFFFFFFFE00
    at = l2_offset if is_table else int.from_bytes(data[l2_offset + 4 : l2_offset + 8], "big")
    # An entry that points between two clusters; or no compressed data at all.
    data[at : at + 8] = (1 << 63 | 1 << 20 | 512).to_bytes(8, "big") if is_table else b"\xff" * 8
    packed.write_bytes(data)
    return folder


@pytest.mark.parametrize(("is_table", "status"), [(True, 3), (False, 4)], ids=["table", "data"])
def test_what_cannot_be_read_has_a_status_of_its_own(tmp_path: Path, is_table: bool, status: int):
    both = run_both(damaged(tmp_path / "folder", is_table=is_table), tmp_path, "compare", "-p", "packed", "plain")
    assert (both.stock.status, both.own.status) == (status, status)
    assert both.own.text == both.stock.text == "\n"
    assert both.own.stderr.count("\n") == 1
    assert "packed" in both.own.stderr
    both.assert_unchanged()


def test_help_is_no_failure(tmp_path: Path):
    result = run_cowtree(tmp_path, "compare", "-h")
    assert (result.status, result.stderr) == (0, "")
    assert result.stdout.startswith("usage: qemu-img compare [-f FMT] [-F FMT]")
