"""The bar on a terminal."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from cowtree.cli.progress import Bar
from tests.qemu import qemu_img, qemu_io


@pytest.mark.parametrize("is_wanted", [True, False])
def test_without_a_terminal_there_is_no_bar(capsys: pytest.CaptureFixture[str], is_wanted: bool):
    with Bar("digest", is_wanted=is_wanted) as bar:
        bar.expect(10)
        bar.advance(10)
    assert capsys.readouterr() == ("", "")
    assert not sys.stderr.isatty()


def test_on_a_terminal_there_is_a_bar_when_wanted(tmp_path: Path):
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", image, "8M")
    qemu_io(image, "write -P 1 0 8M")
    digests, shown = zip(*(digest_on_terminal(image, *words) for words in ((), ("-p",))), strict=True)
    assert digests[0] == digests[1] != ""
    assert shown[0] == ""
    assert "digest" in shown[1]
    assert "8.4/8.4" in shown[1] or "8.0/8.0" in shown[1]


def digest_on_terminal(image: Path, *words: str) -> tuple[str, str]:
    """Run `cowtree digest` with standard error on a terminal. Returns: standard output, and what the terminal got."""
    master, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    command = [sys.executable, "-m", "cowtree", "digest", *words, str(image)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal, env=environment) as process:
        os.close(terminal)
        assert process.stdout
        printed = process.stdout.read().decode()
        shown = b""
        while True:
            try:
                more = os.read(master, 65536)
            except OSError:
                # The other end is closed.
                break
            if not more:
                break
            shown += more
    os.close(master)
    assert process.returncode == 0
    return printed, shown.decode()
