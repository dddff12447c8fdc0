"""Owns the proof that sizes are read and shown as qemu-img reads and shows them."""

import random
import re
from pathlib import Path

import pytest

from cowtree.units import SECTOR_BYTES, format_size, parse_size
from tests.qemu import qemu_img, run

SHOWN_SIZES = [512, 1023 * 512, 999 << 10, 1000 << 10, 1023488, 1 << 20, 1000 << 20, 1536 << 20, 5 << 40, 1 << 50]


def size_qemu_reads(path: Path, text: str) -> int | None:
    """What `qemu-img create` takes the text for, or None when it refuses it; whether the disk is made is no matter."""
    found = re.search(r"fmt=raw size=(\d+)", run("qemu-img", "create", "-f", "raw", path, "--", text).stdout)
    return int(found[1]) if found else None


def size_we_read(text: str) -> int | None:
    try:
        return parse_size(text)
    except (ValueError, OverflowError):
        return None


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        *(("0", 0), ("1", 1), ("1b", 1), ("1B", 1), ("00010", 10), (" 5", 5), ("+5", 5), ("1k", 1 << 10)),
        *(("1K", 1 << 10), ("3m", 3 << 20), ("1.5G", 3 << 29), ("2t", 2 << 40), ("2P", 2 << 50), ("7e", 7 << 60)),
        *(
            ("0.1k", 102),
            ("0.7k", 717),
            ("1.k", 1 << 10),
            ("9.995M", 10480517),
            ("1.0", 1),
            ("0x200", 512),
            ("0x1k", 1 << 10),
        ),
        *(("0x1e", 30), ("0x1b", 27), ("0X1F", 31), ("9223372036854775807", (1 << 63) - 1)),
    ],
)
def test_a_size_is_read_as_qemu_reads_it(tmp_path: Path, text: str, size_bytes: int):
    assert parse_size(text) == size_bytes
    assert size_qemu_reads(tmp_path / "disk", text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "k", ".5k", "-5", "1kk", "1e3", "1 k", "5 ", "0x", "0x1.8", "1.5", "1.5b", "1,5k", "inf", "nan", "٣"]
)
def test_what_is_no_size_is_refused_as_qemu_does(tmp_path: Path, text: str):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        parse_size(text)
    assert size_qemu_reads(tmp_path / "disk", text) is None


@pytest.mark.parametrize("text", ["8E", "9223372036854775808", "0x8000000000000000", "99999999999999999999k"])
def test_eight_exbibytes_are_too_many(tmp_path: Path, text: str):
    with pytest.raises(OverflowError):
        parse_size(text)
    assert size_qemu_reads(tmp_path / "disk", text) is None


@pytest.mark.soak
def test_random_words_are_read_as_qemu_reads_them(tmp_path: Path, seed: int):
    choose = random.Random(seed)
    for _ in range(4):
        digits = "".join(choose.choices("0123456789", k=choose.randint(1, 6)))
        text = choose.choice(["", "", "", "0x", "+", " "]) + digits
        text += choose.choice(["", "", ".", ".5", f".{choose.randint(0, 999999)}"]) + choose.choice(" bBkKmMgGtT")
        text = text.rstrip()
        assert size_we_read(text) == size_qemu_reads(tmp_path / "disk", text), text


@pytest.mark.parametrize("size_bytes", SHOWN_SIZES)
def test_a_size_is_shown_as_qemu_shows_it(tmp_path: Path, size_bytes: int):
    disk = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", "cluster_size=2M", disk, str(size_bytes))
    assert f"virtual size: {format_size(size_bytes)} ({size_bytes} bytes)" in qemu_img("info", disk)


@pytest.mark.soak
def test_random_sizes_are_shown_as_qemu_shows_them(tmp_path: Path, seed: int):
    choose, disk = random.Random(seed), tmp_path / "disk"
    size_bytes = choose.randint(1, 1 << choose.randint(1, 32)) * SECTOR_BYTES
    qemu_img("create", "-f", "raw", disk, str(size_bytes))
    assert f"virtual size: {format_size(size_bytes)} (" in qemu_img("info", "-f", "raw", disk)


def test_nothing_is_shown_as_no_bytes():
    assert format_size(0) == "0 B"
    assert format_size((1 << 63) - 1) == "8 EiB"
