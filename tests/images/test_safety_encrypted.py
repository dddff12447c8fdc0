"""Encrypted images made, filled and committed into, stopped everywhere: what the guest sees is never lost."""

from functools import cache

import pytest

from cowtree.chain.address import name_of
from cowtree.images.convert import Manner, convert
from cowtree.images.create import create
from cowtree.images.encryption import furnish
from cowtree.luks.header import Suite
from cowtree.luks.volume import Encryption
from cowtree.plan.create import NewImage
from cowtree.storage.contract import FileSystem
from cowtree.storage.memory import MemoryFiles
from tests.crash import (
    Trial,
    cut_power_everywhere,
    guest_view,
    kill_everywhere,
    patched,
    trial_of_new,
    write_more,
)
from tests.images.test_keyslots import Keyring
from tests.permits import commit

pytestmark = pytest.mark.slow

SIZE_BYTES = 96 << 10
# Short keys, so that the header is short, too.
WANTED = Encryption("luks", "s", Suite("aes-128", "cbc"), 0)


@cache
def new_image(image_format: str, path: str) -> NewImage:
    """A new image whose keys are drawn, so that it is the same each time that it is made."""
    new = NewImage(path, image_format, SIZE_BYTES, cluster_bits=12, encryption=WANTED)
    return furnish(Keyring(MemoryFiles()), new)


def opened(image_format: str, path: str) -> str:
    prefix = "" if image_format == "luks" else "encrypt."
    return name_of({"driver": image_format, "file.filename": path, f"{prefix}key-secret": "s"})


def stop(trial: Trial) -> None:
    kill_everywhere(trial)
    cut_power_everywhere(trial)


@pytest.mark.parametrize("image_format", ["luks", "qcow2"])
def test_a_creation_can_be_stopped_everywhere(image_format: str) -> None:
    new = new_image(image_format, "new")
    stop(trial_of_new({"new": b"old" * 5000}, lambda files: create(Keyring(files), new), ["new"]))


@pytest.mark.parametrize("image_format", ["luks", "qcow2"])
def test_a_conversion_can_be_stopped_everywhere(image_format: str) -> None:
    new, data = new_image(image_format, "new"), patched(bytes(SIZE_BYTES), {5000: b"x" * 30000, 70000: b"y" * 512})
    initial = {"source": data, "new": b"old"}

    def operation(files: FileSystem) -> None:
        convert(Keyring(files), [("source", "raw")], new, Manner())

    def check(files: MemoryFiles, is_done: bool) -> None:
        assert files.content("source") == data
        if files.content("new") == b"old":
            assert not is_done
        else:
            assert guest_view(Keyring(files), opened(image_format, "new")) == data

    stop(Trial(initial, operation, check))


@cache
def chain() -> dict[str, bytes]:
    """An overlay that is not encrypted, on a base that is; the overlay says by which secret."""
    files = Keyring(MemoryFiles())
    create(files, new_image("qcow2", "base"))
    write_more(files, opened("qcow2", "base"), {0: b"b" * 20000, 50000: b"B" * 9000})
    backing = opened("qcow2", "base")
    create(files, NewImage("top", "qcow2", SIZE_BYTES, 12, backing_file=backing, backing_format="qcow2"))
    write_more(files, "top", {700: b"t" * 5000, 80000: b"T" * 512})
    assert isinstance(files.inner, MemoryFiles)
    return files.inner.snapshot()


def test_a_commit_can_be_stopped_everywhere() -> None:
    expected = guest_view(Keyring(MemoryFiles(chain())), "top")

    def operation(files: FileSystem) -> None:
        commit(Keyring(files), "top")

    def check(files: MemoryFiles, is_done: bool) -> None:
        assert guest_view(Keyring(files), "top") == expected
        if is_done:
            assert guest_view(Keyring(files), opened("qcow2", "base")) == expected
            assert b"t" * 512 not in files.content("base")

    stop(Trial(chain(), operation, check))
