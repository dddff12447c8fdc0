"""Who needs a file; what is not ours, or is needed, is never removed."""

from pathlib import Path

import pytest

from cowtree.catalog import domains, snapshots
from cowtree.operations import needs
from cowtree.operations.host import subject
from cowtree.storage.contract import Access
from cowtree.storage.file import LocalFiles
from tests.lab import Lab
from tests.qemu import qemu_img


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path / "lab")
    lab.take("first")
    lab.take("second")
    return lab


def reasons(lab, name):
    with lab.host() as host:
        return list(needs.who_needs(host, str(lab.folder / name)))


def test_who_needs_a_file_is_named(lab):
    assert reasons(lab, "disk0.first") == ["snapshot 'second' of domain 'guest'", str(lab.folder / "disk0.second")]
    assert reasons(lab, "disk0.second") == ["domain 'guest'"]


def remove(lab, *names):
    with lab.at_work() as (host, found):
        needs.remove(host, needs.begin_removal(host, found, [str(lab.folder / name) for name in names]))


def orphan(lab, name):
    """An overlay that was ours and that nobody needs."""
    path = lab.folder / name
    qemu_img("create", "-q", "-f", "qcow2", "-b", lab.folder / "disk0.first", "-F", "qcow2", path)
    with lab.host() as host:
        snapshots.note_made(host.catalog, str(path), host.files.identity(str(path)))
    return path


def test_what_nobody_needs_goes(lab):
    orphan(lab, "alone")
    remove(lab, "alone", "disk0.first", "disk0.second", "disk0.qcow2")
    assert lab.names() == {"disk0.qcow2", "disk0.first", "disk0.second"}
    with lab.host() as host:
        assert snapshots.made(host.catalog, str(lab.folder / "alone")) is None
        assert snapshots.made(host.catalog, str(lab.folder / "disk0.first")) is not None


def test_what_was_replaced_since_is_not_ours(lab):
    path = orphan(lab, "alone")
    other = orphan(lab, "other")
    other.rename(path)
    remove(lab, "alone")
    assert path.exists()


def test_what_somebody_has_open_stays(lab):
    path = orphan(lab, "alone")
    held = LocalFiles().open(str(path), Access.WRITE)
    remove(lab, "alone")
    held.close()
    assert path.exists()


def test_all_of_ours_below_is_found(lab):
    path = str(orphan(lab, "alone"))
    with lab.host() as host:
        assert needs.with_ours_below(host, [path, str(lab.folder / "disk0.second")]) == [
            path,
            str(lab.folder / "disk0.first"),
            str(lab.folder / "disk0.second"),
        ]
        assert needs.below(host, str(lab.folder / "disk0.qcow2")) is None
        assert needs.below(host, str(lab.folder / "gone")) is None


def test_a_removal_that_was_cut_short_is_done_by_the_next_command(lab):
    path = orphan(lab, "alone")
    with lab.host() as host:
        domain = domains.find(host.catalog, "guest")
        needs.begin_removal(host, subject(host, domain), [str(path)])
    lab.settle()
    assert not Path(path).exists()
