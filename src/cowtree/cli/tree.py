"""`cowtree tree`: the whole family of images, drawn.

Names come from strangers' disks and images: no control character of theirs reaches the terminal. Nothing is cut off,
and what depends on the terminal are only colours and the signs that its encoding can take.
"""

import argparse
import errno
import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from cowtree.cli import options, pool
from cowtree.errors import (
    BrokenHeader,
    ChainError,
    ChainTooDeep,
    CowtreeError,
    ImageLocked,
    LoopInChain,
    MarkedCorrupt,
    MissingImage,
    NotAnImage,
    StorageFailed,
    TruncatedImage,
    UnknownFeature,
)
from cowtree.units import format_size

if TYPE_CHECKING:
    from cowtree.chain.forest import Forest, Node

# Deeper rows are not moved further to the right: their depth stands in brackets at the left.
DEPTH_DRAWN_MAX: Final = 16
PLACES_TOLD_MAX: Final = 10
HEADING: Final = ("image", "format", "size", "on disk", "")
NUMBERS: Final = (2, 3)
UNKNOWN: Final = "-"
DIM, RED, PLAIN = "\x1b[2m", "\x1b[31m", "\x1b[0m"
WORDS: Final[dict[type[CowtreeError], str]] = {
    ChainError: "base cannot be read",
    MissingImage: "cannot be opened",
    LoopInChain: "loop",
    ChainTooDeep: "chain too deep",
    NotAnImage: "base is not qcow2",
    TruncatedImage: "cut short",
    BrokenHeader: "broken header",
    UnknownFeature: "unknown feature",
    MarkedCorrupt: "marked corrupt",
    ImageLocked: "in use",
    StorageFailed: "cannot be read",
}


class Signs(NamedTuple):
    """What joins a row to the one it hangs on."""

    line: str
    fork: str
    last: str
    gap: str = "    "


LINES: Final = Signs("│   ", "├── ", "└── ")
ASCII_LINES: Final = Signs("|   ", "|-- ", "`-- ")


class Row(NamedTuple):
    """One image as text: what stands before its name, and its columns, the first of them the name."""

    branch: str
    cells: tuple[str, ...]
    is_broken: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns as they are aligned, the branch within the first."""
        return (self.branch + self.cells[0], *self.cells[1:])


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "tree",
        help="draw the whole family of images, and say what is broken",
        description="Draws all images below the folders, and the whole families of the images, as trees: each with its "
        "format, the size of its disk, what it takes on disk, and what is odd or broken. A file is an image when it is "
        "qcow2, backs an image, is named here, or is called .img or .raw. Links to folders are not followed.",
        epilog="Exit status: 0 when all is well; that of the first error on standard error when an image is broken; 1 "
        "when there is no image, or a place could not be looked into.",
    )
    parser.add_argument("places", nargs="*", metavar="PATH", help="a folder or an image; . when not given")
    options.add_output(parser)
    parser.add_argument("--pools", action="store_true", help="draw what is in the pools: see cowtree pool")
    options.add_catalog(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the forest on standard output and what is wrong with it on standard error."""
    from cowtree.chain.forest import survey  # noqa: PLC0415  other verbs and help do without
    from cowtree.storage.file import LocalFiles  # noqa: PLC0415

    places, gone = arguments.places, list[MissingImage]()
    if arguments.pools:
        pools, gone = pool.find_pools(arguments.catalog)
        places = [*places, *pools]
        if not places and not gone:
            raise CowtreeError(reason="there are no pools", hint="cowtree pool add FOLDER")
    try:
        forest = survey(LocalFiles(), places or ([] if gone else ["."]))
    except MissingImage as error:
        complain(str(error))
        return error.exit_status
    encoding = sys.stdout.encoding or "utf-8"
    if arguments.output == "json":
        print(json.dumps(describe(forest), indent=4))
    elif forest.nodes:
        has_colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        for line in draw(forest, encoding, has_colour=has_colour):
            print(line)
    sys.stdout.flush()
    for sentence in (*map(str, gone), *complaints(forest)):
        complain(sentence)
    return gone[0].exit_status if gone and not forest.problems else status_of(forest)


