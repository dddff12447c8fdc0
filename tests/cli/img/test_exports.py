"""What an NBD server exports, named by its address: `cowtree img` beside qemu-img."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cowtree.chain import gate
from cowtree.errors import ChainError
from cowtree.storage.contract import Access
from cowtree.storage.file import LocalFiles
from tests.cli.img.differential import assert_one_sentence, read_both, run_cowtree, run_stock
from tests.nbd.certificates import make_folder
from tests.nbd.exported import exported
from tests.qemu import qemu_img, qemu_io

# `raw` is the file of a qcow2 image, `disk` what a guest sees of it; both are exported, the one writable.
DISK, FILE = "nbd+unix:///disk?socket=disk.s", "nbd+unix:///disk?socket=file.s"
OLD, PORT = "nbd:unix:disk.s:exportname=disk", "nbd:127.0.0.1:{port}:exportname=disk"
JSON = 'json:{"driver":"raw","file":{"driver":"nbd","path":"disk.s","export":"disk"}}'
PART = 'json:{"driver":"raw","offset":512,"size":"1M","file":{"driver":"nbd","path":"disk.s","export":"disk"}}'
OPTIONS = "--image-opts driver=qcow2,file.driver=nbd,file.server.type=unix,file.server.path=file.s,file.export=disk"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Path]:
    """A folder with an image, an overlay over what is exported of it, and the servers."""
    folder = tmp_path_factory.mktemp("exports")
    image = folder / "file.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", image, "4M")
    qemu_io(image, "write -P 1 0 1M", "write -z 1M 64k", "write -P 2 3M 100k")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", image, folder / "disk.raw")
    with ExitStack() as stack:
        for name in ("disk.raw", "file.qcow2"):
            stack.enter_context(exported("qemu-nbd", folder / name))
        qemu_img("create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", DISK, folder / "over.qcow2", "4M")
        qemu_io_of(folder, "over.qcow2", "write -P 3 64k 64k")
        yield folder


def qemu_io_of(folder: Path, name: str, command: str) -> None:
    words = ["qemu-io", "-f", "qcow2", "-c", command, name]
    subprocess.run(words, cwd=folder, check=True, capture_output=True)


@pytest.mark.parametrize(
    "call",
    [
        *(
            f"{verb} {name}"
            for verb in ("info", "info --output=json", "map", "map --output=json")
            for name in (DISK, FILE)
        ),
        *(f"info {name}" for name in (OLD, "-f raw " + FILE, OPTIONS)),
        *(f"map --output=json {name}" for name in (OLD, "-f raw " + FILE, OPTIONS)),
        *("info --backing-chain over.qcow2", "map over.qcow2", "map --output=json over.qcow2", "info over.qcow2"),
        *(f"compare {DISK} {FILE}", f"compare -s {DISK} -U disk.raw", f"check {FILE}"),
        *(f"measure -O qcow2 {DISK}", f"measure --output=json -O raw {FILE}", f"snapshot -l {FILE}", f"check {DISK}"),
    ],
)
def test_an_export_is_read_as_stock_does(place: Path, call: str):
    read_both(place, *call.split()).assert_same_reading()


@pytest.mark.parametrize("name", [JSON, PART, 'json:{"driver":"nbd","path":"disk.s","export":"disk"}'])
def test_an_export_is_described_by_options_as_stock_does(place: Path, name: str):
    read_both(place, "map", "--output=json", name).assert_same_reading()
    both = read_both(place, "info", name)
    if name != PART:
        both.assert_same_reading()
    else:
        # The order of the server's options is that of a hash in stock.
        shown = [
            json.loads(each.stdout.splitlines()[0].removeprefix("image: json:")) for each in (both.own, both.stock)
        ]
        assert shown[0] == shown[1]


@pytest.mark.parametrize("name", [DISK, FILE, "over.qcow2"])
def test_an_export_is_converted_into_the_same_image(place: Path, name: str, tmp_path: Path):
    for image_format in ("raw", "qcow2"):
        copy = str(tmp_path / image_format)
        assert run_cowtree(place, "convert", "-O", image_format, name, copy).status == 0
        result = subprocess.run(
            ["qemu-img", "compare", copy, name], cwd=place, capture_output=True, text=True, check=False
        )
        assert "identical" in result.stdout, result
        found = json.loads(qemu_img("map", "--output=json", "-f", image_format, copy))
        assert not all(each["data"] for each in found)


def test_an_image_is_written_over_an_export_that_is_there(tmp_path: Path):
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "image.qcow2", "4M")
    qemu_io(tmp_path / "image.qcow2", "write -P 1 0 1M", "write -P 2 3M 100k")
    (tmp_path / "raw").write_bytes(b"x" * (4 << 20))
    with exported("qemu-nbd", tmp_path / "raw"):
        address = "nbd+unix:///disk?socket=raw.s"
        assert run_cowtree(tmp_path, "convert", "-n", "-O", "raw", "image.qcow2", address).status == 0
    assert "identical" in run_stock(tmp_path, "compare", "image.qcow2", "raw").stdout


def test_nothing_is_committed_over_an_export(tmp_path: Path):
    (tmp_path / "raw").write_bytes(bytes(1 << 20))
    with exported("qemu-nbd", tmp_path / "raw"):
        qemu_img("create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", uri(tmp_path), tmp_path / "over.qcow2", "1M")
        result = run_cowtree(tmp_path, "commit", "over.qcow2")
    assert result.status == 1
    assert "Nothing is committed over what a server exports" in result.stderr
    assert_one_sentence(result)


def uri(folder: Path) -> str:
    return f"nbd+unix:///disk?socket={folder}/raw.s"


def test_an_export_is_cut_out_by_dd(place: Path, tmp_path: Path):
    assert run_cowtree(place, "dd", f"if={DISK}", f"of={tmp_path / 'copy'}", "bs=1M", "count=2").status == 0
    assert (tmp_path / "copy").read_bytes() == (place / "disk.raw").read_bytes()[: 2 << 20]


@pytest.mark.parametrize(
    "name",
    [
        *("nbd+unix:///nope?socket=disk.s", "nbd+unix:///x?socket=nope.s", "nbd+unix:///disk", "nbd://", "nbd:foo"),
        *("nbd://127.0.0.1:1", "nbd:127.0.0.1:1", "nbd://127.0.0.1:1/x?y=1"),
    ],
)
def test_an_export_that_cannot_be_opened_is_refused_in_stocks_words(place: Path, name: str):
    for verb in ("info", "map", "check"):
        read_both(place, verb, name).assert_same_failure()


def test_an_export_that_differs_is_told_as_stock_tells_it(place: Path):
    both = read_both(place, "compare", DISK, "over.qcow2")
    both.assert_same_result()
    assert both.own.status == 1


def test_who_does_not_follow_addresses_opens_no_export(place: Path):
    address = f"nbd+unix:///disk?socket={place}/disk.s"
    for name, reason in ((address, gate.NO_EXPORTS), (str(place / "over.qcow2"), "is an address, not a file name")):
        for access in (Access.READ, Access.WRITE):
            with pytest.raises(ChainError, match=reason):
                gate.open_chain(LocalFiles(), name, None, access)
    result = run_cowtree(place, "commit", DISK)
    assert result.status == 1
    assert_one_sentence(result)


def test_an_export_over_tls_is_read_with_the_certificates_of_a_folder(tmp_path: Path):
    folder = make_folder(tmp_path / "pki")
    (tmp_path / "raw").write_bytes(b"x" * 65536)
    creds = f"tls-creds-x509,id=t,dir={folder},endpoint=server"
    with exported("qemu-nbd", tmp_path / "raw", "--object", creds, "--tls-creds", "t"):
        address = f"nbds+unix:///disk?socket=raw.s&tls-certificates={folder}"
        assert run_cowtree(tmp_path, "convert", "-O", "raw", address, "copy").status == 0
        assert (tmp_path / "copy").read_bytes() == b"x" * 65536
        creds, options = "tls-creds-x509,id=t,endpoint=client", "driver=nbd,path=raw.s,export=disk,tls-creds=t"
        options += ",tls-hostname=localhost"
        words = ("info", "--object", f"{creds},dir={folder}", "--image-opts", options)
        own, stock = (each(tmp_path, *words).stdout.splitlines() for each in (run_cowtree, run_stock))
        assert own[1:] == stock[1:]
        assert len(own) == 4
        for wrong, reason in (
            ("nbds+unix:///disk?socket=raw.s", "there are no certificates for that"),
            ("nbd+unix:///disk?socket=raw.s", "the server wants TLS first"),
            (f"{address}&tls-hostname=elsewhere", "certificate is not right"),
            ("nbds+unix:///disk?socket=raw.s&tls-certificates=nowhere", "ca-cert.pem"),
            ("nbd+unix:///disk?socket=raw.s&tls-creds=t", "No TLS credentials with id 't'"),
        ):
            result = run_cowtree(tmp_path, "info", wrong)
            assert result.status == 1
            assert reason in result.stderr
            assert_one_sentence(result)
