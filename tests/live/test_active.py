"""Guests' writes into a qcow2 layer, by picture."""

import random
from pathlib import Path
from typing import Any

import pytest

from cowtree.images import snapshot
from cowtree.images.create import create
from cowtree.plan.create import NewImage
from cowtree.storage.file import LocalFiles
from cowtree.storage.memory import MemoryFiles
from tests.crash import assert_sound, guest_view, snapshot_views
from tests.live.guests import WRITE, act_on, act_on_array, random_acts, serving
from tests.pictures import CLUSTER_BYTES, Family, family
from tests.qemu import assert_clean, content, qemu_img, qemu_io

HALF = CLUSTER_BYTES // 2


def written(made: Family, picture: str) -> Family:
    """Let a guest write a picture: data, `0` for zeroes that give their place up, `o` for such that keep it."""
    with serving(made.files, made.top) as disk:
        for index, sign in enumerate(picture):
            at = index * CLUSTER_BYTES
            if sign in "0o":
                disk.write_zeroes(at, CLUSTER_BYTES, may_trim=sign == "0", is_fast=True, is_durable=False)
            elif sign != "-":
                disk.write(at, memoryview(sign.encode() * CLUSTER_BYTES), is_durable=False)
    assert_sound(made.files, made.top, is_done=True)
    return made


@pytest.mark.parametrize(
    ("top", "base", "picture", "seen", "held"),
    [
        ("A-0o", "BBBB", "WXYZ", "WXYZ", "WXYZ"),
        ("A-0o", "BBBB", "0000", "0000", "0000"),
        ("A-0o", "BBBB", "oooo", "0000", "o00o"),
        ("a-", "BB", "XY", "XY", "XY"),
        ("a-", "BB", "0-", "0B", "0-"),
    ],
)
def test_clusters_of_every_kind_are_written(top: str, base: str, picture: str, seen: str, held: str):
    made = written(family(top, base), picture)
    assert (made.seen(), made.held()) == (seen, held)


def test_without_a_backing_file_zeroes_need_no_entry():
    assert written(family("AAo"), "00-").held() == "--o"


def test_version_2_writes_zeroes_where_something_would_show_through():
    assert written(family("A-", "BB", version=2), "00").seen() == "00"


def test_a_part_of_a_cluster_is_filled_up_with_what_lies_below():
    made = family("---", "BBB")
    with serving(made.files, made.top) as disk:
        disk.write(HALF, memoryview(b"x" * CLUSTER_BYTES), is_durable=False)
        assert disk.read(0, 2 * CLUSTER_BYTES) == b"B" * HALF + b"x" * CLUSTER_BYTES + b"B" * HALF
    assert made.held() == "??-"


def test_writing_in_place_moves_nothing():
    made = family("AAAA")
    before = made.files.open(made.top, "probe").size_bytes
    written(made, "XYZW")
    assert made.files.open(made.top, "probe").size_bytes == before


def test_an_internal_snapshot_keeps_what_it_shows():
    made = family("AB0-", "CCCC")
    snapshot.create(made.files, made.top, "qcow2", name="before")
    before = snapshot_views(made.files, made.top)
    written(made, "XY0Z")
    assert made.seen() == "XY0Z"
    assert snapshot_views(made.files, made.top) == before


def test_trimmed_clusters_are_given_back():
    made = family("AAAA")
    with serving(made.files, made.top) as disk:
        disk.trim(HALF, 2 * CLUSTER_BYTES, is_durable=True)
        assert disk.read(0, CLUSTER_BYTES) == b"A" * CLUSTER_BYTES, "what is touched in part stays"
    assert (made.seen(), made.held()) == ("A0AA", "A-AA")


