"""ACLs: what entries allow a principal, and what is no entry."""

import random

import pytest

from takhin.broker import permissions as module
from takhin.broker.acl import Acl, Acls, Effect, Operation, Pattern, Resource, check_acl, check_principal
from takhin.broker.permissions import Permissions
from takhin.errors import Reason, TakhinError

ME = "key:me"
PRODUCE, CONSUME, GROUP, ADMIN = Operation
TOPIC, GROUPS, PRODUCER, CLUSTER = Resource


def allow(name: str, operation: Operation = PRODUCE, resource: Resource = TOPIC, principal: str = ME) -> Acl:
    return made(Effect.ALLOW, name, operation, resource, principal)


def deny(name: str, operation: Operation = PRODUCE, resource: Resource = TOPIC, principal: str = ME) -> Acl:
    return made(Effect.DENY, name, operation, resource, principal)


def made(effect: Effect, name: str, operation: Operation, resource: Resource, principal: str) -> Acl:
    """`name` with a star at its end is a prefix."""
    pattern = Pattern.PREFIX if name.endswith("*") else Pattern.LITERAL
    return Acl(principal, effect, operation, resource, pattern, name.removesuffix("*"))


def permissions(*entries: Acl, is_admin: bool = False) -> Permissions:
    acls = Acls()
    acls.replace(entries)
    return Permissions(ME, acls, is_admin=is_admin)


@pytest.mark.parametrize(("entries", "name", "is_allowed"), [
    ([], "a", False),
    ([allow("a")], "a", True),
    ([allow("a")], "ab", False),
    ([allow("a")], "", False),
    ([allow("a*")], "a", True),
    ([allow("a*")], "ab", True),
    ([allow("a*")], "ba", False),
    ([allow("*")], "anything", True),
    ([allow("a", principal="*")], "a", True),
    ([allow("a", principal="key:you")], "a", False),
    ([allow("a", principal="jwt:me")], "a", False),
    ([allow("a", principal="key:m")], "a", False),
    ([allow("a", CONSUME)], "a", False),
    ([allow("a", PRODUCE, PRODUCER)], "a", False),
    # What denies wins: literal or prefix, own or everybody's, in whatever order.
    ([allow("a"), deny("a")], "a", False),
    ([deny("a"), allow("a")], "a", False),
    ([allow("*"), deny("a*")], "ab", False),
    ([allow("*"), deny("a*")], "b", True),
    ([allow("a"), deny("*")], "a", False),
    ([allow("a"), deny("a", principal="*")], "a", False),
    ([allow("a", principal="*"), deny("a")], "a", False),
    ([allow("a"), deny("a", principal="key:you")], "a", True),
    ([allow("a"), deny("a", CONSUME)], "a", True),
])
def test_what_is_allowed(entries: list[Acl], name: str, is_allowed: bool) -> None:
    mine = permissions(*entries)
    assert mine.allows(PRODUCE, TOPIC, name) is is_allowed
    assert mine.allows(PRODUCE, TOPIC, name) is is_allowed, "as it was decided before"
    if not is_allowed:
        with pytest.raises(TakhinError) as refused:
            mine.check(PRODUCE, TOPIC, name)
        assert refused.value.reason is Reason.ACCESS_DENIED
    assert permissions(*entries, is_admin=True).allows(PRODUCE, TOPIC, name)


def test_seen_is_what_anything_is_allowed_with() -> None:
    mine = permissions(
        allow("a"), allow("b", ADMIN), allow("c", CONSUME), deny("c", CONSUME), allow("g", GROUP, GROUPS))
    assert [name for name in "abcdg" if mine.sees(TOPIC, name)] == ["a", "b"]
    assert [name for name in "abcdg" if mine.sees(GROUPS, name)] == ["g"]
    with pytest.raises(TakhinError, match="not allowed: anything on topic 'c'"):
        mine.check_sees(TOPIC, "c")


