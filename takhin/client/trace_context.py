"""The trace that the program is in, for what goes to the broker: record headers and metadata, as W3C Trace Context has
them. Needs opentelemetry-api; imported by who asked for tracing alone.
"""

from collections.abc import Mapping

try:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as problem:
    raise ImportError("tracing needs opentelemetry-api: pip install 'takhin[tracing]'", name=problem.name) from None

from takhin.client.messages import encode_record
from takhin.client.types import Headers

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"

_propagator = TraceContextTextMapPropagator()


def current_trace() -> dict[str, str]:
    """traceparent, and tracestate where there is one, of the span that is current; nothing without one."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier


def with_trace(headers: Headers | None) -> Headers | None:
    """A record's headers, with the current span's; those that are there already stand."""
    trace = current_trace()
    if not trace:
        return headers
    pairs = list(headers.items() if isinstance(headers, Mapping) else headers or ())
    if any(name == TRACEPARENT for name, _ in pairs):
        return pairs
    return pairs + [(name, value.encode()) for name, value in trace.items()]


def encode_traced(
    key: bytes | None, value: bytes | None, headers: Headers | None = None, timestamp_ms: int = 0
) -> bytes:
    """As messages.encode_record, with the current span in the headers."""
    return encode_record(key, value, with_trace(headers), timestamp_ms)
