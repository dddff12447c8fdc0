"""Owns a guest for tests of virsh's words: real disks in a folder, and output as it was recorded of stock."""

import os
import re
from pathlib import Path
from typing import Final

import pytest

from cowtree.chain.gate import QCOW2
from cowtree.images.create import create
from cowtree.plan.create import NewImage
from cowtree.storage.file import LocalFiles
from tests.cli.running import Ran
from tests.qemu import qemu_io

DISK_BYTES: Final = 1 << 20
UUID: Final = "6236e2e8-2923-40bb-ae9c-6483cf848ccc"
# Where the images lay when stock was recorded; the recording shows another folder, one letter shorter than its rules.
RECORDED: Final = ("/tmp/lv/img", "/vm/images")
TIME: Final = "2026-11-23 02:30:45 +0000"
DISK: Final = """
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='{path}'/>
      <target dev='{target}' bus='virtio'/>
    </disk>"""
DOMAIN: Final = """\
<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='KiB'>131072</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64'>hvm</type>
  </os>
  <devices>{disks}
  </devices>
</domain>
"""


def disk(path: Path) -> Path:
    """A new and empty image."""
    create(LocalFiles(), NewImage(str(path), QCOW2, DISK_BYTES))
    return path


def definition(name: str, *paths: Path, uuid: str = UUID) -> str:
    """The XML of a guest with these disks."""
    disks = "".join(DISK.format(path=path, target=f"vd{letter}") for path, letter in zip(paths, "abcdef", strict=False))
    return DOMAIN.format(name=name, uuid=uuid, disks=disks)


class Guest:
    """A guest that was defined, and its words."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], name: str, *files: str) -> None:
        self.folder, self.name = folder, name
        self._capsys = capsys
        self.xml = folder / f"{name}.xml"
        self.xml.write_text(definition(name, *(disk(folder / file) for file in files)))
        assert self.run("define", str(self.xml)).status == 0

    def run(self, *words: str) -> Ran:
        """Run a command."""
        return Ran(self._capsys, *words)

    def out(self, *words: str) -> str:
        """What a command prints that must succeed, and must not warn."""
        ran = self.run(*words)
        assert (ran.status, ran.err) == (0, ""), ran.err
        return ran.out

    def recorded(self, *words: str) -> str:
        """The same as it would have been recorded: in that folder, at that time."""
        return as_recorded(self.out(*words), self.folder)

    def sources(self) -> list[str]:
        """The names of the active files."""
        rows = self.out("domblklist", self.name).splitlines()[2:-1]
        return [os.path.basename(row.split()[1]) for row in rows]

    def write(self, sign: int, number: int = 0) -> None:
        """Write as the guest would: the whole of its disk."""
        qemu_io(self.folder / self.sources()[number], f"write -P {sign} 0 {DISK_BYTES}")

    def shows(self, name: str, sign: int) -> bool:
        """Whether an image shows this everywhere."""
        return "Pattern verification failed" not in qemu_io(self.folder / name, f"read -P {sign} 0 {DISK_BYTES}")


def as_recorded(text: str, folder: Path) -> str:
    """A table as it was recorded."""
    surplus = len(str(folder)) - len(RECORDED[0])
    has_path = str(folder) in text
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}", TIME, text).replace(str(folder), RECORDED[1])
    if not has_path:
        return text
    return re.sub(r"^-+$", lambda rule: "-" * (len(rule[0]) - surplus), text, flags=re.MULTILINE)
