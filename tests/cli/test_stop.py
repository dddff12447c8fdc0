"""Owns the proof that Ctrl-C and SIGTERM stop a merge with a sentence, and that the same command goes on."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cowtree.cli.stop import stopping
from cowtree.images.digest import digest
from cowtree.images.halves import find
from tests.disktrees import FILES
from tests.qemu import assert_clean, qemu_img, qemu_io

COWTREE = [sys.executable, "-m", "cowtree"]


def test_a_signal_means_the_same_as_ctrl_c_and_only_meanwhile():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), stopping():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_merge_that_is_stopped_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
):
    base, top = tmp_path / "base", tmp_path / "top"
    qemu_img("create", "-q", "-f", "qcow2", base, "1G")
    qemu_io(base, "write -P 1 0 64M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
    qemu_io(top, "write -P 2 512M 96M", "write -P 3 16M 64M")
    shown = digest(FILES, str(top))
    words = [*COWTREE, "flatten", str(top), "--verify"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (tmp_path / ".base.cowtree-merge").exists():
        if (tmp_path / ".top.cowtree-merge").exists():
            break
        time.sleep(0.001)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert told.endswith("interrupted; run the same command again to complete it\n")
    assert digest(FILES, str(top)) == shown
    assert find([str(tmp_path)])[0]
    assert subprocess.run(words, check=False, capture_output=True).returncode == 0
    assert digest(FILES, str(top)) == shown
    assert_clean(top)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_is_stopped_while_planning_hears_that_nothing_was_changed(tmp_path: Path, number: signal.Signals):
    base, top = tmp_path / "base", tmp_path / "top"
    qemu_img("create", "-q", "-f", "qcow2", base, "1M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top, "1M")
    # The signal comes at the moment when the first price is asked for.
    code = (
        "import os, sys\n"
        "from cowtree.cli.main import main\n"
        "from cowtree.images.price import Prices\n"
        f"Prices.__call__ = lambda *_: os.kill(os.getpid(), {int(number)})\n"
        "sys.exit(main())"
    )
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    words = [sys.executable, "-c", code, "flatten", str(top)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.strip().endswith("stopped before anything was changed")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
