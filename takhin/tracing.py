"""Traces through the log: a consumer's span is linked to the one in which the record was sent.

    async with takhin.connect(tracing=True) as tk:
        with tracer.start_as_current_span("order placed"):
            await producer.send(b"...")      # its header traceparent names this span
    ...
    async for message in consumer:
        with takhin.tracing.process_span(message):
            ...

Needs opentelemetry-api (pip install 'takhin[tracing]'); spans go where the program's own tracer provider sends them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from takhin.client import Message
from takhin.client.trace_context import TRACEPARENT, TRACESTATE

# What a span's backend takes; of a batch of more messages the rest has none.
MAX_LINKS = 128

_propagator = TraceContextTextMapPropagator()


def trace_context(message: Message) -> SpanContext | None:
    """The span in which a message was sent, by its headers; None: they name none, or none that is well-formed."""
    carrier: dict[str, str] = {}
    for name, value in message.headers:
        if name in (TRACEPARENT, TRACESTATE) and name not in carrier:
            carrier[name] = value.decode("ascii", "replace")
    if TRACEPARENT not in carrier:
        return None
    found = trace.get_current_span(_propagator.extract(carrier, Context())).get_span_context()
    return found if found.is_valid else None


@contextmanager
def process_span(
    messages: Message | Sequence[Message], *, name: str = "", group: str = "",
    tracer_provider: trace.TracerProvider | None = None
) -> Iterator[Span]:
    """A span around the processing of a message, or of several of one topic together, current within. It is linked to
    the spans in which they were sent (at most 128), not their child: a record may be processed often, and much later.

    name: "process TOPIC" unless given. group: of the consumer. tracer_provider: the program's, unless given. An
    exception that leaves it is noted on the span. Raises ValueError for no message at all.
    """
    several = [messages] if isinstance(messages, Message) else list(messages)
    if not several:
        raise ValueError("a span of no message")
    first = several[0]
    attributes: dict[str, str | int] = {
        "messaging.system": "takhin", "messaging.operation.name": "process", "messaging.operation.type": "process",
        "messaging.destination.name": first.topic}
    if group:
        attributes["messaging.consumer.group.name"] = group
    if all(message.partition == first.partition for message in several):
        attributes["messaging.destination.partition.id"] = str(first.partition)
    if isinstance(messages, Message):
        attributes["takhin.offset"] = first.offset
    else:
        attributes["messaging.batch.message_count"] = len(several)
    sent_in = {
        (found.trace_id, found.span_id): found for message in several
        if (found := trace_context(message)) is not None}
    tracer = trace.get_tracer("takhin", tracer_provider=tracer_provider)
    with tracer.start_as_current_span(
        name or f"process {first.topic}", kind=SpanKind.CONSUMER, attributes=attributes,
        links=[Link(context) for context in list(sent_in.values())[:MAX_LINKS]]
    ) as span:
        yield span
