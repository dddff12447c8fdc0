"""SIGKILL by the kernel, at every system call by which a real process changes a file."""

import itertools
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from cowtree.images.merge import rebase
from cowtree.storage.memory import MemoryFiles
from tests.crash import guest_view
from tests.images.test_safety_merge import BASE_WRITES, COMMITS, TOP_WRITES, V3, Disk, make, trial_of
from tests.permits import commit
from tests.qemu import assert_clean, content

CALLS = ("pwrite64", "fdatasync", "fallocate", "ftruncate")
KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)


def run_to_call(folder: Path, words: Sequence[str], call: str = "", number: int = 0) -> bool:
    """Run `cowtree img`, and kill it when a thread enters its so-manieth system call of this name.
    Returns: whether that came to pass.
    """
    tracing = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}"]
    tracing += ["-e", f"inject={call}:signal=SIGKILL:when={number}"]
    command = [*(tracing if call else []), sys.executable, "-m", "cowtree", "img", *words]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode in (0, *KILLED), result.stderr
    return result.returncode != 0


COMMIT = (COMMITS["small clusters"].disks, ("commit", "top.qcow2"), lambda files: commit(files, "top.qcow2"))
REBASE = (
    (
        Disk("base.qcow2", "64k", V3, None, BASE_WRITES),
        Disk("other.qcow2", "40k", V3, None, ("write -P 1 0 10k", "write -P 8 30k 5k")),
        Disk("top.qcow2", "64k", V3, "base.qcow2", TOP_WRITES),
    ),
    ("rebase", "-b", "other.qcow2", "-F", "qcow2", "top.qcow2"),
    lambda files: rebase(files, "top.qcow2", backing=("other.qcow2", "qcow2")),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("disks", "words", "operation", "changed"),
    [(*COMMIT, ("base.qcow2", "top.qcow2")), (*REBASE, ("top.qcow2",))],
    ids=["commit", "rebase"],
)
def test_a_real_process_can_be_killed_at_every_call(tmp_path, disks, words, operation, changed):
    before = tmp_path / "before"
    before.mkdir()
    trial = trial_of(make(before, disks), operation, changed)
    view = guest_view(MemoryFiles(trial.initial), "top.qcow2")
    killed_count = 0
    for call in CALLS:
        for number in itertools.count(1):
            folder = tmp_path / f"{call}-{number}"
            shutil.copytree(before, folder)
            was_killed = run_to_call(folder, words, call, number)
            left = MemoryFiles({path.name: path.read_bytes() for path in folder.iterdir()})
            trial.judge(left, f"killed at {call} {number}", is_done=not was_killed)
            if not was_killed:
                break
            killed_count += 1
            last = folder
    # As many as one thread makes of each kind.
    assert killed_count >= 7
    assert not run_to_call(last, words)
    for name in changed:
        assert_clean(last / name)
    assert content(last / "top.qcow2") == view