def status_of(forest: "Forest") -> int:
    """The exit status that says whether all was found, and all of it is well."""
    if forest.problems:
        return forest.problems[0].exit_status
    return 0 if forest.nodes and not any(place.is_failure for place in forest.unseen) else CowtreeError.exit_status


def complain(sentence: str) -> None:
    """Say what is wrong."""
    print(f"cowtree: {printable(sentence)}", file=sys.stderr)


def find_pools(catalog_path: str | None) -> list[str]:
    """The pools that are there; of each that is not it is said. Raises: CatalogError."""
    pools, gone = pool.find_pools(catalog_path)
    for error in gone:
        complain(str(error))
    return pools


def tell_doubt(forest: "Forest") -> None:
    """Say where images may be that read others without anybody knowing."""
    if forest.doubtful:
        complain(
            f"whether an image that could not be read needs one of these is not known: {', '.join(forest.doubtful)}"
        )


def complaints(forest: "Forest") -> Iterator[str]:
    """Say what is broken, and where nobody has looked."""
    yield from map(str, forest.problems)
    if not forest.nodes:
        yield f"no image found in {looked(forest)}"
    for place in forest.unseen[:PLACES_TOLD_MAX]:
        yield f"not looked into {place.path}: {place.reason}"
    if len(forest.unseen) > PLACES_TOLD_MAX:
        yield f"not looked into {len(forest.unseen) - PLACES_TOLD_MAX} more places; --output=json names them"


def looked(forest: "Forest") -> str:
    """How far was looked, in words."""
    told = [f"{each.folder} and below" if each.is_deep else each.folder for each in forest.looked[:PLACES_TOLD_MAX]]
    more = len(forest.looked) - len(told)
    return (", ".join(told) or "no folder") + (f" and {more} more folders" if more else "")


def describe(forest: "Forest") -> dict[str, object]:
    """The forest in the words of JSON; where `qemu-img info` has a name for something it is the same."""
    return {
        "images": [_describe_node(forest, node) for node in forest.nodes],
        **describe_reach(forest),
    }


def describe_reach(forest: "Forest") -> dict[str, object]:
    """How far was looked, in the words of JSON."""
    return {
        "looked-into": [{"folder": each.folder, "below": each.is_deep} for each in forest.looked],
        "not-looked-into": [
            {"path": each.path, "reason": each.reason, "failure": each.is_failure} for each in forest.unseen
        ],
    }


def _describe_node(forest: "Forest", node: "Node") -> dict[str, object]:
    name, declared = node.backing or (None, None)
    return {
        "path": node.path,
        "other-names": list(node.other_names),
        "format": node.format,
        "virtual-size": node.size_bytes,
        "actual-size": node.own_size_bytes,
        "backing-filename": name,
        "backing-filename-format": declared,
        "parent": None if node.parent is None else forest.nodes[node.parent].path,
        "leaf": node.is_leaf,
        "whole": node.is_whole,
        "problem": _describe_problem(node.problem) if node.problem else None,
        "in-use": node.use,
        "notes": list(node.notes),
    }


def _describe_problem(problem: CowtreeError) -> dict[str, object]:
    return {
        "class": type(problem).__name__,
        "exit-status": problem.exit_status,
        "message": problem.message,
        "advice": problem.advice,
    }


