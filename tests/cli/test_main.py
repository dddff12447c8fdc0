"""Where every call begins, and how each of them ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cowtree.cli.main import main
from cowtree.errors import CowtreeError
from tests.qemu import qemu_img

COWTREE = [sys.executable, "-m", "cowtree"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A small image."""
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "disk", "1M")
    return tmp_path / "disk"


def run_in_shell(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of shell in which $cowtree is the command."""
    everything = os.environ | {"cowtree": " ".join(COWTREE), "PYTHONUNBUFFERED": ""} | environment
    return subprocess.run(["sh", "-c", script], cwd=folder, env=everything, capture_output=True, check=False)


@pytest.mark.parametrize(
    ("words", "program"),
    [(["qemu-img"], "qemu-img"), (["/opt/x/qemu-img"], "qemu-img"), (["cowtree", "img"], "cowtree img")],
)
def test_the_name_decides_which_command_it_is(
    image: Path, capsys: pytest.CaptureFixture[str], words: list[str], program: str
):
    assert main([*words, "info", str(image)]) == 0
    assert capsys.readouterr().out.startswith(f"image: {image}\n")
    assert main([*words, "nope"]) == 1
    assert capsys.readouterr().err.startswith(f"{program}: Command not found: nope\n")


def test_a_link_named_qemu_img_is_qemu_img(image: Path, tmp_path: Path):
    link = tmp_path / "qemu-img"
    link.symlink_to(Path(sys.executable).with_name("cowtree"))
    done = subprocess.run([link, "info", "nope"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("qemu-img: Could not open 'nope': ")
    done = subprocess.run([link, "info", "disk"], cwd=tmp_path, capture_output=True, text=True, check=False)
    stock = subprocess.run(["qemu-img", "info", "disk"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.returncode, done.stdout) == (0, stock.stdout)


def test_an_error_of_ours_ends_with_its_own_status(capsys: pytest.CaptureFixture[str]):
    assert main(["cowtree", "digest", "nope"]) == 11
    assert capsys.readouterr().err.startswith("cowtree: nope: No such file or directory. Try: ")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (CowtreeError(reason="no luck"), 1, "no luck"),
        (KeyboardInterrupt(), 130, "\ncowtree img: interrupted; run the same command again to complete it\n"),
        (PermissionError(13, "Permission denied", "a"), 1, "cowtree img: a: Permission denied\n"),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_whatever_goes_wrong_becomes_one_sentence(
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    status: int,
    said: str,
):
    def fail(words: list[str], program: str) -> int:
        raise error

    monkeypatch.setattr("cowtree.cli.img.main.run", fail)
    kept = os.dup(1)
    try:
        assert main(["cowtree", "img"]) == status
    finally:
        # A broken pipe makes the process forget its standard output.
        os.dup2(kept, 1)
        os.close(kept)
    assert said in capfd.readouterr().err


def test_any_name_can_be_printed(tmp_path: Path):
    name = os.fsdecode(b"bad-\xff-\xc3\xbc")
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / name, "1M")
    for settings in ({"LC_ALL": "C.UTF-8"}, {"LC_ALL": "C"}, {"PYTHONIOENCODING": "utf-8:strict"}):
        done = run_in_shell("$cowtree img info bad*", tmp_path, **settings)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.startswith(b"image: bad-\xff-\xc3\xbc\n")
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = run_in_shell("$cowtree img info bad*", tmp_path, **plain)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_closed_stream_is_not_written_into_an_image(image: Path):
    before = image.read_bytes()
    for script in (
        "$cowtree img info disk >&-",
        "$cowtree img info disk >&- 2>&-",
        "$cowtree img check -r all disk >&-",
    ):
        done = run_in_shell(script, image.parent)
        assert (done.returncode, done.stderr) == (0, b"")
    assert run_in_shell("$cowtree img info nope 2>&-", image.parent).returncode == 1
    assert image.read_bytes() == before


def test_output_that_cannot_be_written_is_an_error(image: Path):
    done = run_in_shell("$cowtree img info disk >/dev/full", image.parent)
    assert (done.returncode, done.stderr) == (1, b"cowtree img: output: No space left on device\n")


def test_a_reader_that_has_gone_is_no_news(image: Path):
    # More lines than a pipe holds.
    script = "{ $cowtree img map -f raw --output=json disk; echo $? >&2; } | sleep 0"
    qemu_img("create", "-q", image.parent / "disk", "16M")
    with (image.parent / "disk").open("r+b") as file:
        for offset in range(0, 16 << 20, 8192):
            file.seek(offset)
            file.write(b"x")
    done = run_in_shell(script, image.parent)
    assert done.stderr == b"141\n"
