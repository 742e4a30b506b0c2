"""JSON Web Tokens: which are taken, and which key sets."""

import base64
import hmac
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from takhin.errors import Reason, StartError, TakhinError
from takhin.rpc import tokens as module
from takhin.rpc.tokens import Tokens
from tests.secured import AUDIENCE, ISSUER, Secured, replace


@pytest.fixture
def secured(tmp_path: Path) -> Secured:
    return Secured(tmp_path)


@pytest.fixture
def tokens(secured: Secured) -> Tokens:
    return Tokens(secured.settings().auth)


def refusal(tokens: Tokens, text: str, now_s: float | None = None) -> tuple[Reason, str]:
    with pytest.raises(TakhinError) as refused:
        tokens.read(text, time.time() if now_s is None else now_s)
    assert text not in refused.value.message
    return refused.value.reason, refused.value.message


def test_a_good_token(secured: Secured, tokens: Tokens) -> None:
    now_s = int(time.time())
    for audience in AUDIENCE, [AUDIENCE, "another"]:
        read = tokens.read(secured.token("svc", exp=now_s + 60, aud=audience), now_s)
        assert (read.principal, read.expires_s) == ("jwt:svc", now_s + 60)


@pytest.mark.parametrize(("claims", "reason", "told"), [
    ({"exp": 1}, Reason.CREDENTIALS_EXPIRED, "the token has expired"),
    ({"exp": None}, Reason.CREDENTIALS_INVALID, "one of exp, iss, aud, sub is missing"),
    ({"exp": "soon"}, Reason.CREDENTIALS_INVALID, "can't be read"),
    ({"iss": None}, Reason.CREDENTIALS_INVALID, "is missing"),
    ({"iss": "https://other.example"}, Reason.CREDENTIALS_INVALID, "of another issuer"),
    ({"iss": ISSUER + "/"}, Reason.CREDENTIALS_INVALID, "of another issuer"),
    ({"aud": None}, Reason.CREDENTIALS_INVALID, "is missing"),
    ({"aud": "other"}, Reason.CREDENTIALS_INVALID, "for another audience"),
    ({"aud": [AUDIENCE.upper()]}, Reason.CREDENTIALS_INVALID, "for another audience"),
    ({"sub": None}, Reason.CREDENTIALS_INVALID, ""),
    ({"sub": ""}, Reason.CREDENTIALS_INVALID, "its subject"),
    ({"sub": "a\nb"}, Reason.CREDENTIALS_INVALID, "its subject"),
    ({"sub": "x" * 600}, Reason.CREDENTIALS_INVALID, "its subject"),
    ({"nbf": time.time() + 3600}, Reason.CREDENTIALS_INVALID, "not valid yet"),
    ({"iat": time.time() + 3600}, Reason.CREDENTIALS_INVALID, "not valid yet"),
])
def test_what_a_token_must_say(
    secured: Secured, tokens: Tokens, claims: dict[str, Any], reason: Reason, told: str
) -> None:
    found, message = refusal(tokens, secured.token(**claims))
    assert found is reason and told in message


