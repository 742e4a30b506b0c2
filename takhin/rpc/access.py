"""Access at the method table: a table of methods becomes one whose methods ask first who calls and what he may do.

So whatever front serves the table serves it guarded. Without authentication nothing is wrapped but what goes into the
audit log: the hot methods are as they were.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from google.protobuf.message import DecodeError

from takhin.broker.acl import Operation, Resource
from takhin.broker.broker import Broker
from takhin.broker.permissions import Permissions, WritableTopics
from takhin.codec.messages import ConsumeRequest
from takhin.errors import PermissionDenied, Reason, TakhinError, error
from takhin.rpc.access_service import SERVICE as ACCESS
from takhin.rpc.audit import Audit
from takhin.rpc.authentication import Authentication, Identity
from takhin.rpc.call import Call, Kind, Method, StreamCall, host_of
from takhin.rpc.gates import ClientStreams
from takhin.rpc.guarded_call import GuardedCall
from takhin.rpc.health import SERVICE as HEALTH
from takhin.rpc.reflection import SERVICES as REFLECTION
from takhin.rpc.rules import RULES, Open, Rule, Streamed
from takhin.rpc.service import SERVICE
from takhin.v1 import takhin_pb2 as pb

# How many principals' decisions are kept; who comes beyond it has them made anew.
MAX_PRINCIPALS = 10_000
# Of open streams that are looked at again in one go: a token whose key may be gone is verified anew, in 0.2 ms.
RECHECKED_AT_ONCE = 10
# The wall clock may be set: no timer runs longer than this without a look at it.
LONGEST_TIMER_S = 60.0

logger = logging.getLogger(__name__)

Need = tuple[Operation, Resource, str]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, what he may do, and what he calls."""

    method: str
    identity: Identity
    permissions: Permissions


class _OpenStream:
    """A stream under way. needs: what its caller must be allowed for as long as it lasts."""

    def __init__(self, call: GuardedCall, caller: Caller, needs: list[Need]):
        self.call = call
        self.caller = caller
        self.needs = needs
        self.timer: asyncio.TimerHandle | None = None


