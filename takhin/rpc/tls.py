"""The server's side of TLS: certificates from files, for a front."""

from dataclasses import dataclass
from datetime import UTC, datetime

from takhin.config import TlsSettings
from takhin.rpc.watched_files import WatchedFiles


@dataclass(frozen=True, slots=True)
class Certificates:
    """Checked, as PEM. chain: the server's own certificate first. client_ca: None: clients are asked for none."""

    chain: bytes
    key: bytes
    client_ca: bytes | None


def tls_files(settings: TlsSettings) -> "WatchedFiles[Certificates] | None":
    """None without TLS. Raises StartError."""
    if not settings.cert:
        return None
    paths = [settings.cert, settings.key]
    if settings.client_ca:
        paths.append(settings.client_ca)
    return WatchedFiles(paths, lambda contents: _checked(paths, contents))


def _checked(paths: list[str], contents: list[bytes]) -> Certificates:
    """Raises ValueError: no certificate, no key, not of one pair, expired."""
    from cryptography.hazmat.primitives import serialization

    cert_path, key_path = paths[:2]
    chain, key = contents[:2]
    certificate = _certificates(cert_path, chain)[0]
    _check_dates(cert_path, certificate)
    try:
        private = serialization.load_pem_private_key(key, None)
    except TypeError:
        raise ValueError(f"{key_path}: the private key has a password; one without is needed") from None
    except Exception:
        raise ValueError(f"{key_path}: is not a private key in PEM") from None
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    if private.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
        raise ValueError(f"{key_path}: is not the key of the certificate in {cert_path}")
    client_ca = None
    if len(contents) > 2:
        client_ca = contents[2]
        for each in _certificates(paths[2], client_ca):
            _check_dates(paths[2], each)
    return Certificates(chain, key, client_ca)


def _certificates(path: str, pem: bytes) -> list:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(pem)
    except Exception:
        raise ValueError(f"{path}: holds no certificate in PEM, or a damaged one") from None


def _check_dates(path: str, certificate) -> None:
    until = certificate.not_valid_after_utc
    if until < datetime.now(UTC):
        raise ValueError(f"{path}: the certificate of {certificate.subject.rfc4514_string()!r} expired on {until:%F}")
