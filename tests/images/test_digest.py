"""Owns the proof that a digest names what the guest sees and nothing else, as its definition says."""

import hashlib
from pathlib import Path

import pytest

from cowtree import extents as ex
from cowtree.chain.view import open_chain
from cowtree.errors import MissingImage
from cowtree.images.digest import CHUNK_BYTES, chain_digest, digest
from cowtree.monitor import Counting
from cowtree.storage.file import LocalFiles
from tests.pictures import family
from tests.qemu import content, qemu_img, random_chain
from tests.sparse import MEMORY_MIB_MAX, peak_memory_mib, sparse_image

FILES = LocalFiles()


def compute_again(data: bytes) -> str:
    """The definition, written down a second time."""
    whole = hashlib.sha256(len(data).to_bytes(8, "big"))
    for number in range(-(-len(data) // 65536)):
        chunk = data[number * 65536 : (number + 1) * 65536]
        if chunk.strip(b"\0"):
            whole.update(number.to_bytes(8, "big") + hashlib.sha256(chunk).digest())
    return "cowtree1:" + whole.hexdigest()


def test_the_digest_of_nothing_never_changes(tmp_path: Path):
    path = tmp_path / "empty"
    path.touch()
    assert digest(FILES, str(path), "raw") == "cowtree1:" + hashlib.sha256(bytes(8)).hexdigest()


@pytest.mark.slow
@pytest.mark.soak
def test_the_digest_is_computed_as_defined(tmp_path: Path, seed: int):
    made = random_chain(tmp_path, seed)
    shown = content(made.top, made.formats[-1])
    assert digest(FILES, str(made.top), made.formats[-1]) == compute_again(shown)


@pytest.mark.slow
def test_format_chain_clusters_and_holes_do_not_count(tmp_path: Path, seed: int):
    made = random_chain(tmp_path, seed)
    expected = digest(FILES, str(made.top), made.formats[-1])
    forms = (["raw"], ["raw", "-S", "0"], ["qcow2", "-c"], ["qcow2", "-S", "0", "-o", "cluster_size=2M"])
    for number, words in enumerate(forms):
        copy = tmp_path / f"copy-{number}"
        qemu_img("convert", "-f", made.formats[-1], "-O", *words, made.top, copy)
        assert digest(FILES, str(copy), words[0]) == expected


def test_every_byte_and_the_size_count():
    shown = ("A---", "AA--", "B---", "-A--", "A--", "A----")
    found = [digest(made.files, made.top) for made in map(family, shown)]
    assert len(set(found)) == len(shown)
    assert digest(family("Aoo0").files, "layer-0") == found[0]


@pytest.mark.parametrize("size", [1, 511, 512, 513, CHUNK_BYTES - 1, CHUNK_BYTES + 1, 5 * CHUNK_BYTES + 7])
def test_a_raw_disk_ends_with_its_last_sector(tmp_path: Path, size: int):
    path = tmp_path / "raw"
    path.write_bytes(b"x" * size)
    assert digest(FILES, str(path), "raw") == compute_again((b"x" * size).ljust(-(-size // 512) * 512, b"\0"))


def test_holes_are_not_read(tmp_path: Path):
    path, counting = tmp_path / "raw", Counting()
    with path.open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 39)
        file.write(b"x")
    digest(FILES, str(path), "raw", counting)
    assert counting.total_bytes == counting.moved_bytes == CHUNK_BYTES


def test_a_missing_image_is_named(tmp_path: Path):
    with pytest.raises(MissingImage, match="nothing-here"):
        digest(FILES, str(tmp_path / "nothing-here"))


@pytest.mark.slow
def test_a_million_clusters_take_little_memory(tmp_path: Path):
    path = sparse_image(tmp_path / "large", 1 << 20, seed=1)
    code = """if True:
        import sys
        from cowtree.images.digest import digest
        from cowtree.storage.file import LocalFiles
        assert digest(LocalFiles(), sys.argv[1]).startswith("cowtree1:")"""
    assert peak_memory_mib(code, path) < MEMORY_MIB_MAX


def test_what_lies_outside_of_the_ranges_counts_as_zeroes(tmp_path: Path):
    path, other = tmp_path / "raw", tmp_path / "other"
    path.write_bytes(b"A" * CHUNK_BYTES + b"B" * CHUNK_BYTES + b"C" * 512)
    other.write_bytes(bytes(CHUNK_BYTES) + b"B" * CHUNK_BYTES + bytes(512))
    chain = open_chain(FILES, str(path), "raw")
    within = ex.one_range(CHUNK_BYTES, 2 * CHUNK_BYTES)
    assert chain_digest(chain, None, within) == digest(FILES, str(other), "raw")
    assert chain_digest(chain, None, ex.one_range(0, 1 << 40)) == digest(FILES, str(path), "raw")
    chain.close()
