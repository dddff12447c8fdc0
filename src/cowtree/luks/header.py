"""The header of a LUKS volume, version 1: what encrypts it, and eight slots for keys that open it.

    header | (unused) | key material of slot 0 | ... | key material of slot 7 | guest data

Every rule about these bytes is checked in `parse`, before time or memory is taken for what they ask for. The standard
library only: `img info` stops after this file.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from cowtree.errors import BrokenHeader
from cowtree.records import record
from cowtree.units import SECTOR_BYTES

MAGIC: Final = b"LUKS\xba\xbe"
VERSION: Final = 1
SLOT_COUNT: Final = 8
STRIPE_COUNT: Final = 4000
DIGEST_BYTES: Final = 20
SALT_BYTES: Final = 32
# Where the first slot's key material begins; that of the others is spaced in multiples of it.
ALIGNMENT_BYTES: Final = 4096
ENABLED, DISABLED = 0x00AC71F3, 0x0000DEAD
STATE_BYTES: Final = 4
# About a minute's work; QEMU gives a new slot some millions.
ITERATION_COUNT_MAX: Final = 1 << 26
ITERATION_COUNT_MIN: Final = 1000

# Source: LUKS On-Disk Format Specification 1.2.3, "PHDR" and "key slot". All integers are big-endian.
# fmt: off
HEADER = record(
    (  0, "S6",  "magic"),
    (  6, ">u2", "version"),
    (  8, "S32", "cipher_name"),         # aes
    ( 40, "S32", "cipher_mode"),         # xts-plain64, cbc-essiv:sha256
    ( 72, "S32", "hash_spec"),           # of the key derivation
    (104, ">u4", "payload_offset"),      # in sectors
    (108, ">u4", "key_bytes"),           # of the master key
    (112, "S20", "mk_digest"),
    (132, "S32", "mk_digest_salt"),
    (164, ">u4", "mk_digest_iter"),
    (168, "S40", "uuid"),
    size=208)
SLOT = record(
    ( 0, ">u4", "active"),
    ( 4, ">u4", "iterations"),
    ( 8, "S32", "salt"),
    (40, ">u4", "key_material_offset"),  # in sectors
    (44, ">u4", "stripes"),
    size=48)
# fmt: on
HEADER_BYTES: Final = HEADER.size_bytes + SLOT_COUNT * SLOT.size_bytes

CIPHER_MODES: Final = ("ecb", "cbc", "xts", "ctr")
IV_GENERATORS: Final = ("plain", "plain64", "essiv")
# Their digests in bytes.
HASHES: Final = {"md5": 16, "sha1": 20, "sha224": 28, "sha256": 32, "sha384": 48, "sha512": 64, "ripemd160": 20}
# How long the key of each cipher is; a header tells the family alone, as in `aes`.
KEY_BYTES: Final = {
    f"{family}-{bits}": bits // 8 for family in ("aes", "serpent", "twofish") for bits in (128, 192, 256)
} | {"cast5-128": 16}
_TOO_MANY: Final = f"is above {ITERATION_COUNT_MAX}, which nobody would wait for"
_HINT: Final = "restore the header of the encryption from a copy; without it nobody can read the data"


Rules = Iterator[tuple[bool, str]]


class Suite(NamedTuple):
    """How guest data is encrypted, in QEMU's names; `hash_name` is what turns passphrases into keys."""

    cipher: str = "aes-256"
    mode: str = "xts"
    iv_generator: str = "plain64"
    iv_hash: str | None = None
    hash_name: str = "sha256"

    @property
    def key_bytes(self) -> int:
        """Length of the master key: in this mode it is two keys."""
        return KEY_BYTES[self.cipher] * (2 if self.mode == "xts" else 1)

    @property
    def mode_spec(self) -> str:
        """Mode and IV generator as a header spells them."""
        return f"{self.mode}-{self.iv_generator}" + (f":{self.iv_hash}" if self.iv_hash else "")


class Slot(NamedTuple):
    """A place for one copy of the master key, and how a passphrase becomes the key to it. Units: bytes."""

    is_active: bool
    iteration_count: int
    salt: bytes
    offset: int


class Volume(NamedTuple):
    """All that the header of a volume says. Units: bytes; offsets count from the start of the header."""

    suite: Suite
    payload_offset: int
    digest: bytes
    digest_salt: bytes
    digest_iteration_count: int
    uuid: str
    slots: tuple[Slot, ...]

    @property
    def material_bytes(self) -> int:
        """How long the key material of a slot is."""
        return self.suite.key_bytes * STRIPE_COUNT

    @property
    def active(self) -> list[int]:
        """The numbers of the slots that hold a key."""
        return [index for index, slot in enumerate(self.slots) if slot.is_active]

    def with_slot(self, index: int, slot: Slot) -> "Volume":
        """The same volume with one slot replaced."""
        return self._replace(slots=(*self.slots[:index], slot, *self.slots[index + 1 :]))


