"""cowtree's own verbs: one module each, with `add_parser` and `run`; those of virsh's are in `cli/domain`."""

import argparse
import os
import sys
from typing import Any, Final, NoReturn, Protocol

from cowtree import __version__
from cowtree.cli import digest, merge, pool, recover, relocate, serve, tree, trim, undo, verify
from cowtree.cli.domain import catalog, policy
from cowtree.cli.domain.main import MODULES
from cowtree.cli.domain.main import run as run_domain_verb
from cowtree.errors import WrongUse


class Verb(Protocol):
    """What every verb can do, be it a module or an object."""

    def add_parser(self, verbs: "argparse._SubParsersAction[Any]") -> None:
        """Declare the verb."""


VERBS: Final[dict[str, Verb]] = {
    "tree": tree,
    "digest": digest,
    **{name: merge.Verb(name) for name in merge.HELP},
    "plan": merge.Planning(),
    "recover": recover,
    "undo": undo,
    "trim": trim,
    "relocate": relocate,
    "pool": pool,
    "verify": verify,
    "serve": serve,
    "catalog": catalog,
    "policy": policy,
    "tidy": policy.Tidying(),
}
IMG: Final = "img"
COLUMN_COUNT: Final = 80


class Formatter(argparse.HelpFormatter):
    """Lays help out. It asks for the width of the terminal itself: argparse would load all that can pack files for it,
    whether there is help or not, which takes as long as a short command.
    """

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_column_count() - 2)


def _column_count() -> int:
    """How wide the terminal is, as everybody tells it."""
    named = os.environ.get("COLUMNS", "")
    if named.isdecimal() and len(named) < 10 and int(named):
        return int(named)
    try:
        return os.get_terminal_size(sys.__stdout__.fileno() if sys.__stdout__ else 1).columns or COLUMN_COUNT
    except (OSError, ValueError):
        return COLUMN_COUNT


class Parser(argparse.ArgumentParser):
    """A parser that raises what is wrong, so that it reads as every other error does."""

    def __init__(self, **words: Any) -> None:
        super().__init__(**{"formatter_class": Formatter, **words})

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the words, and where the right ones stand. Raises: WrongUse."""
        raise WrongUse(reason=message, hint=f"{self.prog} --help")


class Mixed(Parser):
    """The parser of one verb, whose options may stand before, between and behind all other words."""

    _is_within = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse all that is known of some words."""
        has_verbs = any(action.nargs == argparse.PARSER for action in self._get_positional_actions())
        # What stands behind two strokes is no option; argparse does not mix and heed that at once.
        if self._is_within or has_verbs or "--" in (sys.argv if args is None else args):
            return super().parse_known_args(args, namespace)
        self._is_within = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_within = False


def make_parser(wanted: str | None = None) -> Parser:
    """The parser of all verbs, or of one alone: each takes its time. The CLI reference is made from it."""
    parser = Overview(
        prog="cowtree",
        description="Manages trees of copy-on-write disk images without ever losing what a guest can see.",
        epilog="'cowtree VERB --help' shows the words of one verb. Called as qemu-img, cowtree is 'cowtree img'.",
    )
    parser.add_argument("--version", action="version", version=f"cowtree {__version__}")
    verbs = parser.add_subparsers(title="verbs", dest="verb", metavar="VERB", required=True, parser_class=Mixed)
    for name, verb in VERBS.items():
        if wanted in (None, name):
            verb.add_parser(verbs)
    verbs.add_parser(IMG, help="work on single images and chains, in the words of qemu-img", add_help=False)
    return parser


class Overview(Parser):
    """The parser of all verbs; its help names those too that are parsed in virsh's grammar."""

    def format_help(self) -> str:
        """The help of the command itself."""
        from cowtree.cli.domain.main import overview  # noqa: PLC0415  only help lists them all

        rows = "".join(f"    {name:<20}{summary}\n" for name, summary in overview())
        own, mark, end = super().format_help().rpartition("\n\n")
        return f"{own}\n\ndomains and snapshots, in the words of virsh:\n{rows}{mark[1:]}{end}"


def run(words: list[str]) -> int:
    """Parse the words and run the verb. Returns: the exit status.
    Raises: WrongUse, and what the verb raises.
    """
    if not words:
        make_parser().print_help(sys.stderr)
        return WrongUse.exit_status
    if words[0] in MODULES:
        return run_domain_verb(words)
    if not words[0].startswith("-") and words[0] not in (*VERBS, IMG):
        raise WrongUse(reason=f"there is no verb '{words[0]}'", hint="cowtree --help")
    parser = make_parser(words[0] if words[0] in VERBS else None)
    try:
        arguments = parser.parse_args(merge.spell_out(words))
    except SystemExit as end:
        # argparse has shown help or the version.
        return int(end.code or 0)
    status: int = arguments.run(arguments)
    return status
