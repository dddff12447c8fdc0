"""The page of all commands is made from the commands."""

import subprocess
import sys
from pathlib import Path

from cowtree.cli.domain.main import MODULES
from cowtree.cli.img.main import COMMANDS, find
from cowtree.cli.reference import reference
from cowtree.cli.verbs import VERBS

PAGE = Path(__file__).resolve().parent.parent.parent / "docs/cli.md"


def test_the_page_is_what_the_commands_say():
    assert PAGE.read_text(encoding="utf-8") == reference(), "write it anew: make docs"


def test_it_does_not_depend_on_the_terminal():
    for columns in ("40", "200"):
        command = [sys.executable, "-m", "cowtree.cli.reference"]
        done = subprocess.run(command, env={"COLUMNS": columns, "LC_ALL": "C.UTF-8"}, capture_output=True, check=True)
        assert done.stdout.decode() == reference()


def test_every_command_and_every_option_is_there():
    page = reference()
    for name in (*VERBS, *MODULES):
        assert f"\n## cowtree {name}\n\n    cowtree {name} [" in page
    for name in COMMANDS:
        chapter = page.partition(f"\n## cowtree img {name}\n")[2].partition("\n## ")[0]
        assert all(f"`{', '.join(option.names)}" in chapter for option in find(name).options)


def test_every_exit_status_is_explained():
    rows = [line for line in reference().splitlines() if line.startswith("| ") and line[2].isdigit()]
    numbers = [int(row.split()[1]) for row in rows]
    assert numbers == sorted(set(numbers))
    assert set(range(1, 18)) <= set(numbers)
