"""`cowtree img info` beside qemu-img."""

import subprocess
import sys
from pathlib import Path

import pytest

from cowtree.storage.contract import Access
from cowtree.storage.file import LocalFiles
from tests.cli.img.differential import read_both
from tests.cli.img.zoo import names

CALLS = (
    *("info", "info v3.qcow2 v2.qcow2", "info nope", "info --backing-chain nope", "info .", "info sub/", "info text/x"),
    *("info --output=xml v3.qcow2", "info --output json v3.qcow2", "info --outp=json v3.qcow2", "info -f"),
    *("info -f vmdk2 v3.qcow2", "info -fqcow2 v3.qcow2", "info --format=raw v3.qcow2", "info --format qcow2 raw.img"),
    *("info -U v3.qcow2", "info --force-share --backing over-dot.qcow2", "info -- v3.qcow2", "info v3.qcow2 -U"),
    *("info -x v3.qcow2", "info --nope v3.qcow2", "info --o v3.qcow2", "info a:b", "info file:nope"),
    "info --object secret,id=s,data=letmein v3.qcow2",
    "info --image-opts driver=qcow2,file.filename=over.qcow2",
    "info --image-opts --backing-chain --output=json driver=qcow2,file.driver=file,file.filename=over.qcow2",
    "info --image-opts file.filename=over.qcow2",
    "info --image-opts driver=raw,file.filename=over.qcow2",
    "info --image-opts over.qcow2",
    "info --image-opts -f qcow2 file.filename=over.qcow2",
    "info --image-opts driver=qcow2,file.filename=over.qcow2,nope=1",
    "info --image-opts driver=qcow2,file.filename=nope",
    "info --image-opts driver=qcow2",
)
WAYS = ("", "--output=json", "--backing-chain", "--backing-chain --output=json", "-f raw", "-f qcow2", "-U")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way or "plain")
def test_every_kind_of_image_is_described_as_stock_does(zoo: Path, way: str):
    for name in names(zoo):
        read_both(zoo, "info", *way.split(), name).assert_same_reading()


@pytest.mark.parametrize("call", CALLS)
def test_words_mean_what_they_mean_to_stock(zoo: Path, call: str):
    read_both(zoo, *call.split()).assert_same_reading()


def test_an_absolute_name_stays_absolute(zoo: Path):
    read_both(zoo, "info", "--backing-chain", str(zoo / "sub/beside.qcow2")).assert_same_reading()


def test_an_image_that_is_written_to_is_described_only_when_asked_to_share_it(zoo: Path):
    file = LocalFiles().open(str(zoo / "v3.qcow2"), Access.WRITE)
    try:
        locked = read_both(zoo, "info", "v3.qcow2")
        locked.assert_same_reading()
        assert locked.own.stderr.startswith(
            "qemu-img: Could not open 'v3.qcow2': Failed to get shared \"write\" lock\n"
        )
        assert locked.own.status == 1
        read_both(zoo, "info", "-U", "v3.qcow2").assert_same_reading()
    finally:
        file.close()


def test_it_starts_without_what_takes_long_to_import(zoo: Path):
    script = (
        "import sys; from cowtree.cli.main import main; status = main(['cowtree', 'img', 'info', sys.argv[1]]);"
        "print([name for name in 'numpy argparse rich ctypes zstandard asyncio'.split() if name in sys.modules])"
    )
    words = [sys.executable, "-c", script, str(zoo / "snapshots.qcow2")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
