"""API keys and ACLs: kept in the metadata database, and in memory, where every call asks for them."""

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence

from takhin.broker.access_store import ApiKey, add_acls, add_key, load_access, load_acls, remove_acls, remove_key
from takhin.broker.acl import MAX_KEY_NAME_CHARACTERS, Acl, Acls, check_acl
from takhin.broker.metadata import MetadataStore
from takhin.config import Limits
from takhin.errors import Reason, error

# A key is tk_ID_SECRET: 64 bits that name it, 256 that are its secret.
KEY_PREFIX = "tk_"
_ID_BYTES = 8
_SECRET_BYTES = 32
# Whatever is longer is no key of ours: nobody gets it hashed.
MAX_KEY_CHARACTERS = 128
# What JavaScript clients can hold in a number.
MAX_TIME_MS = (1 << 53) - 1


class AccessControl:
    """To be used from the event loop alone. clock_ms: milliseconds since the epoch."""

    def __init__(self, metadata: MetadataStore, limits: Limits, clock_ms: Callable[[], int]):
        self.acls = Acls()
        self._metadata = metadata
        self._limits = limits
        self._clock_ms = clock_ms
        self._keys: dict[str, ApiKey] = {}
        self._changing = asyncio.Lock()
        self._listeners: list[Callable[[], None]] = []
        self._entries: list[Acl] = []

    async def load(self) -> None:
        """To be called before the first request."""
        keys, self._entries = await self._metadata.read_access(load_access)
        self._keys = {key.id: key for key in keys}
        self.acls.replace(self._entries)

    def on_change(self, listener: Callable[[], None]) -> None:
        """listener() is called on the event loop after each change of keys or ACLs."""
        self._listeners.append(listener)

    # Keys

    def find_key(self, presented: str) -> ApiKey | None:
        """The key that was presented, expired or not; None when there is none such."""
        if len(presented) > MAX_KEY_CHARACTERS or not presented.startswith(KEY_PREFIX):
            return None
        key = self._keys.get(presented[len(KEY_PREFIX):].partition("_")[0])
        # Random to its last bit, a key needs no slow hash, and what an id tells by its timing is no secret.
        if key is None or not hmac.compare_digest(hash_key(presented), key.hash):
            return None
        return key

    def has_key(self, key_id: str) -> bool:
        return key_id in self._keys

    @property
    def num_acls(self) -> int:
        return len(self._entries)

    def keys(self) -> list[ApiKey]:
        """In the order of their making."""
        return list(self._keys.values())

    async def create_key(self, name: str, lifetime_ms: int | None) -> tuple[ApiKey, str]:
        """A new key for principal key:NAME, and what its user has to present, which is told this once.

        lifetime_ms: None: until it is revoked.

        Several keys may bear one name: the next is made before the last is revoked. Raises INVALID_PRINCIPAL,
        KEY_LIMIT, and what the metadata store does.
        """
        if not 1 <= len(name) <= MAX_KEY_NAME_CHARACTERS or not name.isprintable():
            raise error(
                Reason.INVALID_PRINCIPAL,
                f"the name ({len(name)} characters) is not allowed; allowed: 1 to {MAX_KEY_NAME_CHARACTERS} printable "
                "characters",
            )
        now_ms = self._clock_ms()
        expires_ms = None if lifetime_ms is None else min(now_ms + lifetime_ms, MAX_TIME_MS)
        presented = make_key()
        key = ApiKey(presented.split("_")[1], name, hash_key(presented), now_ms, expires_ms)
        await self._metadata.through(self._create_key(key))
        return key, presented

    async def _create_key(self, key: ApiKey) -> None:
        async with self._changing:
            await self._metadata.change_access(lambda db: add_key(db, key, self._limits.api_keys))
            self._keys[key.id] = key
            self._tell()

    async def revoke_key(self, key_id: str) -> ApiKey:
        """Gives the key that is no more. Raises KEY_NOT_FOUND, and what the metadata store does."""
        return await self._metadata.through(self._revoke_key(key_id))

    async def _revoke_key(self, key_id: str) -> ApiKey:
        async with self._changing:
            await self._metadata.change_access(lambda db: remove_key(db, key_id))
            key = self._keys.pop(key_id)
            self._tell()
            return key

    # ACLs

    def entries(self) -> list[Acl]:
        """All of them, by principal."""
        return list(self._entries)

    async def create_acls(self, entries: Sequence[Acl]) -> int:
        """All or none; one that is there already is left as it is. How many are new.

        Raises INVALID_ACL, INVALID_PRINCIPAL, ACL_LIMIT, and what the metadata store does.
        """
        self._check(entries)
        return await self._metadata.through(self._create_acls(entries))

    async def _create_acls(self, entries: Sequence[Acl]) -> int:
        async with self._changing:
            added = await self._metadata.change_access(lambda db: add_acls(db, entries, self._limits.acls))
            await self._reload()
            return added

    async def delete_acls(self, entries: Sequence[Acl]) -> None:
        """All or none. Raises INVALID_ACL, INVALID_PRINCIPAL, ACL_NOT_FOUND, and what the metadata store does."""
        self._check(entries)
        await self._metadata.through(self._delete_acls(entries))

    async def _delete_acls(self, entries: Sequence[Acl]) -> None:
        async with self._changing:
            await self._metadata.change_access(lambda db: remove_acls(db, entries))
            await self._reload()

    def _check(self, entries: Sequence[Acl]) -> None:
        if not entries:
            raise error(Reason.INVALID_ACL, "the request has no entries; at least one is needed")
        for entry in entries:
            check_acl(entry)

    async def _reload(self) -> None:
        self._entries = await self._metadata.read_access(load_acls)
        self.acls.replace(self._entries)
        self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()


def make_key() -> str:
    """A new key."""
    return f"{KEY_PREFIX}{secrets.token_hex(_ID_BYTES)}_{secrets.token_urlsafe(_SECRET_BYTES)}"


def hash_key(presented: str) -> bytes:
    """What of a key is kept: SHA-256 of its UTF-8."""
    return hashlib.sha256(presented.encode(errors="surrogatepass")).digest()
