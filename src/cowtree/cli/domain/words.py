"""Virsh's grammar, as a table: a command is a row of options, and its help, its page and its parsing come from it.

- `--name value`, `--name=value` and flags may stand anywhere; no name is abbreviated.
- A word that is no option is the value of the first option that still has none, in the order of the table; the last one
  may take all that are left.
- Behind `--` no word is an option.

Source: libvirt 9.0, tools/vsh.c, `vshCommandParse`. It is short, for every command passes through here.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from cowtree.errors import WrongUse

STRING, NUMBER = "string", "number"
# What the value of an option is called that is the path of a file to be read.
FILE: Final = "file"
NUMBER_MAX: Final = (1 << 64) - 1


class Option(NamedTuple):
    """One option. `value` is what its value is called in help: a flag has none. One that `has_place` may be given by
    its place alone; one that `is_repeatable` is the last.
    """

    name: str
    help: str
    value: str = ""
    is_required: bool = False
    is_repeatable: bool = False
    has_place: bool = True
    is_number: bool = False

    @property
    def is_flag(self) -> bool:
        """Whether it has no value."""
        return not self.value

    @property
    def is_placed(self) -> bool:
        """Whether a word that is no option may be its value."""
        return self.has_place and not self.is_flag


class Command(NamedTuple):
    """One verb. `summary` is one line, `description` says the rest; `run` returns the exit status."""

    name: str
    summary: str
    options: tuple[Option, ...]
    run: Callable[["Given"], int]
    description: str = ""


class Given:
    """What was given to one command."""

    def __init__(self, command: Command, values: dict[str, list[str]]) -> None:
        self.command = command
        self._values = values

    def has(self, name: str) -> bool:
        """Whether an option was given."""
        return name in self._values

    def get(self, name: str) -> str | None:
        """The value of an option; None when it was not given."""
        return self.all(name)[0] if self.has(name) else None

    def want(self, name: str) -> str:
        """The value of an option that is required."""
        return self._values[name][0]

    def all(self, name: str) -> list[str]:
        """All values of an option that may be given several times."""
        return self._values.get(name, [])

    def number(self, name: str) -> int | None:
        """The value as a whole number; None when it was not given. Raises: WrongUse."""
        text = self.get(name)
        if text is None:
            return None
        # Longer numbers are out of range, and int() refuses them in its own words.
        if not (text.isascii() and text.isdigit() and len(text) <= len(str(NUMBER_MAX)) and int(text) <= NUMBER_MAX):
            reason = f"numeric value '{text[:40]}' for <{name}> option is malformed or out of range"
            raise _wrong(self.command, reason)
        return int(text)

    def refuse_both(self, *names: str) -> None:
        """Raises: WrongUse when more than one of these was given."""
        found = [name for name in names if self.has(name)]
        if len(found) > 1:
            reason = f"Options --{found[0]} and --{found[1]} are mutually exclusive"
            raise _wrong(self.command, reason)

    def refuse_without(self, name: str, needed: str) -> None:
        """Raises: WrongUse when an option was given, and another that it needs was not."""
        if self.has(name) and not self.has(needed):
            raise _wrong(self.command, f"Option --{needed} is required by option --{name}")


HELP: Final = Option("help", "show this help and exit")
CATALOG: Final = Option("catalog", "the catalogue, if not the one that is always used", FILE, has_place=False)
DOMAIN: Final = Option("domain", "the name of a domain, or its uuid", "domain", is_required=True)


def options_of(command: Command) -> tuple[Option, ...]:
    """All options of a command, with those that every command has."""
    return (*command.options, CATALOG, HELP)


def parse(command: Command, words: Sequence[str]) -> Given:
    """Sort out the words behind a verb. Raises: WrongUse, in virsh's words."""
    known = {option.name: option for option in options_of(command)}
    places = [option for option in command.options if option.is_placed]
    values: dict[str, list[str]] = {}
    are_options_over = False
    left = list(reversed(words))
    while left:
        word = left.pop()
        if not are_options_over and word == "--":
            are_options_over = True
        elif not are_options_over and (word == "-h" or (word.startswith("--") and word[2:3].isalnum())):
            option, value = _option(command, known, word, left)
            if option.name in values and not option.is_repeatable:
                raise _wrong(command, f"option --{option.name} already seen")
            values.setdefault(option.name, []).append(value)
        else:
            free = (option for option in places if option.is_repeatable or option.name not in values)
            place = next(free, None)
            if place is None:
                raise _wrong(command, f"unexpected data '{word}'")
            values.setdefault(place.name, []).append(word)
    if HELP.name not in values:
        _refuse_missing(command, values)
    _refuse_bytes(command, known, values)
    return Given(command, values)


def _option(command: Command, known: dict[str, Option], word: str, left: list[str]) -> tuple[Option, str]:
    """The option that a word names, and its value, which may be the next word."""
    name, is_assigned, value = ("help", "", "") if word == "-h" else word[2:].partition("=")
    option = known.get(name)
    if option is None:
        raise _wrong(command, f"command '{command.name}' doesn't support option --{name}")
    if option.is_flag:
        if is_assigned:
            raise _wrong(command, f"invalid '=' after option --{name}")
        return option, ""
    if not is_assigned and not left:
        kind = NUMBER if option.is_number else STRING
        raise _wrong(command, f"expected syntax: --{name} <{kind}>")
    return option, value if is_assigned else left.pop()


def _refuse_missing(command: Command, values: dict[str, list[str]]) -> None:
    for option in command.options:
        if option.is_required and option.name not in values:
            spelled = f"<{option.name}>" if option.is_placed else f"--{option.name}"
            raise _wrong(command, f"command '{command.name}' requires {spelled} option")


def _refuse_bytes(command: Command, known: dict[str, Option], values: dict[str, list[str]]) -> None:
    """Raises: WrongUse for a value that is no text; neither the catalogue nor XML can hold it. A file may be called
    anything.
    """
    for name, given in values.items():
        if known[name].value != FILE:
            for value in given:
                if not value.isascii() and value != value.encode(errors="replace").decode():
                    raise _wrong(command, f"value '{value}' for <{name}> option is not in UTF-8")


def _wrong(command: Command, reason: str) -> WrongUse:
    return WrongUse(reason=reason, hint=f"cowtree {command.name} --help")


def usage(command: Command) -> str:
    """The words of a command, behind its name, as help shows them."""
    return " ".join(map(_spell, options_of(command)))


def _spell(option: Option) -> str:
    if option.is_flag:
        return f"[--{option.name}]"
    value = f"<{option.value}>"
    if not option.is_placed:
        text = f"--{option.name} {value}"
    elif option.is_required:
        text = f"[--{option.name}] {value}"
        return f"{text}..." if option.is_repeatable else text
    else:
        text = f"[--{option.name}] {value}"
    text = text if option.is_required else f"[{text}]"
    return f"{text}..." if option.is_repeatable else text


def rows(command: Command) -> list[tuple[str, str]]:
    """Each option as it is spelled, and what it means."""
    return [
        (f"--{option.name}" if option.is_flag else f"--{option.name} <{option.value}>", option.help)
        for option in options_of(command)
    ]


def paragraphs(command: Command) -> list[str]:
    """What a command does."""
    sentence = f"{command.summary[0].upper()}{command.summary[1:]}."
    return [f"{sentence} {command.description}".rstrip()]


def describe(command: Command) -> str:
    """The help of one command."""
    lines = [f"usage: cowtree {command.name} {usage(command)}", "", *paragraphs(command), "", "options:"]
    lines += [f"  {spelled:<28}  {meaning}" for spelled, meaning in rows(command)]
    return "\n".join(lines)
