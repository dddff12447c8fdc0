"""Sizes on the command line, and qemu-img's words for one that is wrong."""

from typing import Final

from cowtree.errors import WrongUse
from cowtree.units import parse_size

NUMBER_MAX: Final = (1 << 63) - 1


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
