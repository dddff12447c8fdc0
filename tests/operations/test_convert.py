"""Holds that a converted image shows what its sources show, is clean to qemu-img, and is there whole or not at all."""

import random

import pytest

from cowtree.errors import MissingImage, Refused, StorageFailed, WrongUse
from cowtree.operations.convert import Manner, convert, convert_into
from cowtree.plan.create import NewImage
from cowtree.qcow2 import header as qcow2
from cowtree.storage.file import LocalFiles
from cowtree.storage.memory import MemoryFiles
from tests.pictures import family, hold, see
from tests.qemu import assert_clean, content, qemu_img, qemu_io, random_chain

FILES = LocalFiles()
WAYS = {
    "raw": (NewImage("", "raw", 0), Manner()),
    "raw, all written": (NewImage("", "raw", 0), Manner(sparse_bytes=0)),
    "qcow2": (NewImage("", "qcow2", 0), Manner()),
    "version 2": (NewImage("", "qcow2", 0, 12, 2), Manner()),
    "512 B": (NewImage("", "qcow2", 0, 9), Manner()),
    "2 MiB": (NewImage("", "qcow2", 0, 21), Manner()),
    "counts of one bit": (NewImage("", "qcow2", 0, 12, 3, 0), Manner()),
    "zlib": (NewImage("", "qcow2", 0, 12), Manner(is_compressed=True)),
    "zstd": (NewImage("", "qcow2", 0, compression_type=qcow2.ZSTD), Manner(is_compressed=True)),
    "preallocated": (NewImage("", "qcow2", 0, preallocation="metadata"), Manner()),
}


@pytest.mark.parametrize("way", WAYS)
def test_random_chains_convert_in_every_way(way, tmp_path):
    new, manner = WAYS[way]
    for seed in range(4):
        folder = tmp_path / str(seed)
        folder.mkdir()
        chain = random_chain(folder, seed)
        path = folder / "new"
        convert(FILES, [(str(chain.top), chain.formats[-1])], new._replace(path=str(path)), manner)
        assert content(path, new.format) == content(chain.top, chain.formats[-1])
        if new.format == "qcow2":
            assert_clean(path)


def test_only_what_differs_from_the_backing_file_is_written(tmp_path):
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", base, "1M")
    qemu_io(base, "write -P 1 0 256k", "write -P 3 512k 64k")
    qemu_img("create", "-q", "-f", "qcow2", "-b", base.name, "-F", "qcow2", top)
    qemu_io(top, "write -P 2 64k 64k", "write -z 512k 64k")
    new = NewImage(str(tmp_path / "new.qcow2"), "qcow2", 0, backing_file=base.name, backing_format="qcow2")
    assert convert(FILES, [(str(top), None)], new) == 2 * 65536
    assert content(tmp_path / "new.qcow2") == content(top)
    assert_clean(tmp_path / "new.qcow2")


def test_disks_are_joined(tmp_path):
    chains = []
    for seed in (1, 2, 3):
        (tmp_path / str(seed)).mkdir()
        chains.append(random_chain(tmp_path / str(seed), seed))
    new = tmp_path / "new.qcow2"
    convert(FILES, [(str(each.top), each.formats[-1]) for each in chains], NewImage(str(new), "qcow2", 0))
    assert content(new) == b"".join(content(each.top, each.formats[-1]) for each in chains)
    assert_clean(new)


def test_zeroes_become_holes_unless_all_shall_be_written():
    made = family("A-0o", "--BB")
    for sparse_bytes, picture in ((4096, "A---"), (0, "AMMM")):
        new = NewImage("new", "qcow2", 0, 9)
        convert(made.files, [(made.top, None)], new, Manner(sparse_bytes=sparse_bytes))
        assert see(made.files, "new", "qcow2") == "A000"
        assert [sign == "-" for sign in hold(made.files, "new", "qcow2")] == [sign == "-" for sign in picture]


def test_an_internal_snapshot_can_be_converted(tmp_path):
    path, new = tmp_path / "a.qcow2", tmp_path / "new.raw"
    qemu_img("create", "-q", "-f", "qcow2", path, "256k")
    qemu_io(path, "write -P 1 0 128k")
    then = content(path)
    qemu_img("snapshot", "-c", "then", path)
    qemu_io(path, "write -P 2 64k 128k")
    convert(FILES, [(str(path), None)], NewImage(str(new), "raw", 0), Manner(snapshot=((None, "then"),)))
    assert new.read_bytes() == then


def test_a_disk_that_is_there_is_written_over(tmp_path, seed):
    chain = random_chain(tmp_path, seed, layer_count=2)
    target = tmp_path / "target.qcow2"
    qemu_img(
        "create", "-q", "-f", "qcow2", "-o", f"cluster_size={random.Random(seed).choice(['512', '64k'])}", target, "9M"
    )
    qemu_io(target, "write -P 9 0 9M")
    wanted = content(chain.top, chain.formats[-1])
    convert_into(FILES, [(str(chain.top), chain.formats[-1])], (str(target), "qcow2"))
    found = content(target)
    assert found[: len(wanted)] == wanted
    assert set(found[len(wanted) :]) <= {9}
    assert_clean(target)


def test_a_target_that_is_too_small_is_refused_and_unchanged():
    files = MemoryFiles({"source": b"A" * 1024, "target": b"B" * 512})
    with pytest.raises(Refused, match="smaller"):
        convert_into(files, [("source", "raw")], ("target", "raw"))
    assert files.content("target") == b"B" * 512


@pytest.mark.parametrize(
    ("sources", "new", "manner"),
    [
        ([], NewImage("new", "raw", 0), Manner()),
        ([("a", "raw")], NewImage("new", "raw", 0), Manner(is_compressed=True)),
        ([("a", "raw")], NewImage("new", "qcow2", 0, preallocation="full"), Manner(is_compressed=True)),
        ([("a", "raw"), ("a", "raw")], NewImage("new", "qcow2", 0, backing_file="a", backing_format="raw"), Manner()),
    ],
)
def test_words_that_make_no_sense_make_no_file(sources, new, manner):
    files = MemoryFiles({"a": b"A" * 512})
    with pytest.raises(WrongUse):
        convert(files, sources, new, manner)
    assert set(files.snapshot()) == {"a"}


def test_a_missing_source_leaves_nothing_behind(tmp_path):
    with pytest.raises(MissingImage):
        convert(FILES, [(str(tmp_path / "nowhere"), None)], NewImage(str(tmp_path / "new"), "raw", 0))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_as_the_target_is_refused(tmp_path):
    (tmp_path / "source").write_bytes(bytes(512))
    (tmp_path / "new").mkdir()
    with pytest.raises((StorageFailed, Refused, MissingImage)):
        convert(FILES, [(str(tmp_path / "source"), "raw")], NewImage(str(tmp_path / "new"), "raw", 0))
    assert {each.name for each in tmp_path.iterdir()} == {"source", "new"}