def draw(forest: "Forest", encoding: str, *, has_colour: bool = False) -> Iterator[str]:
    """Draw the trees, all columns aligned, and say how far was looked."""
    folder = os.path.commonpath([each.folder for each in forest.looked] or [os.sep])
    rows = [Row("", HEADING), *_rows(forest, folder, encoding)]
    widths = [max(map(width, column)) for column in zip(*(row.columns for row in rows), strict=True)]
    if folder != os.sep:
        yield printable(f"In {folder}:", encoding)
    for row in rows:
        yield _line(row, widths, has_colour=has_colour)
    yield ""
    there = sum(1 for node in forest.nodes if node.own_size_bytes is not None)
    broken = sum(1 for node in forest.nodes if node.problem)
    counts = [_count(there, "image", "images"), _count(len(forest.leaves), "leaf", "leaves")]
    counts += [f"{broken} broken"] if broken else []
    yield printable(f"{', '.join(counts)}. Looked in {looked(forest)}.", encoding)


def _count(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _rows(forest: "Forest", folder: str, encoding: str) -> Iterator[Row]:
    for branch, node in zip(_branches(forest, encoding), forest.nodes, strict=True):
        sizes = (UNKNOWN if size is None else format_size(size) for size in (node.size_bytes, node.own_size_bytes))
        texts = (_short(node.path, folder), node.format or UNKNOWN, *sizes, ", ".join(_states(node, folder)))
        yield Row(branch, tuple(printable(text, encoding) for text in texts), node.problem is not None)


def _states(node: "Node", folder: str) -> Iterator[str]:
    if node.problem and node.problem.facts.get("errno") == errno.ENOENT:
        yield "missing"
    elif node.problem:
        yield WORDS.get(type(node.problem), "broken")
    if node.is_leaf:
        yield "leaf" if node.is_whole or node.problem else "leaf of a broken chain"
    if node.use:
        yield f"in use, {node.use}"
    yield from node.notes
    if node.other_names:
        yield f"also {', '.join(_short(name, folder) for name in node.other_names)}"


def _branches(forest: "Forest", encoding: str) -> Iterator[str]:
    """What stands before each name."""
    signs = LINES if printable("".join(LINES), encoding) == "".join(LINES) else ASCII_LINES
    # For each level above the row, whether its image is the last one on its base.
    is_last: list[bool] = []
    for index, node in enumerate(forest.nodes):
        if node.parent is None:
            is_last.clear()
            yield ""
            continue
        del is_last[node.depth - 1 :]
        is_last.append(forest.children[node.parent][-1] == index)
        join = signs.last if is_last[-1] else signs.fork
        above = "".join(signs.gap if last else signs.line for last in is_last[: DEPTH_DRAWN_MAX - 1][: node.depth - 1])
        depth = f"({node.depth})" if node.depth > DEPTH_DRAWN_MAX else ""
        yield depth + above[len(depth) :] + join


def _short(path: str, folder: str) -> str:
    below = os.path.join(folder, "")
    return path.removeprefix(below) if folder != os.sep else path


def _line(row: Row, widths: list[int], *, has_colour: bool) -> str:
    cells = []
    for index, (text, room) in enumerate(zip(row.columns, widths, strict=True)):
        space = " " * (room - width(text))
        cells.append(space + text if index in NUMBERS else text + space)
    line = "  ".join(cells).rstrip()
    if not has_colour:
        return line
    colour = RED if row.is_broken else ""
    return f"{DIM}{row.branch}{PLAIN}{colour}{line[len(row.branch) :]}{PLAIN}"


def printable(text: str, encoding: str = "utf-8") -> str:
    """The text with everything escaped that a terminal would obey, hide or not know."""
    if not (text.isascii() and text.isprintable() and "\\" not in text):
        text = "".join(_escaped(sign) for sign in text)
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _escaped(sign: str) -> str:
    if sign.isprintable() and sign != "\\":
        return sign
    # A byte of a file name that is not UTF-8.
    if "\udc80" <= sign <= "\udcff":
        return f"\\x{ord(sign) - 0xDC00:02x}"
    return sign.encode("unicode_escape").decode("ascii")


def width(text: str) -> int:
    """How many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # noqa: PLC0415  most names need no table of wide characters

    return cell_len(text)