def test_a_change_counts_at_once() -> None:
    acls = Acls()
    mine = Permissions(ME, acls)
    assert not mine.allows(PRODUCE, TOPIC, "a")
    acls.replace([allow("a")])
    assert mine.allows(PRODUCE, TOPIC, "a") and mine.allows_any(PRODUCE, TOPIC)
    acls.replace([allow("a"), deny("a")])
    assert not mine.allows(PRODUCE, TOPIC, "a")
    acls.replace([])
    assert not mine.allows(PRODUCE, TOPIC, "a") and not mine.allows_any(PRODUCE, TOPIC)


def test_decisions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_DECISIONS", 10)
    mine = permissions(allow("a*"))
    assert [mine.allows(PRODUCE, TOPIC, f"{'ab'[n % 2]}{n}") for n in range(100)] == [True, False] * 50
    assert len(mine._decided) <= 10


def test_a_refusal_quotes_no_more_than_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TakhinError) as refused:
        permissions().check(PRODUCE, TOPIC, "x" * 10_000)
    assert len(refused.value.message) < 300 and all(len(each) < 300 for each in refused.value.metadata.values())


@pytest.mark.parametrize("principal", [
    "key:a", "jwt:auth0|x y", "cert:spiffe://a/b", "cert:CN=a b,O=ü", "key:" + "x" * 500])
def test_principals(principal: str) -> None:
    check_principal(principal)


@pytest.mark.parametrize("principal", [
    "", "*", "a", "key:", ":a", "Key:a", "user:a", "key:a\n", "key:a\x00", "admin-key", "key:" + "x" * 509, "key",
])
def test_what_is_no_principal(principal: str) -> None:
    with pytest.raises(TakhinError) as refused:
        check_principal(principal)
    assert refused.value.reason is Reason.INVALID_PRINCIPAL


def test_entries_that_are_possible() -> None:
    for resource, operations in {
        TOPIC: [PRODUCE, CONSUME, ADMIN], GROUPS: [GROUP, ADMIN], PRODUCER: [PRODUCE], CLUSTER: [ADMIN],
    }.items():
        for operation in Operation:
            entry = allow("" if resource is CLUSTER else "a", operation, resource)
            if operation in operations:
                check_acl(entry)
            else:
                with pytest.raises(TakhinError) as refused:
                    check_acl(entry)
                assert refused.value.reason is Reason.INVALID_ACL


@pytest.mark.parametrize("entry", [
    allow("a", ADMIN, CLUSTER), allow("*", ADMIN, CLUSTER), allow(""), allow("x" * 250), allow("a\n"), allow("a\n*"),
])
def test_names_that_are_not_possible(entry: Acl) -> None:
    with pytest.raises(TakhinError) as refused:
        check_acl(entry)
    assert refused.value.reason is Reason.INVALID_ACL


def test_prefixes_of_all_lengths() -> None:
    """Against what they mean, tried one by one."""
    chosen = random.Random(7)
    words = ["".join(chosen.choices("ab", k=length)) for length in range(7) for _ in range(4)]
    for _ in range(300):
        entries = [
            made(chosen.choice(list(Effect)), chosen.choice(words) + chosen.choice(["*", ""]), PRODUCE, TOPIC,
                 chosen.choice([ME, "*", "key:you"]))
            for _ in range(chosen.randrange(8))]
        mine = permissions(*entries)
        covering = {
            name: [each.effect for each in entries if each.principal != "key:you" and (
                name.startswith(each.name) if each.pattern is Pattern.PREFIX else name == each.name)]
            for name in words}
        allowed = [name for name, effects in covering.items() if set(effects) == {Effect.ALLOW}]
        assert [name for name in covering if mine.allows(PRODUCE, TOPIC, name)] == allowed
        assert mine.seen(TOPIC, covering) == allowed


def test_entries_for_everybody_are_kept_once() -> None:
    acls = Acls()
    acls.replace([allow(f"t-{number}", principal="*") for number in range(100)])
    verdicts = [acls.verdict(f"key:{number}", PRODUCE, TOPIC) for number in range(3)]
    assert len({id(verdict.allowed[0]) for verdict in verdicts}) == 1 and verdicts[0].allows("t-99")
