"""Owns certificates that are made for one run of the tests: an authority, a server's and a client's."""

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)
USAGES = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
Key = ec.EllipticCurvePrivateKey


def make_folder(folder: Path, server_name: str = "localhost") -> Path:
    """A folder as QEMU wants it, with an authority of its own. The server is called so, and 127.0.0.1 besides."""
    folder.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    authority = _sign(("authority", None), key, key, is_authority=True)
    _write(folder, "ca", authority, key)
    addresses = [x509.DNSName(server_name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    for role, usage in (("server", SERVER), ("client", CLIENT)):
        own = ec.generate_private_key(ec.SECP256R1())
        extensions = [x509.ExtendedKeyUsage([usage]), x509.SubjectAlternativeName(addresses)]
        _write(folder, role, _sign((role, authority.subject), own, key, *extensions), own)
    return folder


def _sign(
    names: tuple[str, x509.Name | None],
    own: Key,
    signer: Key,
    *extensions: x509.ExtensionType,
    is_authority: bool = False,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    now = datetime.datetime.now(datetime.UTC)
    usages = {usage: usage == "digital_signature" for usage in USAGES}
    usage = x509.KeyUsage(
        **usages, key_cert_sign=is_authority, crl_sign=is_authority, encipher_only=False, decipher_only=False
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(names[1] or subject)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(signer, hashes.SHA256())


def _write(folder: Path, role: str, certificate: x509.Certificate, key: Key) -> None:
    (folder / f"{role}-cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / f"{role}-key.pem").write_bytes(text)
