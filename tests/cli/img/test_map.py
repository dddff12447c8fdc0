"""`cowtree img map` beside qemu-img."""

from pathlib import Path

import pytest

from tests.cli.img.differential import assert_one_sentence, read_both, run_cowtree
from tests.cli.img.zoo import names
from tests.qemu import qemu_img, qemu_io, random_chain

CALLS = (
    *("map", "map a b", "map nope", "map .", "map --output=xml over.qcow2", "map -f nope v3.qcow2", "map -f"),
    *(
        "map -U over.qcow2",
        "map --force-share --output json filled.qcow2",
        "map -z filled.qcow2",
        "map --out=json filled.qcow2",
    ),
    *(f"map {span} filled.qcow2" for span in ("-s 64k -l 64k", "-s 100k", "--start-offset=1 --max-length=3", "-s 4M")),
    *(f"map --output=json {span} filled.qcow2" for span in ("-s 65536 -l 1", "-s 4M", "-s 5M", "-l 0", "-s 1M -l 7E")),
    *(f"map {span} filled.qcow2" for span in ("-s x", "-s -1", "-l 8E", "-l", "-s 1.5")),
    *(
        "map --image-opts driver=qcow2,file.filename=filled.qcow2",
        "map --image-opts --output=json driver=raw,file.filename=odd.img",
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["", "--output=json", "-f raw", "-f qcow2 --output=json"])
def test_every_kind_of_image_is_mapped_as_stock_does(zoo: Path, way: str):
    for name in names(zoo):
        read_both(zoo, "map", *way.split(), name).assert_same_reading()


@pytest.mark.parametrize("call", CALLS)
def test_words_mean_what_they_mean_to_stock(zoo: Path, call: str):
    read_both(zoo, *call.split()).assert_same_reading()


@pytest.mark.slow
@pytest.mark.soak
def test_random_chains_are_mapped_as_stock_does(tmp_path: Path, seed: int):
    chain = random_chain(tmp_path, seed)
    for path, image_format in zip(chain.paths, chain.formats, strict=True):
        for way in ("human", "json"):
            read_both(tmp_path, "map", f"--output={way}", "-f", image_format, path.name).assert_same_reading()
        read_both(tmp_path, "map", "--output=json", "-s", "70000", "-l", "200001", path.name).assert_same_reading()


def test_what_lies_before_a_compressed_cluster_is_shown(tmp_path: Path):
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "disk", "1M")
    qemu_io(tmp_path / "disk", "write -P 1 64k 64k", "write -c -P 2 512k 64k")
    both = read_both(tmp_path, "map", "disk")
    both.assert_same_reading()
    assert both.own.stdout.count("\n") == 2
    assert both.own.stderr == both.stock.stderr


def test_many_lines_are_all_written(tmp_path: Path):
    with (tmp_path / "disk").open("wb") as file:
        for index in range(5000):
            file.seek(index * 8192)
            file.write(b"x" * 4096)
    both = read_both(tmp_path, "map", "-f", "raw", "--output=json", "disk")
    both.assert_same_reading()
    assert both.own.stdout.count("\n") == 9999


def test_an_encrypted_image_is_refused(zoo: Path):
    done = run_cowtree(zoo, "map", "aes.qcow2")
    assert (done.status, done.stdout) == (1, "")
    assert_one_sentence(done)
