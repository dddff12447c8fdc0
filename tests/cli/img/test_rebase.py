"""`cowtree img rebase` beside qemu-img."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.img.differential import Shape, content_of, describe, held, run_both, run_cowtree
from tests.qemu import content, qemu_img

ChainOf = Callable[[Shape], Path]

SHAPES = (
    Shape(),
    Shape("raw", 512, "0.10"),
    Shape("qcow2", 512, "1.1", (701, 701, 701, 701)),
    Shape("qcow2", 2 << 20, "1.1", (9001, 9001, 9001, 9001)),
    Shape("qcow2", 65536, "0.10", (2048, 3001, 3001, 4096)),
    Shape("raw", 65536, "1.1", (1001, 2048, 3001, 4096)),
    Shape("qcow2", 4096, "1.1", (4096, 3001, 2048, 1001)),
    Shape("raw", 65536, "1.1", (4096, 1001, 2048, 3001)),
)
CALLS = (
    ("-b", "l0", "-F", "{base}", "l3"),
    ("-b", "l1", "-F", "qcow2", "l3"),
    ("-b", "l2", "-F", "qcow2", "-p", "l3"),
    ("-b", "", "l3"),
    ("-b", "", "-F", "qcow2", "l1"),
    ("-u", "-b", "l1", "-F", "qcow2", "l3"),
    ("-u", "-b", "", "l3"),
    ("-u", "l2"),
    ("-u", "-b", "l1", "l3"),
    ("-u", "-b", "nowhere", "-F", "raw", "l3"),
    ("-f", "qcow2", "-t", "none", "-T", "none", "-U", "-q", "-p", "-b", "l0", "-F", "{base}", "l2"),
)


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS, ids=" ".join)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rebase_does_what_stock_does(chain_of: ChainOf, tmp_path: Path, shape: Shape, call: tuple[str, ...]):
    words = [word.format(base=shape.base_format) for word in call]
    run_both(chain_of(shape), tmp_path, "rebase", *words).assert_same()


MISTAKES = (
    ("l3",),
    ("-b", "l0"),
    ("-b", "l0", "l3", "l2"),
    ("-b", "l0", "-F", "strange", "l3"),
    ("-u", "-b", "l0", "-F", "strange", "l3"),
    ("-b", "l0", "-F", "raw", "l9"),
    ("-p", "-b", "l0", "-F", "raw", "l9"),
    ("-b", "l9", "-F", "raw", "l3"),
    ("-b", "l9", "l3"),
    ("-u", "-b", "l1", "l3"),
    ("-u", "-b", "", "l0"),
    ("-b", "", "l0"),
    ("-b", "l1", "-F", "qcow2", "l0"),
    ("-t", "slow", "-b", "", "l3"),
    ("-T", "slow", "-b", "", "l3"),
    ("--image-opts", "-f", "qcow2", "-b", "", "driver=qcow2,file.filename=l3"),
)


@pytest.mark.parametrize("call", MISTAKES, ids=" ".join)
def test_rebase_refuses_what_stock_refuses(chain_of: ChainOf, tmp_path: Path, call: tuple[str, ...]):
    run_both(chain_of(Shape("raw")), tmp_path, "rebase", *call).assert_same_failure()


@pytest.fixture
def folder(chain_of: ChainOf, tmp_path: Path) -> Path:
    """A chain of one's own."""
    return Path(shutil.copytree(chain_of(Shape("raw")), tmp_path / "chain"))


def test_the_format_comes_from_the_chain_when_it_is_not_named(chain_of: ChainOf, tmp_path: Path):
    for name in ("l0", "l1", "l2"):
        image_format = "raw" if name == "l0" else "qcow2"
        own = Path(shutil.copytree(chain_of(Shape("raw")), tmp_path / name))
        assert run_cowtree(own, "rebase", "-b", name, "l3") == (0, "", "")
        facts = describe(own / "l3")
        assert (facts["backing-filename"], facts["backing-filename-format"]) == (name, image_format)
        assert content(own / "l3") == content(chain_of(Shape("raw")) / "l3")


def test_an_unknown_format_is_refused_before_a_byte_is_copied(folder: Path):
    qemu_img("create", "-q", "-f", "qcow2", folder / "other", "1M")
    before = content_of(folder)
    result = run_cowtree(folder, "rebase", "-b", "other", "l3")
    assert result.status == 1
    expected = "qemu-img: Could not change the backing file to 'other': backing format must be specified\n"
    assert result.stderr == expected
    assert content_of(folder) == before


@pytest.mark.parametrize("words", [("-b", "l3", "-F", "qcow2", "l3"), ("-b", "l3", "-F", "qcow2", "l1")], ids=" ".join)
def test_an_image_never_becomes_its_own_child(folder: Path, words: tuple[str, ...]):
    before = content_of(folder)
    result = run_cowtree(folder, "rebase", *words)
    assert result.status == 1
    assert "Backing file 'l3' creates an infinite loop" in result.stderr
    assert content_of(folder) == before


def test_a_format_that_does_not_fit_is_refused(folder: Path):
    # Stock takes the format into the header without looking, and the image cannot be opened any more.
    before = content_of(folder)
    result = run_cowtree(folder, "rebase", "-b", "l0", "-F", "qcow2", "l3")
    assert result.status == 1
    assert result.stderr == "qemu-img: Could not open 'l0': Image is not in qcow2 format\n"
    assert content_of(folder) == before


@pytest.mark.parametrize(
    ("name", "warning"),
    [("nowhere", "'nowhere': No such file or directory"), ("l3", "'l3' is the image itself"), ("l2", "")],
)
def test_an_unsafe_rebase_obeys_and_warns(folder: Path, name: str, warning: str):
    words = ("rebase", "-u", "-b", name, "-F", "qcow2", "l3")
    result = run_cowtree(folder, *words, start=("cowtree", "img"))
    assert (result.status, result.stdout) == (0, "")
    assert result.stderr.startswith(f"cowtree img: warning: {warning}" if warning else "")
    # In qemu-img's place it keeps silent as that does.
    assert run_cowtree(folder, *words) == (0, "", "")
    assert describe(folder / "l3")["backing-filename"] == name


def test_a_name_that_does_not_fit_is_refused_before_a_byte_is_copied(folder: Path):
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", folder / "small", "1M")
    (folder / ("x" * 200)).write_bytes(bytes(1 << 20))
    name = "./" * 150 + "x" * 200
    before = content_of(folder)
    result = run_cowtree(folder, "rebase", "-b", name, "-F", "raw", "small")
    assert result.status == 1
    assert "the header has no room for the backing file name" in result.stderr
    assert content_of(folder) == before


def test_a_backing_file_that_somebody_writes_to_is_read_only_when_asked(folder: Path):
    qemu_img("create", "-q", "-f", "qcow2", folder / "other", "1M")
    words = ("-b", "other", "-F", "qcow2", "l3")
    with held(folder / "other"):
        refused = run_cowtree(folder, "rebase", *words)
        assert refused.status == 1
        assert "Could not open 'other': Failed to get shared \"write\" lock" in refused.stderr
        assert run_cowtree(folder, "rebase", "-U", *words).status == 0
