"""Holds that the demo ends well, and that it stops when a guest would see something else."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.qemu import qemu_io, run

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def demo() -> ModuleType:
    """The demo as a module."""
    spec = importlib.util.spec_from_file_location("demo", ROOT / "demo/run.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_demo_ends_with_every_digest_equal():
    result = run(sys.executable, ROOT / "demo/run.py")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Every figure done, every digest equal" in result.stdout
    for scene in ("Figure-2", "Figure-3", "Figure-4", "Figure-5", "Figure-6", "case (6)", "method-b", "Method (2)"):
        assert scene in result.stdout


def test_the_demo_needs_no_qemu():
    assert "qemu-" not in (ROOT / "demo/run.py").read_text()


def test_a_changed_digest_stops_the_demo(demo: ModuleType, tmp_path: Path):
    image = tmp_path / "a.img"
    image.write_bytes(bytes(1 << 20))
    before = demo.seen_in(tmp_path, ["a.img"])
    demo.prove(tmp_path, before)
    qemu_io(image, "write -P 65 512 512", image_format="raw")
    with pytest.raises(demo.DemoFailed, match=r"through a\.img"):
        demo.prove(tmp_path, before)
