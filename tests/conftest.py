"""Owns what holds for every test: the tools that must be there, and how many seeds a seeded test runs.

A missing tool stops the run with one sentence; nothing is ever left out quietly.
"""

import os
import shutil
import signal
import tempfile

import pytest
from hypothesis import settings

TOOLS = {
    "fio": "fio",
    "git": "git",
    "mke2fs": "e2fsprogs",
    "mkfs.btrfs": "btrfs-progs",
    "mkfs.xfs": "xfsprogs",
    "nbdcopy": "libnbd-bin",
    "nbdinfo": "libnbd-bin",
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "qemu-storage-daemon": "qemu-system-common",
    "strace": "strace",
}

settings.register_profile("default", deadline=None, derandomize=True)
settings.register_profile("soak", deadline=None, max_examples=2000)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let `make soak` ask for more seeds."""
    parser.addoption("--seeds", type=int, default=20, help="how many seeds each seeded test runs (default: 20)")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to start when a tool is missing."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"  # where Debian keeps mke2fs
    # No test reads or writes the catalogue of whoever runs it.
    os.environ["COWTREE_CATALOG"] = os.path.join(tempfile.mkdtemp(prefix="cowtree-tests-"), "catalog.db")
    # A shell lets what runs in its background ignore Ctrl-C, and that would be inherited by what the tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        packages = " ".join(sorted({TOOLS[tool] for tool in missing}))
        raise pytest.UsageError(f"the tests need {', '.join(missing)}. Try: apt-get install {packages}")


def pytest_unconfigure() -> None:
    """Leave nothing behind."""
    shutil.rmtree(os.path.dirname(os.environ["COWTREE_CATALOG"]), ignore_errors=True)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `seed` once per seed, so that a failure names the seed that replays it."""
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(metafunc.config.getoption("--seeds")))
