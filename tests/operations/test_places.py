"""Images are looked for wherever a guest has some: what lies on them in another folder is never forgotten."""

import pytest

from cowtree.catalog import snapshots
from cowtree.domain.moment import DiskRequest
from cowtree.errors import Refused
from cowtree.operations import merge, needs
from cowtree.operations.places import places
from tests.lab import NAME, Lab
from tests.operations.test_delete import delete_one


@pytest.fixture
def lab(tmp_path):
    """The guest goes on in another folder; what it went on in at first is a branch that lies in a third one."""
    lab = Lab(tmp_path / "lab")
    for name in ("left", "right"):
        (tmp_path / name).mkdir()
    lab.take("one")
    lab.take("two", DiskRequest("vda", file=str(tmp_path / "left" / "a.qcow2")))
    lab.write("vda", {0: b"left"})
    lab.revert("two")
    lab.take("three", DiskRequest("vda", file=str(tmp_path / "right" / "b.qcow2")))
    lab.write("vda", {0: b"right"})
    return lab


def test_each_folder_of_a_guest_is_a_place_and_so_are_pools_that_are_there(lab, tmp_path):
    with lab.host() as host:
        host.catalog.add_pool(str(tmp_path / "absent"))
        host.catalog.add_pool(str(tmp_path))
        found = places(host)
    assert found[0] == str(tmp_path)
    folders = [path.rpartition("/")[0] for path in found[1:]]
    assert sorted(folders) == [str(tmp_path / name) for name in ("lab", "left", "right")]


def test_a_file_on_which_one_in_another_folder_lies_is_needed(lab, tmp_path):
    stray = lab.sources()["vda"]
    with lab.host() as host:
        (found,) = [path for path in lab.names() if path == "disk0.two-1"]
        needed = [*needs.who_needs(host, str(lab.folder / found))]
    assert stray in needed


def test_a_branch_in_another_folder_is_not_ruined_and_nothing_is_lost(lab):
    with lab.host() as host, pytest.raises(Refused) as caught:
        merge.merge(host, NAME, merge.Commit("vda", is_active=True))
    assert any("left" in path for path in caught.value.facts["harmed"])
    before = lab.view()
    delete_one(lab, "two")
    found = lab.view()
    assert found.disks == before.disks
    assert found.snapshots == {name: shown for name, shown in before.snapshots.items() if name != "two"}
    with lab.host() as host:
        assert snapshots.paths(host.catalog)
