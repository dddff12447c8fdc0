"""Which snapshots are kept: a rule such as 24h:7d:4w, and what it makes of a row of moments. Nothing is read here.

24h keeps the newest snapshot of each of the last 24 hours in which there is one; d, w, m and y mean days, weeks, months
and years of local time; 5last keeps the newest five. A snapshot stays when any part of the rule keeps it. Periods
without a snapshot do not count: a guest that was off for a year loses nothing by that, nor does one whose clock goes
wrong.
"""

import re
from collections.abc import Callable, Hashable, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from cowtree.errors import WrongUse

LAST: Final = "last"
UNITS: Final = {"h": "hour", "d": "day", "w": "week", "m": "month", "y": "year", LAST: ""}
COUNT_MAX: Final = 99999
_HINT: Final = "--keep 24h:7d:4w, with h d w m y for hours, days, weeks, months, years; or --keep 5last"


class Part(NamedTuple):
    """So many periods of one kind."""

    limit: int
    unit: str

    def __str__(self) -> str:
        return f"{self.limit}{self.unit}"

    def period(self, number: int, when: datetime) -> Hashable:
        """The period of this kind in which a snapshot was taken."""
        match self.unit:
            case "h":
                # When clocks are set back there are two hours of one name.
                return when.utcoffset(), when.date(), when.hour
            case "d":
                return when.date()
            case "w":
                return when.isocalendar()[:2]
            case "m":
                return when.year, when.month
            case "y":
                return when.year
            case _:
                return number


Keep = tuple[Part, ...]


class Stamp(NamedTuple):
    """When the snapshot of this number was taken. Units: nanoseconds since 1970."""

    number: int
    created_ns: int


def parse(text: str) -> Keep:
    """The rule that a text means. Raises: WrongUse."""
    parts = [_part(text, word) for word in text.split(":")]
    units = [part.unit for part in parts]
    for unit in units:
        if units.count(unit) > 1:
            raise _wrong(text, f"it says twice how many of '{unit}' are kept")
    return tuple(parts)


def _part(text: str, word: str) -> Part:
    found = re.fullmatch(r"([0-9]+)([A-Za-z]*)", word, re.ASCII)
    if found is None:
        raise _wrong(text, "there is nothing between two colons or at an end" if not word else f"'{word}' is no count")
    digits, unit = found.groups()
    if unit not in UNITS:
        raise _wrong(text, f"'{word}' ends with none of {', '.join(UNITS)}")
    if len(digits) > len(str(COUNT_MAX)) or not 1 <= int(digits) <= COUNT_MAX:
        raise _wrong(text, f"{digits[:20]} is no count from 1 to {COUNT_MAX}")
    return Part(int(digits), unit)


def _wrong(text: str, reason: str) -> WrongUse:
    return WrongUse(reason=f"'{text[:80]}' is no rule for what is kept: {reason}", hint=_HINT)


def spell(keep: Keep) -> str:
    """The rule as a text."""
    return ":".join(map(str, keep))


def choose(stamps: Sequence[Stamp], keep: Keep, calendar: Callable[[float], datetime]) -> dict[int, list[Part]]:
    """The numbers of those that are kept, and by which parts of the rule; `calendar` tells what date and time some
    seconds since 1970 are.
    """
    newest_first = sorted(stamps, key=lambda stamp: (stamp.created_ns, stamp.number), reverse=True)
    whens = [calendar(stamp.created_ns // 10**9) for stamp in newest_first]
    kept = dict[int, list[Part]]()
    for part in keep:
        periods = set[Hashable]()
        for stamp, when in zip(newest_first, whens, strict=True):
            period = part.period(stamp.number, when)
            if period not in periods and len(periods) < part.limit:
                periods.add(period)
                kept.setdefault(stamp.number, []).append(part)
    return kept
