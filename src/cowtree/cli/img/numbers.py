"""Sizes on the command line, and qemu-img's words for one that is wrong."""

from typing import Final

from cowtree.errors import WrongUse
from cowtree.units import parse_size

NUMBER_MAX: Final = (1 << 63) - 1
INTEGER_MAX: Final = (1 << 64) - 1


def parse_number(name: str, text: str, *, low: int = 0, high: int = NUMBER_MAX) -> int:
    """The number of bytes that `text` means; `name` is what people call it. Raises: WrongUse."""
    try:
        number = parse_size(text)
    except ValueError as error:
        suffixes = "k, M, G, T, P or E suffixes for kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes."
        raise WrongUse(reason=f"Invalid {name} specified. You may use {suffixes}") from error
    except OverflowError:
        number = NUMBER_MAX + 1
    if not low <= number <= high:
        raise WrongUse(reason=f"Invalid {name} specified. Must be between {low} and {high}.")
    return number


def parse_integer(text: str) -> int:
    """Read an integer as C does: `0x` means hexadecimal, a leading zero octal.
    Raises: ValueError for anything else, OverflowError when it has more than 64 bits.
    """
    if not text.isascii() or not text.isalnum():
        raise ValueError(text)
    number = int(text, 8 if text[0] == "0" and text.isdigit() else 0)
    if number > INTEGER_MAX:
        raise OverflowError(text)
    return number


def parse_count(name: str, text: str, *, high: int) -> int:
    """The count that `text` means; `name` is what people call it. Raises: WrongUse."""
    try:
        count = parse_integer(text)
    except (ValueError, OverflowError):
        count = high + 1
    if count > high:
        raise WrongUse(reason=f"Invalid {name} specified", hint=f"a number from 0 to {high}")
    return count
