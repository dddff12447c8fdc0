"""Journals of relocations: read as they were written, and refused in one sentence when nobody here wrote them."""

import json
from pathlib import Path
from typing import Any

import pytest

from cowtree.errors import CatalogError, Refused
from cowtree.images.history import BLANK, Journals
from cowtree.images.relocation import JOURNAL, Member, Relocation, begun, refuse_doubtful, write_journal
from cowtree.storage.file import LocalFiles

FILES = LocalFiles()


def unheard(error: CatalogError) -> None:
    raise error


def written(folder: Path, notebook: Any = BLANK) -> Relocation:
    """A relocation of two files that is written down."""
    target = folder / "new"
    members = (
        Member(f"{folder}/old/base", f"{target}/base"),
        Member(f"{folder}/old/top", f"{target}/top", is_qcow2=True, base=0),
    )
    wanted = Relocation(str(target), members, is_absolute=True)
    write_journal(FILES, wanted, notebook)
    return wanted


def test_what_is_written_is_read_again(tmp_path: Path):
    assert begun(FILES, str(tmp_path)) is None
    assert begun(FILES, str(tmp_path / "new")) is None
    assert written(tmp_path) == begun(FILES, str(tmp_path / "new"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("new", "{folder}/elsewhere"),
        ("new", "{folder}/new/../elsewhere"),
        ("new", "{folder}/new"),
        ("new", "new/base"),
        ("old", "../old/base"),
        ("base", 5),
        ("base", "0"),
        ("data", -1),
    ],
)
def test_a_journal_that_means_another_place_or_nothing_is_refused(tmp_path: Path, key: str, value: object):
    path = Path(written(tmp_path).journal)
    said = json.loads(path.read_text())
    said["members"][0][key] = value.format(folder=tmp_path) if isinstance(value, str) else value
    path.write_text(json.dumps(said))
    with pytest.raises(Refused, match="does not say what was begun"):
        begun(FILES, str(tmp_path / "new"))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "[" * 100_000, '{"members": [1], "absolute": 0}'])
def test_what_is_no_journal_is_refused(tmp_path: Path, text: str):
    Path(written(tmp_path).journal).write_text(text)
    with pytest.raises(Refused):
        begun(FILES, str(tmp_path / "new"))


def test_the_word_of_others_and_links_are_not_followed(tmp_path: Path):
    path = Path(written(tmp_path).journal)
    path.rename(tmp_path / "aside")
    path.symlink_to(tmp_path / "aside")
    with pytest.raises(Refused, match="is not followed"):
        begun(FILES, str(tmp_path / "new"))


def test_what_the_notebook_knows_is_completed_unasked(tmp_path: Path):
    notebook = Journals(str(tmp_path / "catalog.db"), unheard)
    found = written(tmp_path, notebook)
    places = [f"{tmp_path}/old/top"]
    refuse_doubtful(FILES, found, places=places, trusted=(), notebook=notebook)
    with pytest.raises(Refused, match="is not part of it"):
        refuse_doubtful(FILES, found, places=["/etc"], trusted=(), notebook=notebook)
    with pytest.raises(Refused, match="may have come with an archive"):
        refuse_doubtful(FILES, found, places=places, trusted=(), notebook=BLANK)
    # Nothing is on disk that lies on the base, so nobody has named that.
    with pytest.raises(Refused, match="is of another family"):
        refuse_doubtful(FILES, found, places=places, trusted=[found.journal], notebook=BLANK)
    notebook.forget(found.journal)
    with pytest.raises(Refused, match="may have come with an archive"):
        refuse_doubtful(FILES, found, places=places, trusted=(), notebook=notebook)
    assert Path(found.journal).name == JOURNAL
