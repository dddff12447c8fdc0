"""What overlays tell is put right: names, parents and links as they are now, and nothing of what is not ours."""

from pathlib import Path

import pytest

from cowtree.catalog import domains, snapshots
from cowtree.operations.found import gather
from cowtree.operations.tell import renew
from tests.lab import NAME, Lab
from tests.qemu import assert_clean, qemu_img


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path / "lab")
    lab.take("first")
    lab.take("second")
    return lab


def told(lab):
    """What each overlay tells: the name, its parent, and whether it is true."""
    with lab.host() as host:
        files = gather(host, [str(lab.folder)])
    return {
        Path(path).name: (file.moment.name, file.moment.parent, file.is_true)
        for path, file in files.items()
        if file.moment is not None
    }


def tell(lab):
    with lab.host() as host:
        renew(host, domains.find(host.catalog, NAME))


def test_a_new_name_and_another_parent_are_told(lab):
    with lab.host() as host:
        domain = domains.find(host.catalog, NAME)
        first, second = (snapshots.find(host.catalog, domain, name) for name in ("first", "second"))
        snapshots.describe(host.catalog, second, name="renamed", description="")
        snapshots.remove(host.catalog, first)
    before = lab.view()
    tell(lab)
    assert told(lab) == {"disk0.first": ("", "", True), "disk0.second": ("renamed", "", True)}
    assert lab.view() == before
    for name in lab.names():
        assert_clean(lab.folder / name)


def test_another_base_is_told(lab):
    qemu_img("rebase", "-u", "-b", lab.folder / "disk0.qcow2", "-F", "qcow2", lab.folder / "disk0.second")
    assert told(lab)["disk0.second"] == ("second", "first", False)
    tell(lab)
    assert told(lab)["disk0.second"] == ("first", "", True)


def test_what_is_right_already_and_what_is_not_ours_is_not_written(lab):
    with lab.host() as host:
        snapshots.forget_made(host.catalog, str(lab.folder / "disk0.first"))
        domain = domains.find(host.catalog, NAME)
        first = snapshots.find(host.catalog, domain, "first")
        snapshots.describe(host.catalog, first, name="other", description="")
    times = {name: (lab.folder / name).stat().st_mtime_ns for name in lab.names()}
    tell(lab)
    now = {name: (lab.folder / name).stat().st_mtime_ns for name in lab.names()}
    assert {name for name in now if now[name] != times[name]} == {"disk0.second"}
    assert told(lab)["disk0.second"] == ("second", "other", True)
    tell(lab)
    assert now == {name: (lab.folder / name).stat().st_mtime_ns for name in lab.names()}
