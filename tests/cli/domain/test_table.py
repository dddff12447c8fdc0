"""Owns the proof that tables, trees and blocks look as virsh 9.0 draws them."""

import random
import time
from collections import Counter

import pytest

from cowtree.cli.domain.table import Branch, fields, shown, table, tree, width

# The recording shows the paths of these two tables shorter than they were when the rules were drawn.
TARGETS = """\
 Target   Source
------------------------------------
 vda      /tmp/lv/img/f17vm1.qcow2

"""
DETAILS = """\
 Type   Device   Target   Source
------------------------------------------------------
 file   disk     vda      /tmp/lv/img/f17-base.qcow2

"""
PARENTS = """\
 Name    Creation Time               State     Parent
-------------------------------------------------------
 snap1   2026-11-23 02:30:45 +0000   shutoff   .
 snap2   2026-11-23 02:30:59 +0000   running   snap1

"""
NOTHING = """\
 Name   Creation Time   State
-------------------------------

"""
DOMAINS = """\
 Id   Name     State
-------------------------
 -    f17vm1   shut off

"""
INFO = """\
Name:           snap1
Domain:         f17vm1
Current:        yes
Parent:         -
Descendants:    0

"""
# Ends of lines that cannot be seen are marked.
CHAIN = """\
snap1
  |
  +- snap2
      |
      +- snap3
        .

"""
FORK = """\
snap1
  |
  +- snap2
      |
      +- snap2b
      +- snap3
        .

"""
# By the rules of virsh: what hangs on one that is not the last has a bar before it.
WOOD = """\
a
  |
  +- b
  |   |
  |   +- c
  |   |   |
  |   |   +- d
  |   |     .
  |   +- e
  |     .
  +- f
    .
g

h
  |
  +- i
    .

"""


def marked(text: str) -> str:
    return text.replace(" .\n", " \n")


def branches(*links: str) -> list[Branch]:
    """Each link is a name, and behind a `<` what it hangs on."""
    words = [link.partition("<") for link in links]
    return [Branch(name, parent or None, name) for name, _, parent in words]


@pytest.mark.parametrize(
    ("headings", "rows", "expected"),
    [
        (("Target", "Source"), [("vda", "/tmp/lv/img/f17vm1.qcow2")], TARGETS),
        (("Type", "Device", "Target", "Source"), [("file", "disk", "vda", "/tmp/lv/img/f17-base.qcow2")], DETAILS),
        (
            ("Name", "Creation Time", "State", "Parent"),
            [
                ("snap1", "2026-11-23 02:30:45 +0000", "shutoff", ""),
                ("snap2", "2026-11-23 02:30:59 +0000", "running", "snap1"),
            ],
            PARENTS.replace("shutoff   .", "shutoff   "),
        ),
        (("Name", "Creation Time", "State"), [], NOTHING),
        (("Id", "Name", "State"), [("-", "f17vm1", "shut off")], DOMAINS),
    ],
)
def test_a_table_looks_as_that_of_virsh(headings: tuple[str, ...], rows: list[tuple[str, ...]], expected: str):
    assert table(headings, rows) == expected


def test_columns_are_as_wide_as_they_look():
    drawn = table(
        ("Name", "State"),
        [("漢字", "a"), ("e\u0301é", "b"), ("\uff21\uff22", "c"), ("한\u1161", "d"), ("a\u200db", "e")],
    )
    assert drawn.splitlines()[0] == " Name   State"
    assert [width(line.rpartition(" ")[0]) for line in drawn.splitlines()[2:-1]] == [7] * 5
    assert [width(text) for text in ("漢字", "e\u0301", "a\u200db", "한\u1162", "😀", "")] == [4, 1, 2, 2, 2, 0]


