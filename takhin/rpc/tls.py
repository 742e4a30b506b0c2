"""The server's side of TLS: certificates from files, for a front."""

import logging
import os
import ssl
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime

from takhin.config import TlsSettings
from takhin.rpc.watched_files import WatchedFiles

# What every front can use, and every client: OpenSSL, in the fast front, takes no shorter keys, and with Ed25519 or
# P-521 the clients on gRPC's core, ours among them, break off the handshake.
MIN_RSA_BITS = 2048
CURVES = {"secp256r1": "P-256", "secp384r1": "P-384"}

logger = logging.getLogger(__name__)


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


def server_context(given: Certificates) -> ssl.SSLContext:
    """Of OpenSSL, for HTTP/2. Raises OSError, ssl.SSLError among them, when it can't be made with these."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    # The library takes files alone; these are gone as soon as they are read.
    with tempfile.TemporaryDirectory() as directory:
        paths = [os.path.join(directory, name) for name in ("chain.pem", "key.pem")]
        for path, content in zip(paths, (given.chain, given.key), strict=True):
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(content)
        context.load_cert_chain(*paths)
    if given.client_ca is not None:
        # Who comes again shows a certificate again, to those who are trusted then.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=given.client_ca.decode())
    return context


def _checked(paths: list[str], contents: list[bytes]) -> Certificates:
    """Raises ValueError: no certificate, no key, not of one pair, expired or not valid yet, of a kind that not
    everybody can use."""
    from cryptography.hazmat.primitives import serialization

    cert_path, key_path = paths[:2]
    chain, key = contents[:2]
    certificate = _certificates(cert_path, chain)[0]
    _check_dates(cert_path, certificate)
    _check_key(cert_path, certificate)
    try:
        private = serialization.load_pem_private_key(key, None)
    except TypeError:
        raise ValueError(f"{key_path}: the private key has a password; one without is needed") from None
    except Exception:
        raise ValueError(f"{key_path}: is not a private key in PEM") from None
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    if private.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
        raise ValueError(f"{key_path}: is not the key of the certificate in {cert_path}")
    client_ca, authorities = None, []
    if len(contents) > 2:
        authorities = _certificates(paths[2], contents[2])
        # Without what else stands between them, comments say.
        client_ca = b"".join(
            each.public_bytes(serialization.Encoding.PEM) for each in _not_expired(paths[2], authorities))
    given = Certificates(chain, key, client_ca)
    try:
        server_context(given)
    except ssl.SSLError as problem:
        what = (problem.reason or "unknown").replace("_", " ").lower()
        raise ValueError(f"{', '.join(paths)}: can't be used for TLS: {what}") from None
    except OSError as problem:
        raise ValueError(f"{', '.join(paths)}: can't be tried: {problem.strerror}") from None
    for each in filter(_has_expired, authorities):
        logger.warning(
            "%s: the certificate of %r expired on %s; it is left out", paths[2], each.subject.rfc4514_string(),
            f"{each.not_valid_after_utc:%F}")
    return given


def _certificates(path: str, pem: bytes) -> list:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(pem)
    except Exception:
        raise ValueError(f"{path}: holds no certificate in PEM, or a damaged one") from None


def _not_expired(path: str, authorities: list) -> list:
    """Old and new ones stand side by side while they are replaced. Raises ValueError when none is valid now."""
    left = [each for each in authorities if not _has_expired(each)]
    if not any(each.not_valid_before_utc <= datetime.now(UTC) for each in left):
        _check_dates(path, authorities[0])
    return left


def _has_expired(certificate) -> bool:
    return certificate.not_valid_after_utc < datetime.now(UTC)


def _check_dates(path: str, certificate) -> None:
    since, until = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    name = certificate.subject.rfc4514_string()
    if _has_expired(certificate):
        raise ValueError(f"{path}: the certificate of {name!r} expired on {until:%F}")
    if since > datetime.now(UTC):
        raise ValueError(f"{path}: the certificate of {name!r} is not valid before {since:%F %T} UTC")


def _check_key(path: str, certificate) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.x509.oid import PublicKeyAlgorithmOID

    name = certificate.subject.rfc4514_string()
    # Not those of RSASSA-PSS, which the library shows as RSA, too.
    kinds = PublicKeyAlgorithmOID.RSAES_PKCS1_v1_5, PublicKeyAlgorithmOID.EC_PUBLIC_KEY
    key = certificate.public_key() if certificate.public_key_algorithm_oid in kinds else None
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size >= MIN_RSA_BITS:
            return
        what = f"RSA with {key.key_size} bits"
    elif isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name in CURVES:
            return
        what = f"EC on {key.curve.name}"
    else:
        what = "neither RSA nor EC"
    raise ValueError(
        f"{path}: the key of the certificate of {name!r} is {what}; it has to be RSA with {MIN_RSA_BITS} bits or more, "
        f"or EC on {', '.join(CURVES.values())}")
