"""What a guest that is shut off can do with its disks; each call once more does the rest."""

from pathlib import Path

import pytest

from cowtree.catalog import domains
from cowtree.errors import Refused
from cowtree.guests.driver import Copy, Inside, Overlay
from cowtree.guests.offline import Offline, is_empty_overlay
from cowtree.images.create import temporary_name
from cowtree.storage.file import LocalFiles
from tests.crash import guest_view, snapshot_views, write_more
from tests.lab import Lab
from tests.qemu import assert_clean, qemu_img

NOW_NS = 1_795_401_065_123_456_000


@pytest.fixture
def guest():
    return Offline(LocalFiles())


@pytest.fixture
def disk(tmp_path):
    return Lab(tmp_path / "lab").sources()["vda"]


def over(disk, **fields):
    return Overlay("vda", disk, "qcow2", f"{disk}.over")._replace(**fields)


def inside(disk, name="one"):
    return Inside("vda", disk, "qcow2", name, NOW_NS)


def test_an_overlay_shows_its_source_and_has_its_rights(guest, disk):
    Path(disk).chmod(0o640)
    guest.go_on([over(disk)])
    guest.go_on([over(disk)])
    assert guest_view(LocalFiles(), f"{disk}.over") == guest_view(LocalFiles(), disk)
    assert Path(f"{disk}.over").stat().st_mode & 0o777 == 0o640
    assert_clean(Path(f"{disk}.over"))


def test_a_raw_source_stays_raw(guest, tmp_path):
    (tmp_path / "raw.img").write_bytes(b"QFI\xfb" + bytes(4092))
    guest.go_on([Overlay("vda", str(tmp_path / "raw.img"), "raw", str(tmp_path / "over"))])
    assert guest_view(LocalFiles(), str(tmp_path / "over"))[:4] == b"QFI\xfb"


def test_what_is_there_is_not_replaced(guest, disk):
    Path(f"{disk}.over").write_text("mine")
    with pytest.raises(Refused, match="already exists"):
        guest.go_on([over(disk)])


def test_overlays_are_taken_back_with_what_was_being_made(guest, disk):
    guest.go_on([over(disk)])
    Path(temporary_name(f"{disk}.second")).touch()
    guest.take_back([over(disk), over(disk, path=f"{disk}.second")])
    assert [path.name for path in Path(disk).parent.iterdir() if path.is_file()] == [Path(disk).name]


def test_what_was_written_to_or_reused_is_not_taken_back(guest, disk):
    guest.go_on([over(disk), over(disk, path=f"{disk}.second")])
    write_more(LocalFiles(), f"{disk}.second", {0: b"x"})
    with pytest.raises(Refused, match="somebody has written to it"):
        guest.take_back([over(disk), over(disk, path=f"{disk}.second")])
    guest.take_back([over(disk, is_reused=True)])
    assert Path(f"{disk}.over").exists()


def test_an_overlay_of_something_else_is_none(guest, disk):
    guest.go_on([over(disk)])
    assert is_empty_overlay(LocalFiles(), over(disk))
    qemu_img("create", "-q", "-f", "qcow2", f"{disk}.other", "1M")
    assert not is_empty_overlay(LocalFiles(), over(f"{disk}.other", path=f"{disk}.over"))
    assert not is_empty_overlay(LocalFiles(), over(disk, path=f"{disk}.other"))
    assert not is_empty_overlay(LocalFiles(), over(disk, path=f"{disk}.gone"))


def test_internal_snapshots_are_taken_returned_to_and_forgotten(guest, disk):
    (taken,) = guest.keep([inside(disk)])
    before = guest_view(LocalFiles(), disk)
    write_more(LocalFiles(), disk, {0: b"later"})
    guest.return_to([taken])
    assert guest_view(LocalFiles(), disk) == before
    guest.forget([taken])
    guest.forget([taken])
    assert snapshot_views(LocalFiles(), disk) == {}


def test_only_what_was_taken_is_forgotten(guest, disk):
    guest.keep([inside(disk)])
    guest.forget([inside(disk)._replace(created_ns=NOW_NS + 1000)])
    guest.forget([inside(disk, "other")])
    assert list(snapshot_views(LocalFiles(), disk)) == ["one"]
    guest.forget([inside(disk)])
    assert list(snapshot_views(LocalFiles(), disk)) == []


def test_a_snapshot_is_copied_out_with_what_backs_it(guest, disk):
    guest.go_on([over(disk)])
    write_more(LocalFiles(), f"{disk}.over", {512: b"inner"})
    (taken,) = guest.keep([inside(f"{disk}.over")])
    shown = guest_view(LocalFiles(), f"{disk}.over")
    write_more(LocalFiles(), f"{disk}.over", {512: b"later"})
    guest.copy_out([Copy(taken, f"{disk}.copy")])
    guest.copy_out([Copy(taken, f"{disk}.copy")])
    assert guest_view(LocalFiles(), f"{disk}.copy") == shown
    assert disk in qemu_img("info", f"{disk}.copy")
    with pytest.raises(Refused, match="has no internal snapshot 'one' any more"):
        guest.copy_out([Copy(taken._replace(id="7"), f"{disk}.third")])


def test_the_catalogue_is_not_looked_at(guest, tmp_path):
    lab = Lab(tmp_path / "lab")
    guest.go_on([over(lab.sources()["vda"])])
    with lab.host() as host:
        assert domains.left(host.catalog, domains.find(host.catalog, "guest")) == {}
