"""What every test of a command has: a catalogue of its own."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the catalogue is; its folder is not there yet."""
    path = tmp_path.with_name(f"{tmp_path.name}.state") / "catalog.db"
    monkeypatch.setenv("COWTREE_CATALOG", str(path))
    return path
