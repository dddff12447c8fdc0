"""The fingerprint of a layer: what changes it, what does not, and that a large image is no work."""

import os
import random
import shutil
import time
from contextlib import suppress
from pathlib import Path

import pytest

from cowtree.chain import gate
from cowtree.errors import CowtreeError
from cowtree.images.fingerprint import SAMPLE_BYTES, fingerprint
from cowtree.storage.contract import Access
from cowtree.storage.file import LocalFiles
from cowtree.units import GIB, MIB, TIB
from tests.damage import damage, simple_image
from tests.qemu import qemu_img, qemu_io
from tests.sparse import sparse_image

KINDS = {
    "plain": "",
    "version 2": "compat=0.10",
    "small clusters": "cluster_size=512",
    "large clusters": "cluster_size=2M",
    "subclusters": "extended_l2=on",
    "a data file": "data_file={folder}/data",
}


def of(path: Path, image_format: str = "qcow2") -> bytes:
    """The fingerprint of an image."""
    layer = gate.open_layer(LocalFiles(), str(path), image_format, Access.SHARED)
    try:
        return fingerprint(layer)
    finally:
        layer.close()


def make(folder: Path, options: str = "") -> Path:
    """An image of 16 MiB that holds a little of everything that its kind can hold."""
    path = folder / "image"
    words = ["-o", options.format(folder=folder)] if options else []
    qemu_img("create", "-q", "-f", "qcow2", *words, path, "16M")
    packed = [] if "data_file" in options else ["write -c -P 7 8M 64k"] * ("cluster_size" not in options)
    qemu_io(path, *packed, "write -P 3 0 1M", "write -P 4 4M 64k", "write -z 2M 64k")
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_it_follows_the_content_and_nothing_else(tmp_path: Path, kind: str):
    path = make(tmp_path, KINDS[kind])
    before = of(path)
    shutil.copy(path, tmp_path / "copy")
    assert of(tmp_path / "copy") == before
    os.utime(path, (0, 0))
    assert of(path) == before
    if "data file" not in kind:
        qemu_img("snapshot", "-c", "one", path)
        assert of(path) == before
    seen = {before}
    for command in ("write -P 9 0 64k", "write -P 9 12M 64k", "discard 0 4M", "write -P 0 4M 64k"):
        qemu_io(path, command)
        assert of(path) not in seen, command
        seen.add(of(path))
    if kind != "version 2":  # with a snapshot QEMU refuses it
        qemu_img("resize", "-q", "-f", "qcow2", path, "+1M")
        assert of(path) not in seen


def test_the_place_of_a_cluster_in_the_file_is_nothing(tmp_path: Path):
    commands = ["write -P 3 0 64k", "write -P 4 1M 64k", "write -P 5 5M 64k"]
    found = set()
    for name, order in (("a", commands), ("b", commands[::-1])):
        path = tmp_path / name
        qemu_img("create", "-q", "-f", "qcow2", path, "16M")
        qemu_io(path, *order)
        found.add(of(path))
    assert len(found) == 1


def test_the_place_of_a_cluster_on_the_disk_counts(tmp_path: Path):
    found = set()
    for number, place in enumerate(("0", "64k", "15M")):
        path = tmp_path / str(number)
        qemu_img("create", "-q", "-f", "qcow2", path, "16M")
        qemu_io(path, f"write -P 3 {place} 64k")
        found.add(of(path))
    assert len(found) == 3


def test_zeroes_are_zeroes_whether_their_cluster_is_kept(tmp_path: Path):
    path = make(tmp_path)
    qemu_io(path, "write -z 4M 64k")
    kept = of(path)
    qemu_io(path, "write -zu 4M 64k")
    assert of(path) == kept


def test_a_raw_file_is_what_it_holds_wherever_its_holes_are(tmp_path: Path):
    sparse, full = tmp_path / "sparse", tmp_path / "full"
    sparse.write_bytes(b"boot" * 1024)
    os.truncate(sparse, 8 * MIB)
    full.write_bytes(sparse.read_bytes())
    before = of(sparse, "raw")
    assert of(full, "raw") == before
    for offset in (0, SAMPLE_BYTES, 1 * MIB, 8 * MIB - 1):
        with full.open("r+b") as file:
            file.seek(offset)
            file.write(b"x")
        assert of(full, "raw") != before
        full.write_bytes(sparse.read_bytes())
    os.truncate(full, 8 * MIB + 512)
    assert of(full, "raw") != before


@pytest.mark.parametrize("size_bytes", [0, 1, 511, 4096, 4097, 1 << 40])
def test_any_raw_file_has_one(tmp_path: Path, size_bytes: int):
    path = tmp_path / "raw"
    path.touch()
    os.truncate(path, size_bytes)
    assert len(of(path, "raw")) == 32


def test_an_empty_image_has_one(tmp_path: Path):
    found = set()
    for size in ("0", "1M", "2M"):
        qemu_img("create", "-q", "-f", "qcow2", tmp_path / "image", size)
        found.add(of(tmp_path / "image"))
    assert len(found) == 3


@pytest.mark.soak
def test_a_damaged_image_has_one_or_says_why(tmp_path: Path, seed: int):
    choose = random.Random(seed)
    words = simple_image(tmp_path / "image", choose.choice(["cluster_size=4096", "cluster_size=512"]))
    for _ in range(10):
        (tmp_path / "image").write_bytes(damage(words, choose))
        start_s = time.thread_time()
        # Whatever cannot be told is an error of ours, and never another one.
        with suppress(CowtreeError):
            found = of(tmp_path / "image")
            assert of(tmp_path / "image") == found
        assert time.thread_time() - start_s < 2


@pytest.mark.slow
def test_a_million_clusters_of_a_tebibyte_are_no_work(tmp_path: Path):
    sparse_image(tmp_path / "huge", 1 << 20, seed=1)
    layer = gate.open_layer(LocalFiles(), str(tmp_path / "huge"), "qcow2", Access.SHARED)
    assert layer.size_bytes == TIB
    took = []
    for _ in range(5):
        start_s = time.thread_time()
        fingerprint(layer)
        took.append(time.thread_time() - start_s)
    layer.close()
    # A quiet machine takes 10 ms; others may be at work on this one.
    assert min(took) < 0.06, took


@pytest.mark.slow
def test_an_image_of_common_size_takes_a_few_milliseconds(tmp_path: Path):
    qemu_img("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", tmp_path / "image", str(20 * GIB))
    start_s = time.thread_time()
    of(tmp_path / "image")
    assert time.thread_time() - start_s < 0.03
