"""From a passphrase to the cipher of guest data. Imported by who has a passphrase; no other image pays for it."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from cowtree.errors import BrokenHeader, Locked, Refused, WrongUse
from cowtree.luks.ciphers import SectorCipher
from cowtree.luks.header import Suite, Volume, slot_place
from cowtree.luks.keys import open_slot
from cowtree.storage.contract import FileSystem, Storage

LEGACY_SUITE = Suite("aes-128", "cbc", "plain64")


def passphrase(files: FileSystem, path: str, name: str) -> bytes:
    """The passphrase that the image is opened with, as QEMU takes it: UTF-8, up to the first zero byte.
    Raises: Locked when there is no such secret.
    """
    try:
        secret = files.secret(name)
        secret.decode()
    except WrongUse as error:
        raise Locked(path=path, reason=error.reason, hint=error.advice) from error
    except UnicodeDecodeError as error:
        reason = f"Data from secret {name} is not valid UTF-8"
        raise Locked(path=path, reason=reason, hint="format=base64 for a secret of any bytes") from error
    return secret.split(b"\0")[0]


class VolumeFile(NamedTuple):
    """A volume in its file; `place` is where its header begins there, and how long it and the key slots are."""

    path: str
    file: Storage
    place: tuple[int, int]
    volume: Volume

    def head_offset(self, index: int) -> int:
        """Where in the file the head of a slot begins."""
        return self.place[0] + slot_place(index)

    def material_offset(self, index: int) -> int:
        """Where in the file the key material of a slot lies. Raises: BrokenHeader."""
        origin, length = self.place
        start = self.volume.slots[index].offset
        if start + self.volume.material_bytes > length:
            raise BrokenHeader(path=self.path, reason="Request for data outside of extension header")
        return origin + start

    def opened_slots(self, secret: bytes, indexes: Iterable[int]) -> Iterator[tuple[int, bytes]]:
        """Those of some slots that a passphrase opens, each with the master key.
        Raises: Locked when the library lacks the cipher or the hash, BrokenHeader.
        """
        for index in indexes:
            material = self.file.pread(self.material_offset(index), self.volume.material_bytes)
            try:
                key = open_slot(self.volume, index, material, secret)
            except Refused as error:
                raise Locked(path=self.path, reason=error.reason, hint=error.advice) from error
            if key is not None:
                yield index, key

    def find_key(self, secret: bytes) -> tuple[int, bytes]:
        """The first slot that a passphrase opens, and the master key.
        Raises: Locked when it opens none, and what `opened_slots` raises.
        """
        for found in self.opened_slots(secret, self.volume.active):
            return found
        reason = "Invalid password, cannot unlock any keyslot"
        raise Locked(
            path=self.path, reason=reason, hint="the passphrase that the image was made with, without a line end"
        )


def legacy_cipher(secret: bytes) -> SectorCipher:
    """The cipher of an image that is encrypted in the old way: the passphrase itself is the key."""
    return SectorCipher(LEGACY_SUITE, secret[:16].ljust(16, b"\0"))


def volume_cipher(volume: Volume, key: bytes) -> SectorCipher:
    """The cipher of a volume whose master key is known."""
    return SectorCipher(volume.suite, key)
