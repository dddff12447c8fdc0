"""Encryption of new images: draws the keys, and counts how often a passphrase is hashed in the time wanted."""

import time
from typing import Final

from cowtree.chain.unlock import passphrase
from cowtree.errors import Locked, Refused, WrongUse
from cowtree.luks.header import DIGEST_BYTES, ITERATION_COUNT_MAX, ITERATION_COUNT_MIN, SALT_BYTES, Suite
from cowtree.luks.keys import Filling, derive, noise_bytes
from cowtree.luks.volume import LUKS, Draw, Encryption, make_header
from cowtree.plan.create import NewImage
from cowtree.storage.contract import FileSystem

# A measurement that is shorter says little.
MEASURED_S_MIN: Final = 0.02
MEASURED_COUNT_MIN: Final = 1 << 13
# The digest of the master key is hashed less often than a passphrase, as cryptsetup does it.
DIGEST_SHARE: Final = 8


def furnish(files: FileSystem, new: NewImage) -> NewImage:
    """The same image, with the header and the key of its encryption if it shall have one.
    Raises: WrongUse when there is no such secret, Refused when the library lacks the cipher or the hash.
    """
    wanted = new.encryption
    if wanted is None or wanted.header:
        return new
    secret = secret_named(files, wanted.key_secret)
    return new._replace(encryption=_make(wanted, secret)) if wanted.format == LUKS else new


def secret_named(files: FileSystem, name: str) -> bytes:
    """The passphrase that goes into a key slot. Raises: WrongUse when there is none."""
    try:
        return passphrase(files, "", name)
    except Locked as error:
        raise WrongUse(reason=error.reason, hint=error.advice) from error


def _make(wanted: Encryption, secret: bytes) -> Encryption:
    # Every new image passes through this module, and few of them are encrypted.
    import secrets  # noqa: PLC0415
    import uuid  # noqa: PLC0415

    suite, time_ms = wanted.suite, wanted.iteration_time_ms
    key, digest_salt = secrets.token_bytes(suite.key_bytes), secrets.token_bytes(SALT_BYTES)
    draw = Draw(
        key=key,
        digest_salt=digest_salt,
        digest_iteration_count=_count(suite.hash_name, key, DIGEST_BYTES, time_ms / DIGEST_SHARE),
        uuid=str(uuid.uuid4()),
        filling=draw_filling(suite, secret, time_ms),
    )
    return wanted._replace(header=make_header(suite, draw), key=key)


def draw_filling(suite: Suite, secret: bytes, time_ms: int) -> Filling:
    """What a slot is filled with; to open it shall take so long.
    Raises: Refused when nobody would wait for it, or when the library lacks the hash.
    """
    import secrets  # noqa: PLC0415  see `_make`

    return Filling(
        passphrase=secret,
        iteration_count=_count(suite.hash_name, secret, suite.key_bytes, time_ms),
        salt=secrets.token_bytes(SALT_BYTES),
        noise=secrets.token_bytes(noise_bytes(suite)),
    )


def _count(hash_name: str, secret: bytes, length: int, time_ms: float) -> int:
    """How many iterations take so long on this processor. Raises: Refused when nobody would open such an image."""
    count, taken_s = MEASURED_COUNT_MIN, 0.0
    while taken_s < MEASURED_S_MIN:
        count *= 2
        start_s = time.thread_time()
        derive(hash_name, secret, bytes(SALT_BYTES), count, length)
        taken_s = time.thread_time() - start_s
    wanted = max(int(count / taken_s * time_ms / 1000), ITERATION_COUNT_MIN)
    if wanted > ITERATION_COUNT_MAX:
        reason = f"PBKDF iterations {wanted} larger than {ITERATION_COUNT_MAX}"
        raise Refused(reason=reason, hint="a shorter iter-time, such as 2000")
    return wanted