def test_what_cannot_be_seen_is_shown_by_its_bytes():
    assert shown("a\nb\x1b[0m\x7f") == r"a\x0ab\x1b[0m\x7f"
    assert shown("\u202eé\udcff\u3000") == "\\xe2\\x80\\xaeé\\xff\u3000"
    assert shown(r"a\x0ab\y") == r"a\x5cx0ab\y"
    assert table(("A", "B"), [("a\n", "b")]) == " A       B\n------------\n a\\x0a   b\n\n"
    assert "".join(tree(branches("a\x1b"))) == "a\\x1b\n\n\n"
    assert fields([("Name", "a\n")]) == "Name:           a\\x0a\n\n"


def test_a_block_of_fields_looks_as_that_of_virsh():
    pairs = [("Name", "snap1"), ("Domain", "f17vm1"), ("Current", "yes"), ("Parent", "-"), ("Descendants", "0")]
    assert fields(pairs) == INFO


@pytest.mark.parametrize(
    ("links", "expected"),
    [
        (("snap1", "snap2<snap1", "snap3<snap2"), CHAIN),
        (("snap1", "snap2<snap1", "snap2b<snap2", "snap3<snap2"), FORK),
        (("off3",), "off3\n\n\n"),
        ((), "\n"),
        (("a", "b<a", "c<b", "d<c", "e<b", "f<a", "g", "h", "i<h"), WOOD),
        (("i<h", "h", "g", "a<gone"), "h\n  |\n  +- i\n    .\ng\n\na\n\n\n"),
    ],
)
def test_a_tree_looks_as_that_of_virsh(links: tuple[str, ...], expected: str):
    assert "".join(tree(branches(*links))) == marked(expected)


def test_children_stand_in_the_order_in_which_they_are_given():
    drawn = "".join(tree(branches("c<a", "b<a", "a")))
    assert drawn.index("c") < drawn.index("b")


def drawn_by_recursion(made: list[Branch], branch: Branch, is_last: bool, indent: str | None = None) -> str:
    """The lines of one branch, by virsh's rules in their plainest form."""
    own = "" if indent is None else indent + ("  " if is_last else "| ")
    below = [each for each in made if each.parent == branch.key]
    lines = [branch.text if indent is None else f"{indent}+- {branch.text}", *([f"{own}  |"] if below else [])]
    inner = "".join(drawn_by_recursion(made, each, each is below[-1], f"{own}  ") for each in below)
    return "".join(f"{line}\n" for line in lines) + inner + (f"{own}\n" if is_last and not below else "")


@pytest.mark.soak
def test_any_tree_is_drawn_by_the_rules_of_virsh(seed: int):
    chance = random.Random(seed)
    for count in range(15):
        parents = [chance.randrange(number) if number and chance.random() < 0.85 else None for number in range(count)]
        made = [Branch(number, parent, str(number)) for number, parent in enumerate(parents)]
        chance.shuffle(made)
        roots = [each for each in made if each.parent is None]
        expected = "".join(drawn_by_recursion(made, root, True) for root in roots) + "\n"
        assert "".join(tree(made)) == expected


@pytest.mark.parametrize("shape", ["chain", "fan", "comb"])
def test_ten_thousand_branches_are_drawn_soon(shape: str):
    parents = {"chain": lambda n: n - 1, "fan": lambda n: 0, "comb": lambda n: n - 1 - n % 2}
    made = [Branch(0, None, "0"), *(Branch(n, parents[shape](n), str(n)) for n in range(1, 10_000))]
    start_s = time.process_time()
    names = Counter(line.rpartition(" ")[2].strip() for line in tree(made))
    assert time.process_time() - start_s < 1
    assert [names[str(n)] for n in range(10_000)] == [1] * 10_000


def test_a_long_table_is_drawn_soon():
    rows = [(f"snap{number}", "2026-11-23 02:30:45 +0000", "shutoff") for number in range(10_000)]
    start_s = time.process_time()
    assert table(("Name", "Creation Time", "State"), rows).count("\n") == 10_003
    assert time.process_time() - start_s < 0.5
