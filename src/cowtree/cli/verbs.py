"""cowtree's own verbs: one module each, with `add_parser` and `run`."""

import argparse
import sys
from typing import Any, Final, NoReturn, Protocol

from cowtree import __version__
from cowtree.cli import digest, merge, pool, recover, relocate, tree, trim, undo, verify
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
}
IMG: Final = "img"


class Parser(argparse.ArgumentParser):
    """A parser that raises what is wrong, so that it reads as every other error does."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the words, and where the right ones stand. Raises: WrongUse."""
        raise WrongUse(reason=message, hint=f"{self.prog} --help")


def make_parser() -> Parser:
    """The parser of all verbs; the CLI reference is made from it."""
    parser = Parser(
        prog="cowtree",
        description="Manages trees of copy-on-write disk images without ever losing what a guest can see.",
        epilog="'cowtree VERB --help' shows the words of one verb. Called as qemu-img, cowtree is 'cowtree img'.",
    )
    parser.add_argument("--version", action="version", version=f"cowtree {__version__}")
    verbs = parser.add_subparsers(title="verbs", dest="verb", metavar="VERB", required=True)
    for verb in VERBS.values():
        verb.add_parser(verbs)
    verbs.add_parser(IMG, help="work on single images and chains, in the words of qemu-img", add_help=False)
    return parser


def run(words: list[str]) -> int:
    """Parse the words and run the verb. Returns: the exit status.
    Raises: WrongUse, and what the verb raises.
    """
    parser = make_parser()
    if not words:
        parser.print_help(sys.stderr)
        return WrongUse.exit_status
    if not words[0].startswith("-") and words[0] not in (*VERBS, IMG):
        raise WrongUse(reason=f"there is no verb '{words[0]}'", hint="cowtree --help")
    try:
        arguments = parser.parse_args(merge.spell_out(words))
    except SystemExit as end:
        # argparse has shown help or the version.
        return int(end.code or 0)
    status: int = arguments.run(arguments)
    return status
