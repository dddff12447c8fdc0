"""Which snapshots are listed, in which order, and what is said of one."""

from pathlib import Path

import pytest

from cowtree.catalog import snapshots
from cowtree.catalog.snapshots import Row
from cowtree.domain import moment
from cowtree.errors import Refused
from cowtree.operations import lists
from cowtree.operations.lists import Choice, chosen
from cowtree.operations.work import look_at
from tests.lab import DISK_BYTES, NAME, Lab

# A forest: B lies on d, a and C on B; e stands alone.
PARENTS = {"d": None, "B": "d", "a": "B", "C": "B", "e": None}
NUMBERS = {name: number for number, name in enumerate(PARENTS, 1)}
ROWS = [
    Row(NUMBERS[name], name, NUMBERS.get(parent or ""), 0, "running" if name in "aB" else "shutoff", name == "e", False)
    for name, parent in PARENTS.items()
]


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        (Choice(), "aBCde"),
        (Choice(is_topological=True), "dBaCe"),
        (Choice(is_root=True), "de"),
        (Choice(is_leaf=True), "aCe"),
        (Choice(is_leaf=False), "Bd"),
        (Choice(below=NUMBERS["d"]), "B"),
        (Choice(below=NUMBERS["d"], is_deep=True), "aBC"),
        (Choice(below=NUMBERS["d"], is_deep=True, is_topological=True), "BaC"),
        (Choice(below=NUMBERS["d"], is_deep=True, is_leaf=True), "aC"),
        (Choice(below=NUMBERS["a"]), ""),
        (Choice(states=frozenset(["running"])), "aB"),
        (Choice(is_external=frozenset([True])), "e"),
        (Choice(is_external=frozenset([True, False]), is_root=True), "de"),
    ],
)
def test_a_choice(choice: Choice, names: str):
    assert "".join(row.name for row in chosen(ROWS, choice)) == names


def test_the_place_of_a_snapshot(tmp_path: Path):
    lab = Lab(tmp_path / "lab")
    for name in ("one", "two"):
        lab.take(name)
    with lab.host() as host:
        found = look_at(host, NAME)
        one, two = (snapshots.find(host.catalog, found.domain, name) for name in ("one", "two"))
        assert lists.place(host, found, one) == lists.Place(None, 1, 1)
        assert lists.place(host, found, two) == lists.Place("one", 0, 0)
        assert lists.is_external(host, one)
        text = moment.dump(lists.described(host, two))
        assert moment.parse(text).disks[0].file == str(lab.folder / "disk0.two")
        assert moment.dump(moment.parse(text)) == text


def test_sizes(tmp_path: Path):
    lab = Lab(tmp_path / "lab")
    with lab.host() as host:
        (disk,) = look_at(host, NAME).definition.disks
        found = lists.sizes(host, disk)
        stat = (lab.folder / "disk0.qcow2").stat()
        assert found == lists.Sizes(DISK_BYTES, min(stat.st_blocks * 512, stat.st_size), stat.st_size)
        with pytest.raises(Refused, match="does not currently have a source"):
            lists.sizes(host, disk._replace(source=None))
