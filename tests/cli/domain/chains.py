"""Owns the chain of the document, made as its commands make it: RootBase <- Snap-1 <- Snap-2 <- Snap-3 <- Active."""

from pathlib import Path

from tests.cli.running import Ran
from tests.qemu import qemu_img, qemu_io

NAMES = ("Snap-1", "Snap-2", "Snap-3", "Active")


def make_chain(folder, capsys):
    """The domain f17, whose layers have a cluster of their own each, and one that all of them write."""
    base = folder / "RootBase.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", base, "1M")
    qemu_io(base, "write -P 1 0 64k")
    assert Ran(capsys, "adopt", "f17", str(base)).status == 0
    for number, name in enumerate(NAMES, 1):
        words = ("--disk-only", "--diskspec", f"vda,file={folder}/{name}.qcow2")
        assert Ran(capsys, "snapshot-create-as", "f17", name, *words).status == 0
        commands = (f"write -P {number + 1} {number * 64}k 64k", f"write -P {number + 9} 960k 64k")
        qemu_io(folder / f"{name}.qcow2", *commands)
    return folder


def make_pair(folder, capsys, size, *commands):
    """The domain vm: base.qcow2 <- active.qcow2, each written to by one command of qemu-io."""
    images = folder / "base.qcow2", folder / "active.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", images[0], size)
    qemu_io(images[0], commands[0])
    assert Ran(capsys, "adopt", "vm", str(images[0])).status == 0
    words = ("--disk-only", "--diskspec", f"vda,file={images[1]}")
    assert Ran(capsys, "snapshot-create-as", "vm", "s1", *words).status == 0
    qemu_io(images[1], commands[1])
    return folder


def path(folder, name):
    """The whole name of a layer."""
    return str(folder / f"{name}.qcow2")


def chain(folder, name="Active"):
    """The chain of an image as qemu-img tells it, its top first."""
    found = qemu_img("info", "--backing-chain", path(folder, name))
    return [Path(line.partition(": ")[2]).stem for line in found.splitlines() if line.startswith("image: ")]
