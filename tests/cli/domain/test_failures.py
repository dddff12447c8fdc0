"""Where stock fails or is dangerous, and a guest that is shut off is concerned: by the numbers of the recording.

5 to 8 have their tests where the verbs are tested (`test_snapshots`, `test_define`, `test_delete`): internal snapshots
below overlays, reverts that fail, files that would be overwritten, external snapshots that are reverted to and deleted.
1 and 2 are about guests that run.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.domain.guest import DISK_BYTES, Guest
from tests.cli.running import Ran
from tests.mounts import mounted_image
from tests.qemu import content, qemu_img, qemu_io, run_well

Make = Callable[..., Guest]


def grow(vm: Guest, *names: str) -> None:
    """Take external snapshots; the guest writes a cluster of its own after each."""
    for number, name in enumerate(names, 1):
        words = ("--disk-only", "--diskspec", f"vda,file={vm.folder / name}")
        vm.out("snapshot-create-as", vm.name, name, *words)
        qemu_io(vm.folder / name, f"write -P {number + 10} {number * 64}k 64k")


def test_3_a_short_layer_in_the_middle_does_not_let_old_data_show(guest: Make):
    vm = guest("vm", "base")
    vm.write(1)
    qemu_img("create", "-q", "-f", "qcow2", "-b", vm.folder / "base", "-F", "qcow2", vm.folder / "short", "256k")
    qemu_img("create", "-q", "-f", "qcow2", "-b", vm.folder / "short", "-F", "qcow2", vm.folder / "top", "1M")
    shown = content(vm.folder / "top")
    assert shown[512 << 10] == 0
    for name in ("short", "top"):
        reuse = ("--disk-only", "--reuse-external", "--diskspec", f"vda,file={vm.folder / name}")
        vm.out("snapshot-create-as", "vm", name, *reuse)
    assert vm.run("blockcommit", "vm", "vda", "--base", "base", "--top", "short", "--wait").status == 0
    assert content(vm.folder / "top") == shown


@pytest.mark.parametrize(
    "words", [["blockcommit", "vm", "vda", "--active", "--pivot"], ["snapshot-delete", "vm", "one"]]
)
def test_4_a_sibling_that_nobody_has_open_is_not_ruined(guest: Make, words: list[str]):
    vm = guest("vm", "base")
    grow(vm, "one")
    qemu_img("create", "-q", "-f", "qcow2", "-b", vm.folder / "base", "-F", "qcow2", vm.folder / "sibling")
    shown = content(vm.folder / "sibling")
    ran = vm.run(*words)
    assert content(vm.folder / "sibling") == shown
    if words[0] == "blockcommit":
        assert ran.status == 15
        assert str(vm.folder / "sibling") in ran.err


def test_9_a_full_disk_is_a_reason_and_is_told_before_anything_begins(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    image = tmp_path / "small.image"
    image.touch()
    os.truncate(image, 8 << 20)
    run_well("mkfs.ext4", "-q", "-O", "^has_journal", image)
    with mounted_image(image, "ext4") as place:
        base = place / "base"
        qemu_img("create", "-q", "-f", "qcow2", base, "32M")
        assert Ran(capsys, "adopt", "vm", str(base)).status == 0
        words = ("--disk-only", "--diskspec", f"vda,file={tmp_path / 'large'}")
        assert Ran(capsys, "snapshot-create-as", "vm", "s", *words).status == 0
        qemu_io(tmp_path / "large", "write -P 5 0 16M")
        before = base.read_bytes()
        ran = Ran(capsys, "blockcommit", "vm", "vda", "--active", "--pivot", "--wait")
        assert ran.status == 15
        assert "bytes of space in" in ran.err
        assert base.read_bytes() == before
        assert Ran(capsys, "domblklist", "vm").err == ""


def test_10_percentages_count_what_is_moved(guest: Make):
    vm = guest("vm", "base")
    grow(vm, "one", "two")
    ran = vm.run("blockcommit", "vm", "vda", "--base", "base", "--top", "one", "--wait", "--verbose")
    numbers = [int(part.split("%")[0]) for part in ran.err.split("[")[1:] if "%" in part]
    assert numbers == sorted(numbers)
    assert numbers[-1] == 100


def test_11_copies_need_no_transient_job_and_a_middle_layer_takes_what_lies_below(guest: Make):
    vm = guest("vm", "base")
    vm.write(1)
    grow(vm, "one", "two")
    assert vm.run("blockcopy", "vm", "vda", str(vm.folder / "copy"), "--finish", "--wait").status == 0
    assert content(vm.folder / "copy") == content(vm.folder / "two")
    shown = content(vm.folder / "one")
    assert vm.run("blockpull", "vm", str(vm.folder / "one"), "--wait").status == 0
    assert content(vm.folder / "one") == shown
    assert "backing file" not in qemu_img("info", vm.folder / "one")


def test_12_the_document_s_rebase_needs_no_format_and_copies_nothing_in_vain(guest: Make):
    vm = guest("vm", "base")
    grow(vm, "sn1", "sn2", "sn3")
    shown = content(vm.folder / "sn3")
    ran = vm.run("img", "rebase", "-b", str(vm.folder / "sn1"), str(vm.folder / "sn3"))
    assert (ran.status, content(vm.folder / "sn3")) == (0, shown)
    (vm.folder / "unknown").write_bytes(bytes(DISK_BYTES))
    before = (vm.folder / "sn3").read_bytes()
    ran = vm.run("img", "rebase", "-b", str(vm.folder / "unknown"), str(vm.folder / "sn3"))
    assert ran.status == 1
    assert "backing format must be specified" in ran.err
    assert (vm.folder / "sn3").read_bytes() == before


@pytest.mark.parametrize(
    "words", [["img", "check", "base"], ["snapshot-create-as", "vm", "s", "--disk-only"], ["domblkinfo", "vm", "vda"]]
)
def test_13_an_image_that_backs_itself_is_said_at_once(guest: Make, monkeypatch: pytest.MonkeyPatch, words: list[str]):
    vm = guest("vm", "base")
    monkeypatch.chdir(vm.folder)
    qemu_img("rebase", "-u", "-f", "qcow2", "-b", vm.folder / "base", "-F", "qcow2", vm.folder / "base")
    ran = vm.run(*words)
    if words[0] == "domblkinfo":
        assert (ran.status, ran.out.splitlines()[0].split()) == (0, ["Capacity:", str(DISK_BYTES)])
    else:
        assert ran.status != 0
        assert "creates an infinite loop" in ran.err
