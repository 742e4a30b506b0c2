"""Access control lists: who may do what, and to what.

An entry allows or denies a principal one operation on resources of a kind, by name or by what the name begins with.
What no entry allows is denied, and an entry that denies beats all that allow. Principals are "KIND:NAME": key:billing
of an API key, jwt:SUBJECT of a token, cert:NAME of a client's certificate; "*" in an entry stands for all of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from takhin.errors import Reason, error

# A subject of a certificate may be long, a key's name not.
MAX_PRINCIPAL_CHARACTERS = 512
MAX_KEY_NAME_CHARACTERS = 128
MAX_NAME_CHARACTERS = 249
ANYBODY = "*"
PRINCIPAL_KINDS = ("key", "jwt", "cert")


class Operation(StrEnum):
    PRODUCE = "produce"
    CONSUME = "consume"
    GROUP = "group"
    ADMIN = "admin"


class Resource(StrEnum):
    """PRODUCER: the name of an idempotent producer.

    CLUSTER: the broker as such, which has no name: its keys and ACLs.
    """

    TOPIC = "topic"
    GROUP = "group"
    PRODUCER = "producer"
    CLUSTER = "cluster"


class Effect(StrEnum):
    ALLOW = "allow"
    DENY = "deny"


class Pattern(StrEnum):
    """LITERAL: this name. PREFIX: all names that begin so; the empty one: all."""

    LITERAL = "literal"
    PREFIX = "prefix"


# What can be done with what.
OPERATIONS: dict[Resource, tuple[Operation, ...]] = {
    Resource.TOPIC: (Operation.PRODUCE, Operation.CONSUME, Operation.ADMIN),
    Resource.GROUP: (Operation.GROUP, Operation.ADMIN),
    Resource.PRODUCER: (Operation.PRODUCE,),
    Resource.CLUSTER: (Operation.ADMIN,),
}


@dataclass(frozen=True, slots=True)
class Acl:
    """One entry. name: "" for CLUSTER."""

    principal: str
    effect: Effect
    operation: Operation
    resource: Resource
    pattern: Pattern
    name: str

    def __str__(self) -> str:
        name = "" if self.resource is Resource.CLUSTER else f" {self.name}" + "*" * (self.pattern is Pattern.PREFIX)
        return f"{self.effect} {self.principal} {self.operation} {self.resource}{name}"


def check_acl(acl: Acl) -> None:
    """Raises INVALID_PRINCIPAL, INVALID_ACL."""
    if acl.principal != ANYBODY:
        check_principal(acl.principal)
    if acl.operation not in OPERATIONS[acl.resource]:
        raise error(
            Reason.INVALID_ACL,
            f"{acl.operation} is nothing that is done with a {acl.resource}; there "
            f"{'are' if len(OPERATIONS[acl.resource]) > 1 else 'is'} {', '.join(OPERATIONS[acl.resource])}",
        )
    if acl.resource is Resource.CLUSTER:
        if acl.name or acl.pattern is not Pattern.LITERAL:
            raise error(Reason.INVALID_ACL, "there is one cluster: it has no name")
    elif len(acl.name) > MAX_NAME_CHARACTERS or not acl.name.isprintable():
        raise error(
            Reason.INVALID_ACL,
            f"the name ({len(acl.name)} characters) is not allowed; allowed: up to {MAX_NAME_CHARACTERS} printable "
            "characters",
        )
    elif not acl.name and acl.pattern is Pattern.LITERAL:
        raise error(
            Reason.INVALID_ACL, f"a {acl.resource} has a name; with an empty prefix an entry is for all of them")


def check_principal(principal: str) -> None:
    """Raises INVALID_PRINCIPAL."""
    kind, colon, name = principal.partition(":")
    if colon and kind in PRINCIPAL_KINDS and name and len(principal) <= MAX_PRINCIPAL_CHARACTERS:
        if principal.isprintable():
            return
    shown = principal if len(principal) <= 80 else f"{principal[:77]}..."
    raise error(
        Reason.INVALID_PRINCIPAL,
        f"{shown!r} is no principal; a principal is KIND:NAME with up to {MAX_PRINCIPAL_CHARACTERS} printable "
        f"characters, of kind {', '.join(PRINCIPAL_KINDS)}",
    )


class Names:
    """The names that some of these entries cover: `name in names`, as fast with thousands of them as with one."""

    def __init__(self, entries: Iterable[Acl]):
        literals, prefixes = set(), set()
        for entry in entries:
            (prefixes if entry.pattern is Pattern.PREFIX else literals).add(entry.name)
        self._literals = literals
        self._prefixes = prefixes
        # Beginnings of a name are looked up, not each prefix tried: there are but so many lengths.
        self._lengths = sorted({len(prefix) for prefix in prefixes})

    def __contains__(self, name: str) -> bool:
        if name in self._literals:
            return True
        size = len(name)
        for length in self._lengths:
            if length > size:
                return False
            if name[:length] in self._prefixes:
                return True
        return False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is decided of one operation on one kind of resource, for somebody: his own entries and everybody's."""

    allowed: tuple[Names, ...]
    denied: tuple[Names, ...]

    def allows(self, name: str) -> bool:
        return any(name in names for names in self.allowed) and not any(name in names for names in self.denied)


class Acls:
    """All entries, by principal. `generation` rises with each change: what was decided is to be decided again."""

    def __init__(self) -> None:
        self.generation = 0
        # Made once for each entry, however many principals it is for.
        self._names: dict[tuple[str, Effect, Operation, Resource], Names] = {}

    def replace(self, entries: Iterable[Acl]) -> None:
        found: dict[tuple[str, Effect, Operation, Resource], list[Acl]] = {}
        for each in entries:
            found.setdefault((each.principal, each.effect, each.operation, each.resource), []).append(each)
        self._names = {key: Names(of_key) for key, of_key in found.items()}
        self.generation += 1

    def verdict(self, principal: str, operation: Operation, resource: Resource) -> Verdict:
        """As the entries are now."""
        allowed, denied = (
            tuple(
                self._names[who, effect, operation, resource] for who in (principal, ANYBODY)
                if (who, effect, operation, resource) in self._names)
            for effect in (Effect.ALLOW, Effect.DENY))
        return Verdict(allowed, denied)
