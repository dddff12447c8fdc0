"""`cowtree img map`: where the bytes of a disk lie, in the whole chain."""

import sys
from collections.abc import Iterable, Iterator

from cowtree.chain.view import Chain, open_chain
from cowtree.cli.img.command import (
    FORMAT,
    IMAGE_OPTS,
    OBJECT,
    OUTPUT,
    SHARE,
    Command,
    Given,
    Option,
    want_json,
    want_names,
)
from cowtree.cli.img.numbers import parse_number
from cowtree.cli.img.source import access_of, files_of, source_of
from cowtree.errors import Refused
from cowtree.images.map import Entry, map_chain

START = Option(("-s", "--start-offset"), "begin at this guest offset", "OFFSET")
LENGTH = Option(("-l", "--max-length"), "show at most so many bytes", "LENGTH")
LINES_AT_ONCE = 1 << 13


def run(given: Given) -> int:
    """Print one line for each piece of the disk."""
    start, length = given.last("-s"), given.last("-l")
    start_bytes = 0 if start is None else parse_number("start offset", start)
    length_bytes = None if length is None else parse_number("max length", length)
    (name,) = want_names(given, 1, "Expecting one image file name")
    show = _json if want_json(given) else _human
    chain = open_chain(files_of(given), *source_of(given, name), access_of(given))
    try:
        _write(show(chain, map_chain(chain, start_bytes, length_bytes)))
    finally:
        chain.close()
    return 0


def _write(lines: Iterable[str]) -> None:
    """Print in large pieces, for an image may have millions of lines; what comes before a failure is printed too."""
    waiting: list[str] = []
    try:
        for line in lines:
            waiting.append(line)
            if len(waiting) == LINES_AT_ONCE:
                sys.stdout.write("".join(waiting))
                waiting.clear()
    finally:
        sys.stdout.write("".join(waiting))
        sys.stdout.flush()


def _json(chain: Chain, entries: Iterable[Entry]) -> Iterator[str]:
    """One object per line; an offset only where there are bytes."""
    before, words = "[", ("false", "true")
    for start, length, depth, present, zero, data, offset in entries:
        flags = f'"present": {words[present]}, "zero": {words[zero]}, "data": {words[data]}'
        place = "" if offset is None else f', "offset": {offset + chain.layers[depth].host_offset}'
        yield f'{before}{{ "start": {start}, "length": {length}, "depth": {depth}, {flags}{place}}}'
        before = ",\n"
    yield "]\n"


def _human(chain: Chain, entries: Iterable[Entry]) -> Iterator[str]:
    """A table of what is data. Raises: Refused for data that lies nowhere as it is."""
    yield f"{'Offset':<16}{'Length':<16}{'Mapped to':<16}File\n"
    for start, length, depth, _, zero, data, offset in entries:
        if data and offset is None:
            reason = "File contains external, encrypted or compressed clusters."
            raise Refused(reason=reason, hint="the same with --output=json")
        if data and not zero and offset is not None:
            layer = chain.layers[depth]
            yield f"{_hex(start)}{_hex(length)}{_hex(offset + layer.host_offset)}{layer.data_file.path}\n"


def _hex(number: int | None) -> str:
    """A column as C prints it: without `0x` for zero."""
    return f"{number:<#16x}" if number else f"{0:<16}"


COMMAND = Command(
    "map",
    "Show which parts of a disk hold data, in which image, and where in its file.",
    (OBJECT, IMAGE_OPTS, FORMAT, START, LENGTH, OUTPUT, SHARE),
    "FILENAME",
    run,
)