def is_luks(data: bytes) -> bool:
    """Whether these first bytes are those of a volume that can be read here."""
    return data[:6] == MAGIC and int.from_bytes(data[6:8], "big") == VERSION


def _stride(key_bytes: int) -> int:
    """How far the key material of one slot is from the next, as cryptsetup counts."""
    return -(-key_bytes * STRIPE_COUNT // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def new_slots(suite: Suite) -> tuple[Slot, ...]:
    """The slots of a new volume, all of them empty."""
    places = (ALIGNMENT_BYTES + index * _stride(suite.key_bytes) for index in range(SLOT_COUNT))
    return tuple(Slot(False, 0, bytes(SALT_BYTES), offset) for offset in places)


def payload_offset(suite: Suite) -> int:
    """How long all that precedes guest data is in a new volume."""
    return ALIGNMENT_BYTES + SLOT_COUNT * _stride(suite.key_bytes)


def parse(path: str, data: bytes) -> Volume:
    """Read the first `HEADER_BYTES` of a volume.
    Raises: BrokenHeader.
    """
    numbers, texts = _split(HEADER.unpack(data))
    heads = [_split(SLOT.unpack(data, slot_place(index))) for index in range(SLOT_COUNT)]
    for holds, reason in (*_header_rules(numbers, texts), *_slot_rules(numbers, [head for head, _ in heads])):
        if not holds:
            raise BrokenHeader(path=path, reason=reason, hint=_HINT)
    return Volume(
        suite=_parse_suite(path, texts, numbers["key_bytes"]),
        payload_offset=numbers["payload_offset"] * SECTOR_BYTES,
        digest=texts["mk_digest"],
        digest_salt=texts["mk_digest_salt"],
        digest_iteration_count=numbers["mk_digest_iter"],
        uuid=_text(texts["uuid"]),
        slots=tuple(
            Slot(
                is_active=head["active"] == ENABLED,
                iteration_count=head["iterations"],
                salt=fields["salt"],
                offset=head["key_material_offset"] * SECTOR_BYTES,
            )
            for head, fields in heads
        ),
    )


def _split(fields: dict[str, int | bytes]) -> tuple[dict[str, int], dict[str, bytes]]:
    """The integers of a record, and its strings."""
    numbers = {name: value for name, value in fields.items() if isinstance(value, int)}
    return numbers, {name: value for name, value in fields.items() if isinstance(value, bytes)}


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "surrogateescape")


def _header_rules(numbers: dict[str, int], texts: dict[str, bytes]) -> Rules:
    """What must hold of the header itself, and what is wrong otherwise."""
    yield texts["magic"] == MAGIC, "Volume is not in LUKS format"
    yield numbers["version"] == VERSION, f"LUKS version {numbers['version']} is not supported"
    for name, what in (("cipher_name", "cipher name"), ("cipher_mode", "cipher mode"), ("hash_spec", "hash spec")):
        yield b"\0" in texts[name], f"LUKS header {what} is not NUL terminated"
    is_behind = numbers["payload_offset"] * SECTOR_BYTES >= ALIGNMENT_BYTES
    yield is_behind, "LUKS payload is overlapping with the header"
    yield numbers["mk_digest_iter"] > 0, "LUKS key iteration count is zero"
    yield numbers["mk_digest_iter"] <= ITERATION_COUNT_MAX, f"LUKS key iteration count {_TOO_MANY}"


def _slot_rules(numbers: dict[str, int], heads: list[dict[str, int]]) -> Rules:
    """What must hold of the key slots, and what is wrong otherwise."""
    length = _stride(numbers["key_bytes"])
    starts = [head["key_material_offset"] * SECTOR_BYTES for head in heads]
    for index, (head, start) in enumerate(zip(heads, starts, strict=True)):
        what, is_active = f"Keyslot {index}", head["active"] == ENABLED
        count, stripes = head["iterations"], head["stripes"]
        yield stripes == STRIPE_COUNT, f"{what} is corrupted (stripes {_signed(stripes)} != {STRIPE_COUNT})"
        yield head["active"] in (ENABLED, DISABLED), f"{what} state (active/disable) is corrupted"
        yield not is_active or count > 0, f"{what} iteration count is zero"
        yield not is_active or count <= ITERATION_COUNT_MAX, f"{what} iteration count {_TOO_MANY}"
        yield start >= ALIGNMENT_BYTES, f"{what} is overlapping with the LUKS header"
        is_before = start + length <= numbers["payload_offset"] * SECTOR_BYTES
        yield is_before, f"{what} is overlapping with the encrypted payload"
        for other, place in enumerate(starts[index + 1 :], index + 1):
            is_apart = start + length <= place or place + length <= start
            yield is_apart, f"Keyslots {index} and {other} are overlapping in the header"


