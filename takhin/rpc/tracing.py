"""Spans of calls, with OpenTelemetry, at the method table. Imported only where tracing is on.

A unary call is one span. A stream is two, for one that lasted as long as the stream would be seen only at its end, days
later perhaps, or never: "open", until its first request was read, and "close", when it ends, in the same trace. The
parent comes from the metadata (traceparent).
"""

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from takhin import __version__
from takhin.codec.messages import ConsumeRequest
from takhin.errors import Code, TakhinError
from takhin.rpc.call import Call, Kind, Method, StreamCall
from takhin.rpc.current import current
from takhin.rpc.observed import code_of
from takhin.v1 import takhin_pb2 as pb

Attributes = dict[str, str | int]

_propagator = TraceContextTextMapPropagator()
# Of a server's span: what is the server's own fault. Of the others the client is told, and its span has failed.
_FAULTS = frozenset({
    Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.UNIMPLEMENTED, Code.INTERNAL, Code.UNAVAILABLE, Code.DATA_LOSS})
# A first request larger than this is not read a second time to learn its topic.
_MAX_READ_BYTES = 64 * 1024
_MAX_TOPICS = 10


class Tracing:
    """provider: None: the program's own."""

    def __init__(self, provider: TracerProvider | None = None):
        self._tracer = trace.get_tracer("takhin", __version__, tracer_provider=provider)

    def traced(self, methods: Iterable[Method]) -> list[Method]:
        """The same methods, each with its spans."""
        return [self._traced(method) for method in methods]

    def _traced(self, method: Method) -> Method:
        if method.kind is Kind.UNARY:
            return replace(method, appending=None, handler=self._unary(method))
        if method.kind is Kind.SERVER_STREAM:
            return replace(method, appending=None, handler=self._server_stream(method))
        return replace(method, appending=None, handler=self._bidi(method))

    def _unary(self, method: Method) -> Callable[[bytes, Call], Awaitable[bytes]]:
        handler, name = method.handler, method.path[1:]
        attributes = _of_method(method)
        about = _ABOUT_UNARY.get(method.path)

        async def traced(request: bytes, call: Call) -> bytes:
            span = self._start(name, attributes, call)
            try:
                response: bytes = await handler(request, call)
            except BaseException as failure:
                _end(span, call, code_of(failure, call), failure)
                raise
            if span.is_recording() and about is not None:
                span.set_attributes(about(request, response))
            _end(span, call, Code.OK)
            return response

        return traced

    def _server_stream(self, method: Method) -> Callable[[bytes, StreamCall], Awaitable[None]]:
        handler = method.handler

        async def traced(request: bytes, call: StreamCall) -> None:
            stream = _TracedStream(self, method, call)
            stream.opened(request)
            await stream.run(handler(request, stream))

        return traced

    def _bidi(self, method: Method) -> Callable[[StreamCall], Awaitable[None]]:
        handler = method.handler

        async def traced(call: StreamCall) -> None:
            stream = _TracedStream(self, method, call)
            await stream.run(handler(stream))

        return traced

    def _start(self, name: str, attributes: Attributes, call: Call) -> Span:
        parent = _propagator.extract(call.metadata, Context(), _Getter)
        span = self._tracer.start_span(name, parent, SpanKind.SERVER, attributes)
        _note_trace(span)
        return span


class _TracedStream:
    """A StreamCall that counts its messages, between the span of its opening and that of its end."""

    def __init__(self, tracing: Tracing, method: Method, call: StreamCall):
        self._call = call
        self._tracing = tracing
        self._method = method
        self._attributes = _of_method(method)
        self._begun_ns = time.monotonic_ns()
        self._received = 0
        self._sent = 0
        self._opening = tracing._start(f"{method.path[1:]} open", self._attributes, call)
        self._is_open = False

    def opened(self, request: bytes | None) -> None:
        """The first request is there (None: the client sends none)."""
        self._is_open = True
        if request is not None:
            self._received = 1
            about = _ABOUT_STREAM.get(self._method.path)
            if about is not None and self._opening.is_recording() and len(request) <= _MAX_READ_BYTES:
                self._attributes = self._attributes | about(request)
                self._opening.set_attributes(self._attributes)
        _end(self._opening, self._call, None)

    async def run(self, handler: Awaitable[None]) -> None:
        try:
            await handler
        except BaseException as failure:
            self._close(code_of(failure, self._call), failure)
            raise
        self._close(Code.OK, None)

    def _close(self, code: Code, failure: BaseException | None) -> None:
        if not self._is_open:
            self.opened(None)
        counted: Attributes = {
            "takhin.stream.duration_ms": (time.monotonic_ns() - self._begun_ns) // 1_000_000,
            "takhin.stream.messages_received": self._received, "takhin.stream.messages_sent": self._sent}
        within = trace.set_span_in_context(self._opening, Context())
        span = self._tracing._tracer.start_span(
            f"{self._method.path[1:]} close", within, SpanKind.SERVER, self._attributes | counted)
        _end(span, self._call, code, failure)

    async def read(self) -> bytes | None:
        message = await self._call.read()
        if not self._is_open:
            self.opened(message)
        elif message is not None:
            self._received += 1
        return message

    async def write(self, message: bytes) -> None:
        await self._call.write(message)
        self._sent += 1

    def cut(self) -> None:
        self._call.cut()

    @property
    def principal(self) -> str | None:
        return self._call.principal

    @principal.setter
    def principal(self, value: str | None) -> None:
        self._call.principal = value

    @property
    def request_id(self) -> str:
        return self._call.request_id

    @property
    def peer(self) -> str:
        return self._call.peer

    @property
    def identity(self) -> bytes | None:
        return self._call.identity

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        return self._call.metadata

    def time_remaining_s(self) -> float | None:
        return self._call.time_remaining_s()

    def cancelled(self) -> bool:
        return self._call.cancelled()


