"""Finds the subcommand and runs it; failures read as qemu-img's do, with advice behind them.

Each subcommand is imported when it is called. All of them exit with 1 for any failure, as scripts written for qemu-img
expect, where a subcommand does not say otherwise.
"""

import importlib
import sys

from cowtree import __version__
from cowtree.chain.address import is_export, is_json
from cowtree.chain.gate import FORMATS
from cowtree.cli.img.command import HELP, BadWords, Command, Given, Option, describe, parse, split_words
from cowtree.cli.img.objects import objects_help, read_credentials, read_secrets
from cowtree.cli.img.source import spelled
from cowtree.errors import (
    ChainError,
    CowtreeError,
    ImageError,
    ImageLocked,
    LoopInChain,
    MissingImage,
    NotInChain,
    PlacedError,
    StorageFailed,
    with_advice,
)

COMMANDS = (
    "amend",
    "bench",
    "bitmap",
    "check",
    "commit",
    "compare",
    "convert",
    "create",
    "dd",
    "info",
    "map",
    "measure",
    "rebase",
    "resize",
    "snapshot",
)
# The name under which scripts call it.
QEMU_IMG = "qemu-img"
# The release of qemu-img whose words, output and exit status these are.
QEMU_IMG_VERSION = "7.2.22"
VERSION = Option(("-V", "--version"), "show the version and exit")
# Tracing is QEMU's own; it changes nothing that a command does.
TRACE = Option(("-T", "--trace"), "ignored", "PATTERN")


def find(name: str) -> Command:
    """The subcommand of this name, which must be one of COMMANDS."""
    command: Command = importlib.import_module(f"cowtree.cli.img.{name}").COMMAND
    return command


def run(words: list[str], program: str) -> int:
    """Run `program words...`. Returns: the exit status."""
    try:
        return _dispatch(words, program)
    except BadWords as error:
        print(f"{program}: {error}\nTry '{program} --help' for more information", file=sys.stderr)
        return 1


def _dispatch(words: list[str], program: str) -> int:
    options, rest = split_words(words, (HELP, VERSION, TRACE), in_front=True)
    for name, _ in options:
        if name == "-h":
            print(overview(program))
            return 0
        if name == "-V":
            print(f"{program} version {QEMU_IMG_VERSION} (cowtree {__version__})")
            return 0
    if not words:
        raise BadWords(reason="Not enough arguments")
    if not rest:
        return 0
    if rest[0] not in COMMANDS:
        raise BadWords(reason=f"Command not found: {rest[0]}")
    command = find(rest[0])
    given = parse(command, rest[1:], program)
    if given.has("-h"):
        print(describe(command, program))
        return 0
    return _run(command, given)


def _run(command: Command, given: Given) -> int:
    """Run a subcommand, after its objects are made."""
    objects, status = given.all("--object"), command.object_status
    try:
        if help_text := objects_help(objects):
            print(help_text)
            return 0
        given.secrets = read_secrets(objects)
        given.credentials = read_credentials(objects)
        status = 1
        return command.run(given)
    except BadWords:
        raise
    except CowtreeError as error:
        complain(given, error)
    return status


def overview(program: str) -> str:
    """The help of `cowtree img` itself."""
    lines = [f"usage: {program} [-h | -V] COMMAND [OPTIONS] NAMES", ""]
    lines += [f"  {name:<10}  {find(name).summary}" for name in COMMANDS]
    lines += ["", f"'{program} COMMAND --help' shows the options of one command.", ""]
    return "\n".join([*lines, f"Supported formats: {' '.join(sorted(FORMATS))}"])


def trouble(error: CowtreeError) -> str:
    """What is wrong with one file, in qemu-img's words; the caller has said what it was opened for."""
    if isinstance(error, MissingImage) and not is_export(error.facts["path"]):
        return f"Could not open '{error.facts['path']}': {error.reason}"
    if isinstance(error, StorageFailed) and error.facts.get("action") == "create":
        return f"Could not create '{error.facts['path']}': {error.facts['reason']}"
    return error.reason if isinstance(error, ImageError | ChainError) else error.message


def complain(given: Given, error: CowtreeError) -> None:
    """Say what went wrong, and what to do next."""
    if isinstance(error, PlacedError):
        name = error.facts.get("name", error.facts.get("path", ""))
        if "name" in error.facts or is_json(name):
            error.facts["name"] = spelled(given, name)
    detail = "" if given.program == QEMU_IMG else error.facts.get("detail", "")
    say(given, sentence(error) + detail, error.advice)
    if next_line := error.facts.get("next_line"):
        print(f"{given.program}: {next_line}", file=sys.stderr)


def say(given: Given, text: str, advice: str) -> None:
    """Print a message. Called in qemu-img's place it ends as qemu-img's does, for there scripts compare it."""
    print(f"{given.program}: {text if given.program == QEMU_IMG else with_advice(text, advice)}", file=sys.stderr)


def sentence(error: CowtreeError) -> str:
    """What went wrong, in the form in which qemu-img puts it."""
    text = trouble(error)
    if isinstance(error, ImageError | ChainError | ImageLocked) and not isinstance(error, NotInChain | LoopInChain):
        overlay = error.facts.get("overlay")
        if overlay is not None:
            text = f"Could not open backing file: {text}"
        text = f"Could not open '{overlay or error.facts.get('name', error.facts['path'])}': {text}"
    return text


def warn(given: Given, text: str) -> None:
    """Say something that does not stop the command."""
    print(f"{given.program}: warning: {text}", file=sys.stderr)


def warn_further(given: Given, text: str) -> None:
    """Warn of what qemu-img keeps silent about; in its place so do we."""
    if given.program != QEMU_IMG:
        warn(given, text)