def _signed(number: int) -> int:
    """A number of 32 bits as QEMU shows it."""
    return number - (1 << 32) if number >> 31 else number


def _parse_suite(path: str, texts: dict[str, bytes], key_bytes: int) -> Suite:
    """Read what the header calls its ciphers. Raises: BrokenHeader."""
    spec, family = _text(texts["cipher_mode"]), _text(texts["cipher_name"])
    mode, dash, rest = spec.partition("-")
    iv_generator, colon, iv_hash = rest.partition(":")
    each_bytes = key_bytes // 2 if mode == "xts" else key_bytes
    cipher, hash_name = f"{family}-{each_bytes * 8}", _text(texts["hash_spec"])
    is_hashed = iv_generator == "essiv"
    rules = (
        (bool(dash), f"Unexpected cipher mode string format '{spec}'"),
        (not colon or iv_hash in HASHES, f"Hash algorithm '{iv_hash}' not supported"),
        (mode in CIPHER_MODES, f"Cipher mode '{mode}' not supported"),
        (
            cipher in KEY_BYTES and key_bytes % each_bytes == 0,
            f"Algorithm '{family}' with key size {each_bytes} bytes not supported",
        ),
        (hash_name in HASHES, f"Hash algorithm '{hash_name}' not supported"),
        (iv_generator in IV_GENERATORS, f"IV generator '{iv_generator}' not supported"),
        (not is_hashed or bool(colon), "Missing IV generator hash specification"),
    )
    suite = Suite(cipher, mode, iv_generator, iv_hash or None, hash_name)
    for holds, reason in (*rules, *essiv_rules(suite)):
        if not holds:
            raise BrokenHeader(path=path, reason=reason, hint=_HINT)
    return suite


def essiv_rules(suite: Suite) -> Rules:
    """The cipher that makes the IVs must have keys as long as the hash is."""
    if suite.iv_generator == "essiv" and suite.iv_hash in HASHES:
        family, digest_bytes = suite.cipher.partition("-")[0], HASHES[suite.iv_hash]
        is_known = family != "cast5" or digest_bytes == KEY_BYTES[suite.cipher]
        yield is_known, f"Cipher {suite.cipher} not supported with essiv"
        what = family.upper() if family == "aes" else family.title()
        yield essiv_cipher(suite) in KEY_BYTES, f"No {what} cipher with key size {digest_bytes} available"


def essiv_cipher(suite: Suite) -> str:
    """The cipher that makes the IVs of `essiv`."""
    return f"{suite.cipher.partition('-')[0]}-{HASHES[suite.iv_hash or ''] * 8}"


def pack(volume: Volume) -> bytes:
    """The header and the heads of the slots, `HEADER_BYTES` long."""
    suite = volume.suite
    data = HEADER.pack(
        magic=MAGIC,
        version=VERSION,
        cipher_name=suite.cipher.partition("-")[0].encode(),
        cipher_mode=suite.mode_spec.encode(),
        hash_spec=suite.hash_name.encode(),
        payload_offset=volume.payload_offset // SECTOR_BYTES,
        key_bytes=suite.key_bytes,
        mk_digest=volume.digest,
        mk_digest_salt=volume.digest_salt,
        mk_digest_iter=volume.digest_iteration_count,
        uuid=volume.uuid.encode("utf-8", "surrogateescape"),
    )
    return data + b"".join(map(pack_slot, volume.slots))


def pack_slot(slot: Slot) -> bytes:
    """The head of a slot; it begins with what `pack_state` says."""
    return SLOT.pack(
        active=ENABLED if slot.is_active else DISABLED,
        iterations=slot.iteration_count,
        salt=slot.salt,
        key_material_offset=slot.offset // SECTOR_BYTES,
        stripes=STRIPE_COUNT,
    )


def pack_state(*, is_active: bool) -> bytes:
    """The first bytes of the head of a slot. No sector ends among them, so that they are never torn."""
    return (ENABLED if is_active else DISABLED).to_bytes(STATE_BYTES, "big")


def slot_place(index: int) -> int:
    """Where in a volume the head of a slot begins."""
    return HEADER.size_bytes + index * SLOT.size_bytes