class _Getter:
    """How the propagator reads a call's metadata."""

    @staticmethod
    def get(carrier: Mapping[str, str | bytes], key: str) -> list[str] | None:
        value = carrier.get(key)
        return [value] if isinstance(value, str) else None

    @staticmethod
    def keys(carrier: Mapping[str, str | bytes]) -> list[str]:
        return list(carrier)


def _of_method(method: Method) -> Attributes:
    return {"rpc.system": "grpc", "rpc.service": method.service, "rpc.method": method.path.rpartition("/")[2]}


def _note_trace(span: Span) -> None:
    """For lines of the log."""
    scope = current.get()
    context = span.get_span_context()
    if scope is not None and context.is_valid:
        scope.trace_id = trace.format_trace_id(context.trace_id)


def _end(span: Span, call: Call, code: Code | None, failure: BaseException | None = None) -> None:
    """code None: the call goes on. What an exception says stays here: it may hold what a client sent."""
    if span.is_recording():
        about: Attributes = {"takhin.request_id": call.request_id}
        host, _, port = call.peer.rpartition(":")
        if port.isdecimal():
            about |= {"network.peer.address": host.strip("[]"), "network.peer.port": int(port)}
        if call.principal is not None:
            about["enduser.id"] = call.principal
        if code is not None:
            about["rpc.grpc.status_code"] = int(code)
        if code:
            about["error.type"] = failure.reason if isinstance(failure, TakhinError) else code.name
        span.set_attributes(about)
        if code in _FAULTS:
            span.set_status(Status(StatusCode.ERROR))
    span.end()


# What a call is about, by the conventions for messaging.


def _messaging(operation: str, kind: str, *topics: str, group: str = "") -> Attributes:
    about: Attributes = {
        "messaging.system": "takhin", "messaging.operation.name": operation, "messaging.operation.type": kind}
    if topics:
        about["messaging.destination.name"] = ",".join(topics[:_MAX_TOPICS])
    if group:
        about["messaging.consumer.group.name"] = group
    return about


def _produced(request: bytes, response: bytes) -> Attributes:
    answer = pb.ProduceMessageResponse.FromString(response)
    return _messaging("produce", "send", answer.topic) | {
        "messaging.destination.partition.id": str(answer.partition), "takhin.offset": answer.offset,
        "messaging.batch.message_count": answer.record_count}


def _produced_transaction(request: bytes, response: bytes) -> Attributes:
    appends = pb.ProduceTransactionResponse.FromString(response).appends
    return _messaging("produce", "send", *dict.fromkeys(each.topic for each in appends)) | {
        "messaging.batch.message_count": sum(each.record_count for each in appends)}


def _committed(request: bytes, response: bytes) -> Attributes:
    commit = pb.CommitOffsetRequest.FromString(request)
    return _messaging(
        "commit", "settle", *dict.fromkeys(each.topic for each in commit.offsets), group=commit.group_id)


def _consumes(request: bytes) -> Attributes:
    try:
        asked = ConsumeRequest(request)
        return _messaging("consume", "receive", asked.topic.decode()) | {
            "messaging.destination.partition.id": str(asked.partition)}
    except (TakhinError, ValueError):
        return {}  # it is refused


def _subscribes(request: bytes) -> Attributes:
    try:
        start = pb.SubscribeRequest.FromString(request).start
    except DecodeError:
        return {}  # it is refused
    return _messaging("subscribe", "receive", *start.topics, group=start.group_id)


def _produces(request: bytes) -> Attributes:
    try:
        topic = pb.ProduceMessageRequest.FromString(request).topic
    except DecodeError:
        return {}  # it is refused
    return _messaging("produce", "send", topic)


_SERVICE = "/takhin.v1.TakhinService/"
_ABOUT_UNARY: dict[str, Callable[[bytes, bytes], Attributes]] = {
    _SERVICE + "ProduceMessage": _produced, _SERVICE + "ProduceTransaction": _produced_transaction,
    _SERVICE + "CommitOffset": _committed}
_ABOUT_STREAM: dict[str, Callable[[bytes], Attributes]] = {
    _SERVICE + "ProduceMessageStream": _produces, _SERVICE + "ConsumeMessages": _consumes,
    _SERVICE + "Subscribe": _subscribes}
