"""TLS for both ends of a connection, from a folder that is laid out as QEMU's `tls-creds-x509` and `tls-creds-psk` are.

    ca-cert.pem                        who is believed
    server-cert.pem, server-key.pem    what a server shows
    client-cert.pem, client-key.pem    what a client shows, if it is asked
    keys.psk                           or instead of all that: USER:KEY in hexadecimal digits, a line each

TLS 1.2 or later; a client takes no server whose name or whose certificate is not right. Shared keys need Python 3.13.
"""

import os
import ssl
from typing import Any, Final

from cowtree.errors import WrongUse

AUTHORITY, KEYS = "ca-cert.pem", "keys.psk"
SERVER: Final = ("server-cert.pem", "server-key.pem")
CLIENT: Final = ("client-cert.pem", "client-key.pem")
DEFAULT_USER: Final = "qemu"
KEYS_BYTES_MAX: Final = 1 << 20
_HINT: Final = "a folder with certificates, as for QEMU's tls-creds-x509"
_KEYS_HINT: Final = "a folder with keys.psk, as for QEMU's tls-creds-psk; psktool -u USER -p FOLDER/keys.psk makes one"


def server_context(folder: str, *, checks_clients: bool = True) -> ssl.SSLContext:
    """How a server with a certificate talks. Who comes must show one that the authority signed, unless that is not
    checked. Raises: WrongUse.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    _show(context, folder, SERVER)
    if checks_clients:
        _believe(context, folder)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(folder: str) -> ssl.SSLContext:
    """How a client talks to a server whose name and certificate are right. Raises: WrongUse."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    _believe(context, folder)
    if os.path.exists(os.path.join(folder, CLIENT[0])):
        _show(context, folder, CLIENT)
    return context


def server_context_with_keys(folder: str) -> ssl.SSLContext:
    """How a server talks to clients that share a key with it. Raises: WrongUse."""
    keys = read_keys(folder)
    context = _context_with_keys(ssl.PROTOCOL_TLS_SERVER)
    # An unknown user gets a key that fits nobody's, and so an error that does not tell who is known.
    _newer(context).set_psk_server_callback(lambda user: keys.get(user or "") or os.urandom(32))
    return context


def client_context_with_keys(folder: str, user: str = DEFAULT_USER) -> ssl.SSLContext:
    """How a client talks to a server that shares a key with it. Raises: WrongUse."""
    keys = read_keys(folder)
    if user not in keys:
        reason = f"{os.path.join(folder, KEYS)}: it holds no key of '{user}'"
        raise WrongUse(reason=reason, hint=_KEYS_HINT)
    context = _context_with_keys(ssl.PROTOCOL_TLS_CLIENT)
    _newer(context).set_psk_client_callback(lambda hint: (user, keys[user]))
    return context


def read_keys(folder: str) -> dict[str, bytes]:
    """The keys of a folder by their users; no message ever holds one. Raises: WrongUse."""
    path, keys = os.path.join(folder, KEYS), dict[str, bytes]()
    try:
        with open(path, "rb") as file:
            data = file.read(KEYS_BYTES_MAX + 1)
        if len(data) > KEYS_BYTES_MAX:
            raise ValueError
        for line in data.decode().splitlines():
            if line.strip() and not line.startswith("#"):
                user, _, key = line.strip().rpartition(":")
                keys[user] = bytes.fromhex(key)
    except ValueError:
        reason = f"{path}: it does not hold lines of the kind USER:KEY, the key in hexadecimal digits"
        raise WrongUse(reason=reason, hint=_KEYS_HINT) from None
    except OSError as error:
        raise WrongUse(reason=f"{path}: {error.strerror}", hint=_KEYS_HINT) from error
    if not all(user and key for user, key in keys.items()):
        raise WrongUse(reason=f"{path}: it holds an empty user or key", hint=_KEYS_HINT)
    return keys


def _newer(context: ssl.SSLContext) -> Any:
    """What a newer Python has and the types of this one do not know."""
    return context


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


def _context_with_keys(protocol: int) -> ssl.SSLContext:
    context = _context(protocol)
    if not hasattr(context, "set_psk_client_callback"):
        hint = "the same with Python 3.13 or later, or certificates"
        raise WrongUse(reason="TLS with shared keys needs Python 3.13", hint=hint)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    # TLS 1.3 would let a server without the key show a certificate instead, which nobody checks here. With these
    # ciphers of TLS 1.2 both ends have the key, and who learns it later cannot read what was said before.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("kECDHEPSK:kDHEPSK")
    return context


def _believe(context: ssl.SSLContext, folder: str) -> None:
    path = os.path.join(folder, AUTHORITY)
    try:
        context.load_verify_locations(cafile=path)
    except OSError as error:
        raise _unusable(path, error) from error


def _show(context: ssl.SSLContext, folder: str, names: tuple[str, str]) -> None:
    certificate, key = (os.path.join(folder, name) for name in names)
    for path in (certificate, key):
        if not os.path.isfile(path):
            raise WrongUse(reason=f"{path}: there is no such file", hint=_HINT)
    try:
        # A key with a passphrase is refused, for asking at the terminal would stop a server.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except OSError as error:
        raise _unusable(certificate, error) from error


def _unusable(path: str, error: OSError) -> WrongUse:
    reason = error.reason.lower().replace("_", " ") if isinstance(error, ssl.SSLError) and error.reason else None
    return WrongUse(reason=f"{path}: it cannot be used: {reason or error.strerror or error}", hint=_HINT)
