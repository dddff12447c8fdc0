"""Owns the proof that the map is qemu-img's: entry by entry, on chains that QEMU made."""

import json
import random
from pathlib import Path

import pytest

from cowtree.chain.view import open_chain
from cowtree.errors import BrokenTable
from cowtree.images.map import Entry, map_chain
from cowtree.storage.contract import Access
from cowtree.storage.file import LocalFiles
from cowtree.storage.memory import MemoryFiles
from tests.pictures import CLUSTER_BYTES, Family, family
from tests.qemu import SECTOR, qemu_img, qemu_io, random_chain
from tests.sparse import MEMORY_MIB_MAX, peak_memory_mib, sparse_image


def map_file(path: Path, image_format: str, start: int = 0, max_length: int | None = None) -> list[dict[str, object]]:
    """What cowtree says, in the form of QEMU's JSON."""
    chain = open_chain(LocalFiles(), str(path), image_format)
    try:
        entries = [entry._asdict() for entry in map_chain(chain, start, max_length)]
    finally:
        chain.close()
    return [{key: value for key, value in entry.items() if value is not None} for entry in entries]


def map_by_qemu(path: Path, image_format: str, *options: str) -> object:
    return json.loads(qemu_img("map", "--output=json", "-f", image_format, *options, path))


def map_picture(made: Family) -> list[str]:
    """One word per entry: how many clusters, the depth, and p, z, d, o for present, zero, data and offset."""
    chain = open_chain(made.files, made.top, made.formats[0], Access.SHARED)
    words = []
    for entry in map_chain(chain):
        marks = zip("pzdo", (entry.present, entry.zero, entry.data, entry.offset is not None), strict=True)
        flags = "".join(letter for letter, is_set in marks if is_set)
        words.append(f"{entry.length // CLUSTER_BYTES}@{entry.depth}:{flags}")
    chain.close()
    return words


def test_each_kind_of_cluster_has_its_entry():
    assert map_picture(family("Aa0o-")) == ["1@0:pdo", "1@0:pd", "1@0:pz", "1@0:pzo", "1@0:z"]


def test_the_depth_says_who_answers():
    assert map_picture(family("A---", "-B--", "--0-")) == ["1@0:pdo", "1@1:pdo", "1@2:pz", "1@2:z"]


def test_past_a_short_base_the_overlay_answers():
    assert map_picture(family("----", "AA")) == ["2@1:pdo", "2@0:z"]
    assert map_picture(family("----", "---", "AA")) == ["2@2:pdo", "1@1:z", "1@0:z"]


def test_holes_of_a_raw_base_are_present():
    # The first block of a raw file is always there.
    made = family("-" * 24, "0" * 16 + "A" * 8, raw_base=True)
    assert map_picture(made) == ["8@1:pdo", "8@1:pzo", "8@1:pdo"]


def test_neighbours_join_only_where_the_file_goes_on():
    assert map_picture(family("AB")) == ["2@0:pdo"]
    assert map_picture(family("aa")) == ["2@0:pd"]
    assert map_picture(family("A-B")) == ["1@0:pdo", "1@0:z", "1@0:pdo"]


def test_an_empty_range_has_one_empty_entry():
    made = family("AAAA")
    chain = open_chain(made.files, made.top, "qcow2")
    nothing = Entry(4096, 0, 0, present=False, zero=False, data=False, offset=None)
    assert list(map_chain(chain, 4096)) == [nothing]
    assert list(map_chain(chain, 0, 0)) == [nothing._replace(start=0)]


@pytest.mark.slow
@pytest.mark.soak
def test_the_map_is_that_of_qemu(tmp_path: Path, seed: int):
    made = random_chain(tmp_path, seed)
    assert map_file(made.top, made.formats[-1]) == map_by_qemu(made.top, made.formats[-1])


@pytest.mark.slow
def test_a_part_of_the_map_is_that_of_qemu(tmp_path: Path, seed: int):
    made, choose = random_chain(tmp_path, seed), random.Random(seed)
    start, length = choose.randint(0, 4096) * SECTOR, choose.randint(0, 4096) * SECTOR
    options = (f"--start-offset={start}", f"--max-length={length}")
    found = map_file(made.top, made.formats[-1], start, length)
    assert found == map_by_qemu(made.top, made.formats[-1], *options)


@pytest.mark.parametrize("how", ["metadata", "falloc", "full"])
def test_data_clusters_in_holes_of_the_file_are_told_as_qemu_tells_them(tmp_path: Path, how: str):
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"preallocation={how}", path, "8M")
    qemu_io(path, "write -P 1 1M 192k", "write -P 2 5M 4k", "write -P 3 7M 1M")
    found = map_file(path, "qcow2")
    assert found == map_by_qemu(path, "qcow2")
    assert any(entry["zero"] and entry["data"] for entry in found) == (how == "metadata")


def test_a_damaged_table_is_named(tmp_path: Path):
    made = family("AAAA")
    data = bytearray(made.files.content(made.top))
    files = MemoryFiles({"image": bytes(data[:-CLUSTER_BYTES])})
    chain = open_chain(files, "image", "qcow2")
    with pytest.raises(BrokenTable, match="past the end of the file"):
        list(map_chain(chain))


@pytest.mark.slow
def test_a_million_clusters_take_little_memory(tmp_path: Path):
    path = sparse_image(tmp_path / "large", 1 << 20, seed=1)
    overlay = tmp_path / "overlay"
    qemu_img("create", "-q", "-f", "qcow2", "-b", path.name, "-F", "qcow2", overlay)
    code = """if True:
        import sys
        from cowtree.chain.view import open_chain
        from cowtree.images.map import map_chain
        from cowtree.storage.file import LocalFiles
        assert sum(1 for _ in map_chain(open_chain(LocalFiles(), sys.argv[1]))) > 1 << 20"""
    assert peak_memory_mib(code, overlay) < MEMORY_MIB_MAX
