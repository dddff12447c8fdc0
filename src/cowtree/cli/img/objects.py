"""The objects that `--object` describes: secrets, which open encrypted images, and certificates, which open exports. No
message ever holds a secret.
"""

import base64
import re
from collections.abc import Iterable
from typing import Final

from cowtree.cli.img.pairs import parse_pairs, wants_help
from cowtree.errors import WrongUse

_CERTIFICATES: Final = "tls-creds-x509"
_SECRET_KEYS: Final = ("qom-type", "id", "data", "file", "format", "keyid", "iv")
_FORMATS: Final = ("raw", "base64")
# What qemu-img makes too; none of them changes what a command does to an image.
_WITHOUT_EFFECT: Final = (
    *("authz-list", "authz-list-file", "authz-simple", "main-loop", "throttle-group"),
    *("thread-context", "tls-cipher-suites", "tls-creds-anon", "tls-creds-psk", "tls-creds-x509"),
)
# What qemu-img's list of objects has besides these, and the properties of the one that matters here.
_LISTED: Final = ("pr-manager-helper", "secret", "secret_keyring")
_SECRET_PROPERTIES: Final = (
    *("data=<string>", "file=<string>", "format=<QCryptoSecretFormat>", "iv=<string>", "keyid=<string>"),
)
# What QEMU knows, but not its qemu-img.
_ELSEWHERE: Final = (
    *("iothread", "can-bus", "rng-random", "memory-backend-ram", "memory-backend-file", "memory-backend-memfd"),
)
_IDENTIFIER: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]*", re.ASCII)
_BASE64: Final = re.compile(r"[A-Za-z0-9+/=\n]*", re.ASCII)
_ID: Final = "identifier"
_KEY_BYTES, _BLOCK_BYTES = 32, 16


def objects_help(texts: Iterable[str]) -> str | None:
    """What the first object that asks for help is told; None when none asks."""
    text = next(filter(wants_help, texts), None)
    if text is None:
        return None
    kind = next(iter(_pairs(text).values()))
    if kind == "secret":
        return "\n".join(["secret options:", *(f"  {each}" for each in _SECRET_PROPERTIES)])
    if kind in _WITHOUT_EFFECT:
        return f"{kind} options:\n  none that changes what a command does"
    return "\n".join(
        ["List of user creatable objects:", *(f"  {each}" for each in sorted({*_WITHOUT_EFFECT, *_LISTED}))]
    )


def read_secrets(texts: Iterable[str]) -> dict[str, bytes]:
    """The secrets among the objects, by their names. A secret may be encrypted by one that stands before it.
    Raises: WrongUse.
    """
    names: set[str] = set()
    found: dict[str, bytes] = {}
    for text in texts:
        given = _pairs(text)
        kind, name = given.get("qom-type"), given.get("id")
        _check_object(kind, name)
        if name in names:
            reason = f"attempt to add duplicate property '{name}' to object (type 'container')"
            raise WrongUse(reason=reason, hint="a name of its own for each object")
        names.add(name or "")
        if kind == "secret":
            found[name or ""] = _read_secret(given, found)
    return found


def read_credentials(texts: Iterable[str]) -> dict[str, str]:
    """The folders with certificates for clients among the objects, by the names of the objects."""
    found: dict[str, str] = {}
    for given in map(_pairs, texts):
        if given.get("qom-type") == _CERTIFICATES and given.get("endpoint", "client") == "client" and "dir" in given:
            found[given.get("id", "")] = given["dir"]
    return found


def _pairs(text: str) -> dict[str, str]:
    # The reader of lists leaves an `id` out, for elsewhere it names nothing.
    given = parse_pairs(re.sub(r"(^|,)id=", rf"\1{_ID}=", text), implied="qom-type")
    return {"id" if key == _ID else key: value for key, value in given.items()}


def _check_object(kind: str | None, name: str | None) -> None:
    if kind is None:
        raise WrongUse(reason="Parameter 'qom-type' is missing", hint="--object secret,id=ID,file=PATH")
    if name is None:
        raise WrongUse(reason="Parameter 'id' is missing", hint="--object secret,id=ID,file=PATH")
    if kind in _ELSEWHERE:
        raise WrongUse(reason=f"invalid object type: {kind}", hint="the same without this object")
    if kind not in ("secret", *_WITHOUT_EFFECT):
        raise WrongUse(reason=f"Parameter 'qom-type' does not accept value '{kind}'", hint="--object secret,id=ID,...")
    if not _IDENTIFIER.fullmatch(name):
        what = "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter."
        raise WrongUse(reason=f"Parameter 'id' expects an identifier\n{what}")


def _read_secret(given: dict[str, str], others: dict[str, bytes]) -> bytes:
    unknown = next((key for key in given if key not in _SECRET_KEYS), None)
    if unknown is not None:
        raise WrongUse(reason=f"Parameter '{unknown}' is unexpected", hint="data, file, format, keyid or iv")
    how = given.get("format", "raw")
    if how not in _FORMATS:
        raise WrongUse(reason=f"Parameter 'format' does not accept value '{how}'", hint="format=raw or format=base64")
    data = _load(given)
    if "keyid" not in given:
        return _decode(data) if how == "base64" else data
    return _decrypt(data, how, given, others)


def _load(given: dict[str, str]) -> bytes:
    path, text = given.get("file"), given.get("data")
    if path is not None and text is not None:
        raise WrongUse(reason="'file' and 'data' are mutually exclusive")
    if text is not None:
        return text.encode("utf-8", "surrogateescape")
    if path is None:
        raise WrongUse(reason="Either 'file' or 'data' must be provided")
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        reason = f"Unable to read {path}: Failed to open file “{path}”: {error.strerror}"
        raise WrongUse(reason=reason) from error


def _decode(data: bytes) -> bytes:
    text = data.decode("latin-1")
    if "\0" in text:
        raise WrongUse(reason="Base64 data contains embedded NUL characters")
    if not _BASE64.fullmatch(text):
        raise WrongUse(reason="Base64 data contains invalid characters")
    return base64.b64decode(text + "=" * (-len(text.replace("\n", "")) % 4))


def _decrypt(data: bytes, how: str, given: dict[str, str], others: dict[str, bytes]) -> bytes:
    """Decrypt a secret by the one that it names, AES-256 in mode CBC. Raises: WrongUse."""
    keyid, iv_text = given["keyid"], given.get("iv")
    if keyid not in others:
        raise WrongUse(reason=f"No secret with id '{keyid}'", hint="that secret first")
    if len(others[keyid]) != _KEY_BYTES:
        raise WrongUse(reason="Key should be 32 bytes in length")
    if iv_text is None:
        raise WrongUse(reason="IV is required to decrypt secret")
    iv = _decode(iv_text.encode())
    if len(iv) != _BLOCK_BYTES:
        raise WrongUse(reason=f"IV should be 16 bytes in length not {len(iv)}")
    secret = _decode(data) if how == "base64" else data
    if not secret or len(secret) % _BLOCK_BYTES:
        raise WrongUse(reason=f"Length {len(secret)} must be a multiple of block size {_BLOCK_BYTES}")
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes  # noqa: PLC0415

    plain = Cipher(algorithms.AES(others[keyid]), modes.CBC(iv)).decryptor().update(secret)
    if plain[-1] > _BLOCK_BYTES:
        raise WrongUse(reason=f"Incorrect number of padding bytes ({plain[-1]}) found on decrypted data")
    return plain[: len(plain) - plain[-1]]
