"""From a passphrase to the master key and back: key derivation, and the splitter that spreads a key over many sectors.

A slot holds the master key split into stripes, of which none may be missing, and encrypted with a key that is derived
from the passphrase. Random bytes and counts of iterations come from the caller.
"""

from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

from cowtree.errors import Refused
from cowtree.luks.ciphers import SectorCipher
from cowtree.luks.header import DIGEST_BYTES, STRIPE_COUNT, Slot, Suite, Volume
from cowtree.units import SECTOR_BYTES

PBKDF_HASHES: Final = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160")


def derive(hash_name: str, secret: bytes, salt: bytes, iteration_count: int, length: int) -> bytes:
    """Turn a secret into a key, which takes as long as the count is high.
    Raises: Refused when the hash is not to be had.
    Source: RFC 8018, "PBKDF2".
    """
    import hashlib  # noqa: PLC0415  it loads OpenSSL, for encrypted images alone

    if hash_name not in PBKDF_HASHES or hash_name not in hashlib.algorithms_available:
        raise Refused(reason=f"PBKDF does not support hash algorithm {hash_name}", hint="hash-alg=sha256")
    if hash_name == "ripemd160":
        return hashlib.pbkdf2_hmac(hash_name, secret, salt, iteration_count, length)
    # Twice as fast as what the interpreter is linked to.
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
    from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC  # noqa: PLC0415

    algorithm = getattr(hashes, hash_name.upper())()
    return bytes(PBKDF2HMAC(algorithm, length, salt, iteration_count).derive(secret))


def _xor(one: bytes, other: bytes) -> bytes:
    number = int.from_bytes(one, "big") ^ int.from_bytes(other, "big")
    return number.to_bytes(len(one), "big")


def _diffuser(hash_name: str, length: int) -> Callable[[bytes], bytes]:
    """What replaces each part of a block that is as long as a digest by the digest of its number and itself."""
    import hashlib  # noqa: PLC0415  see `derive`

    # The constructor takes half the time of `new`, but not all hashes have one.
    digest = getattr(hashlib, hash_name, None) or partial(hashlib.new, hash_name)
    step = digest().digest_size
    parts = [(number.to_bytes(4, "big"), slice(at, at + step)) for number, at in enumerate(range(0, length, step))]
    return lambda block: b"".join([digest(head + block[part]).digest() for head, part in parts])[:length]


def merge(hash_name: str, material: bytes, key_bytes: int) -> bytes:
    """Put a key together from its stripes.
    Source: LUKS On-Disk Format Specification, "AFmerge".
    """
    block, diffuse = bytes(key_bytes), _diffuser(hash_name, key_bytes)
    # Each stripe needs what comes of the one before it.
    for first in range(0, len(material) - key_bytes, key_bytes):
        block = diffuse(_xor(block, material[first : first + key_bytes]))
    return _xor(block, material[-key_bytes:])


def split(hash_name: str, key: bytes, noise: bytes) -> bytes:
    """Spread a key over its stripes; `noise` are random bytes, all stripes but the last.
    Source: LUKS On-Disk Format Specification, "AFsplit".
    """
    return noise + merge(hash_name, noise + key, len(key))


def digest_of(volume: Volume, key: bytes) -> bytes:
    """What the header would know of this master key."""
    return derive(volume.suite.hash_name, key, volume.digest_salt, volume.digest_iteration_count, DIGEST_BYTES)


def _slot_cipher(suite: Suite, slot: Slot, passphrase: bytes) -> SectorCipher:
    key = derive(suite.hash_name, passphrase, slot.salt, slot.iteration_count, suite.key_bytes)
    return SectorCipher(suite, key)


def open_slot(volume: Volume, index: int, material: bytes, passphrase: bytes) -> bytes | None:
    """The master key that a slot holds, if this is its passphrase; `material` is the slot's key material.
    Raises: Refused when the library lacks the cipher or the hash.
    """
    import hmac  # noqa: PLC0415  see `derive`

    suite, slot = volume.suite, volume.slots[index]
    plain = _slot_cipher(suite, slot, passphrase).decrypt(0, _whole_sectors(material))[: len(material)]
    key = merge(suite.hash_name, plain, suite.key_bytes)
    return key if hmac.compare_digest(digest_of(volume, key), volume.digest) else None


class Filling(NamedTuple):
    """What a slot is filled with, apart from the key: random bytes, and how often the passphrase is hashed."""

    passphrase: bytes
    iteration_count: int
    salt: bytes
    noise: bytes


def fill_slot(volume: Volume, index: int, key: bytes, filling: Filling) -> tuple[Volume, bytes]:
    """Put the master key into a slot. Returns: the volume whose slot holds it, and the slot's key material.
    Raises: Refused when the library lacks the cipher or the hash.
    """
    suite, passphrase, count = volume.suite, filling.passphrase, filling.iteration_count
    slot = volume.slots[index]._replace(is_active=True, iteration_count=count, salt=filling.salt)
    plain = split(suite.hash_name, key, filling.noise)
    material = _slot_cipher(suite, slot, passphrase).encrypt(0, _whole_sectors(plain))[: len(plain)]
    return volume.with_slot(index, slot), material


def noise_bytes(suite: Suite) -> int:
    """How many random bytes the splitter takes."""
    return (STRIPE_COUNT - 1) * suite.key_bytes


def _whole_sectors(data: bytes) -> bytes:
    """The bytes filled up with zeroes; in no mode do these change what comes of the bytes before them."""
    return data.ljust(-(-len(data) // SECTOR_BYTES) * SECTOR_BYTES, b"\0")
