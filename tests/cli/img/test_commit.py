"""`cowtree img commit` beside qemu-img."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cowtree.cli.main import main
from tests.cli.img.differential import Shape, content_of, held, run_both, run_cowtree, run_stock
from tests.qemu import qemu_img

ChainOf = Callable[[Shape], Path]

SHAPES = (
    Shape(),
    Shape("raw"),
    Shape("raw", 512, "0.10"),
    Shape("qcow2", 512, "1.1", (701, 701, 701, 701)),
    Shape("qcow2", 2 << 20, "1.1", (9001, 9001, 9001, 9001)),
    Shape("qcow2", 65536, "0.10", (2048, 3001, 3001, 4096)),
    Shape("raw", 65536, "1.1", (1001, 2048, 3001, 4096)),
    Shape("qcow2", 4096, "1.1", (4096, 3001, 2048, 1001)),
    Shape("raw", 65536, "1.1", (4096, 1001, 2048, 3001)),
)
CALLS = (
    "l3",
    "-d l3",
    "-b l2 l3",
    "-b l1 l3",
    "-b l0 l3",
    "l1",
    "-d -b l0 l2",
    "-p -t writeback l2",
    "-f qcow2 -q l3",
)


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_commit_does_what_stock_does(chain_of: ChainOf, tmp_path: Path, shape: Shape, call: str):
    run_both(chain_of(shape), tmp_path, "commit", *call.split()).assert_same()


MISTAKES = (
    "",
    "l3 l2",
    "-z l3",
    "-b",
    "l3 -r fast",
    "-r 9999999E l3",
    "-r -1 l3",
    "-t slow l3",
    "l9",
    "-p l9",
    "-f raw l3",
    "-f qcow2 l0",
    "-f strange l3",
    "-p -f raw l0",
    "-b l9 l3",
    "-p -b l3 l3",
    "-b nbd://host/l0 l3",
    "-b ./chain/l0 l3",
    "--image-opts -f qcow2 driver=qcow2,file.filename=l3",
)


@pytest.mark.parametrize("call", MISTAKES)
def test_commit_refuses_what_stock_refuses(chain_of: ChainOf, tmp_path: Path, call: str):
    run_both(chain_of(Shape("raw")), tmp_path, "commit", *call.split()).assert_same_failure()


@pytest.fixture
def folder(chain_of: ChainOf, tmp_path: Path) -> Path:
    """A chain of one's own."""
    return Path(shutil.copytree(chain_of(Shape("raw")), tmp_path / "chain"))


def test_a_base_is_named_as_seen_from_the_image_that_it_backs(folder: Path, tmp_path: Path):
    for name in ("l1", "./l1", str(tmp_path / "own/l1"), "../own/l1"):
        shutil.rmtree(tmp_path / "own", ignore_errors=True)
        shutil.copytree(folder, tmp_path / "own")
        assert run_cowtree(tmp_path, "commit", "-b", name, "own/l3").status == 0, name
    result = run_cowtree(tmp_path, "commit", "-b", "own/l1", "own/l3")
    assert result.status == 1
    assert result.stderr == "qemu-img: Did not find 'own/l1' in the backing chain of 'own/l3'\n"


def test_images_in_between_are_named_as_useless(folder: Path):
    result = run_cowtree(folder, "commit", "-b", "l0", "l3", start=("cowtree", "img"))
    warnings = [line.split()[3] for line in result.stderr.splitlines()]
    assert warnings == ["l2", "l1"]


def test_nothing_is_said_of_them_in_the_place_of_one_who_does_not(folder: Path):
    assert run_cowtree(folder, "commit", "-b", "l0", "l3") == (0, "Image committed.\n", "")


def test_a_top_that_is_kept_holds_what_it_held(folder: Path):
    before = (folder / "l3").read_bytes()
    assert run_cowtree(folder, "commit", "-d", "l3") == (0, "Image committed.\n", "")
    assert (folder / "l3").read_bytes() == before
    assert run_cowtree(folder, "commit", "l3").status == 0
    assert (folder / "l3").read_bytes() != before


def test_a_rate_is_kept(folder: Path):
    start_s = time.monotonic()
    assert run_cowtree(folder, "commit", "-r", "1M", "l3").status == 0
    assert time.monotonic() - start_s > 0.1


