"""All overlays of a forest, and new records for them."""

import os
from pathlib import Path

import pytest

from cowtree.catalog.store import open_catalog
from cowtree.chain.forest import survey
from cowtree.errors import CowtreeError, ImageLocked
from cowtree.images.create import create
from cowtree.images.lineage import CHANGED, TOUCHED, UNCHANGED, UNKNOWN, Finding, noted
from cowtree.images.verify import RECORDED, UNREAD, count_states, record_anew, verify
from cowtree.plan.create import NewImage
from cowtree.storage.contract import Access
from cowtree.storage.file import LocalFiles
from tests.qemu import qemu_img, qemu_io

FILES = LocalFiles()
Row = tuple[str, str, str]


def overlay(path: Path, base: str) -> None:
    """An overlay with a record."""
    new = NewImage(str(path), "qcow2", 1 << 20, backing_file=base, backing_format="qcow2")
    create(FILES, noted(FILES, new))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """base <- known <- above, and base <- stranger, which has no record."""
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "base", "1M")
    overlay(tmp_path / "known", "base")
    overlay(tmp_path / "above", "known")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", tmp_path / "stranger")
    return tmp_path


def rows(findings: list[Finding]) -> list[Row]:
    """Names and states."""
    return [(os.path.basename(each.overlay), os.path.basename(each.base), each.state) for each in findings]


def look(folder: Path) -> list[Finding]:
    return verify(FILES, survey(FILES, [str(folder)]))


def renew(folder: Path, *, accepts: bool = False) -> tuple[list[Row], list[CowtreeError]]:
    now, errors = record_anew(FILES, look(folder), accepts=accepts)
    return rows(now), errors


def test_each_overlay_is_compared_after_its_base(folder: Path):
    qemu_io(folder / "base", "write -P 1 0 64k")
    assert rows(look(folder)) == [
        ("known", "base", CHANGED),
        ("above", "known", UNCHANGED),
        ("stranger", "base", UNKNOWN),
    ]


def test_a_record_is_made_only_where_there_is_none(folder: Path):
    qemu_io(folder / "base", "write -P 1 0 64k")
    assert renew(folder) == (
        [("known", "base", CHANGED), ("above", "known", UNCHANGED), ("stranger", "base", RECORDED)],
        [],
    )
    assert [state for _, _, state in rows(look(folder))] == [CHANGED, UNCHANGED, UNCHANGED]


def test_what_is_accepted_touches_nothing_that_hangs_on_it(folder: Path):
    os.utime(folder / "base", (1, 1))
    assert [state for _, _, state in rows(look(folder))] == [TOUCHED, UNCHANGED, UNKNOWN]
    found, errors = renew(folder, accepts=True)
    assert [state for _, _, state in found] == [RECORDED, UNCHANGED, RECORDED]
    assert errors == []
    assert [state for _, _, state in rows(look(folder))] == [UNCHANGED] * 3


def test_one_that_is_in_use_keeps_no_other_from_its_record(folder: Path):
    overlay(folder / "zz", "stranger")
    held = FILES.open(str(folder / "stranger"), Access.READ)
    qemu_img("create", "-q", "-f", "qcow2", "-b", "zz", "-F", "qcow2", folder / "last")
    found, errors = renew(folder)
    held.close()
    assert [type(each) for each in errors] == [ImageLocked]
    assert [row for row in found if row[2] == RECORDED] == [("last", "zz", RECORDED)]


def test_a_base_that_cannot_be_looked_at_is_one_finding(folder: Path):
    (folder / "known").unlink()
    (folder / "base").write_bytes(b"QFI\xfb" + bytes(100))
    found = look(folder)
    assert rows(found) == [("stranger", "base", UNREAD), ("above", "known", UNREAD)]
    assert all(each.note for each in found)
    assert record_anew(FILES, found, accepts=True) == (found, [])


def test_one_without_room_says_so(tmp_path: Path):
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "base", "1M")
    words = ("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "-b", "base", "-F", "qcow2")
    qemu_img(*words, tmp_path / "overlay")
    found, _ = record_anew(FILES, look(tmp_path))
    assert [(each.state, each.note) for each in found] == [(UNKNOWN, "its header has no room for a record")]
    with open_catalog(str(tmp_path / "catalog.db")) as catalog:
        assert [each.state for each in record_anew(FILES, found, catalog)[0]] == [RECORDED]
        forest = survey(FILES, [str(tmp_path)])
        assert [each.state for each in verify(FILES, forest, catalog)] == [UNCHANGED]


def test_states_are_counted_in_words():
    found = [Finding("a", "b", state) for state in (UNCHANGED, CHANGED, UNKNOWN, UNCHANGED)]
    assert count_states(found) == [(1, "with a changed base"), (2, "with an unchanged base"), (1, "without a record")]
