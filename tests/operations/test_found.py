"""What images tell by themselves: which are found, what they lie on, and what is believed of them."""

import shutil
from pathlib import Path

import pytest

from cowtree.catalog.snapshots import made
from cowtree.operations.found import gather, line, refuse_text
from cowtree.operations.host import Host
from cowtree.qcow2.moment import Moment
from cowtree.storage.file import LocalFiles
from tests.crash import write_more
from tests.lab import Lab
from tests.qemu import qemu_img


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path / "lab")
    lab.take("first")
    lab.take("inner", is_disk_only=False)
    return lab


def found(lab):
    with lab.host() as host:
        return {Path(path).name: file for path, file in gather(host, [str(lab.folder)]).items()}


def test_an_overlay_tells_of_the_moment_below_it(lab):
    files = found(lab)
    assert [*files] == ["disk0.qcow2", "disk0.first"]
    base, overlay = files.values()
    assert (base.moment, base.base, base.insides) == (None, None, ())
    assert overlay.moment is not None
    assert (overlay.moment.name, overlay.moment.target, overlay.moment.parent) == ("first", "vda", "")
    assert (overlay.is_true, overlay.is_ours, overlay.base, overlay.base_format) == (True, True, base.path, "qcow2")
    assert [each.name for each in overlay.insides] == ["inner"]
    assert [each.path for each in line({each.path: each for each in files.values()}, overlay.path)] == [
        overlay.path,
        base.path,
    ]


def test_another_base_makes_a_moment_untrue(lab):
    shutil.copy(lab.folder / "disk0.qcow2", lab.folder / "other")
    qemu_img("rebase", "-u", "-b", lab.folder / "other", "-F", "qcow2", lab.folder / "disk0.first")
    assert not found(lab)["disk0.first"].is_true


def test_a_base_that_is_gone_may_come_back_and_is_still_the_moment(lab):
    (lab.folder / "disk0.qcow2").unlink()
    overlay = found(lab)["disk0.first"]
    assert (overlay.is_true, overlay.base) == (True, str(lab.folder / "disk0.qcow2"))


def test_a_snapshot_that_was_not_to_be_noted_has_no_name(lab):
    lab.take("secret", is_disk_only=True, has_metadata=False)
    moment = found(lab)["disk0.secret"].moment
    assert moment is not None
    assert moment.name == ""


def test_what_cannot_be_read_is_told_and_the_rest_found(lab):
    broken = lab.folder / "broken.qcow2"
    broken.write_bytes(b"QFI\xfb" + bytes(200))
    files = found(lab)
    assert {"disk0.qcow2", "disk0.first"} <= {*files}
    assert "broken.qcow2" not in files
    assert any("broken.qcow2" in each for each in lab.told)


def test_an_image_that_a_guest_writes_to_is_looked_at_all_the_same(lab):
    held = LocalFiles().open(str(lab.folder / "disk0.first"), "write")
    try:
        assert found(lab)["disk0.first"].is_ours
    finally:
        held.close()
    write_more(LocalFiles(), str(lab.folder / "disk0.first"), {0: b"x"})


def test_files_of_ours_are_those_that_the_catalogue_knows(lab):
    with lab.host() as host:
        assert isinstance(host, Host)
        assert {path for path, file in gather(host, []).items() if file.is_ours} == {
            path for path in gather(host, []) if made(host.catalog, path)
        }


@pytest.mark.parametrize(("name", "parent"), [("a/b", ""), ("a", "."), ("\n", ""), (" ", "")])
def test_names_that_are_none_are_refused(name, parent):
    assert refuse_text(Moment("vm", "0", "vda", name, parent, "", 0, 0)) is not None
    assert refuse_text(Moment("vm", "0", "vda", "a", "", "", 0, 0)) is None