def test_the_end_of_the_disk_may_lie_within_a_cluster():
    files = MemoryFiles()
    create(files, NewImage("top", "qcow2", 1000 * 512, 16))
    with serving(files, "top") as disk:
        disk.write(disk.size_bytes - 5, memoryview(b"hello"), is_durable=False)
        disk.write_zeroes(900 * 512, 100 * 512, may_trim=True, is_fast=False, is_durable=False)
        disk.write(disk.size_bytes - 3, memoryview(b"bye"), is_durable=False)
    assert guest_view(files, "top") == bytes(1000 * 512 - 3) + b"bye"
    assert_sound(files, "top", is_done=True)


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "subclusters": {"has_subclusters": True, "cluster_bits": 14},
    "version 2": {"version": 2},
    "one bit counts": {"refcount_order": 0},
    "an external data file": {"data_file": "data"},
    "a raw data file": {"data_file": "data", "is_data_file_raw": True},
    "subclusters in a data file": {"data_file": "data", "has_subclusters": True, "cluster_bits": 15},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("has_backing", [False, True])
def test_random_acts_end_as_in_a_plain_array(kind: str, *, has_backing: bool):
    size, choose = 300 * 512 + 512, random.Random(kind)
    files = MemoryFiles()
    new = NewImage("top", "qcow2", size, 11)._replace(**KINDS[kind])
    if has_backing and not new.is_data_file_raw:
        create(files, NewImage("base", "qcow2", 200 * 512, 9))
        with serving(files, "base") as disk:
            for act in random_acts(choose, disk.size_bytes, 10):
                act_on(disk, act._replace(verb=WRITE))
        new = new._replace(backing_file="base", backing_format="qcow2")
    create(files, new)
    model = bytearray(guest_view(files, "top"))
    for _ in range(3):
        with serving(files, "top") as disk:
            for act in random_acts(choose, size, 60, unit=choose.choice((1, 512, 2048))):
                act_on(disk, act)
                act_on_array(model, act, disk)
                assert disk.read(0, size) == model, act
        assert guest_view(files, "top") == model
        assert_sound(files, "top", is_done=True)
    if new.is_data_file_raw:
        assert files.content("data")[:size].ljust(size, b"\0") == model


def test_qemu_reads_what_was_written(tmp_path: Path):
    base, top, same = (tmp_path / f"{name}.qcow2" for name in ("base", "top", "same"))
    qemu_img("create", "-q", "-f", "qcow2", base, "8M")
    qemu_io(base, "write -P 1 0 3M", "write -c -P 2 4M 64k")
    for path in (top, same):
        qemu_img("create", "-q", "-f", "qcow2", "-o", "extended_l2=on", "-b", base, "-F", "qcow2", path)
    with serving(LocalFiles(), str(top)) as disk:
        disk.write(100_000, memoryview(b"\x09" * 1_000_000), is_durable=False)
        disk.write(4 << 20, memoryview(b"\x08" * 1000), is_durable=True)
        disk.write_zeroes(2_000_000, 500_001, may_trim=True, is_fast=False, is_durable=False)
    qemu_io(same, "write -P 9 100000 1000000", f"write -P 8 {4 << 20} 1000", "write -z 2000000 500001")
    assert content(top) == content(same)
    assert_clean(top)
    assert '"dirty-flag": false' in qemu_img("info", "--output=json", top)


@pytest.mark.slow
def test_encrypted_clusters_are_written_as_qemu_reads_them(tmp_path: Path):
    path, plain = tmp_path / "secret.qcow2", tmp_path / "plain.raw"
    words = ("--object", "secret,id=key,data=word")
    options = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10"
    qemu_img("create", "-q", *words, "-f", "qcow2", "-o", options, path, "1M")
    files = LocalFiles({"key": b"word"})
    model, choose = bytearray(1 << 20), random.Random(1)
    name = f'json:{{"driver": "qcow2", "file.filename": "{path}", "encrypt.key-secret": "key"}}'
    with serving(files, name) as disk:
        assert disk.blocks.minimum == 512
        for act in random_acts(choose, disk.size_bytes, 60, unit=choose.choice((512, 100))):
            act_on(disk, act)
            act_on_array(model, act, disk)
        assert disk.read(0, disk.size_bytes) == model
    opened = f"driver=qcow2,file.filename={path},encrypt.key-secret=key"
    qemu_img("convert", *words, "--image-opts", opened, "-O", "raw", plain)
    assert plain.read_bytes() == model
