"""Owns the proof that a wish becomes a plan for the family on disk, and that the plan is carried out to its end."""

import os
from pathlib import Path

import pytest

from cowtree.errors import MissingImage, ProofFailed, Refused
from cowtree.images import lineage, order, proof
from cowtree.images.wish import Manner, Wish, grant, make_plan, resume, stale_bases
from cowtree.storage.faults import BEFORE, Fault, FaultyFiles, Killed
from tests.disktrees import FILES, DiskTree, plant
from tests.qemu import qemu_img, qemu_io
from tests.trees import read_journal


@pytest.fixture
def tree(tmp_path: Path) -> DiskTree:
    return plant(tmp_path)


def test_a_plan_is_carried_out_as_it_is_and_tells_the_family_that_it_leaves(tree: DiskTree):
    before = tree.digests()
    planned = make_plan(FILES, Wish("delete", tree.paths[1]))
    moved_bytes = grant(FILES, planned, ["delete"])
    assert moved_bytes == planned.plan.cost.moved_bytes
    assert {planned.result.path(leaf) for leaf in planned.result.leaves} == set(tree.leaves)
    assert {path: tree.digests()[path] for path in tree.leaves} == {path: before[path] for path in tree.leaves}


def test_what_is_granted_already_moves_nothing(tree: DiskTree):
    planned = make_plan(FILES, Wish("flatten", tree.paths[0]))
    names = tree.names()
    assert (planned.plan.acts, grant(FILES, planned, [])) == ((), 0)
    assert tree.names() == names


def test_a_missing_image_and_a_harmful_wish_are_refused(tree: DiskTree):
    with pytest.raises(MissingImage):
        make_plan(FILES, Wish("commit", str(tree.folder / "nothing")))
    with pytest.raises(Refused) as caught:
        make_plan(FILES, Wish("commit", tree.paths[2]))
    assert caught.value.facts["harmed"] == (tree.paths[3],)


def test_a_disk_that_is_too_full_is_refused_before_anything_changes(tree: DiskTree, monkeypatch: pytest.MonkeyPatch):
    class Full:
        f_bavail, f_frsize = 1, 1

    monkeypatch.setattr(os, "statvfs", lambda _: Full)
    with pytest.raises(Refused, match="where 1 are free"):
        make_plan(FILES, Wish("flatten", tree.paths[2]))


def test_in_pools_is_looked_for_whoever_would_be_harmed(tmp_path: Path):
    images, pool = tmp_path / "images", tmp_path / "pool"
    images.mkdir()
    pool.mkdir()
    tree = plant(images, (None, 0), ("AAAA", "B---"), ("base", "top"))
    other = pool / "other"
    qemu_img("create", "-q", "-f", "qcow2", "-b", tree.paths[0], "-F", "qcow2", other)
    make_plan(FILES, Wish("commit", tree.paths[1]))
    with pytest.raises(Refused) as caught:
        make_plan(FILES, Wish("commit", tree.paths[1], pools=(str(pool),)))
    assert caught.value.facts["harmed"] == (str(other),)


def test_stale_bases_are_found_once_each(tmp_path: Path):
    paths = [str(tmp_path / name) for name in ("base", "middle", "top", "other")]
    for path, below in zip(paths, (None, "base", "middle", "middle"), strict=True):
        backing = ["-b", below, "-F", "qcow2", path] if below else [path, "1M"]
        qemu_img("create", "-q", "-f", "qcow2", *backing)
    for path in paths[1:]:
        assert lineage.record(FILES, path)
    planned = make_plan(FILES, Wish("delete", paths[1]))
    assert stale_bases(FILES, planned) == []
    qemu_io(Path(paths[0]), "write -P 9 0 512")
    found = [(error.facts["path"], error.facts["base"]) for error in stale_bases(FILES, planned)]
    assert found == [(paths[1], paths[0])]


@pytest.mark.slow
def test_a_proven_merge_that_is_killed_anywhere_is_proven_when_it_goes_on(tmp_path: Path):
    number = 0
    while True:
        folder = tmp_path / str(number)
        folder.mkdir()
        tree = plant(folder, (None, 0, 1), ("AA--", "-BB-", "--C0"), ("base", "middle", "top"))
        shown = tree.digests()[tree.paths[2]]
        faulty = FaultyFiles(FILES, Fault(number, moment=BEFORE))
        planned = make_plan(FILES, Wish("delete", tree.paths[1], ending=order.DELETE))
        is_killed = True
        try:
            grant(faulty, planned, ["delete", tree.paths[1]], Manner(proof.FULL))
            is_killed = False
        except Killed:
            pass
        assert tree.digests()[tree.paths[2]] == shown
        journals = [name for name in tree.names() if name.endswith(order.SUFFIX)]
        for name in journals:
            assert read_journal(FILES, str(folder / name))[0].sights
            resume(FILES, str(folder / name), is_trusted=True)
        assert tree.digests()[tree.paths[2]] == shown
        assert not [name for name in tree.names() if name.endswith(order.SUFFIX)]
        if journals or not is_killed:
            assert not [name for name in tree.names() if ".invalid-" in name]
        if not is_killed:
            break
        number += 2
    assert number > 10


def test_a_failed_proof_removes_nothing_and_is_the_end_of_it(tree: DiskTree, monkeypatch: pytest.MonkeyPatch):
    planned = make_plan(FILES, Wish("delete", tree.paths[1], ending=order.DELETE))
    look = proof.look

    def lie(*arguments: object) -> object:
        return tuple(sight._replace(digest="cowtree1:other") for sight in look(*arguments))  # type: ignore[arg-type]

    monkeypatch.setattr(proof, "look", lie)
    count = len(tree.names())
    with pytest.raises(ProofFailed):
        grant(FILES, planned, [], Manner(proof.CHANGED))
    assert len(tree.names()) == count
    assert not [name for name in tree.names() if name.endswith(order.SUFFIX)]


def test_what_must_stay_is_kept_and_files_that_are_fixed_keep_their_names(tree: DiskTree):
    base, middle, *_ = tree.paths
    # Alone, the middle may be merged into its base.
    ways = {make_plan(FILES, Wish("delete", middle, is_plain=True)).plan.acts}
    assert all(act.target == act.name for way in ways for act in way)
    planned = make_plan(FILES, Wish("delete", middle, fixed=tree.paths))
    assert all(act.target == act.name for act in planned.plan.acts)
    with pytest.raises(Refused, match="is to be kept as it is"):
        make_plan(FILES, Wish("commit", middle, base, kept=(base, str(tree.folder / "absent"))))


def test_all_is_noted_before_the_journal_goes(tree: DiskTree):
    seen = []
    planned = make_plan(FILES, Wish("commit", tree.paths[1]))
    (journal,) = {order.journal_path(tree.paths[act.target]) for act in planned.plan.acts}

    def note() -> None:
        seen.append((os.path.exists(journal), read_journal(FILES, journal)[0].stamp))

    grant(FILES, planned, ["commit"], Manner(stamp="20261124T203100.123456", note=note))
    assert seen == [(True, "20261124T203100.123456")]
    assert not os.path.exists(journal)
