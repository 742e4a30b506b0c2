"""JSON Web Tokens, checked against public keys of a local file (JWKS).

The algorithm is the key's, never the token's choice, and none that is symmetric is known.
"""

import hashlib
import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from takhin.broker.acl import check_principal
from takhin.config import AuthSettings
from takhin.errors import Reason, TakhinError, error
from takhin.rpc.watched_files import WatchedFiles

ALGORITHMS = frozenset({
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
})
MIN_RSA_BITS = 2048
# A signature costs more than all the rest of a small call.
MAX_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Token:
    """What a valid token says. expires_s: seconds since the epoch, leeway included."""

    principal: str
    expires_s: float


@dataclass(frozen=True, slots=True)
class _Key:
    algorithm: str
    public: Any


_Keys = dict[str | None, _Key]


class Tokens:
    """Reads tokens. Raises StartError when the JWKS file can't be used."""

    def __init__(self, settings: AuthSettings):
        self._issuer = settings.jwt_issuer
        self._audience = settings.jwt_audience
        self._leeway_s = settings.jwt_leeway_ms / 1000
        self.files = WatchedFiles([settings.jwks], lambda contents: _read_keys(settings.jwks, contents[0]))
        self.files.on_change(self._forget)
        self._remembered: OrderedDict[bytes, Token] = OrderedDict()

    def read(self, text: str, now_s: float) -> Token:
        """Raises CREDENTIALS_INVALID, CREDENTIALS_EXPIRED."""
        digest = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
        token = self._remembered.get(digest)
        if token is None:
            token = self._verify(text)
            self._remembered[digest] = token
            if len(self._remembered) > MAX_REMEMBERED:
                self._remembered.popitem(last=False)
        if now_s >= token.expires_s:
            self._remembered.pop(digest, None)
            raise expired("the token")
        return token

    def _forget(self) -> None:
        self._remembered.clear()

    def _verify(self, text: str) -> Token:
        import jwt

        try:
            key = self._key(jwt.get_unverified_header(text))
            claims = jwt.decode(
                text, key.public, algorithms=[key.algorithm], issuer=self._issuer, audience=self._audience,
                leeway=self._leeway_s, options={"require": ["exp", "iss", "aud", "sub"]})
        except jwt.ExpiredSignatureError:
            raise expired("the token") from None
        except jwt.InvalidTokenError as problem:
            # Only the kind of error: the library's texts may quote the token.
            raise _invalid(_TOLD.get(type(problem).__name__, "it can't be verified")) from None
        except (ValueError, TypeError, RecursionError):
            raise _invalid("it can't be read") from None
        principal = f"jwt:{claims['sub']}"
        try:
            check_principal(principal)
        except TakhinError:
            raise _invalid("its subject can't be a principal's name") from None
        try:
            return Token(principal, float(claims["exp"]) + self._leeway_s)
        except OverflowError:
            raise _invalid("the token's exp is no time") from None

    def _key(self, header: dict[str, Any]) -> _Key:
        """Raises CREDENTIALS_INVALID."""
        if "crit" in header:
            raise _invalid("it has critical extensions, and none is known here")
        keys = self.files.current
        name = header.get("kid")
        if name is None and len(keys) == 1:
            (key,) = keys.values()
        else:
            found = keys.get(name) if name is None or isinstance(name, str) else None
            if found is None:
                raise _invalid("no key is known by the name (kid) it gives")
            key = found
        if header.get("alg") != key.algorithm:
            raise _invalid("its algorithm is not that of the key")
        return key


_TOLD = {
    "InvalidSignatureError": "the signature does not match",
    "InvalidIssuerError": "it is of another issuer",
    "InvalidAudienceError": "it is for another audience",
    "ImmatureSignatureError": "it is not valid yet",
    "InvalidIssuedAtError": "it says when it was issued in a way that can't be read",
    "MissingRequiredClaimError": "one of exp, iss, aud, sub is missing",
    "DecodeError": "it can't be read",
}


def _invalid(why: str) -> TakhinError:
    return error(Reason.CREDENTIALS_INVALID, f"the token is not accepted: {why}")


def expired(what: str) -> TakhinError:
    return error(Reason.CREDENTIALS_EXPIRED, f"{what} has expired")


def _read_keys(path: str, content: bytes) -> _Keys:
    """Raises ValueError."""
    import jwt

    try:
        entries = json.loads(content)["keys"]
        assert isinstance(entries, list)
    except (ValueError, TypeError, KeyError, AssertionError, RecursionError):
        raise ValueError(f'{path}: is not a JWKS file, which is {{"keys": [...]}} in JSON') from None
    keys: _Keys = {}
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            raise ValueError(f"{path}: key {number} is not an object")
        if entry.get("kty") == "oct":
            raise ValueError(f"{path}: key {number} is symmetric: whoever can check a token could make one")
        if entry.get("use", "sig") != "sig":
            continue
        try:
            made = jwt.PyJWK(entry)
        except Exception:  # of another kind than any known here, say: those beside it are still good
            continue
        algorithm, name = made.algorithm_name, entry.get("kid")
        if algorithm not in ALGORITHMS:
            continue
        if name is not None and not isinstance(name, str):
            raise ValueError(f"{path}: the name (kid) of key {number} is not a string")
        if name in keys:
            raise ValueError(f"{path}: two keys have the same name (kid)")
        public = made.key.public_key() if hasattr(made.key, "public_key") else made.key
        if algorithm[:2] in ("RS", "PS") and public.key_size < MIN_RSA_BITS:
            raise ValueError(f"{path}: key {number} has {public.key_size} bits; {MIN_RSA_BITS} are needed")
        keys[name] = _Key(algorithm, public)
    # An empty list is meant: nobody is let in by a token.
    if entries and not keys:
        raise ValueError(f"{path}: holds no key that can be used; known are {', '.join(sorted(ALGORITHMS))}")
    return keys
