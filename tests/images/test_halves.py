"""Owns the proof that a begun merge is found where it is written down, and that nobody else's word is followed."""

import os
from pathlib import Path

import pytest

from cowtree.errors import BrokenJournal, MissingImage, Refused
from cowtree.images import halves, order
from cowtree.images.order import Order, Progress
from cowtree.plan.family import Family, Member, Merge
from cowtree.storage.file import LocalFiles


def begin(folder: Path, name: str = "top", words: tuple[str, ...] = ("commit", "top")) -> Order:
    """Write a journal down."""
    members = (Member(str(folder / name), "qcow2", 512, 1), Member(str(folder / "base"), "qcow2", 512))
    begun = Order(Family(members), (Merge((0, 1), 0, 0),), stamp="then", words=words)
    order.save(LocalFiles(), begun, Progress())
    return begun


def test_a_begun_merge_is_found_in_its_folder_below_it_and_by_name(tmp_path: Path):
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    begun = begin(below)
    for places, is_deep in (([below], False), ([tmp_path], True), ([begun.journal_path], False)):
        assert halves.find(map(str, places), is_deep=is_deep) == ([(begun.journal_path, begun)], [])
    assert halves.find([str(tmp_path), str(tmp_path / "nowhere")]) == ([], [])


def test_the_same_words_find_it_and_others_do_not(tmp_path: Path):
    begin(tmp_path, "with space", ("commit", "with space"))
    found = halves.find_same(["commit", "with space"], [str(tmp_path)])
    assert found is not None
    assert found.command == "cowtree commit 'with space'"
    assert halves.find_same(["commit", "with", "space"], [str(tmp_path)]) is None


def test_another_merge_of_the_family_is_refused(tmp_path: Path):
    begun = begin(tmp_path)
    with pytest.raises(Refused, match="was begun and is not done: cowtree commit top"):
        halves.refuse_begun(begun.family)
    halves.refuse_begun(Family((Member(str(tmp_path / "stranger"), "qcow2", 512),)))


def test_only_the_own_journal_of_an_image_is_in_the_way(tmp_path: Path):
    (tmp_path / ".stranger.cowtree-merge").write_bytes(b"?")
    family = Family((Member(str(tmp_path / "top"), "qcow2", 512),))
    halves.refuse_begun(family)
    (tmp_path / ".top.cowtree-merge").write_bytes(b"?")
    with pytest.raises(BrokenJournal):
        halves.refuse_begun(family)


def test_a_link_a_folder_a_pipe_and_the_word_of_another_user_are_not_followed(tmp_path: Path):
    begun = begin(tmp_path)
    path = Path(begun.journal_path)
    aside = tmp_path / "aside"
    path.rename(aside)
    path.symlink_to(aside)
    refused(path, "link")
    path.unlink()
    path.mkdir()
    refused(path, "not a file")
    path.rmdir()
    os.mkfifo(path)
    refused(path, "not a file")
    path.unlink()
    with pytest.raises(MissingImage):
        halves.read(str(path))
    aside.rename(path)
    assert halves.read(str(path)) == (begun, Progress())
    os.chown(path, 12345, 12345)
    refused(path, "somebody else wrote it")


def refused(path: Path, reason: str) -> None:
    with pytest.raises(BrokenJournal, match=reason):
        halves.read(str(path))


def test_all_that_is_broken_is_told_and_the_rest_found(tmp_path: Path):
    begun = begin(tmp_path)
    (tmp_path / ".x.cowtree-merge").write_bytes(b"{}")
    found, broken = halves.find([str(tmp_path)])
    assert [half.order for half in found] == [begun]
    assert [error.facts["path"] for error in broken] == [str(tmp_path / ".x.cowtree-merge")]
