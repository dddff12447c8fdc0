"""The document that cowtree implements, command by command and in its order, on guests that are shut off.

The lines are the document's own: `virsh` reads `cowtree`, `qemu-img` reads `cowtree img`, and its folders read the one
of the test. The disks hold an ext4 root; after each step the chain is as the figure draws it, and the files are there.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.qemu import assert_clean, qemu_img, qemu_io

# Each of these takes a second or more.
pytestmark = pytest.mark.slow

FOLDERS: Final = ("/export/vmimages", "/var/lib/libvirt/images")
DISK_BYTES: Final = 8 << 20
BLOCK_BYTES: Final = 4096


class Host:
    """A folder with images, and a shell in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *lines: str) -> str:
        """Run lines of the document as root's shell would. Returns: what they print, errors and progress too."""
        script = "\n".join(lines)
        for folder in FOLDERS:
            script = script.replace(folder, str(self.folder)).replace(f" {folder[1:]}", f" {str(self.folder)[1:]}")
        script = re.sub(r"^virsh\b", "cowtree", script, flags=re.MULTILINE)
        script = re.sub(r"^qemu-img\b", "cowtree img", script, flags=re.MULTILINE)
        command = f'set -e\ncowtree() {{ {sys.executable} -m cowtree "$@"; }}\n{script}'
        # The document gives one path without its first stroke: it is typed in the root folder.
        where = "/" if "--path var/" in "".join(lines) else self.folder
        ended = subprocess.run(["bash", "-c", command], cwd=where, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, (script, ended.stdout, ended.stderr)
        return ended.stdout + ended.stderr

    def path(self, name: str) -> Path:
        """An image."""
        return self.folder / name

    def chain(self, name: str) -> list[str]:
        """The images of a chain, the base first, as qemu-img tells it."""
        told = json.loads(qemu_img("info", "--backing-chain", "--output=json", self.path(name)))
        return [Path(each["filename"]).name for each in reversed(told)]

    def root(self, name: str, image_format: str = "qcow2") -> Path:
        """What the guest sees through an image, as a raw file."""
        raw = self.folder / "seen.raw"
        qemu_img("convert", "-f", image_format, "-O", "raw", self.path(name), raw)
        return raw

    def files(self, name: str, image_format: str = "qcow2") -> dict[str, str]:
        """The files in the root of the guest's file system, which is sound."""
        raw = self.root(name, image_format)
        ended = subprocess.run(["e2fsck", "-fn", raw], capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout
        listed = subprocess.run(["debugfs", "-R", "ls -p /", raw], capture_output=True, text=True, check=True).stdout
        names = [line.split("/")[5] for line in listed.splitlines() if line.startswith("/")]
        found = {}
        for each in sorted({*names} - {"", ".", "..", "lost+found"}):
            shown = subprocess.run(["debugfs", "-R", f"cat /{each}", raw], capture_output=True, text=True, check=True)
            found[each] = shown.stdout
        return found

    def guest_writes(self, name: str, file: str, text: str, image_format: str = "qcow2") -> None:
        """Let the guest make a file, and write the blocks that this changes."""
        raw = self.root(name, image_format)
        before = raw.read_bytes()
        (self.folder / "text").write_text(text)
        subprocess.run(
            ["debugfs", "-w", "-R", f"write {self.folder}/text {file}", raw], capture_output=True, check=True
        )
        after = raw.read_bytes()
        changed = [
            offset
            for offset in range(0, len(after), BLOCK_BYTES)
            if after[offset : offset + BLOCK_BYTES] != before[offset : offset + BLOCK_BYTES]
        ]
        assert changed
        commands = []
        for offset in changed:
            block = self.folder / f"block{offset}"
            block.write_bytes(after[offset : offset + BLOCK_BYTES])
            commands.append(f"write -s {block} {offset} {BLOCK_BYTES}")
        qemu_io(self.path(name), *commands, image_format=image_format)
        for offset in changed:
            (self.folder / f"block{offset}").unlink()

    def make_root(self, name: str, image_format: str = "qcow2") -> None:
        """A disk with a file system, and the files of a system that was just installed."""
        content = self.folder / "content"
        content.mkdir(exist_ok=True)
        (content / "release").write_text("Fedora 17\n")
        raw = self.folder / "root.raw"
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-F", "-d", content, raw, str(DISK_BYTES // 1024)], check=True)
        qemu_img("convert", "-f", "raw", "-O", image_format, raw, self.path(name))
        raw.unlink()

    def adopt(self, domain: str, name: str) -> None:
        """A guest with this disk."""
        self.run(f"virsh adopt {domain} /export/vmimages/{name}")

    def grow(self, domain: str, *names: str) -> None:
        """Take external snapshots of a guest, which writes a file after each."""
        for name in names:
            self.run(
                f"virsh snapshot-create-as --domain {domain} {name} --disk-only "
                f"--diskspec vda,snapshot=external,file=/export/vmimages/{name}.qcow2 --atomic"
            )
            self.guest_writes(f"{name}.qcow2", name, f"written after {name}\n")


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


INSTALLED: Final = {"release": "Fedora 17\n"}


def written(*names: str) -> dict[str, str]:
    """What the guest's root holds after these snapshots."""
    return {**INSTALLED, **{name: f"written after {name}\n" for name in names}}


def test_backing_files_and_overlays(host):
    """Figures 1 and 2: two clones of one base, and an overlay on a third that was updated."""
    host.make_root("RootBase.img", "raw")
    host.make_root("Fed-w-updates.qcow2")
    host.run(
        "qemu-img create -b /export/vmimages/RootBase.img -f qcow2 /export/vmimages/Fedora-guest-1.qcow2",
        "qemu-img create -b /export/vmimages/RootBase.img -f qcow2 /export/vmimages/Fedora-guest-2.qcow2",
        "qemu-img create -b /export/vmimages/Fed-w-updates.qcow2 -f qcow2 "
        "/export/vmimages/Fedora-guest-with-updates-1A.qcow2",
    )
    host.guest_writes("Fedora-guest-1.qcow2", "one", "1\n")
    host.guest_writes("Fedora-guest-with-updates-1A.qcow2", "updated", "18\n")
    assert host.chain("Fedora-guest-1.qcow2") == ["RootBase.img", "Fedora-guest-1.qcow2"]
    assert host.files("Fedora-guest-1.qcow2") == {**INSTALLED, "one": "1\n"}
    assert host.files("Fedora-guest-2.qcow2") == INSTALLED
    told = host.run("qemu-img info /export/vmimages/Fedora-guest-with-updates-1A.qcow2")
    assert f"backing file: {host.folder}/Fed-w-updates.qcow2" in told
    told = host.run("qemu-img info --backing-chain /export/vmimages/Fedora-guest-with-updates-1A.qcow2")
    assert [Path(each).name for each in re.findall("^image: (.*)$", told, re.MULTILINE)] == [
        "Fedora-guest-with-updates-1A.qcow2",
        "Fed-w-updates.qcow2",
    ]


def test_an_internal_snapshot_is_created_listed_and_reverted_to(host):
    host.make_root("f17vm1.qcow2")
    host.adopt("f17vm1", "f17vm1.qcow2")
    assert host.run("virsh snapshot-create-as f17vm1  snap1 snap1-desc") == "Domain snapshot snap1 created\n"
    told = host.run("virsh snapshot-list f17vm1", "qemu-img info /export/vmimages/f17vm1.qcow2")
    assert re.search(r"^ snap1 +\S+ \S+ \S+ +shutoff$", told, re.MULTILINE)
    assert re.search(r"^1 +snap1 +0 B", told, re.MULTILINE)
    host.guest_writes("f17vm1.qcow2", "later", "x\n")
    assert host.run("virsh snapshot-revert --domain f17vm1 snap1") == "Domain snapshot snap1 reverted\n\n"
    assert host.files("f17vm1.qcow2") == INSTALLED
    assert_clean(host.path("f17vm1.qcow2"))


def test_an_external_snapshot_is_created(host):
    host.make_root("f17-base.qcow2")
    host.adopt("f17-base", "f17-base.qcow2")
    assert f"vda      {host.folder}/f17-base.qcow2" in host.run("virsh domblklist f17-base")
    told = host.run(
        "virsh snapshot-create-as --domain f17-base snap1 snap1-desc \\",
        "--disk-only --diskspec vda,snapshot=external,file=/export/vmimages/sn1-of-f17-base.qcow2 \\",
        "--atomic",
    )
    assert told == "Domain snapshot snap1 created\n"
    assert f"vda      {host.folder}/sn1-of-f17-base.qcow2" in host.run("virsh domblklist f17-base")
    assert host.chain("sn1-of-f17-base.qcow2") == ["f17-base.qcow2", "sn1-of-f17-base.qcow2"]
    host.guest_writes("sn1-of-f17-base.qcow2", "later", "x\n")
    assert host.files("f17-base.qcow2") == INSTALLED
    assert host.files("sn1-of-f17-base.qcow2") == {**INSTALLED, "later": "x\n"}


def start(host: Host, domain: str, base: str, *names: str) -> None:
    host.make_root(base)
    host.adopt(domain, base)
    host.grow(domain, *names)


METHOD_A: Final = (
    "virsh blockcommit --domain f17 vda --base /export/vmimages/sn1.qcow2 --top /export/vmimages/sn3.qcow2 "
    "--wait --verbose",
)
METHOD_B: Final = (
    "virsh blockcommit --domain f17 vda  --base /export/vmimages/sn2.qcow2 --top /export/vmimages/sn3.qcow2 "
    "--wait --verbose",
    "virsh blockcommit --domain f17 vda  --base /export/vmimages/sn1.qcow2 --top /export/vmimages/sn2.qcow2 "
    "--wait --verbose",
)


@pytest.mark.parametrize("lines", [METHOD_A, METHOD_B], ids=["method-a", "method-b"])
def test_blockcommit_into_sn1(host, lines):
    """Figure 3: base <- sn1 <- sn2 <- sn3 <- sn4 becomes base <- sn1 <- sn4."""
    start(host, "f17", "base.qcow2", "sn1", "sn2", "sn3", "sn4")
    told = host.run(*lines)
    assert told.count("Commit complete") == len(lines)
    assert told.count("Block commit: [100 %]") == len(lines)
    assert host.chain("sn4.qcow2") == ["base.qcow2", "sn1.qcow2", "sn4.qcow2"]
    assert host.files("sn4.qcow2") == written("sn1", "sn2", "sn3", "sn4")
    assert host.files("sn1.qcow2") == written("sn1", "sn2", "sn3")
    assert host.files("base.qcow2") == INSTALLED
    assert_clean(host.path("sn1.qcow2"))


CASES: Final = {
    1: ("RootBase", "Snap-3", ["RootBase", "Active"]),
    2: ("RootBase", "Snap-2", ["RootBase", "Snap-3", "Active"]),
    3: ("RootBase", "Snap-1", ["RootBase", "Snap-2", "Snap-3", "Active"]),
    4: ("Snap-1", "Snap-2", ["RootBase", "Snap-1", "Snap-3", "Active"]),
    5: ("Snap-2", "Snap-3", ["RootBase", "Snap-1", "Snap-2", "Active"]),
    6: ("Snap-1", "Snap-3", ["RootBase", "Snap-1", "Active"]),
}
SNAPS: Final = ("Snap-1", "Snap-2", "Snap-3", "Active")


@pytest.mark.parametrize("case", CASES)
def test_the_six_cases_of_blockcommit(host, case):
    """Figures 3 and 4."""
    base, top, chain = CASES[case]
    start(host, "f17", "RootBase.qcow2", *SNAPS)
    host.run(
        f"virsh blockcommit --domain f17 vda --base /export/vmimages/{base}.qcow2 "
        f"--top /export/vmimages/{top}.qcow2 --wait --verbose"
    )
    assert host.chain("Active.qcow2") == [f"{name}.qcow2" for name in chain]
    assert host.files("Active.qcow2") == written(*SNAPS)
    below = SNAPS[: SNAPS.index(top) + 1]
    assert host.files(f"{base}.qcow2") == written(*below)


def test_the_active_layer_is_merged_down(host):
    """What the document calls «eventually»."""
    start(host, "f17", "RootBase.qcow2", *SNAPS)
    told = host.run("virsh blockcommit f17 vda --active --pivot --wait --verbose")
    assert "Successfully pivoted" in told
    assert f"vda      {host.folder}/RootBase.qcow2" in host.run("virsh domblklist f17")
    assert host.files("RootBase.qcow2") == written(*SNAPS)


def test_a_partial_blockpull_and_its_metadata(host):
    """Figure 5: RootBase <- Active."""
    start(host, "RootBase", "RootBase.qcow2", "Snap-1", "Snap-2", "Snap-3", "active")
    told = host.run(
        "virsh blockpull --domain RootBase --path var/lib/libvirt/images/active.qcow2 "
        "--base /var/lib/libvirt/images/RootBase.qcow2  --wait --verbose"
    )
    assert "Pull complete" in told
    assert host.chain("active.qcow2") == ["RootBase.qcow2", "active.qcow2"]
    assert host.files("active.qcow2") == written("Snap-1", "Snap-2", "Snap-3", "active")
    assert host.files("Snap-2.qcow2") == written("Snap-1", "Snap-2")
    told = host.run(
        "virsh snapshot-delete --domain RootBase Snap-3 --metadata",
        "virsh snapshot-delete --domain RootBase Snap-2 --metadata",
        "virsh snapshot-delete --domain RootBase Snap-1 --metadata",
    )
    assert told == "".join(f"Domain snapshot Snap-{number} deleted\n\n" for number in (3, 2, 1))
    assert host.run("virsh snapshot-list RootBase --name").split() == ["active"]
    assert host.path("Snap-1.qcow2").exists()


def test_a_full_blockpull_leaves_a_standalone_image(host):
    """Figure 6."""
    start(host, "ptest2-base", "RootBase.img", *SNAPS)
    host.run(
        "ls -lash /var/lib/libvirt/images/RootBase.img",
        "ls -lash /var/lib/libvirt/images/*Snap*",
    )
    told = host.run("qemu-img info /var/lib/libvirt/images/Active.qcow2")
    assert f"backing file: {host.folder}/Snap-3.qcow2" in told
    told = host.run("virsh blockpull --domain ptest2-base --path /var/lib/libvirt/images/Active.qcow2 --wait --verbose")
    assert "Block Pull: [100 %]" in told
    assert "Pull complete" in told
    told = host.run("ls -lash /var/lib/libvirt/images/*Snap*", "qemu-img info /var/lib/libvirt/images/Active.qcow2")
    assert "backing file" not in told
    assert host.chain("Active.qcow2") == ["Active.qcow2"]
    assert host.files("Active.qcow2") == written(*SNAPS)
    assert host.run("virsh snapshot-delete --domain ptest2-base Snap-3 --metadata")
    # Nothing is left that Active needs.
    for name in ("RootBase.img", "Snap-1.qcow2", "Snap-2.qcow2", "Snap-3.qcow2"):
        host.path(name).unlink()
    assert host.files("Active.qcow2") == written(*SNAPS)


@pytest.mark.parametrize("words", ["--domain f17vm --snapshotname snap6", "f17vm snap6"])
def test_an_internal_snapshot_is_deleted(host, words):
    host.make_root("f17vm.qcow2")
    host.adopt("f17vm", "f17vm.qcow2")
    host.run("virsh snapshot-create-as f17vm snap5", "virsh snapshot-create-as f17vm snap6")
    assert host.run(f"virsh snapshot-delete {words}") == "Domain snapshot snap6 deleted\n\n"
    assert host.run("virsh snapshot-list f17vm --name").split() == ["snap5"]
    assert_clean(host.path("f17vm.qcow2"))


METHODS: Final = {
    "Method (1)": ("qemu-img commit sn2.qcow2", "qemu-img rebase -u -b sn1.qcow2 sn3.qcow2", "rm sn2.qcow2"),
    "Method (2)": ("qemu-img rebase -b sn1.qcow2 sn3.qcow2", "rm sn2.qcow2"),
}


@pytest.mark.parametrize("method", METHODS)
def test_the_second_snapshot_is_deleted_offline(host, method):
    """base <- sn1 <- sn2 <- sn3 becomes base <- sn1 <- sn3, by either method; and a guest that has these disks is told
    that its chain is another one.
    """
    start(host, "f17", "base.qcow2", "sn1", "sn2", "sn3")
    host.run(*METHODS[method])
    assert host.chain("sn3.qcow2") == ["base.qcow2", "sn1.qcow2", "sn3.qcow2"]
    assert host.files("sn3.qcow2") == written("sn1", "sn2", "sn3")
    assert host.files("sn1.qcow2") == (written("sn1", "sn2") if method == "Method (1)" else written("sn1"))
    assert "another tool has made it" in host.run("virsh domblklist f17")


@pytest.mark.parametrize("method", ["1", "2"])
def test_an_external_snapshot_is_deleted_by_a_method_that_is_named(host, method):
    """What stock libvirt cannot do for a guest that is off."""
    start(host, "f17", "base.qcow2", "sn1", "sn2", "sn3")
    assert host.run(f"virsh snapshot-delete f17 sn2 --method {method}") == "Domain snapshot sn2 deleted\n\n"
    gone = {"1": "sn2.qcow2", "2": "sn1.qcow2"}[method]
    assert host.chain("sn3.qcow2") == [
        name for name in ("base.qcow2", "sn1.qcow2", "sn2.qcow2", "sn3.qcow2") if name != gone
    ]
    assert host.files("sn3.qcow2") == written("sn1", "sn2", "sn3")
    assert host.run("virsh snapshot-list f17 --name").split() == ["sn1", "sn3"]
    assert not host.path(gone).exists()


def test_reverting_to_an_external_snapshot_which_stock_refuses(host):
    start(host, "f17", "base.qcow2", "sn1", "sn2")
    assert "Domain snapshot sn2 reverted" in host.run("virsh snapshot-revert f17 sn2")
    active = host.run("virsh domblklist f17").split()[-1]
    assert host.files(Path(active).name) == written("sn1")
    assert host.files("sn2.qcow2") == written("sn1", "sn2")
