"""Ciphers over whole sectors, each with an IV of its own that follows from the sector's number.

All modes are built from one primitive, the block cipher without a mode, so that a call of the library encrypts many
sectors and what remains is arithmetic of arrays. Shapes: blocks are uint64, (sector count, blocks of a sector, 2).
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cowtree.errors import Refused
from cowtree.luks.header import Suite
from cowtree.units import SECTOR_BYTES

BLOCK_BYTES: Final = 16
BLOCKS_PER_SECTOR: Final = SECTOR_BYTES // BLOCK_BYTES
# So many sectors at a time stay in the processor's cache.
SECTORS_PER_ROUND: Final = 128

Bytes = bytes | bytearray | memoryview
Words = NDArray[np.uint64]
_WORD: Final = np.dtype("<u8")
_LOW: Final = _WORD.type(0xFFFF_FFFF)


class BlockCipher:
    """AES, which turns blocks of 16 bytes into others, one by one."""

    def __init__(self, key: bytes) -> None:
        # Only who touches an encrypted image pays for the import.
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes  # noqa: PLC0415

        self._cipher: Any = Cipher(algorithms.AES(key), modes.ECB())

    def encrypt(self, blocks: Words) -> Words:
        """Encrypt every block. Shapes: any, the last axis being one block."""
        return self._through(self._cipher.encryptor(), blocks)

    def decrypt(self, blocks: Words) -> Words:
        """Decrypt every block. Shapes: any, the last axis being one block."""
        return self._through(self._cipher.decryptor(), blocks)

    @staticmethod
    def _through(context: Any, blocks: Words) -> Words:
        plain = np.ascontiguousarray(blocks)
        return np.frombuffer(context.update(plain.data.cast("B")), _WORD).reshape(blocks.shape)


class SectorCipher:
    """The cipher of a volume under one key."""

    def __init__(self, suite: Suite, key: bytes) -> None:
        """Raises: Refused when the library has no such cipher."""
        refuse_unknown(suite)
        self._suite = suite
        half = len(key) // 2
        self._data = BlockCipher(key[:half] if suite.mode == "xts" else key)
        self._tweak = BlockCipher(key[half:]) if suite.mode == "xts" else None
        self._essiv = None
        if suite.iv_generator == "essiv" and suite.mode != "ecb":
            import hashlib  # noqa: PLC0415  it loads OpenSSL

            self._essiv = BlockCipher(hashlib.new(suite.iv_hash or "", key).digest())

    def encrypt(self, sector: int, data: Bytes) -> bytes:
        """Encrypt whole sectors; the first of them has this number."""
        return self._run(_ENCRYPT[self._suite.mode], sector, data)

    def decrypt(self, sector: int, data: Bytes) -> bytes:
        """Decrypt whole sectors; the first of them has this number."""
        return self._run(_DECRYPT[self._suite.mode], sector, data)

    def _run(self, mode: "Mode", sector: int, data: Bytes) -> bytes:
        words = np.frombuffer(data, _WORD).reshape(-1, BLOCKS_PER_SECTOR, 2)
        parts = []
        for first in range(0, len(words), SECTORS_PER_ROUND):
            part = words[first : first + SECTORS_PER_ROUND]
            parts.append(mode(self._data, self._ivs(sector + first, len(part)), part).tobytes())
        return b"".join(parts)

    def _ivs(self, first: int, count: int) -> Words:
        """What each sector's IV is; for XTS already encrypted. Shapes: (count, 2)."""
        ivs = np.zeros((count, 2), _WORD)
        ivs[:, 0] = np.arange(first, first + count, dtype=_WORD)
        if self._suite.iv_generator == "plain":
            ivs[:, 0] &= _LOW
        if self._essiv is not None:
            ivs = self._essiv.encrypt(ivs)
        return ivs if self._tweak is None else self._tweak.encrypt(ivs)


Mode = Callable[[BlockCipher, Words, Words], Words]


def _tweaks(ivs: Words) -> Words:
    """The tweak of each block of a sector: its IV times x to the power of the block's number, in GF(2^128).
    Source: IEEE 1619-2007, "XTS-AES"; the carry that leaves the last word comes back as x^7 + x^2 + x + 1.
    """
    low, high = ivs[:, :1], ivs[:, 1:]
    power = np.arange(BLOCKS_PER_SECTOR, dtype=_WORD)
    # No word can be shifted by 64, which is what the first block would ask for.
    down, one = _WORD.type(63) - power, _WORD.type(1)
    carry, lost = low >> one >> down, high >> one >> down
    back = lost ^ (lost << one) ^ (lost << _WORD.type(2)) ^ (lost << _WORD.type(7))
    return np.stack(((low << power) ^ back, (high << power) | carry), axis=2)


def _encrypt_xts(cipher: BlockCipher, ivs: Words, plain: Words) -> Words:
    tweaks = _tweaks(ivs)
    return cipher.encrypt(plain ^ tweaks) ^ tweaks


def _decrypt_xts(cipher: BlockCipher, ivs: Words, secret: Words) -> Words:
    tweaks = _tweaks(ivs)
    return cipher.decrypt(secret ^ tweaks) ^ tweaks


def _encrypt_cbc(cipher: BlockCipher, ivs: Words, plain: Words) -> Words:
    secret, last = np.empty_like(plain), ivs
    # Each block needs the one before it; all sectors take the step together.
    for block in range(BLOCKS_PER_SECTOR):
        last = cipher.encrypt(plain[:, block] ^ last)
        secret[:, block] = last
    return secret


def _decrypt_cbc(cipher: BlockCipher, ivs: Words, secret: Words) -> Words:
    return cipher.decrypt(secret) ^ np.concatenate((ivs[:, None], secret[:, :-1]), axis=1)


def _encrypt_ecb(cipher: BlockCipher, ivs: Words, plain: Words) -> Words:
    return cipher.encrypt(plain)


def _decrypt_ecb(cipher: BlockCipher, ivs: Words, secret: Words) -> Words:
    return cipher.decrypt(secret)


def _turn_ctr(cipher: BlockCipher, ivs: Words, data: Words) -> Words:
    """Both ways: the blocks are mixed with what becomes of a counter, a big-endian number that starts as the IV."""
    high, low = (ivs[:, word, None].byteswap() for word in (0, 1))
    counted = low + np.arange(BLOCKS_PER_SECTOR, dtype=_WORD)
    counters = np.stack(np.broadcast_arrays(high + (counted < low), counted), axis=2)
    return data ^ cipher.encrypt(counters.byteswap())


_ENCRYPT: Final[dict[str, Mode]] = {
    "xts": _encrypt_xts,
    "cbc": _encrypt_cbc,
    "ecb": _encrypt_ecb,
    "ctr": _turn_ctr,
}
_DECRYPT: Final[dict[str, Mode]] = {
    "xts": _decrypt_xts,
    "cbc": _decrypt_cbc,
    "ecb": _decrypt_ecb,
    "ctr": _turn_ctr,
}


def refuse_unknown(suite: Suite) -> None:
    """Refuse what the library has no cipher for. Raises: Refused."""
    if not suite.cipher.startswith("aes-"):
        reason = f"the cipher '{suite.cipher}' is more than cowtree can compute"
        raise Refused(reason=reason, hint="qemu-img convert to an image with cipher-alg=aes-256")
