"""Images of other hypervisors as a source and as a base, against stock qemu-img."""

import filecmp
import json
import random

import pytest

from tests.cli.img.differential import assert_one_sentence, read_both, run_both, run_cowtree
from tests.qemu import qemu_img, qemu_io

KINDS = (
    *(
        ("vmdk", f"subformat={each}")
        for each in ("monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat")
    ),
    ("vmdk", "subformat=streamOptimized"),
    *(("vhdx", f"subformat={each}") for each in ("dynamic", "fixed")),
    *(("vpc", f"subformat={each}") for each in ("dynamic", "fixed")),
    *(("vdi", f"static={each}") for each in ("off", "on")),
)
pytestmark = pytest.mark.slow
by_kind = pytest.mark.parametrize(("image_format", "options"), KINDS)


@pytest.fixture
def folder(tmp_path, image_format, options):
    """An image made from random data with holes."""
    choose, place = random.Random(options), tmp_path / "images"
    place.mkdir()
    data = bytearray(5 << 20)
    for _ in range(8):
        start, count = choose.randrange(len(data) // 512 - 300), choose.randrange(1, 300)
        data[512 * start : 512 * (start + count)] = choose.randbytes(512 * count)
    (place / "raw").write_bytes(data)
    qemu_img("convert", "-f", "raw", "-O", image_format, "-o", options, place / "raw", place / "image")
    return place


@by_kind
def test_they_are_read_as_stock_reads_them(folder, image_format):
    for words in (
        ("compare", "-f", image_format, "-F", "raw", "image", "raw"),
        ("measure", "-f", image_format, "-O", "qcow2", "image"),
        ("measure", "-f", image_format, "-O", "raw", "image"),
        ("info", "image", "-f", "nope"),
    ):
        read_both(folder, *words).assert_same_reading()
    both = read_both(folder, "info", "--output=json", "image")
    own, stock = (json.loads(each.stdout) for each in (both.own, both.stock))
    assert [own[key] for key in ("virtual-size", "format")] == [stock[key] for key in ("virtual-size", "format")]


@by_kind
def test_converted_and_copied_they_are_what_stock_makes_of_them(folder, tmp_path, image_format):
    for number, words in enumerate(
        (
            ("convert", "-f", image_format, "-O", "qcow2", "image", "new"),
            ("convert", "-f", image_format, "-O", "raw", "image", "new"),
            ("dd", "-f", image_format, "-O", "raw", "bs=70000", "if=image", "of=new", "skip=3", "count=40"),
        )
    ):
        place = tmp_path / str(number)
        place.mkdir()
        both = run_both(folder, place, *words)
        both.assert_same_result()
        if "raw" in words:
            assert filecmp.cmp(place / "stock/new", place / "own/new", shallow=False)
        else:
            qemu_img("compare", place / "stock/new", place / "own/new")


@by_kind
def test_they_back_an_overlay_and_are_not_written(folder, tmp_path, image_format):
    qemu_img("create", "-q", "-f", "qcow2", "-b", "image", "-F", image_format, folder / "top")
    qemu_io(folder / "top", "write -P 5 100000 70000", image_format="qcow2")
    both = run_both(folder, tmp_path, "convert", "-O", "raw", "top", "new")
    both.assert_same_result()
    assert filecmp.cmp(tmp_path / "stock/new", tmp_path / "own/new", shallow=False)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for words in (
        ("commit", "top"),
        ("resize", "-f", image_format, "image", "20M"),
        ("convert", "-n", "-f", "raw", "-O", image_format, "raw", "image"),
        ("convert", "-O", image_format, "raw", "new"),
        ("create", "-f", image_format, "new", "1M"),
    ):
        own = run_cowtree(folder, *words)
        assert own.status == 1, (words, own)
        assert_one_sentence(own)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@by_kind
def test_the_map_shows_the_data_and_does_not_say_where_it_lies(folder, image_format):
    both = read_both(folder, "map", "--output=json", "-f", image_format, "image")
    own, data = json.loads(both.own.stdout), (folder / "raw").read_bytes()
    assert both.own.status == 0
    assert not any("offset" in each for each in own)
    assert any(each["data"] for each in own)
    for each in own:
        assert each["data"] or not any(data[each["start"] : each["start"] + each["length"]])


@by_kind
def test_damage_gets_one_sentence(folder, image_format):
    path, choose = folder / "image", random.Random(image_format)
    data = path.read_bytes()
    for number in range(12):
        damaged = bytearray(data)
        if number % 3:
            for _ in range(3):
                place = choose.randrange(min(len(data), 2048))
                damaged[place : place + 4] = choose.randbytes(4)
        else:
            del damaged[choose.randrange(len(data)) :]
        path.write_bytes(damaged)
        for words in (
            ("info", "-f", image_format, "image"),
            ("convert", "-f", image_format, "-O", "raw", "image", "x"),
        ):
            assert_one_sentence(run_cowtree(folder, *words))


@pytest.mark.parametrize(("image_format", "options"), KINDS[:1])
def test_what_was_declared_raw_stays_raw(folder):
    both = read_both(folder, "compare", "-f", "raw", "-F", "raw", "image", "image")
    both.assert_same_reading()
    read_both(folder, "info", "-f", "raw", "image").assert_same_reading()
