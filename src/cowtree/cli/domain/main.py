"""Finds the verb of virsh's that is called, and runs it; failures read as virsh's do, with advice behind them.

A module is imported when one of its verbs is called, or when all are listed. Each has `COMMANDS`, by name.
"""

import importlib
import sys
from typing import Final

from cowtree.cli.domain.words import HELP, Command, describe, parse
from cowtree.errors import CowtreeError, WrongUse

# Which module of this folder holds a verb.
MODULES: Final = {
    **dict.fromkeys(("define", "undefine", "adopt", "dumpxml"), "define"),
    **dict.fromkeys(("list", "dominfo", "domstate", "domblklist", "domblkinfo"), "show"),
    **dict.fromkeys(("snapshot-create-as", "snapshot-create", "snapshot-revert"), "snapshots"),
    **dict.fromkeys(("snapshot-list", "snapshot-info", "snapshot-dumpxml", "snapshot-parent"), "lists"),
    "snapshot-current": "lists",
    "snapshot-delete": "delete",
    **dict.fromkeys(("blockcommit", "blockpull", "blockjob"), "merge"),
    **dict.fromkeys(("blockcopy", "blockresize"), "copies"),
    "snapshot-edit": "edit",
}


def find(name: str) -> Command:
    """The verb of this name, which must be one of MODULES."""
    commands: dict[str, Command] = importlib.import_module(f"cowtree.cli.domain.{MODULES[name]}").COMMANDS
    return commands[name]


def overview() -> list[tuple[str, str]]:
    """All verbs, and what each of them does."""
    return [(name, find(name).summary) for name in MODULES]


def run(words: list[str]) -> int:
    """Run `cowtree words...`. Returns: the exit status."""
    command = find(words[0])
    try:
        given = parse(command, words[1:])
    except WrongUse as error:
        # Virsh has not begun then, and leaves no line empty.
        return complain(error)
    if given.has(HELP.name):
        print(describe(command))
        return 0
    try:
        return command.run(given)
    except CowtreeError as error:
        status = complain(error)
        print(flush=True)
        return status


def complain(error: CowtreeError) -> int:
    """Say what went wrong, and what was not done for it. Returns: the exit status."""
    from cowtree.cli.tree import printable  # noqa: PLC0415  what works needs it not

    for sentence in (*error.facts.get("before", ()), str(error)):
        print(f"error: {printable(sentence)}", file=sys.stderr)
    return error.exit_status
