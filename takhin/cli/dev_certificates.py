"""A throw-away authority with a certificate for a server and one for a client, to try TLS with."""

import ipaddress
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

# Clocks differ.
_BEFORE = timedelta(minutes=5)


class Authority:
    """Signs certificates. Its key is kept in memory alone: nobody signs another one later."""

    def __init__(self, days: float):
        self._days = days
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("takhin dev CA")
        builder = _builder(self._name, self._name, self._key.public_key(), days)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(signs=True), critical=True)
        self.certificate = builder.sign(self._key, hashes.SHA256())

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def server(self, hosts: Sequence[str]) -> tuple[bytes, bytes]:
        """Certificate and key, PEM, of a server that is reached by these names and addresses."""
        names = [_host(host) for host in hosts]
        return self._pair("takhin dev server", names, ExtendedKeyUsageOID.SERVER_AUTH, self._days)

    def client(self, uris: Sequence[str], common_name: str, days: float | None = None) -> tuple[bytes, bytes]:
        """Certificate and key, PEM, of a client that these URIs name."""
        names = [x509.UniformResourceIdentifier(uri) for uri in uris]
        return self._pair(
            common_name, names, ExtendedKeyUsageOID.CLIENT_AUTH, self._days if days is None else days)

    def _pair(
        self, common_name: str, names: Sequence[x509.GeneralName], usage: x509.ObjectIdentifier, days: float
    ) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name(common_name), self._name, key.public_key(), days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(signs=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(authority, critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM), key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: float
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(min(now, now + timedelta(days=days)) - _BEFORE)
    builder = builder.not_valid_after(now + timedelta(days=days))
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs, key_cert_sign=signs, crl_sign=signs, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def write_new(path: str, content: bytes, *, is_secret: bool) -> None:
    """Raises FileExistsError, OSError: nothing that is there is written over."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if is_secret else 0o644)
    with os.fdopen(file, "wb") as opened:
        opened.write(content)
