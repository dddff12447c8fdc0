"""What tests of virsh's words have: guests, and a clock in the zone in which stock was recorded."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.domain.guest import Guest


@pytest.fixture(autouse=True)
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the local time be that of Greenwich."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def guest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Guest]:
    """Defines a guest with these images for disks."""
    return lambda name="f17vm1", *files: Guest(tmp_path, capsys, name, *(files or (f"{name}.qcow2",)))
