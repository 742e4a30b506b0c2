"""What a principal may do, decided once for each name until ACLs change."""

from collections.abc import Callable, Iterable

from takhin.broker.acl import MAX_NAME_CHARACTERS, OPERATIONS, Acls, Operation, Resource, Verdict
from takhin.broker.topics import Topic, Topics
from takhin.errors import Reason, TakhinError, error

# Decisions that are remembered for one principal, who may ask for any name; beyond it they are made anew.
MAX_DECISIONS = 10_000

_Key = tuple[Operation, Resource, str]


class Permissions:
    """Of one principal."""

    def __init__(self, principal: str, acls: Acls, *, is_admin: bool = False):
        """is_admin: may do everything, whatever ACLs say."""
        self.principal = principal
        self.is_admin = is_admin
        self._acls = acls
        self._generation = -1
        self._verdicts: dict[tuple[Operation, Resource], Verdict] = {}
        self._decided: dict[_Key, bool] = {}

    @property
    def generation(self) -> int:
        """Of the ACLs: what was allowed holds until it changes."""
        return self._acls.generation

    def allows(self, operation: Operation, resource: Resource, name: str = "") -> bool:
        if self.is_admin:
            return True
        self._refresh()
        if len(name) > MAX_NAME_CHARACTERS:
            # Nothing has such a name: not to be kept.
            return self._decide(operation, resource, name)
        key = operation, resource, name
        decided = self._decided.get(key)
        if decided is None:
            if len(self._decided) >= MAX_DECISIONS:
                self._decided.clear()
            decided = self._decided[key] = self._decide(operation, resource, name)
        return decided

    def sees(self, resource: Resource, name: str) -> bool:
        """Whether it may be told that this is there: when anything may be done with it."""
        return any(self.allows(operation, resource, name) for operation in OPERATIONS[resource])

    def seen(self, resource: Resource, names: Iterable[str]) -> list[str]:
        """Those of them that it sees. Nothing is remembered of it: there may be more than it makes sense for."""
        if self.is_admin:
            return list(names)
        self._refresh()
        verdicts = [self._verdict(operation, resource) for operation in OPERATIONS[resource]]
        some = [verdict for verdict in verdicts if verdict.allowed]
        return [name for name in names if any(verdict.allows(name) for verdict in some)]

    def allows_any(self, operation: Operation, resource: Resource) -> bool:
        """Whether there may be a name for which it is allowed."""
        if self.is_admin:
            return True
        self._refresh()
        return bool(self._verdict(operation, resource).allowed)

    def check(self, operation: Operation, resource: Resource, name: str = "") -> None:
        """Raises ACCESS_DENIED: the same whether or not there is such a thing."""
        if not self.allows(operation, resource, name):
            raise denied(f"{operation} on {_named(resource, name)}", resource, name)

    def check_sees(self, resource: Resource, name: str) -> None:
        """Raises ACCESS_DENIED: the same whether or not there is such a thing."""
        if not self.sees(resource, name):
            raise denied(f"anything on {_named(resource, name)}", resource, name)

    def _refresh(self) -> None:
        if self._generation != self._acls.generation:
            self._generation = self._acls.generation
            self._decided.clear()
            self._verdicts.clear()

    def _verdict(self, operation: Operation, resource: Resource) -> Verdict:
        found = self._verdicts.get((operation, resource))
        if found is None:
            found = self._verdicts[operation, resource] = self._acls.verdict(self.principal, operation, resource)
        return found

    def _decide(self, operation: Operation, resource: Resource, name: str) -> bool:
        return self._verdict(operation, resource).allows(name)


def denied(what: str, resource: Resource, name: str) -> TakhinError:
    """ACCESS_DENIED."""
    metadata = {"resource": str(resource)} | ({str(resource): name[:MAX_NAME_CHARACTERS]} if name else {})
    return error(Reason.ACCESS_DENIED, f"not allowed: {what}", **metadata)


def _named(resource: Resource, name: str) -> str:
    if resource is Resource.CLUSTER:
        return "the cluster"
    # Whatever was asked for, of whatever length.
    return f"{resource} {name if len(name) <= MAX_NAME_CHARACTERS else name[:MAX_NAME_CHARACTERS] + '...'!r}"


class WritableTopics:
    """Topics as a produce request finds them, for somebody who may not write to all. One for each call."""

    def __init__(self, topics: Topics, permissions: Permissions, on_denied: Callable[[TakhinError], None]):
        self._topics = topics
        self._permissions = permissions
        self._on_denied = on_denied
        self._generation = -1
        # Names, in UTF-8, to which this call may write.
        self._allowed: set[bytes] = set()

    def get_encoded(self, name: bytes) -> Topic:
        """Raises ACCESS_DENIED, and what Topics.get_encoded does."""
        if name not in self._allowed or self._generation != self._permissions.generation:
            self._check(name)
        return self._topics.get_encoded(name)

    def _check(self, name: bytes) -> None:
        if self._generation != self._permissions.generation or len(self._allowed) >= MAX_DECISIONS:
            self._allowed.clear()
            self._generation = self._permissions.generation
        try:
            self._permissions.check(Operation.PRODUCE, Resource.TOPIC, name.decode())
        except TakhinError as refusal:
            self._on_denied(refusal)
            raise
        if len(name) <= MAX_NAME_CHARACTERS:
            self._allowed.add(name)

    def check_commit(self, group_id: str, topics: set[str]) -> None:
        """Whether offsets of these topics may be committed for a group. Raises ACCESS_DENIED."""
        try:
            check_commit(self._permissions, group_id, topics)
        except TakhinError as refusal:
            self._on_denied(refusal)
            raise


def check_commit(permissions: Permissions, group_id: str, topics: set[str]) -> None:
    """Raises ACCESS_DENIED."""
    permissions.check(Operation.GROUP, Resource.GROUP, group_id)
    for topic in sorted(topics):
        permissions.check(Operation.CONSUME, Resource.TOPIC, topic)
