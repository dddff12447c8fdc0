"""Holds that a digest says what the guest sees, and nothing else."""

import hashlib

import pytest

from cowtree.errors import MissingImage
from cowtree.monitor import Counting
from cowtree.operations.digest import digest
from cowtree.storage.file import LocalFiles
from cowtree.storage.memory import MemoryFiles
from tests.pictures import family
from tests.qemu import content, qemu_img, qemu_io, random_chain

FILES = LocalFiles()


def by_definition(disk: bytes) -> str:
    """The digest as the module's own text defines it, computed anew."""
    whole = hashlib.sha256(len(disk).to_bytes(8, "big"))
    for number, start in enumerate(range(0, len(disk), 65536)):
        chunk = disk[start : start + 65536]
        if chunk.strip(b"\0"):
            whole.update(number.to_bytes(8, "big") + hashlib.sha256(chunk).digest())
    return "cowtree1:" + whole.hexdigest()


def test_a_digest_is_what_its_definition_says(seed, tmp_path):
    chain = random_chain(tmp_path, seed)
    disk = content(chain.top, chain.formats[-1])
    assert digest(FILES, str(chain.top), chain.formats[-1]) == by_definition(disk)


def test_format_and_chain_do_not_matter(tmp_path):
    chain = random_chain(tmp_path, 5, layer_count=4)
    wanted = digest(FILES, str(chain.top))
    for number, options in enumerate((["-O", "raw"], ["-O", "qcow2"], ["-c", "-O", "qcow2"], ["-S", "0", "-O", "raw"])):
        copy = tmp_path / f"copy-{number}"
        qemu_img("convert", "-f", chain.formats[-1], *options, chain.top, copy)
        assert digest(FILES, str(copy), options[-1]) == wanted


def test_holes_and_written_zeroes_are_the_same():
    pictures = (("A-0B",), ("A00B",), ("AooB",), ("A---", "CC-B"))
    found = {digest(made.files, made.top) for made in (family(*each) for each in pictures[:3])}
    assert len(found) == 1
    assert digest((other := family(*pictures[3])).files, other.top) not in found


def test_size_and_every_byte_count():
    disks = [bytes(65536), bytes(66048), bytes(65536) + b"\1" + bytes(511), b"\1" + bytes(66047)]
    found = [digest(MemoryFiles({"disk": disk}), "disk", "raw") for disk in disks]
    assert len(set(found)) == len(disks)
    assert found == [by_definition(disk) for disk in disks]


def test_a_terabyte_of_holes_costs_no_reading(tmp_path):
    path = tmp_path / "huge.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1T")
    qemu_io(path, "write -P 65 700G 64k")
    monitor = Counting()
    digest(FILES, str(path), monitor=monitor)
    assert monitor.moved_bytes == monitor.total_bytes == 65536


def test_a_missing_image_is_named():
    with pytest.raises(MissingImage, match="nowhere"):
        digest(MemoryFiles(), "nowhere")
