"""What virsh draws: tables, trees, and blocks of keys and values, each with the empty line that ends a command.

Columns are as wide as they look: a Chinese character takes two places, an accent none. What is no character that can be
seen, such as a line break in a file name, is shown by its bytes: `\\x0a`.
"""

import unicodedata
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

GAP: Final = 2
KEY_WIDTH: Final = 15
# Joins letters in some scripts, and takes no place itself.
_JOINERS: Final = "\u200c\u200d"


class Branch(NamedTuple):
    """One line of a tree: what it is, what it hangs on (None for a root), and what is shown."""

    key: Hashable
    parent: Hashable
    text: str


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The rows below their headings and a rule."""
    drawn = [[shown(cell) for cell in row] for row in (headings, *rows)]
    places = [[width(cell) for cell in row] for row in drawn]
    widths = [max(column) for column in zip(*places, strict=True)]
    lines = [_line(row, taken, widths) for row, taken in zip(drawn, places, strict=True)]
    lines.insert(1, "-" * sum(each + GAP + 1 for each in widths))
    return "".join(f"{line}\n" for line in (*lines, ""))


def _line(row: list[str], taken: list[int], widths: list[int]) -> str:
    """One row; behind its last cell nothing is filled up."""
    filled = [f" {cell}{' ' * (wide - own + GAP)}" for cell, own, wide in zip(row, taken, widths, strict=True)]
    return "".join(filled[:-1]) + f" {row[-1]}"


def fields(pairs: Iterable[tuple[str, str]]) -> str:
    """Keys and their values, one pair a line."""
    return "".join(f"{shown(key) + ':':{KEY_WIDTH}} {shown(value)}\n" for key, value in pairs) + "\n"


def tree(branches: Sequence[Branch]) -> Iterator[str]:
    """The lines of a tree, children in the order in which they are given. A branch that hangs on nothing that is given
    is a root. A line of a deep tree is long, so they are made one by one.
    """
    keys = {branch.key for branch in branches}
    children: dict[Hashable, list[Branch]] = {}
    for branch in branches:
        parent = branch.parent if branch.parent in keys else None
        children.setdefault(parent, []).append(branch)
    for root in children.get(None, ()):
        yield from _drawn(root, children)
    yield "\n"


def _drawn(root: Branch, children: dict[Hashable, list[Branch]]) -> Iterator[str]:
    """The lines of one root and all that hangs on it, in the form of virsh: one with children is followed by a bar, and
    the last of several, when it has none, by a line that is empty but for its indent.
    """
    indent = ""
    # Each entry: a branch, the length of its indent, and whether it is the last child.
    pending = [(root, 0, True)]
    while pending:
        branch, length, is_last = pending.pop()
        # What was drawn last is a descendant of a sibling or the parent, so its indent begins as this one does.
        indent = indent[:length]
        is_root = branch is root
        yield f"{indent}{'' if is_root else '+- '}{shown(branch.text)}\n"
        indent += "" if is_root else ("  " if is_last else "| ")
        below = children.get(branch.key, [])
        if below:
            yield f"{indent}  |\n"
        elif is_last:
            yield f"{indent}\n"
        indent += "  "
        pending += [(child, len(indent), child is below[-1]) for child in reversed(below)]


def shown(text: str) -> str:
    """The text as it may be shown: what is no visible character, and a backslash that looks like the beginning of such
    a one, by its bytes.
    """
    if text.isascii() and text.isprintable() and "\\x" not in text:
        return text
    return r"\x5cx".join("".join(map(_shown, part)) for part in text.split("\\x"))


def _shown(sign: str) -> str:
    if sign.isprintable() or sign in _JOINERS or unicodedata.category(sign) == "Zs":
        return sign
    # A byte of a file name that is not UTF-8 is held as half of a pair; other halves are in no text that we read.
    return "".join(f"\\x{byte:02x}" for byte in sign.encode("utf-8", "surrogateescape"))


def width(text: str) -> int:
    """How many places a text takes on a terminal."""
    return len(text) if text.isascii() else sum(map(_width, text))


def _width(sign: str) -> int:
    if unicodedata.category(sign) in ("Mn", "Me", "Cf") or "\u1160" <= sign < "\u1200":
        return 0
    return 2 if unicodedata.east_asian_width(sign) in "WF" else 1
