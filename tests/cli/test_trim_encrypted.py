"""`cowtree trim` of encrypted images, whose secrets are given as to `cowtree img`."""

from pathlib import Path

import pytest

from cowtree.errors import Locked, WrongUse
from tests.cli.img.differential import run_cowtree
from tests.cli.running import Ran
from tests.qemu import qemu_img, run_well

SECRET = ("--object", "secret,id=s,file=key")
KEY = "encrypt.key-secret=s"
BASE = f"driver=qcow2,{KEY},file.filename=base"
TOP = f"driver=qcow2,{KEY},file.filename=top,backing.driver=qcow2,backing.{KEY},backing.file.filename=base"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An encrypted base, and an encrypted overlay that holds some of the same, zeroes, and something else."""
    monkeypatch.chdir(tmp_path)
    Path("key").write_text("horse")
    options = ("-f", "qcow2", "-o", f"encrypt.format=luks,{KEY},encrypt.iter-time=10")
    for words in (("base",), ("-u", "-b", "base", "-F", "qcow2", "top")):
        assert run_cowtree(tmp_path, "create", "-q", *SECRET, *options, *words, "2M").status == 0
    write(BASE, "write -P 1 0 1M")
    write(TOP, "write -P 1 0 256k", "write -P 0 1M 128k", "write -P 5 256k 64k")
    return tmp_path


def write(image: str, *commands: str) -> None:
    run_well("qemu-io", *SECRET, "--image-opts", *(word for each in commands for word in ("-c", each)), image)


def shown() -> bytes:
    qemu_img("convert", *SECRET, "--image-opts", TOP, "-O", "raw", "copy")
    return Path("copy").read_bytes()


def test_encrypted_images_are_trimmed_when_their_secrets_are_given(folder: Path, capsys: pytest.CaptureFixture[str]):
    view = shown()
    ran = Ran(capsys, "trim", *SECRET, "--image-opts", TOP, "--hidden")
    assert ran.status == 0, ran.err
    assert ran.out.startswith("top: drops 384 KiB the same as its base; ")
    assert "\nbase: drops 64 KiB hidden by its only reader; " in ran.out
    assert shown() == view
    assert "No errors were found" in qemu_img("check", *SECRET, "--image-opts", TOP)


def test_what_is_missing_is_named(folder: Path, capsys: pytest.CaptureFixture[str]):
    ran = Ran(capsys, "trim", "top")
    assert ran.status == Locked.exit_status
    assert "Try: --object secret,id=ID,file=FILE --image-opts " in ran.err
    for words in (("--object", "bla"), ("--object", "secret,id=s"), ("--image-opts", "-f", "raw")):
        assert Ran(capsys, "trim", *words, "top").status == WrongUse.exit_status
