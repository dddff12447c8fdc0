"""The grammar that all subcommands share: options and names in any order, as getopt_long takes them.

A subcommand is a `Command` value: its options, the names behind them, and the function that runs it. Help and the CLI
reference are made from the same value.
"""

import getopt
from collections.abc import Callable, Sequence
from typing import NamedTuple, overload

from cowtree.errors import WrongUse


class BadWords(WrongUse):
    """Words that the grammar does not know; the message ends with where help is."""

    exit_status = 1


class Option(NamedTuple):
    """One option. `names` are all its spellings, the one that `Given` knows it by first; `value` names its argument."""

    names: tuple[str, ...]
    help: str
    value: str = ""


class Given:
    """The options and names of one call. `secrets` are those that `--object` describes, by their names: they are read
    once, for a pipe can be read only once.
    """

    def __init__(self, program: str, options: list[tuple[str, str]], names: list[str]) -> None:
        self.program = program
        self.names = names
        self.secrets: dict[str, bytes] = {}
        self.credentials: dict[str, str] = {}
        self._options = options

    def has(self, name: str) -> bool:
        """Whether the option was given."""
        return any(given == name for given, _ in self._options)

    @overload
    def last(self, name: str) -> str | None: ...

    @overload
    def last(self, name: str, default: str) -> str: ...

    def last(self, name: str, default: str | None = None) -> str | None:
        """The option's value, which may be empty; the last one when it was given more than once."""
        values = self.all(name)
        return values[-1] if values else default

    def all(self, name: str) -> list[str]:
        """All values of an option that may be given more than once."""
        return [value for given, value in self._options if given == name]

    def ordered(self) -> list[tuple[str, str]]:
        """All options with their values, in the order in which they were given."""
        return self._options


class Command(NamedTuple):
    """One subcommand. `names` is how help writes the names that follow the options; with `ends_plain` the last of
    several words is a name, whatever it begins with. `object_status` is how it exits when `--object` makes no sense.
    """

    name: str
    summary: str
    options: tuple[Option, ...]
    names: str
    run: Callable[[Given], int]
    ends_plain: bool = False
    object_status: int = 1


HELP = Option(("-h", "--help"), "show this help and exit")
FORMAT = Option(("-f", "--format"), "format of the image; told from its first bytes when not given", "FMT")
OUTPUT = Option(("--output",), "human (the default) or json", "OFMT")
SHARE = Option(("-U", "--force-share"), "open it even when another process writes to it")
QUIET = Option(("-q", "--quiet"), "print nothing but errors")
PROGRESS = Option(("-p",), "show how far it is")
IMAGE_OPTS = Option(("--image-opts",), "the name is a list of options: driver=qcow2,file.filename=PATH")
OBJECT = Option(("--object",), "an object of QEMU's, such as a secret", "OBJECTDEF")
CACHE = Option(("-t",), "cache mode for what is written: none, writeback, writethrough, directsync or unsafe", "CACHE")
SOURCE_CACHE = Option(("-T",), "cache mode for what is read", "SRC_CACHE")


def parse(command: Command, words: Sequence[str], program: str) -> Given:
    """Sort the words behind a subcommand into options and names.
    Raises: BadWords.
    """
    count = len(words) - 1 if command.ends_plain and len(words) > 1 else len(words)
    options, names = split_words(words[:count], (*command.options, HELP))
    return Given(program, options, [*names, *words[count:]])


def split_words(
    words: Sequence[str], known: Sequence[Option], *, in_front: bool = False
) -> tuple[list[tuple[str, str]], list[str]]:
    """Split words into (option, value) pairs and names; with `in_front` options end at the first name.
    Raises: BadWords.
    """
    spellings = {name: option for option in known for name in option.names}
    short = "".join(name[1] + (":" if spellings[name].value else "") for name in spellings if name[1] != "-")
    long = [name[2:] + ("=" if spellings[name].value else "") for name in spellings if name[1] == "-"]
    split = getopt.getopt if in_front else getopt.gnu_getopt
    try:
        given, names = split(list(words), short, long)
    except getopt.GetoptError as error:
        is_missing = error.msg.endswith("requires argument")
        what, word = ("missing argument for", words[-1]) if is_missing else ("unrecognized", _wrong_word(words, error))
        raise BadWords(reason=f"{what} option '{word}'") from error
    return [(spellings[name].names[0], value) for name, value in given], names


def _wrong_word(words: Sequence[str], error: getopt.GetoptError) -> str:
    """The word that holds a wrong option, as it was typed."""
    option, is_long, has_value = error.opt, error.msg.startswith("option --"), error.msg.endswith("have an argument")
    for word in words:
        typed, is_assigned, _ = word[2:].partition("=")
        if not is_long and word[:1] == "-" != word[1:2] and option in word:
            return word
        if (
            is_long
            and word[:2] == "--"
            and (is_assigned and option.startswith(typed) if has_value else typed == option)
        ):
            return word
    return f"-{option}"


def want_names(given: Given, count: int, complaint: str) -> list[str]:
    """The names of the call, of which there must be so many. Raises: BadWords."""
    if len(given.names) != count:
        raise BadWords(reason=complaint)
    return given.names


def want_json(given: Given) -> bool:
    """Whether `--output` asks for JSON. Raises: WrongUse when it asks for something else."""
    output = given.last("--output")
    if output not in (None, "human", "json"):
        raise WrongUse(reason="--output must be used with human or json as argument.")
    return output == "json"


def usage(command: Command, program: str) -> str:
    """One line that shows all options of a subcommand."""
    words = []
    for option in command.options:
        value = f" {option.value}" if option.value else ""
        words.append(f"[{option.names[0]}{value}]")
    return " ".join([program, command.name, *words, command.names])


def describe(command: Command, program: str) -> str:
    """The help of one subcommand."""
    lines = [f"usage: {usage(command, program)}", "", command.summary, ""]
    for option in (*command.options, HELP):
        spelled = ", ".join(option.names) + (f" {option.value}" if option.value else "")
        lines.append(f"  {spelled:<28}  {option.help}")
    return "\n".join(lines)
