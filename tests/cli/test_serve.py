"""`cowtree serve` on the command line, with the clients that people use."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cowtree.errors import ImageLocked, MissingImage, Refused, StorageFailed, WrongUse
from tests.cli.running import Ran
from tests.qemu import assert_clean, content, qemu_img, qemu_io, run, run_well

MIB = 1 << 20


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A chain, and a copy of its top."""
    monkeypatch.chdir(tmp_path)
    qemu_img("create", "-q", "-f", "qcow2", "base.qcow2", "16M")
    qemu_io(Path("base.qcow2"), "write -P 1 0 3M", "write -c -P 2 5M 64k", "write -P 3 9M 100k")
    for name in ("top.qcow2", "same.qcow2"):
        qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", name)
        qemu_io(Path(name), "write -P 4 1M 200k", "write -z 2M 500k")
    return tmp_path


@contextmanager
def serving(*words: str, end: int = signal.SIGTERM) -> Iterator[str]:
    """Serve while the block runs; yields the address."""
    command = [str(Path(sys.executable).with_name("cowtree")), "serve", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address = process.stdout.readline().strip()
            yield address
        finally:
            process.send_signal(end)
        assert process.wait(30) == 0
        assert process.stdout.read() == ""


def test_every_client_sees_the_disk(folder: Path):
    with serving("top.qcow2", "--read-only", "--socket", "a socket") as address:
        assert address == f"nbd+unix:///?socket={folder}/a%20socket"
        info = json.loads(run_well("nbdinfo", "--json", address))["exports"][0]
        assert (info["export-size"], info["is_read_only"], info["description"]) == (16 * MIB, True, "top.qcow2")
        run_well("nbdcopy", address, "copy.raw")
        mapped = json.loads(run_well("nbdinfo", "--map", "--json", address))
        assert [each["type"] for each in mapped] == [0, 3, 0, 3, 0, 3, 0, 3]
        depths = json.loads(run_well("nbdinfo", "--map=qemu:allocation-depth", "--json", address))
        assert [each["type"] for each in depths][:4] == [2, 1, 2, 1]
        assert "identical" in qemu_img("compare", "-f", "raw", "-F", "qcow2", address, "same.qcow2")
    assert Path("copy.raw").read_bytes() == content(Path("same.qcow2"))
    assert not Path("a socket").exists()


def test_what_clients_write_is_in_the_image(folder: Path):
    acts = (
        "write -P 9 100k 1M",
        "write -P 8 12345 777",
        "write -z -u 5M 70k",
        "discard 9M 64k",
        "flush",
        "write -P 7 8M 1",
    )
    with serving("top.qcow2", "--port", "0", "--name", "disk", end=signal.SIGINT) as address:
        assert address.startswith("nbd://127.0.0.1:")
        assert address.endswith("/disk")
        words = [word for act in acts for word in ("-c", act)]
        run_well("qemu-io", "-f", "raw", *words, address)
    qemu_io(Path("same.qcow2"), *acts)
    assert content(Path("top.qcow2")) == content(Path("same.qcow2"))
    assert_clean(Path("top.qcow2"))


def test_an_internal_snapshot_is_served_as_it_was(folder: Path):
    before = content(Path("same.qcow2"))
    qemu_img("snapshot", "-c", "then", "top.qcow2")
    qemu_img("bitmap", "--add", "top.qcow2", "since")
    qemu_io(Path("top.qcow2"), "write -P 5 0 4M")
    with serving("top.qcow2", "--snapshot", "then", "--socket", "s") as address:
        contexts = json.loads(run_well("nbdinfo", "--json", address))["exports"][0]["contexts"]
        assert contexts == ["base:allocation", "qemu:allocation-depth"]
        run_well("nbdcopy", address, "copy.raw")
    assert Path("copy.raw").read_bytes() == before


def test_a_killed_server_leaves_what_was_flushed(folder: Path):
    command = [str(Path(sys.executable).with_name("cowtree")), "serve", "top.qcow2", "--socket", "s"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        run_well("qemu-io", "-f", "raw", "-c", "write -P 9 6M 1M", "-c", "flush", address)
        process.kill()
    Path("s").unlink()
    with serving("top.qcow2", "--socket", "s") as address:
        run_well("qemu-io", "-f", "raw", "-c", "read -P 9 6M 1M", "-c", "write -P 6 7M 64k", address)
    assert_clean(Path("top.qcow2"))


def test_an_image_is_served_by_one_only(folder: Path, capsys: pytest.CaptureFixture[str]):
    with serving("top.qcow2", "--socket", "s"):
        assert Ran(capsys, "serve", "top.qcow2", "--port", "0").status == ImageLocked.exit_status
        assert run("qemu-io", "-c", "read 0 1", "top.qcow2").returncode


def test_bad_words_are_told(folder: Path, capsys: pytest.CaptureFixture[str]):
    Path("plain.raw").write_bytes(bytes(MIB))
    Path("taken").touch()
    for words, status, said in (
        (("no.qcow2",), MissingImage.exit_status, "No such file"),
        (("top.qcow2", "--snapshot", "none"), Refused.exit_status, "Can't find snapshot"),
        (("top.qcow2", "--port", "70000"), WrongUse.exit_status, "there is no port 70000"),
        (("top.qcow2", "--port", "1", "--socket", "s"), WrongUse.exit_status, "not allowed with"),
        (("top.qcow2", "--socket", ""), WrongUse.exit_status, "a socket needs a path"),
        (("top.qcow2", "--name", "x" * 5000), WrongUse.exit_status, "more than 4096 bytes"),
        (("plain.raw",), WrongUse.exit_status, "Try: -f raw"),
        (("top.qcow2", "--socket", "taken"), StorageFailed.exit_status, "in use"),
        (("top.qcow2", "--socket", "no/where"), StorageFailed.exit_status, "No such file"),
    ):
        ran = Ran(capsys, "serve", *words)
        assert (ran.status, ran.out) == (status, ""), words
        assert said in ran.err


def test_status_is_what_qemu_nbd_tells(folder: Path):
    qemu_img("create", "-q", "-f", "qcow2", "-b", "top.qcow2", "-F", "qcow2", "longer.qcow2", "20M")
    qemu_io(Path("longer.qcow2"), "write 6M 64k", "discard 0 64k", "write 19M 64k")
    stock = ("qemu-nbd", "-r", "-f", "qcow2", "-A", "-t", "-k", str(folder / "theirs"), "longer.qcow2")
    with serving("longer.qcow2", "--read-only", "--socket", "ours") as address, subprocess.Popen(stock) as process:
        try:
            while not Path("theirs").exists() and process.poll() is None:
                time.sleep(0.02)
            for context in ("base:allocation", "qemu:allocation-depth"):
                ours, theirs = (
                    run_well("nbdinfo", f"--map={context}", each)
                    for each in (address, f"nbd+unix:///?socket={folder}/theirs")
                )
                assert ours == theirs
        finally:
            process.terminate()