def unsigned(header: dict[str, Any], claims: dict[str, Any], signature: bytes = b"") -> str:
    parts = [json.dumps(header).encode(), json.dumps(claims).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def test_the_algorithm_is_the_keys(secured: Secured, tokens: Tokens) -> None:
    """Neither none, nor the public key as the secret of a symmetric one, nor another one of the same kind."""
    claims = jwt.decode(secured.token(), options={"verify_signature": False})
    public = secured.key.public_key()
    jwk = json.loads((secured.directory / "jwks.json").read_text())["keys"][0]
    for algorithm in "none", "None", "NONE", "", None, ["ES256"], 5:
        assert refusal(tokens, unsigned({"alg": algorithm, "kid": "one"}, claims))[0] is Reason.CREDENTIALS_INVALID
    for secret in public.public_numbers().x.to_bytes(32), json.dumps(jwk).encode(), b"\n" * 40:
        start = unsigned({"alg": "HS256", "kid": "one"}, claims).rpartition(".")[0]
        mac = hmac.digest(secret, start.encode(), "sha256")
        forged = f"{start}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
        assert "its algorithm is not that of the key" in refusal(tokens, forged)[1]
    with_another_curve = jwt.encode(
        claims, ec.generate_private_key(ec.SECP384R1()), "ES384", headers={"kid": "one"})
    assert "its algorithm" in refusal(tokens, with_another_curve)[1]


def test_the_key_is_the_files(secured: Secured, tokens: Tokens) -> None:
    stranger = ec.generate_private_key(ec.SECP256R1())
    good = secured.token()
    claims = jwt.decode(good, options={"verify_signature": False})
    own_key = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(stranger.public_key()))
    for headers in {"kid": "one"}, {}, {"kid": "one", "jwk": own_key}, {"kid": "one", "jku": "https://evil.example"}:
        assert "the signature does not match" in refusal(
            tokens, jwt.encode(claims, stranger, "ES256", headers=headers))[1]
    assert "no key is known" in refusal(tokens, secured.token(kid="two"))[1]
    header, payload, signature = good.split(".")
    changed = payload[:-2] + ("A" if payload[-2] != "A" else "B") + payload[-1]
    assert refusal(tokens, f"{header}.{changed}.{signature}")[0] is Reason.CREDENTIALS_INVALID
    assert tokens.read(good, time.time()).principal == "jwt:tests"
    # Without a name there must be one key alone.
    nameless = jwt.encode(claims, secured.key, "ES256")
    assert tokens.read(nameless, time.time())
    secured.write_keys(one=secured.key, two=stranger)
    assert tokens.files.check()
    assert "no key is known" in refusal(tokens, nameless)[1]


@pytest.mark.parametrize("text", ["", ".", "..", "a.b.c", "a.b", "x" * 10_000, "e30.e30.e30", "é.é.é", "\udcff", "[]"])
def test_what_is_no_token(tokens: Tokens, text: str) -> None:
    with pytest.raises(TakhinError) as refused:
        tokens.read(text, time.time())
    assert refused.value.reason is Reason.CREDENTIALS_INVALID


def test_critical_extensions_are_refused(secured: Secured, tokens: Tokens) -> None:
    claims = jwt.decode(secured.token(), options={"verify_signature": False})
    headers = {"kid": "one", "crit": ["b64"], "b64": False}
    text = jwt.api_jws.encode(json.dumps(claims).encode(), secured.key, "ES256", headers={"kid": "one", "x": 1})
    assert tokens.read(text, time.time())
    text = unsigned({"alg": "ES256"} | headers, claims, b"x" * 64)
    assert refusal(tokens, text)[0] is Reason.CREDENTIALS_INVALID


def test_a_remembered_token_expires_too(secured: Secured, tokens: Tokens) -> None:
    expires_s = int(time.time()) + 1000
    text = secured.token(exp=expires_s)
    assert tokens.read(text, expires_s - 1)
    assert refusal(tokens, text, expires_s)[0] is Reason.CREDENTIALS_EXPIRED
    assert refusal(tokens, text, expires_s + 1e9)[0] is Reason.CREDENTIALS_EXPIRED


def test_the_leeway(tmp_path: Path) -> None:
    secured = Secured(tmp_path, "--auth-jwt-leeway-ms", "5000")
    tokens = Tokens(secured.settings().auth)
    now_s = int(time.time())
    assert tokens.read(secured.token(exp=now_s - 2), now_s).expires_s == now_s + 3
    assert refusal(tokens, secured.token(exp=now_s - 10))[0] is Reason.CREDENTIALS_EXPIRED