@pytest.mark.parametrize("name", ["l3", "l2", "l1"])
def test_an_image_in_use_is_left_alone(chain_of: ChainOf, tmp_path: Path, name: str):
    own = Path(shutil.copytree(chain_of(Shape("raw")), tmp_path / "own"))
    with held(own / name):
        before, stock = content_of(own), run_stock(own, "commit", "l3")
        result = run_cowtree(own, "commit", "l3")
        assert (result.status, result.stdout) == (stock.status, stock.stdout) == (1, "")
        assert "lock" in result.stderr
        assert f"Is another process using the image [{name}]?" in result.stderr
        assert content_of(own) == before


def test_help_is_no_failure(folder: Path):
    result = run_cowtree(folder, "commit", "--help")
    assert result.status == 0
    assert result.stdout.startswith("usage: qemu-img commit [-f FMT]")


def overlay(path: Path, base: str, image_format: str) -> Path:
    """An empty overlay."""
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", base, "-F", image_format, path, "4M")
    return path


@pytest.mark.parametrize("program", [("qemu-img",), ("cowtree", "img")])
@pytest.mark.parametrize(
    ("call", "base", "wanted"),
    [
        ("l3", "l2", ["l2b"]),
        ("-d l3", "l2", ["l2b"]),
        ("-b l0 l3", "l0", ["l0b", "l0c", "l2b"]),
        # What hangs on the top is not in the way, but what hangs on its base is.
        ("l1", "l0", ["l0b", "l0c"]),
    ],
)
def test_who_reads_what_would_change_is_named_and_nothing_is_done(
    folder: Path, program: tuple[str, ...], call: str, base: str, wanted: list[str]
):
    overlay(folder / "l0b", "l0", "raw")
    overlay(folder / "l0c", f"json:{{'driver':'raw','file.filename':'{folder}/l0'}}", "raw")
    overlay(folder / "l2b", "l2", "qcow2")
    before = content_of(folder)
    result = run_cowtree(folder, "commit", *call.split(), start=program)
    assert (result.status, result.stdout) == (1, "")
    changed, _, rest = result.stderr.partition(" would change, and ")
    assert changed == f"{'qemu-img' if len(program) == 1 else 'cowtree img'}: {base}"
    assert rest.split(" read", 1)[0].split(", ") == [str(folder / name) for name in wanted]
    advice = f"Try: cowtree commit {call[-2:]} --base {base} --with-dependants"
    assert (advice in result.stderr) == (len(program) == 2)
    assert content_of(folder) == before


def test_what_hangs_on_the_top_is_not_in_the_way(folder: Path):
    overlay(folder / "l4", "l3", "qcow2")
    shown = run_cowtree(folder, "compare", "l3", "l4").stdout
    assert run_cowtree(folder, "commit", "l3") == (0, "Image committed.\n", "")
    assert run_cowtree(folder, "compare", "l3", "l4").stdout == shown


def test_a_reader_in_another_folder_is_found_when_that_is_a_pool(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "pool").mkdir()
    path = overlay(tmp_path / "pool/far", str(folder / "l2"), "qcow2")
    assert main(["cowtree", "pool", "add", str(tmp_path / "pool")]) == 0
    result = run_cowtree(folder, "commit", "l3")
    assert result.status == 1
    assert f"l2 would change, and {path} reads it" in result.stderr
    path.unlink()
    assert run_cowtree(folder, "commit", "l3").status == 0


def test_what_cannot_be_read_is_named_and_not_in_the_way(folder: Path):
    path = overlay(folder / "odd", "l2", "qcow2")
    with path.open("r+b") as file:
        file.seek(4)
        file.write(b"\0\0\0\x09")
    result = run_cowtree(folder, "commit", "l3", start=("cowtree", "img"))
    assert (result.status, result.stdout) == (0, "Image committed.\n")
    said = f"cowtree img: warning: whether an image reads l2 that could not be read is not known: {path}\n"
    assert result.stderr == said


def test_a_missing_base_of_somebody_else_is_not_in_the_way(folder: Path):
    overlay(folder / "lost", "gone", "qcow2")
    assert run_cowtree(folder, "commit", "l3", start=("cowtree", "img")) == (0, "Image committed.\n", "")
