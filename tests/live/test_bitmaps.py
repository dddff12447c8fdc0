"""Dirty bitmaps of an image that is served."""

import json
from pathlib import Path

import pytest

from cowtree.errors import RequestFailed
from cowtree.live import bitmaps as subject
from cowtree.live.disk import Disk
from cowtree.live.snapshot import snapshot
from cowtree.storage.file import LocalFiles
from tests.live.guests import serving
from tests.qemu import assert_clean, qemu_img, qemu_io

GRAIN = 64 << 10
BITS = "qemu:dirty-bitmap:bits"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An image with a bitmap that records, one that does not, and the first two granules dirty in both."""
    found = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", found, "4M")
    for name in ("bits", "off"):
        qemu_img("bitmap", "--add", found, name)
    qemu_io(found, "write -P 1 0 100k")
    qemu_img("bitmap", "--disable", found, "off")
    return found


def dirty(disk: Disk, name: str = "bits") -> list[int]:
    """The granules that a bitmap calls dirty."""
    found, at = [], 0
    for length, flag in disk.status(subject.DIRTY_BITMAP + name, 0, disk.size_bytes):
        found += [index for index in range(at // GRAIN, (at + length) // GRAIN) if flag]
        at += length
    assert at == disk.size_bytes
    return found


def test_what_is_written_is_dirty_at_once_and_afterwards(path: Path, monkeypatch):
    monkeypatch.setattr(subject, "NOTES_PER_JOIN", 3)
    with serving(LocalFiles(), str(path)) as disk:
        assert disk.contexts[2:] == [BITS, "qemu:dirty-bitmap:off"]
        assert dirty(disk) == [0, 1]
        disk.write(5 * GRAIN - 1, memoryview(b"xx"), is_durable=False)
        disk.write_zeroes(9 * GRAIN, 10, may_trim=True, is_fast=False, is_durable=False)
        disk.trim(20 * GRAIN, 2 * GRAIN, is_durable=False)
        for _ in range(5):
            disk.write(30 * GRAIN, memoryview(b"x"), is_durable=False)
        assert dirty(disk) == [0, 1, 4, 5, 9, 20, 21, 30]
        assert dirty(disk, "off") == [0, 1]
        assert disk.status(BITS, 5 * GRAIN + 7, 2 * GRAIN) == [(GRAIN - 7, 1), (GRAIN + 7, 0)]
    assert_clean(path)
    with serving(LocalFiles(), str(path)) as disk:
        assert dirty(disk) == [0, 1, 4, 5, 9, 20, 21, 30]


def test_a_bitmap_is_in_use_while_the_disk_is_written(path: Path):
    with serving(LocalFiles(), str(path)) as disk:
        disk.write(0, memoryview(b"x"), is_durable=True)
        told = json.loads(qemu_img("info", "-U", "--output=json", path))["format-specific"]["data"]["bitmaps"]
        assert ["in-use" in each["flags"] for each in told] == [True, False]
    told = json.loads(qemu_img("info", "--output=json", path))["format-specific"]["data"]["bitmaps"]
    assert [each["flags"] for each in told] == [["auto"], []]


def test_a_long_answer_ends_early(path: Path, monkeypatch):
    monkeypatch.setattr(subject, "BITS_MAX", 8)
    with serving(LocalFiles(), str(path)) as disk:
        assert disk.status(BITS, GRAIN, 40 * GRAIN) == [(GRAIN, 1), (6 * GRAIN, 0)]


def test_a_bitmap_stays_below_an_overlay(path: Path):
    overlay = str(path) + ".new"
    with serving(LocalFiles(), str(path)) as disk:
        disk.write(5 * GRAIN, memoryview(b"x"), is_durable=False)
        snapshot(LocalFiles(), [disk], [overlay])
        disk.write(9 * GRAIN, memoryview(b"x"), is_durable=False)
        assert disk.contexts[2:] == []
        with pytest.raises(RequestFailed):
            disk.status(BITS, 0, GRAIN)
    with serving(LocalFiles(), str(path)) as disk:
        assert dirty(disk) == [0, 1, 5]