def test_what_is_remembered_is_bounded(secured: Secured, tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REMEMBERED", 3)
    texts = [secured.token(f"s{number}") for number in range(5)]
    for text in texts + texts:
        assert tokens.read(text, time.time())
    assert len(tokens._remembered) == 3


# Key sets.


def jwk(key: Any, **more: Any) -> dict[str, Any]:
    public = key.public_key()
    kind = {
        "RSAPublicKey": jwt.algorithms.RSAAlgorithm, "ECPublicKey": jwt.algorithms.ECAlgorithm,
        "Ed25519PublicKey": jwt.algorithms.OKPAlgorithm}[type(public).__name__.replace("EllipticCurve", "EC")]
    return json.loads(kind.to_jwk(public)) | {"kid": "one"} | more


RSA = rsa.generate_private_key(65537, 2048)
P256, P384, ED = (
    ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1()),
    ed25519.Ed25519PrivateKey.generate())


def tokens_of(secured: Secured, entries: Any) -> Tokens:
    replace(secured.directory / "jwks.json", json.dumps(entries).encode())
    return Tokens(secured.settings().auth)


def _name(value: Any) -> str:
    # The same in every run, which a key's own text is not.
    return type(value).__name__ if not isinstance(value, str | dict) else str(value)


@pytest.mark.parametrize(("key", "algorithm", "more"), [
    (RSA, "RS256", {}), (RSA, "RS512", {"alg": "RS512"}), (RSA, "PS256", {"alg": "PS256"}), (P256, "ES256", {}),
    (P384, "ES384", {}), (ED, "EdDSA", {"alg": "EdDSA"}), (ED, "EdDSA", {}),
], ids=_name)
def test_kinds_of_keys(secured: Secured, key: Any, algorithm: str, more: dict[str, Any]) -> None:
    claims = jwt.decode(secured.token("svc"), options={"verify_signature": False})
    tokens = tokens_of(secured, {"keys": [jwk(key, **more)]})
    text = jwt.encode(claims, key, algorithm, headers={"kid": "one"})
    assert tokens.read(text, time.time()).principal == "jwt:svc"
    if key is RSA:
        other = "RS384"
        assert "its algorithm" in refusal(tokens, jwt.encode(claims, key, other, headers={"kid": "one"}))[1]


def test_keys_that_are_of_no_use_are_left_out(secured: Secured) -> None:
    tokens = tokens_of(secured, {"keys": [
        jwk(P256), jwk(P384, kid="enc", use="enc"), {"kty": "future", "kid": "f"}, jwk(RSA, kid="r", alg="RSA-OAEP")]})
    assert set(tokens.files.current) == {"one"}


def test_a_set_without_keys_lets_nobody_in(secured: Secured) -> None:
    tokens = tokens_of(secured, {"keys": []})
    assert tokens.files.current == {}


@pytest.mark.parametrize(("content", "told"), [
    ([], "is not a JWKS file"), ({}, "is not a JWKS file"), ({"keys": {}}, "is not a JWKS file"),
    ({"keys": ["x"]}, "key 1 is not an object"),
    ({"keys": [jwk(P256, use="enc")]}, "holds no key that can be used"),
    ({"keys": [jwk(P256), {"kty": "oct", "k": "c2VjcmV0", "kid": "two", "alg": "HS256"}]}, "key 2 is symmetric"),
    ({"keys": [jwk(P256), jwk(P384)]}, "two keys have the same name"),
    ({"keys": [jwk(P256, kid=5)]}, "the name (kid) of key 1 is not a string"),
    ({"keys": [jwk(rsa.generate_private_key(65537, 1024))]}, "key 1 has 1024 bits; 2048 are needed"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_key_sets_that_are_not_taken(secured: Secured, content: Any, told: str) -> None:
    with pytest.raises(StartError) as refused:
        tokens_of(secured, content)
    assert told in str(refused.value)


def test_a_bad_key_set_leaves_the_last_good_one(secured: Secured, tokens: Tokens) -> None:
    good = secured.token()
    replace(secured.directory / "jwks.json", b"{")
    assert not tokens.files.check()
    assert tokens.read(good, time.time())
    called: list[Callable[[], None]] = []
    tokens.files.on_change(lambda: called.append(lambda: None))
    secured.write_keys(two=secured.key)
    assert tokens.files.check() and len(called) == 1
    assert refusal(tokens, good)[0] is Reason.CREDENTIALS_INVALID, "it was remembered"
