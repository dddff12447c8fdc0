"""Sizes as people write and read them, in the forms that qemu-img takes and prints."""

import re

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
SECTOR_BYTES = 512

SIZE_WANTED = (
    "expects a non-negative number below 2^64\n"
    "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively."
)
_SUFFIXES = "bkmgtpe"
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_SIZE_BYTES_MAX = (1 << 63) - 1
# Source: what strtoull takes before a number.
_START = r"[ \t\n\v\f\r]*\+?"
_DECIMAL = re.compile(_START + r"(?P<number>\d+)(\.(?P<fraction>\d*))?(?P<suffix>[bkmgtpe]?)", re.ASCII | re.IGNORECASE)
_HEXADECIMAL = re.compile(
    _START + r"0x(?P<number>[0-9a-f]+)(?P<fraction>)(?P<suffix>[kmgtp]?)", re.ASCII | re.IGNORECASE
)


def parse_size(text: str) -> int:
    """Read a size such as `64k`, `1.5G` or `0x200`, as qemu-img does; a suffix is a power of 1024.
    Raises: ValueError for anything else, OverflowError when it is 8 EiB or more.
    """
    found = _DECIMAL.fullmatch(text) or _HEXADECIMAL.fullmatch(text)
    if not found:
        raise ValueError(text)
    scale = 1 << (10 * _SUFFIXES.index(found["suffix"].lower() or "b"))
    # QEMU keeps 64 bits of the fraction, and rounds a half up.
    fraction = min(int(float(f"0.{found['fraction'] or 0}") * (1 << 64)), (1 << 64) - 1)
    if fraction and scale == 1:
        raise ValueError(text)
    number = int(found["number"], 16 if found.re is _HEXADECIMAL else 10)
    size_bytes = (((number << 64) + fraction) * scale + (1 << 63)) >> 64
    if size_bytes > _SIZE_BYTES_MAX:
        raise OverflowError(text)
    return size_bytes


def format_size(size_bytes: int) -> str:
    """Show a size with three significant digits: `196 KiB`, `1.5 GiB`.
    Source: the form of `qemu-img info`.
    """
    power = 0
    while size_bytes / (1 << (10 * power)) >= 1000 and power < len(_UNITS) - 1:
        power += 1
    return f"{size_bytes / (1 << (10 * power)):.3g} {_UNITS[power]}"
