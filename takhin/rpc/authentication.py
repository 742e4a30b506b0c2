"""Who a client is: by an API key, by a token, or by the certificate of its connection.

What a call brings along as metadata counts before the certificate, and when it is wrong the call is refused, whatever
the certificate says.
"""

import hmac
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from takhin.broker.access_control import KEY_PREFIX, MAX_KEY_CHARACTERS, AccessControl, hash_key
from takhin.broker.acl import check_principal
from takhin.config import Settings
from takhin.errors import Reason, StartError, TakhinError, error
from takhin.rpc.call import Call
from takhin.rpc.tokens import Tokens, expired
from takhin.rpc.watched_files import WatchedFiles

# Of the key in auth.admin_key. No ACL can name it, nor can a key, token or certificate bear it.
ADMIN_PRINCIPAL = "admin-key"
# No hash of a key.
_NO_KEY = b""
MAX_REMEMBERED_CERTIFICATES = 10_000


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a client has proved to be. expires_s: seconds since the epoch; None: never. is_admin: may do everything."""

    principal: str
    expires_s: float | None = None
    is_admin: bool = False


class Authentication:
    """Made before the broker starts, so that what is wrong with a file is told at once; then bind() it to the broker.

    Raises StartError. clock_ms: milliseconds since the epoch.
    """

    def __init__(self, settings: Settings, clock_ms: Callable[[], int]):
        auth = settings.auth
        self._takes_keys = auth.keys
        self._tokens = Tokens(auth) if auth.jwks else None
        self._admin_key = (
            WatchedFiles([auth.admin_key], lambda contents: _read_admin_key(auth.admin_key, contents[0]), _NO_KEY)
            if auth.admin_key else None)
        self._takes_certificates = bool(settings.tls.client_ca)
        self._certificate_name = auth.certificate_name
        self._certificates: OrderedDict[bytes, Identity] = OrderedDict()
        self._admins = frozenset(auth.admins.split())
        self._clock_ms = clock_ms
        self._access: AccessControl | None = None
        for admin in self._admins:
            try:
                check_principal(admin)
            except TakhinError as problem:
                raise StartError(f"auth.admins: {problem.message}") from None

    @property
    def files(self) -> list[WatchedFiles]:
        """Those that are to be watched."""
        found = [self._tokens.files if self._tokens is not None else None, self._admin_key]
        return [each for each in found if each is not None]

    def bind(self, access: AccessControl) -> None:
        self._access = access

    def identify(self, call: Call) -> Identity:
        """Raises CREDENTIALS_MISSING, CREDENTIALS_INVALID, CREDENTIALS_EXPIRED."""
        metadata = call.metadata
        bearer, key = metadata.get("authorization"), metadata.get("x-api-key")
        if bearer is not None and key is not None:
            raise _invalid("both authorization and x-api-key are there; one is needed")
        if isinstance(key, str):
            identity = self._of_key(key)
        elif isinstance(bearer, str):
            scheme, _, token = bearer.partition(" ")
            token = token.strip()
            if scheme.lower() != "bearer" or not token:
                raise _invalid("authorization is not of the form Bearer TOKEN")
            if token.startswith(KEY_PREFIX):
                identity = self._of_key(token)
            elif self._tokens is not None:
                found = self._tokens.read(token, self._clock_ms() / 1000)
                identity = Identity(found.principal, found.expires_s)
            else:
                raise _invalid("what authorization bears is not an API key, and tokens are not taken here")
        else:
            identity = self._of_certificate(call.identity)
        if identity.principal in self._admins:
            return Identity(identity.principal, identity.expires_s, is_admin=True)
        return identity

    def now_s(self) -> float:
        return self._clock_ms() / 1000

    def _of_key(self, presented: str) -> Identity:
        # Nothing says which keys there are, were, or would have been.
        if self._admin_key is not None and len(presented) <= MAX_KEY_CHARACTERS:
            if hmac.compare_digest(hash_key(presented), self._admin_key.current):
                return Identity(ADMIN_PRINCIPAL, is_admin=True)
        key = self._access.find_key(presented) if self._takes_keys and self._access is not None else None
        if key is None:
            raise _invalid("the API key is not known")
        if key.expires_ms is not None and self._clock_ms() >= key.expires_ms:
            raise expired("the API key")
        return Identity(f"key:{key.name}", None if key.expires_ms is None else key.expires_ms / 1000)

    def _of_certificate(self, pem: bytes | None) -> Identity:
        if not self._takes_certificates or pem is None:
            raise error(
                Reason.CREDENTIALS_MISSING,
                "the call has no credentials: an API key in x-api-key or authorization: Bearer, or a token there",
            )
        identity = self._certificates.get(pem)
        if identity is None:
            identity = self._certificates[pem] = self._read_certificate(pem)
            if len(self._certificates) > MAX_REMEMBERED_CERTIFICATES:
                self._certificates.popitem(last=False)
        # Core has looked at its dates when the connection began, which may be long ago.
        if identity.expires_s is not None and self.now_s() >= identity.expires_s:
            raise expired("the client's certificate")
        return identity

    def _read_certificate(self, pem: bytes) -> Identity:
        from cryptography import x509
        from cryptography.x509.oid import NameOID

        try:
            certificate = x509.load_pem_x509_certificate(pem)
            if self._certificate_name == "uri":
                names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
                found = names.get_values_for_type(x509.UniformResourceIdentifier)
            elif self._certificate_name == "subject":
                found = [certificate.subject.rfc4514_string()]
            else:
                found = [str(each.value) for each in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        except x509.ExtensionNotFound:
            found = []
        except ValueError:
            raise _invalid("the client's certificate can't be read") from None
        if len(found) != 1:
            what = {"uri": "URI", "subject": "subject", "common-name": "common name"}[self._certificate_name]
            raise _invalid(f"the client's certificate has {len(found)} {what}s; one names the client")
        principal = f"cert:{found[0]}"
        try:
            check_principal(principal)
        except TakhinError:
            raise _invalid("what names the client in its certificate can't be a principal's name") from None
        return Identity(principal, certificate.not_valid_after_utc.timestamp())


def _invalid(why: str) -> TakhinError:
    return error(Reason.CREDENTIALS_INVALID, why)


def _read_admin_key(path: str, content: bytes) -> bytes:
    """The hash of the key in the file. Raises ValueError."""
    text = content.decode("ascii", errors="replace").strip()
    if not text.startswith(KEY_PREFIX) or not 40 <= len(text) <= MAX_KEY_CHARACTERS or len(text.split()) != 1:
        raise ValueError(f"{path}: holds no API key; takhin key new makes one: takhin key new > {path}")
    return hash_key(text)
