"""From a passphrase to the cipher of guest data. Imported by who has a passphrase; no other image pays for it."""

from cowtree.errors import BrokenHeader, Locked, Refused, WrongUse
from cowtree.luks.ciphers import SectorCipher
from cowtree.luks.header import Suite, Volume
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


def read_material(path: str, file: Storage, place: tuple[int, int], volume: Volume, index: int) -> bytes:
    """Read the key material of a slot; `place` is where the header of the encryption lies, and how long it is.
    Raises: BrokenHeader.
    """
    origin, length = place
    start, count = volume.slots[index].offset, volume.material_bytes
    if start + count > length:
        raise BrokenHeader(path=path, reason="Request for data outside of extension header")
    return file.pread(origin + start, count)


def find_key(path: str, file: Storage, place: tuple[int, int], volume: Volume, secret: bytes) -> bytes:
    """The master key, out of the first slot that the passphrase opens.
    Raises: Locked when it opens none, BrokenHeader, Refused when the library lacks the cipher or the hash.
    """
    for index in volume.active:
        try:
            key = open_slot(volume, index, read_material(path, file, place, volume, index), secret)
        except Refused as error:
            raise Locked(path=path, reason=error.reason, hint=error.advice) from error
        if key is not None:
            return key
    reason = "Invalid password, cannot unlock any keyslot"
    raise Locked(path=path, reason=reason, hint="the passphrase that the image was made with, without a line end")


def legacy_cipher(secret: bytes) -> SectorCipher:
    """The cipher of an image that is encrypted in the old way: the passphrase itself is the key."""
    return SectorCipher(LEGACY_SUITE, secret[:16].ljust(16, b"\0"))


def volume_cipher(volume: Volume, key: bytes) -> SectorCipher:
    """The cipher of a volume whose master key is known."""
    return SectorCipher(volume.suite, key)
