"""Ctrl-C, a full disk and a reader that goes away, in the middle of the work."""

import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cowtree.storage.faults import Fault, FaultyFiles
from cowtree.storage.file import LocalFiles
from tests.cli.img.differential import PROGRESS, Result, Shape, content_of, run_cowtree
from tests.qemu import assert_clean, qemu_img, qemu_io, run

COWTREE = (sys.executable, "-m", "cowtree", "img")
CALLS = (
    ("commit", "-p", "top"),
    ("commit", "-p", "-b", "base", "top"),
    ("rebase", "-p", "-b", "", "top"),
    ("rebase", "-p", "-b", "base", "-F", "qcow2", "top"),
    ("convert", "-p", "-O", "qcow2", "top", "out"),
    ("convert", "-p", "-O", "raw", "-r", "64M", "top", "out"),
    ("convert", "-p", "-n", "-O", "qcow2", "top", "target"),
)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain with enough data in it to be stopped on the way."""
    folder = tmp_path_factory.mktemp("large")
    qemu_img("create", "-q", "-f", "qcow2", folder / "base", "96M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", folder / "middle")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "middle", "-F", "qcow2", folder / "top")
    qemu_img("create", "-q", "-f", "qcow2", folder / "target", "96M")
    qemu_io(folder / "base", "write -P 1 0 80M")
    qemu_io(folder / "middle", "write -P 2 8M 64M")
    qemu_io(folder / "top", "write -P 3 16M 64M")
    return folder


def interrupt(folder: Path, words: tuple[str, ...]) -> tuple[int, str]:
    """Run until the first step is shown, then press Ctrl-C. Returns: exit status and standard error."""
    with subprocess.Popen([*COWTREE, *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        shown = b""
        while len(PROGRESS.findall(shown.decode())) < 2:
            more = os.read(process.stdout.fileno(), 4096)
            assert more, process.stderr.read()
            shown += more
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=60)
        return process.returncode, complaint.decode()


@pytest.mark.slow
@pytest.mark.parametrize("words", CALLS, ids=" ".join)
def test_ctrl_c_leaves_all_images_valid_and_the_same_words_complete_it(
    large: Path, tmp_path: Path, words: tuple[str, ...]
):
    folder = tmp_path / "folder"
    shutil.copytree(large, folder)
    status, complaint = interrupt(folder, words)
    assert (status, complaint) == (130, "\ncowtree img: interrupted; run the same command again to complete it\n")
    assert sorted(path.name for path in folder.iterdir()) == ["base", "middle", "target", "top"]
    for path in folder.iterdir():
        assert run("qemu-img", "check", "-q", path).returncode in (0, 3), path.name
    assert_shows(large / "top", folder / "top")
    assert run_cowtree(folder, *words).status == 0
    for path in folder.iterdir():
        if path.name != "out" or "qcow2" in words:
            assert_clean(path)
    assert_shows(large / "top", folder / words[-1])


def assert_shows(expected: Path, found: Path) -> None:
    result = run("qemu-img", "compare", "-q", expected, found)
    assert result.returncode == 0, result.stderr


FULL_DISK = (
    ("commit", "l3"),
    ("commit", "-b", "l1", "l3"),
    ("rebase", "-b", "", "l3"),
    ("rebase", "-b", "l0", "-F", "qcow2", "l3"),
    ("convert", "-O", "qcow2", "l3", "out"),
    ("convert", "-O", "qcow2", "-c", "l3", "out"),
    ("convert", "-O", "raw", "l3", "out"),
)


@pytest.mark.slow
@pytest.mark.parametrize("words", FULL_DISK, ids=" ".join)
def test_a_full_disk_is_named_and_nothing_is_lost(
    chain_of: Callable[[Shape], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
):
    chain = chain_of(Shape())
    made: list[FaultyFiles] = []

    def run_with(folder: Path, fault: Fault | None) -> Result:
        def files(*secrets: object, **how: object) -> FaultyFiles:
            made.append(FaultyFiles(LocalFiles(), fault))
            return made[-1]

        monkeypatch.setattr("cowtree.cli.img.source.LocalFiles", files)
        return run_cowtree(folder, *words)

    shutil.copytree(chain, tmp_path / "whole")
    assert run_with(tmp_path / "whole", None).status == 0
    calls = max((each.calls for each in made), key=len)
    # What a full disk refuses; it still flushes and renames.
    costly = [number for number, call in enumerate(calls) if call.name in ("create", "pwrite", "truncate")]
    for call in costly[:: max(len(costly) // 8, 1)]:
        folder = tmp_path / f"full-{call}"
        shutil.copytree(chain, folder)
        result = run_with(folder, Fault(call, errno.ENOSPC, is_sticky=True))
        assert result.status == 1, (call, result)
        assert re.match("qemu-img: .*(l[0-3]|out).*: No space left on device", result.stderr), result.stderr
        assert sorted(path.name for path in folder.iterdir()) == ["l0", "l1", "l2", "l3"]
        assert_shows(chain / "l3", folder / "l3")
        assert run_with(folder, None).status == 0
        assert_shows(chain / "l3", folder / words[-1])
        for path in folder.iterdir():
            if "raw" not in words or path.name != "out":
                assert_clean(path)


def test_a_real_limit_of_the_system_is_named(chain_of: Callable[[Shape], Path], tmp_path: Path):
    folder = tmp_path / "folder"
    shutil.copytree(chain_of(Shape()), folder)
    before = content_of(folder)
    limit = 600_000
    result = subprocess.run(
        [*COWTREE, "convert", "-O", "raw", "l3", "out"],
        cwd=folder,
        capture_output=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert result.returncode == 1
    assert re.match("cowtree img: out: (write|truncate) failed: File too large. Try: ", result.stderr.decode())
    assert content_of(folder) == before


def test_a_reader_that_goes_away_stops_no_commit(large: Path, tmp_path: Path):
    folder = tmp_path / "folder"
    shutil.copytree(large, folder)
    with subprocess.Popen(
        [*COWTREE, "commit", "-p", "top"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.close()
        assert process.stderr
        assert process.stderr.read() == b""
    assert_shows(large / "top", folder / "middle")
    assert_clean(folder / "top")


def test_ctrl_c_while_libraries_are_loaded_reads_the_same(tmp_path: Path):
    # What numpy makes of it when the moment is unlucky, at a moment that can be chosen.
    (tmp_path / "numpy.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt:\n    raise ImportError('a bad installation')\n"
    )
    command = [*COWTREE, "commit", "top"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "\ncowtree img: interrupted; run the same command again to complete it\n"
