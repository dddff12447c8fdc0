"""Holds that two disks compare as qemu-img compares them."""

import pytest

from cowtree.chain.view import open_chain
from cowtree.operations.compare import CONTENT, IDENTICAL, SIZE, STATUS, Verdict, compare
from cowtree.storage.file import LocalFiles
from cowtree.storage.memory import MemoryFiles
from tests.pictures import CLUSTER_BYTES, family
from tests.qemu import qemu_img, qemu_io, random_chain, run

FILES = LocalFiles()


def compare_pictures(left: str, right: str, *, is_strict: bool = False) -> Verdict:
    """Compare two images of one layer each."""
    disks = {text: (made := family(picture)).files.content(made.top) for text, picture in (("l", left), ("r", right))}
    files = MemoryFiles(disks)
    return compare(open_chain(files, "l"), open_chain(files, "r"), is_strict=is_strict)


@pytest.mark.parametrize(
    ("left", "right", "verdict"),
    [
        ("AB-0", "AB0-", Verdict(IDENTICAL)),
        ("AB", "AC", Verdict(CONTENT, CLUSTER_BYTES)),
        ("A-", "AB", Verdict(CONTENT, CLUSTER_BYTES)),
        ("a-", "A-", Verdict(IDENTICAL)),
        ("A-", "A-00", Verdict(IDENTICAL, warns_of_size=True)),
        ("A-", "A-0B", Verdict(CONTENT, 3 * CLUSTER_BYTES, warns_of_size=True)),
    ],
)
def test_what_differs_first_is_named(left, right, verdict):
    assert compare_pictures(left, right) == verdict
    assert verdict.exit_status == int(verdict.kind != IDENTICAL)


def test_strict_mode_looks_at_sizes_and_allocation():
    assert compare_pictures("A-", "A-0", is_strict=True) == Verdict(SIZE)
    assert compare_pictures("A-", "A0", is_strict=True) == Verdict(STATUS, CLUSTER_BYTES)
    assert compare_pictures("A0", "A0", is_strict=True) == Verdict(IDENTICAL)


@pytest.mark.parametrize("options", [[], ["-s"]])
def test_random_chains_compare_as_qemu_img_says(seed, options, tmp_path):
    chain = random_chain(tmp_path, seed)
    other = tmp_path / "other.qcow2"
    qemu_img("convert", "-f", chain.formats[-1], "-O", "qcow2", chain.top, other)
    if seed % 2:
        qemu_io(other, "write -P 7 0 512")
    words = ["compare", *options, "-f", chain.formats[-1], "-F", "qcow2", chain.top, other]
    theirs = run("qemu-img", *words)
    left, right = open_chain(FILES, str(chain.top), chain.formats[-1]), open_chain(FILES, str(other))
    verdict = compare(left, right, is_strict=bool(options))
    left.close()
    right.close()
    assert (verdict.exit_status, verdict.lines) == (theirs.returncode, theirs.stdout.splitlines())
