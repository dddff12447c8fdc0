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
        suffixes = "kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes."
        reason = f"Invalid {name} specified. You may use k, M, G, T, P or E suffixes for"
        raise WrongUse(reason=reason, next_line=suffixes) from error
    except OverflowError:
        number = NUMBER_MAX + 1
    if not low <= number <= high:
        raise WrongUse(reason=f"Invalid {name} specified. Must be between {low} and {high}.")
    return number


def parse_integer(text: str) -> int:
    """Read an integer as C does: `0x` means hexadecimal, a leading zero octal, and a number below 0 its complement.
    Raises: ValueError for anything else, OverflowError when it has more than 64 bits.
    """
    digits = text.lstrip(" \t\n\v\f\r")
    is_negative, digits = digits[:1] == "-", digits[digits[:1] in ("+", "-") :]
    if not digits.isascii() or not digits.isalnum():
        raise ValueError(text)
    number = int(digits, 8 if digits[0] == "0" and digits.isdigit() else 0)
    if number > INTEGER_MAX:
        raise OverflowError(text)
    return -number & INTEGER_MAX if is_negative else number


def parse_count(name: str, text: str, *, high: int) -> int:
    """The count that `text` means; `name` is what people call it. Raises: WrongUse."""
    try:
        count = parse_integer(text)
    except (ValueError, OverflowError):
        count = high + 1
    if count > high:
        raise WrongUse(reason=f"Invalid {name} specified", hint=f"a number from 0 to {high}")
    return count
