"""What `-o` may say of the encryption of a new image, as QEMU reads it."""

from collections.abc import Mapping
from typing import Final

from cowtree.errors import WrongUse
from cowtree.luks.header import CIPHER_MODES, HASHES, IV_GENERATORS, KEY_BYTES, Suite, essiv_rules
from cowtree.luks.volume import AES, ITERATION_TIME_MS, LUKS, Encryption

# What QEMU knows by name, but not in such a header.
_ELSEWHERE: Final = ("des", "3des")
_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "cipher-alg": (*KEY_BYTES, *_ELSEWHERE),
    "cipher-mode": CIPHER_MODES,
    "ivgen-alg": IV_GENERATORS,
    "ivgen-hash-alg": tuple(HASHES),
    "hash-alg": tuple(HASHES),
}


def read_encryption(given: Mapping[str, str], prefix: str = "") -> Encryption:
    """What the options mean, whose names have lost their prefix. Raises: WrongUse."""
    if "format" not in given:
        raise WrongUse(reason=f"Parameter '{prefix}format' is missing", hint=f"{prefix}format=luks")
    kind = given["format"]
    if kind not in (AES, LUKS):
        raise WrongUse(reason=f"Parameter 'format' does not accept value '{kind}'", hint=f"{prefix}format=luks")
    for name, value in given.items():
        if kind == AES and name not in ("format", "key-secret"):
            raise WrongUse(reason=f"Parameter '{prefix}{name}' is unexpected", hint=f"{prefix}format=luks")
        if name in _WORDS and value not in _WORDS[name]:
            hint = f"one of {', '.join(_WORDS[name])}"
            raise WrongUse(reason=f"Parameter '{name}' does not accept value '{value}'", hint=hint)
    if "key-secret" not in given:
        hint = f"--object secret,id=ID,file=FILE -o {prefix}key-secret=ID"
        raise WrongUse(reason=f"Parameter '{prefix}key-secret' is required for cipher", hint=hint)
    time_ms = int(given.get("iter-time", ITERATION_TIME_MS))
    return Encryption(kind, given["key-secret"], _read_suite(given), time_ms)


def _read_suite(given: Mapping[str, str]) -> Suite:
    """The ciphers that are named, and QEMU's own where none is. Raises: WrongUse."""
    default = Suite()
    iv_generator, iv_hash = given.get("ivgen-alg", default.iv_generator), given.get("ivgen-hash-alg")
    if iv_generator == "essiv" and iv_hash is None:
        iv_hash = "sha256"
    suite = Suite(
        cipher=given.get("cipher-alg", default.cipher),
        mode=given.get("cipher-mode", default.mode),
        iv_generator=iv_generator,
        iv_hash=iv_hash,
        hash_name=given.get("hash-alg", default.hash_name),
    )
    if suite.cipher in _ELSEWHERE:
        raise WrongUse(reason=f"Algorithm '{suite.cipher}' not supported", hint="cipher-alg=aes-256")
    for holds, reason in essiv_rules(suite):
        if not holds:
            raise WrongUse(reason=reason, hint="ivgen-alg=plain64")
    return suite
