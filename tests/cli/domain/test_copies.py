"""`blockcopy` and `blockresize` as they are typed, and what they print."""

import json

import pytest

from tests.cli.domain.chains import make_pair
from tests.cli.running import Ran
from tests.qemu import assert_clean, content, qemu_img, qemu_io


@pytest.fixture
def folder(tmp_path, capsys):
    """base.qcow2 <- active.qcow2, of the domain vm."""
    return make_pair(tmp_path, capsys, "4M", "write -P 1 0 2M", "write -P 2 1M 2M")


def size_of(path):
    return json.loads(qemu_img("info", "--output=json", path))["virtual-size"]


def test_copies_as_stock_makes_them(folder, capsys):
    shown = content(folder / "active.qcow2")
    copy = str(folder / "copy.qcow2")
    ran = Ran(capsys, "blockcopy", "vm", "vda", copy, "--wait", "--verbose", "--finish", "--transient-job")
    assert (ran.status, ran.out) == (0, "\nSuccessfully copied\n")
    assert ran.err.endswith("\rBlock Copy: [100 %]")
    assert content(folder / "copy.qcow2") == shown
    ran = Ran(capsys, "blockcopy", "vm", "vda", copy, "--wait")
    assert (ran.status, ran.out) == (15, "\n")
    reason = f"external destination file for disk vda already exists and is not a block device: {copy}"
    assert ran.err.startswith(f"error: unsupported configuration: {reason}")
    assert "active.qcow2" in Ran(capsys, "domblklist", "vm").out
    raw = folder / "copy.raw"
    ran = Ran(capsys, "blockcopy", "vm", "vda", str(raw), "--format", "raw")
    assert (ran.status, ran.out) == (0, "Block Copy started\n")
    assert raw.read_bytes() == shown
    ran = Ran(capsys, "blockcopy", "vm", "vda", str(folder / "other.qcow2"), "--shallow", "--pivot")
    assert ran.out == "\nSuccessfully pivoted\n"
    assert "other.qcow2" in Ran(capsys, "domblklist", "vm").out
    assert content(folder / "other.qcow2") == shown
    assert "base.qcow2" in qemu_img("info", folder / "other.qcow2")
    ran = Ran(capsys, "blockcopy", "vm", "vda", str(folder / "no" / "c.qcow2"), "--wait")
    assert ran.err.startswith("error: failed to create copy target: No such file or directory")
    assert Ran(capsys, "blockcopy", "vm", "vda", str(folder / "x"), "--format", "vmdk").status == 2


def test_a_copy_that_runs_out_of_time_leaves_nothing(folder, capsys):
    qemu_io(folder / "active.qcow2", "write -P 3 0 4M")
    before = sorted(each.name for each in folder.iterdir())
    words = ("--bandwidth", "1", "--timeout", "1")
    ran = Ran(capsys, "blockcopy", "vm", "vda", str(folder / "copy.qcow2"), "--wait", *words)
    assert (ran.status, ran.out) == (1, "\nCopy aborted\n")
    assert sorted(each.name for each in folder.iterdir()) == before
    assert Ran(capsys, "domblklist", "vm").err == ""


@pytest.mark.parametrize(("size", "size_bytes"), [("8192", 8 << 20), ("9M", 9 << 20), ("10000000B", 10000384)])
def test_a_disk_gets_another_size(folder, capsys, size, size_bytes):
    ran = Ran(capsys, "blockresize", "vm", "vda", size)
    assert (ran.status, ran.out) == (0, "Block device 'vda' is resized\n")
    assert size_of(folder / "active.qcow2") == size_bytes
    assert size_of(folder / "base.qcow2") == 4 << 20
    assert_clean(folder / "active.qcow2")
    ran = Ran(capsys, "blockresize", "vm", "vda", "1M")
    assert (ran.status, ran.out) == (15, "\n")
    assert "--shrink" in ran.err
    assert Ran(capsys, "blockresize", "vm", "vda", "1M", "--shrink").status == 0
    assert size_of(folder / "active.qcow2") == 1 << 20


@pytest.mark.parametrize("size", ["much", "-1", "1X", "9" * 30, ""])
def test_sizes_that_are_none_are_refused(folder, capsys, size):
    ran = Ran(capsys, "blockresize", "vm", "vda", f"--size={size}")
    assert ran.status == 2
    assert "is malformed or out of range" in ran.err
