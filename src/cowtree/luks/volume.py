"""New volumes: what is wanted of the encryption of a new image, and the bytes that it begins with.

Random bytes and counts of iterations come from the caller, who has a clock.
"""

from typing import Final, NamedTuple

from cowtree.luks.header import Suite, Volume, new_slots, pack, payload_offset
from cowtree.luks.keys import Filling, digest_of, fill_slot

AES, LUKS = "aes", "luks"
ITERATION_TIME_MS: Final = 2000


class Encryption(NamedTuple):
    """How a new image shall be encrypted: `format` is the old way, `aes`, or `luks`. `key_secret` names the passphrase,
    and `iteration_time_ms` says how long it shall take to make a key of it. `header` are the first bytes of the new
    volume and `key` is its master key, both empty until they are made; what follows the header up to the guest data
    is zeroes.
    """

    format: str
    key_secret: str
    suite: Suite = Suite()
    iteration_time_ms: int = ITERATION_TIME_MS
    header: bytes = b""
    key: bytes = b""

    @property
    def header_bytes(self) -> int:
        """How long all that precedes guest data is."""
        return payload_offset(self.suite) if self.format == LUKS else 0


class Draw(NamedTuple):
    """What is drawn or counted for a new volume."""

    key: bytes
    digest_salt: bytes
    digest_iteration_count: int
    uuid: str
    filling: Filling


def make_header(suite: Suite, draw: Draw) -> bytes:
    """The bytes of a new volume up to the end of its first key.
    Raises: Refused when the library lacks the cipher or the hash.
    """
    volume = Volume(
        suite=suite,
        payload_offset=payload_offset(suite),
        digest=b"",
        digest_salt=draw.digest_salt,
        digest_iteration_count=draw.digest_iteration_count,
        uuid=draw.uuid,
        slots=new_slots(suite),
    )
    volume = volume._replace(digest=digest_of(volume, draw.key))
    volume, material = fill_slot(volume, 0, draw.key, draw.filling)
    return pack(volume).ljust(volume.slots[0].offset, b"\0") + material
