"""Writes docs/cli.md from the parsers and tables that the commands themselves use: `make docs`."""

import argparse
import sys
from collections.abc import Iterable, Iterator

from cowtree.cli.domain import words
from cowtree.cli.domain.main import MODULES
from cowtree.cli.domain.main import find as find_verb
from cowtree.cli.img.command import HELP, Command, Option, usage
from cowtree.cli.img.main import COMMANDS, find
from cowtree.cli.img.options import KNOWN_FORMATS, Known, known_options
from cowtree.cli.verbs import make_parser
from cowtree.errors import CowtreeError

PROGRAM = "cowtree img"
INTRODUCTION = """\
# Commands

Written by `make docs` from the commands themselves.

`cowtree VERB` has verbs of its own; those on domains and snapshots take the words of libvirt's `virsh`, in its grammar,
and give its output. `cowtree img COMMAND` takes the words of QEMU's `qemu-img` and gives its output and
its exit status, for raw and qcow2 images; called through a link named `qemu-img`, cowtree is `cowtree img`.
"""
STATUSES = """\
## Exit status

0 means that all was done, and that what was written is on disk. `cowtree img` exits with 1 when something went wrong.
`cowtree img check` exits with 2 for a damaged image, 3 for one that only leaks clusters and 63 for a format that has
nothing to check; `cowtree img compare` with 1 when the images differ, and with more when it could not tell. cowtree's
own verbs say by the number what went wrong:
"""


def reference() -> str:
    """The whole page."""
    parts = [INTRODUCTION, *_verbs(make_parser())]
    parts += [_domain_verb(find_verb(name)) for name in MODULES]
    parts += [_img(find(name)) for name in COMMANDS]
    parts += [_format_options(image_format) for image_format in KNOWN_FORMATS]
    return "\n".join([*parts, STATUSES, _table(("status", "meaning"), _statuses())])


def _verbs(parser: argparse.ArgumentParser) -> Iterator[str]:
    """A chapter for each verb; those without help of their own are described elsewhere."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, verb in action.choices.items():
                if verb.add_help:
                    yield _verb(name, verb)


def _verb(name: str, parser: argparse.ArgumentParser) -> str:
    words = [_spell(action) for action in parser._actions]
    rows = [
        (f"`{', '.join(action.option_strings) or action.metavar}`", action.help or "") for action in parser._actions
    ]
    paragraphs = [text for text in (parser.description, parser.epilog) if text]
    return _chapter(f"cowtree {name}", " ".join(words), paragraphs, rows)


def _spell(action: argparse.Action) -> str:
    """An argument as usage shows it."""
    value = "" if action.nargs == 0 else str(action.metavar or "|".join(action.choices or [action.dest.upper()]))
    if action.option_strings:
        return f"[{' '.join([action.option_strings[0], *([value] if value else [])])}]"
    return f"[{value}...]" if action.nargs == "*" else f"{value}..." if action.nargs == "+" else value


def _domain_verb(command: words.Command) -> str:
    rows = [(f"`{spelled}`", meaning) for spelled, meaning in words.rows(command)]
    return _chapter(f"cowtree {command.name}", words.usage(command), words.paragraphs(command), rows)


def _img(command: Command) -> str:
    rows = [(f"`{_spellings(option)}`", option.help) for option in (*command.options, HELP)]
    words = usage(command, PROGRAM).removeprefix(f"{PROGRAM} {command.name} ")
    return _chapter(f"{PROGRAM} {command.name}", words, [command.summary], rows)


def _spellings(option: Option) -> str:
    return ", ".join(option.names) + (f" {option.value}" if option.value else "")


def _chapter(name: str, words: str, paragraphs: list[str], rows: list[tuple[str, str]]) -> str:
    text = "\n\n".join(paragraphs)
    return f"## {name}\n\n    {name} {words}\n\n{text}\n\n{_table(('option', 'meaning'), rows)}"


def _format_options(image_format: str) -> str:
    rows = [(f"`{each.name}`", _kind(each), each.help) for each in sorted(known_options(image_format))]
    return f"## -o for {image_format}\n\n{_table(('option', 'value', 'meaning'), rows)}"


def _kind(known: Known) -> str:
    return f"{known.kind}; {known.default} when not given" if known.default else known.kind


def _statuses() -> list[tuple[str, str]]:
    """A row for each kind of error, by number; a class without a number of its own only gathers others."""
    found = {CowtreeError.exit_status: "Anything else that went wrong."}
    for kind in _family(CowtreeError):
        found.setdefault(kind.exit_status, (kind.__doc__ or "").partition("\n")[0])
    return [(str(number), meaning) for number, meaning in sorted(found.items())]


def _family(kind: type[CowtreeError]) -> Iterator[type[CowtreeError]]:
    for each in kind.__subclasses__():
        if each.__module__ == kind.__module__:
            yield each
            yield from _family(each)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |\n" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(reference())
