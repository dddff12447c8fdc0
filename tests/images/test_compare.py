"""Owns the proof that two disks are compared as qemu-img compares them: the words, the offset and the exit status."""

import json
import random
from pathlib import Path

import pytest

from cowtree.chain.view import open_chain
from cowtree.images.compare import CONTENT, IDENTICAL, SIZE, STATUS, Verdict, compare
from cowtree.plan.create import NewImage
from cowtree.storage.file import LocalFiles
from cowtree.storage.memory import MemoryFiles
from tests.pictures import CLUSTER_BITS, CLUSTER_BYTES, draw
from tests.qemu import SECTOR, qemu_img, qemu_io, random_chain, run
from tests.sparse import MEMORY_MIB_MAX, peak_memory_mib, sparse_image

Image = tuple[Path, str]


def compare_pictures(left: str, right: str, *, is_strict: bool = False) -> Verdict:
    files = MemoryFiles()
    for name, picture in (("left", left), ("right", right)):
        draw(files, NewImage(name, "qcow2", len(picture) * CLUSTER_BYTES, CLUSTER_BITS), picture)
    one, other = (open_chain(files, name, "qcow2") for name in ("left", "right"))
    return compare(one, other, is_strict=is_strict)


def assert_same_as_qemu(left: Image, right: Image) -> None:
    """Compare in both orders and both modes, and hold what is said and returned against qemu-img."""
    for options in ([], ["-s"]):
        for one, other in ((left, right), (right, left)):
            stock = run("qemu-img", "compare", "-f", one[1], "-F", other[1], *options, one[0], other[0])
            chains = [open_chain(LocalFiles(), str(path), image_format) for path, image_format in (one, other)]
            verdict = compare(chains[0], chains[1], is_strict=bool(options))
            for chain in chains:
                chain.close()
            assert "\n".join(verdict.lines) + "\n" == stock.stdout, (one, other, options)
            assert verdict.exit_status == stock.returncode


def test_what_shows_the_same_is_identical():
    assert compare_pictures("Aa0o-", "AAoo0") == Verdict(IDENTICAL)


def test_the_first_difference_counts():
    assert compare_pictures("AAAA", "AABB") == Verdict(CONTENT, 2 * CLUSTER_BYTES)
    assert compare_pictures("A-00", "A-0B") == Verdict(CONTENT, 3 * CLUSTER_BYTES)


def test_what_lies_past_the_shorter_disk_must_be_zeroes():
    assert compare_pictures("AA", "AA0-") == Verdict(IDENTICAL, warns_of_size=True)
    assert compare_pictures("AA-A", "AA") == Verdict(CONTENT, 3 * CLUSTER_BYTES, warns_of_size=True)
    assert compare_pictures("AAAA", "AB") == Verdict(CONTENT, CLUSTER_BYTES)


def test_strict_mode_also_looks_at_size_and_allocation():
    assert compare_pictures("AA", "AA0", is_strict=True) == Verdict(SIZE)
    assert compare_pictures("AAA-", "AAA0", is_strict=True) == Verdict(STATUS, 3 * CLUSTER_BYTES)
    assert compare_pictures("A0A-", "B0A0", is_strict=True) == Verdict(CONTENT, 0)
    assert compare_pictures("A-Bo", "A-Bo", is_strict=True) == Verdict(IDENTICAL)


@pytest.mark.parametrize(
    ("verdict", "lines", "exit_status"),
    [
        (Verdict(IDENTICAL), ["Images are identical."], 0),
        (Verdict(IDENTICAL, warns_of_size=True), ["Warning: Image size mismatch!", "Images are identical."], 0),
        (Verdict(CONTENT, 512), ["Content mismatch at offset 512!"], 1),
        (Verdict(STATUS, 512), ["Strict mode: Offset 512 block status mismatch!"], 1),
        (Verdict(SIZE), ["Strict mode: Image size mismatch!"], 1),
    ],
)
def test_each_verdict_has_words_and_a_status(verdict: Verdict, lines: list[str], exit_status: int):
    assert (verdict.lines, verdict.exit_status) == (lines, exit_status)


@pytest.mark.slow
@pytest.mark.soak
def test_the_verdict_is_that_of_qemu(tmp_path: Path, seed: int):
    made, choose = random_chain(tmp_path, seed), random.Random(seed)
    top = made.top, made.formats[-1]
    size = int(json.loads(qemu_img("info", "--output=json", "-f", top[1], top[0]))["virtual-size"])
    index = choose.randrange(len(made.paths))
    assert_same_as_qemu(top, (made.paths[index], made.formats[index]))
    clusters = f"cluster_size={1 << choose.randint(9, 21)}"
    for number, words in enumerate((["raw"], ["raw", "-S", "0"], ["qcow2", "-c"], ["qcow2", "-o", clusters])):
        copy = tmp_path / f"copy-{number}"
        qemu_img("convert", "-f", top[1], "-O", *words, top[0], copy)
        assert_same_as_qemu(top, (copy, words[0]))
    for number, more in enumerate((0, SECTOR * choose.randint(1, 3000))):
        overlay = tmp_path / f"overlay-{number}"
        qemu_img("create", "-q", "-f", "qcow2", "-b", top[0], "-F", top[1], overlay, str(size + more))
        qemu_io(overlay, f"write -P {choose.randint(0, 3)} {choose.randrange((size + more) // SECTOR) * SECTOR} 512")
        assert_same_as_qemu(top, (overlay, "qcow2"))


@pytest.mark.slow
def test_a_million_clusters_take_little_memory(tmp_path: Path):
    paths = [sparse_image(tmp_path / f"large-{seed}", 1 << 20, seed) for seed in (1, 2)]
    code = """if True:
        import sys
        from cowtree.chain.view import open_chain
        from cowtree.images.compare import compare
        from cowtree.storage.file import LocalFiles
        one, other = (open_chain(LocalFiles(), path) for path in sys.argv[1:])
        assert compare(one, one, is_strict=True).exit_status == 0
        assert compare(one, other, is_strict=True).exit_status == 1"""
    assert peak_memory_mib(code, *paths) < MEMORY_MIB_MAX