class Guard:
    """Guards the methods of one broker that has been started. authentication None: everybody may do everything.
    clients: counts the streams that each has open; None: nobody does."""

    def __init__(
        self, broker: Broker, authentication: Authentication | None, clients: ClientStreams | None = None, *,
        open_reflection: bool = False
    ):
        self._broker = broker
        self._authentication = authentication
        self._clients = clients
        self._open_reflection = open_reflection
        self._audit = Audit()
        self._permissions: dict[tuple[str, bool], Permissions] = {}
        self._streams: set[_OpenStream] = set()
        self._rechecking: asyncio.Task[None] | None = None
        self._recheck_again = False
        if authentication is not None:
            authentication.bind(broker.access)
            broker.access.on_change(self.recheck)
            for files in authentication.files:
                files.on_change(self.recheck)

    def guarded(self, methods: Iterable[Method]) -> list[Method]:
        """The same methods, each behind its rule. ValueError for one that has none."""
        return [self._guarded(method) for method in methods]

    def _guarded(self, method: Method) -> Method:
        name = method.path.rpartition("/")[2]
        if method.service == HEALTH:
            return method
        if method.service in REFLECTION:
            is_open = self._authentication is None or self._open_reflection
            return method if is_open else self._entered(name, method, self._reflection(name, method.handler))
        rule = RULES.get(name) if method.service in (SERVICE, ACCESS) else None
        if rule is None:
            raise ValueError(f"{method.path} has no rule that says who may call it")
        if isinstance(rule, Open):
            return method
        if isinstance(rule, Rule):
            assert method.kind is Kind.UNARY
            if self._authentication is None:
                return replace(method, handler=self._audited(name, rule, method.handler)) if rule.audited else method
            return self._entered(name, method, self._unary(name, rule, method.handler))
        assert isinstance(rule, Streamed)
        if self._authentication is None:
            return self._counted(method) if self._clients is not None and method.kind is not Kind.UNARY else method
        return self._entered(name, method, getattr(self, _HANDLERS[name]))

    def _entered(self, name: str, method: Method, handler: Callable[..., Awaitable[Any]]) -> Method:
        is_unary = method.kind is Kind.UNARY
        return replace(
            method, handler=handler, enter=lambda call: self.enter(name, call),
            # What a stream may do is looked at again while it lasts, which only the handler does.
            appending=method.appending if is_unary else None,
            topics=(lambda call: self._topics(self.enter(name, call), call)) if is_unary else None)

    def _counted(self, method: Method) -> Method:
        handler, clients = method.handler, self._clients
        assert clients is not None

        async def of_request(request: bytes, call: StreamCall) -> None:
            with clients.holding(host_of(call)):
                await handler(request, call)

        async def of_call(call: StreamCall) -> None:
            with clients.holding(host_of(call)):
                await handler(call)

        return replace(
            method, handler=of_request if method.kind is Kind.SERVER_STREAM else of_call,
            holding=lambda call: clients.holding(host_of(call)))

    # Who calls

    def enter(self, name: str, call: Call) -> Caller:
        """Raises CREDENTIALS_MISSING, CREDENTIALS_INVALID, CREDENTIALS_EXPIRED."""
        assert self._authentication is not None
        try:
            identity = self._authentication.identify(call)
        except TakhinError as refusal:
            self._audit.denied(name, None, call, refusal)
            raise
        call.principal = identity.principal
        return Caller(name, identity, self._permissions_of(identity))

    def _permissions_of(self, identity: Identity) -> Permissions:
        key = identity.principal, identity.is_admin
        found = self._permissions.get(key)
        if found is None:
            if len(self._permissions) >= MAX_PRINCIPALS:
                self._permissions.clear()
            found = self._permissions[key] = Permissions(
                identity.principal, self._broker.access.acls, is_admin=identity.is_admin)
        return found

    def _denied(self, caller: Caller, call: Call) -> Callable[[TakhinError], None]:
        return lambda refusal: self._audit.denied(caller.method, caller.identity.principal, call, refusal)

    def _check(self, caller: Caller, call: Call, check: Callable[[], None]) -> None:
        try:
            check()
        except TakhinError as refusal:
            self._denied(caller, call)(refusal)
            raise

    # Unary methods

    def _unary(self, name: str, rule: Rule, handler: Callable[..., Awaitable[bytes]]) -> Callable[..., Any]:
        async def guarded(request: bytes, call: Call) -> bytes:
            caller = self.enter(name, call)
            permissions = caller.permissions
            message = _parsed(rule.request, request)
            try:
                rule.check(permissions, message)
                if rule.complete is not None:
                    await rule.complete(self._broker, permissions, message)
                    request = message.SerializeToString()
            except PermissionDenied as refusal:
                self._denied(caller, call)(refusal)
                raise
            response = await self._administer(name, caller, rule, message, call, handler(request, call))
            if rule.reduce is None:
                return response
            told = rule.response.FromString(response)
            rule.reduce(permissions, message, told)
            return told.SerializeToString()

        return guarded

    def _audited(self, name: str, rule: Rule, handler: Callable[..., Awaitable[bytes]]) -> Callable[..., Any]:
        async def audited(request: bytes, call: Call) -> bytes:
            message = _parsed(rule.request, request)
            return await self._administer(name, None, rule, message, call, handler(request, call))

        return audited

    async def _administer(
        self, name: str, caller: Caller | None, rule: Rule, message: Any, call: Call, work: Awaitable[bytes]
    ) -> bytes:
        if rule.audited is None:
            return await work
        principal = caller.identity.principal if caller is not None else None
        try:
            response = await work
        except BaseException as failure:
            self._audit.administered(name, principal, call, rule.audited(message, None), failure)
            raise
        told = rule.response.FromString(response) if rule.response is not None else None
        self._audit.administered(name, principal, call, rule.audited(message, told))
        return response

    # Produce: the topic is known once the request is scanned, so the broker asks.

    async def produce_message(self, request: bytes, call: Call) -> bytes:
        caller = self.enter("ProduceMessage", call)
        return await self._broker.producing.produce_to(request, self._topics(caller, call))

    async def produce_transaction(self, request: bytes, call: Call) -> bytes:
        caller = self.enter("ProduceTransaction", call)
        return await self._broker.transactions.produce(request, self._topics(caller, call))

    async def produce_message_stream(self, call: StreamCall) -> None:
        caller = self.enter("ProduceMessageStream", call)
        guarded = GuardedCall(call)
        await self._run(guarded, caller, [], self._broker.producing.produce_stream(
            guarded, self._topics(caller, call)))

    def _topics(self, caller: Caller, call: Call) -> WritableTopics:
        return WritableTopics(self._broker.topics, caller.permissions, self._denied(caller, call))

    # Streams

    async def consume_messages(self, request: bytes, call: StreamCall) -> None:
        caller = self.enter("ConsumeMessages", call)
        topic = ConsumeRequest(request).topic.decode()
        need = Operation.CONSUME, Resource.TOPIC, topic
        self._check(caller, call, lambda: caller.permissions.check(*need))
        guarded = GuardedCall(call)
        await self._run(guarded, caller, [need], self._broker.consuming.consume(request, guarded))

    async def subscribe(self, call: StreamCall) -> None:
        caller = self.enter("Subscribe", call)
        needs: list[Need] = []

        def check_start(message: bytes) -> None:
            try:
                request = pb.SubscribeRequest.FromString(message)
            except DecodeError:
                return  # the broker refuses it
            if request.WhichOneof("request") != "start":
                return  # that, too
            start = request.start
            needs.append((Operation.GROUP, Resource.GROUP, start.group_id))
            needs.extend((Operation.CONSUME, Resource.TOPIC, topic) for topic in dict.fromkeys(start.topics))
            for need in needs:
                self._check(caller, call, lambda need=need: caller.permissions.check(*need))

        guarded = GuardedCall(call, check_start)
        await self._run(guarded, caller, needs, self._broker.subscribing.subscribe(guarded))

    def _reflection(self, name: str, handler: Callable[[StreamCall], Coroutine[Any, Any, None]]) -> Callable[..., Any]:
        async def guarded(call: StreamCall) -> None:
            caller = self.enter(name, call)
            watched = GuardedCall(call)
            await self._run(watched, caller, [], handler(watched))

        return guarded

    async def _run(
        self, call: GuardedCall, caller: Caller, needs: list[Need], handler: Coroutine[Any, Any, None]
    ) -> None:
        counted = nullcontext() if self._clients is None else self._clients.holding(caller.identity.principal)
        try:
            with counted:
                await self._run_counted(call, caller, needs, handler)
        finally:
            handler.close()  # of one that was refused, and not begun

    async def _run_counted(
        self, call: GuardedCall, caller: Caller, needs: list[Need], handler: Coroutine[Any, Any, None]
    ) -> None:
        stream = _OpenStream(call, caller, needs)
        self._streams.add(stream)
        self._set_timer(stream)
        try:
            await call.run(handler)
        finally:
            self._streams.discard(stream)
            if stream.timer is not None:
                stream.timer.cancel()

    def _set_timer(self, stream: _OpenStream) -> None:
        expires_s = stream.caller.identity.expires_s
        if expires_s is None:
            return
        assert self._authentication is not None
        left_s = expires_s - self._authentication.now_s()
        if left_s <= 0:
            self._end(stream, error(
                Reason.CREDENTIALS_EXPIRED, "the credentials that the stream was opened with have expired"))
        else:
            stream.timer = asyncio.get_running_loop().call_later(
                min(left_s, LONGEST_TIMER_S), self._set_timer, stream)

    def _end(self, stream: _OpenStream, refusal: TakhinError) -> None:
        if stream.call.is_ended:
            return  # told once, though it may take a moment to end
        self._audit.denied(stream.caller.method, stream.caller.identity.principal, stream.call, refusal)
        stream.call.end(refusal)

    # When keys, ACLs or files change

    def recheck(self) -> None:
        """Look at every open stream once more, and end those that would not be opened now."""
        self._recheck_again = True
        if self._streams and self._rechecking is None:
            self._rechecking = asyncio.ensure_future(self._recheck())

    async def _recheck(self) -> None:
        try:
            while self._recheck_again:
                self._recheck_again = False
                streams = list(self._streams)
                for number, stream in enumerate(streams, 1):
                    if stream in self._streams and not stream.call.is_ended:
                        self._recheck_one(stream)
                    if number % RECHECKED_AT_ONCE == 0:
                        await asyncio.sleep(0)
        except Exception:
            logger.exception("open streams could not be looked at again")
        finally:
            self._rechecking = None

    def _recheck_one(self, stream: _OpenStream) -> None:
        assert self._authentication is not None
        try:
            self._authentication.identify(stream.call)
            for need in stream.needs:
                stream.caller.permissions.check(*need)
        except TakhinError as refusal:
            self._end(stream, refusal)
        except Exception:
            # Our bug: the streams behind it are looked at all the same.
            logger.exception("an open stream could not be looked at again")


_HANDLERS = {
    "ProduceMessage": "produce_message",
    "ProduceMessageStream": "produce_message_stream",
    "ProduceTransaction": "produce_transaction",
    "ConsumeMessages": "consume_messages",
    "Subscribe": "subscribe",
}


def _parsed(kind: Any, request: bytes) -> Any:
    try:
        return kind.FromString(request)
    except DecodeError:
        raise error(
            Reason.MALFORMED_REQUEST,
            f"{kind.DESCRIPTOR.name} can't be read: it is not a valid protobuf message, or a string in it is not valid "
            "UTF-8",
        ) from None
