"""Owns what is said of how long a plan takes: it is measured only where that pays, remembered, and never needed."""

from pathlib import Path

import pytest

from cowtree.catalog import speeds
from cowtree.catalog.store import open_catalog
from cowtree.images import speed
from cowtree.images.wish import Planned, Wish, make_plan
from cowtree.plan.put import Cost
from cowtree.storage.file import LocalFiles
from cowtree.units import MIB
from tests.qemu import qemu_img, qemu_io


@pytest.fixture
def planned(tmp_path: Path) -> Planned:
    """A small merge that is planned."""
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", base, "8M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
    qemu_io(top, "write -P 1 0 1M")
    return make_plan(LocalFiles(), Wish("commit", str(top)))


def of_size(planned: Planned, traffic_bytes: int) -> Planned:
    """The same plan, as if it cost so much."""
    return planned._replace(plan=planned.plan._replace(costs=(Cost(moved_bytes=traffic_bytes),)))


def device(planned: Planned) -> int:
    return planned.family.members[planned.plan.acts[0].target].device


def test_for_a_small_merge_nothing_is_measured(planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(speed, "measure", lambda _: pytest.fail("it was measured"))
    (found,) = speed.estimate(of_size(planned, 50 * MIB), str(tmp_path / "catalog.db"))
    assert found == (0.5, speed.ASSUMED)
    assert not (tmp_path / "catalog.db").exists()


def test_for_a_large_merge_the_disk_is_measured_and_no_file_stays(planned: Planned, tmp_path: Path):
    before = sorted(tmp_path.iterdir())
    (found,) = speed.estimate(of_size(planned, 1 << 30), str(tmp_path / "catalog.db"))
    assert found is not None
    assert found.origin == speed.MEASURED
    assert 0 < found.seconds < 10_000
    assert sorted(tmp_path.iterdir()) == before


def test_where_nothing_can_be_written_nothing_is_said(planned: Planned, tmp_path: Path):
    assert speed.measure(str(tmp_path / "gone")) is None
    assert speed.measure("/proc") is None
    assert speed.total((None, speed.Estimate(1, speed.MEASURED))) is None
    assert speed.total(()) is None


def test_a_large_merge_is_remembered_and_a_small_one_is_not(planned: Planned, tmp_path: Path):
    path = str(tmp_path / "catalog.db")
    with speed.remembering(of_size(planned, 50 * MIB), path):
        pass
    assert not Path(path).exists()
    with speed.remembering(of_size(planned, 1 << 30), path):
        pass
    with open_catalog(path) as catalog:
        known = speeds.recall(catalog, device(planned))
    assert known is not None
    assert known > 1 << 30
    (found,) = speed.estimate(of_size(planned, 3 * known), path)
    assert found == (3, speed.REMEMBERED)


def test_a_merge_that_fails_teaches_nothing(planned: Planned, tmp_path: Path):
    with pytest.raises(KeyError), speed.remembering(of_size(planned, 1 << 30), str(tmp_path / "catalog.db")):
        raise KeyError
    assert not (tmp_path / "catalog.db").exists()


def test_a_catalogue_that_cannot_be_read_costs_no_merge(planned: Planned, tmp_path: Path):
    broken = tmp_path / "catalog.db"
    broken.write_bytes(b"no database" * 100)
    (found,) = speed.estimate(of_size(planned, 10 * MIB), str(broken))
    assert found is not None
    assert found.origin == speed.ASSUMED
    with speed.remembering(of_size(planned, 1 << 30), str(broken)):
        pass


def test_the_least_that_is_known_is_said_of_the_whole():
    both = speed.total((speed.Estimate(1, speed.REMEMBERED), speed.Estimate(2, speed.ASSUMED)))
    assert both == (3, speed.ASSUMED)
