"""Holds that README and docs are true: every shell block is run, in order, in one folder; every make target exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.qemu import run

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = ("README.md", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))))


def shell_lines(page: str) -> list[str]:
    """The lines of all shell blocks of a page, but for make, which is looked at by a test of its own."""
    blocks: list[str] = BLOCK.findall((ROOT / page).read_text())
    return [line for block in blocks for line in block.splitlines() if not line.startswith("make ")]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_works(page: str, tmp_path: Path):
    script = "\n".join([f"PATH={Path(sys.executable).parent}:$PATH", "set -eux", *shell_lines(page)])
    result = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert result.returncode == 0, result.stderr


def test_the_readme_has_commands_to_run():
    assert len(shell_lines("README.md")) > 15


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_of_a_page_exists(page: str):
    code = re.findall(r"`(make [^`]*)`|^(make .*)$", (ROOT / page).read_text(), re.MULTILINE)
    for words in {first or second for first, second in code}:
        result = run("make", "-C", ROOT, "-n", *words.split()[1:])
        assert result.returncode == 0, f"{words}: {result.stderr}"


def test_the_tree_in_the_readme_is_as_cowtree_draws_it():
    picture = (ROOT / "README.md").read_text().split("```\n")[1]
    assert picture.startswith("image ")
    assert "└── Snap-1.qcow2" in picture
