"""Where the server's spans go: to a collector, over OTLP. Imported only where tracing is on."""

import asyncio
import logging
import os
import re
import threading
from collections.abc import Mapping

try:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio, Sampler
    from opentelemetry.util.re import parse_env_headers
except ImportError as problem:
    raise ImportError(f"OpenTelemetry is needed: pip install 'takhin[tracing]' ({problem})") from None

from takhin import __version__
from takhin.config import TracingSettings
from takhin.errors import StartError

MILLION = 1_000_000
# At the end: what a collector that does not answer may hold the server up.
MAX_FLUSH_S = 5.0
# The standard variables are there for all signals, and for traces.
_PREFIXES = ("OTEL_EXPORTER_OTLP_", "OTEL_EXPORTER_OTLP_TRACES_")
_FILES = ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE")
_COUNTS = (
    "OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_EXPORT_TIMEOUT", "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE")
# What grpc takes as metadata; of what it does not take, it writes the values into its exception.
_HEADER_NAME = re.compile(r"[0-9a-z_.-]+", re.ASCII)
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*", re.ASCII)

# It quotes headers that it can't read: a token, perhaps. check_variables() says which variable it is.
logging.getLogger("opentelemetry.util.re").setLevel(logging.CRITICAL)


def check_variables(environ: Mapping[str, str]) -> None:
    """What OpenTelemetry would read past, or tell with a traceback or a secret in it. Raises StartError."""
    for prefix in _PREFIXES:
        for name in (f"{prefix}{each}" for each in _FILES if environ.get(f"{prefix}{each}")):
            try:
                with open(environ[name], "rb"):
                    pass
            except OSError as problem:
                raise StartError(f"{name}: {environ[name]}: can't be read: {problem.strerror}") from None
        _check_headers(f"{prefix}HEADERS", environ.get(f"{prefix}HEADERS", ""))
    for name in _COUNTS:
        value = environ.get(name)
        if value is not None and not (re.fullmatch(r"[0-9]{1,9}", value.strip(), re.ASCII) and int(value)):
            raise StartError(f"{name} is {value!r}: it is a whole number, at least 1")


def _check_headers(name: str, value: str) -> None:
    for number, each in enumerate(filter(None, (each.strip() for each in value.split(","))), 1):
        found = parse_env_headers(each, liberal=True)
        if not found or not all(
            _HEADER_NAME.fullmatch(key) and _HEADER_VALUE.fullmatch(text) for key, text in found.items()
        ):
            # Without the value, which is secret.
            raise StartError(
                f"{name}: header {number} can't be sent; allowed: NAME=VALUE,..., with what is not a plain character "
                "percent-encoded, a blank as %20")


class TraceExport:
    """The server's own tracer provider. The SDK reads the standard variables: OTEL_EXPORTER_OTLP_*, OTEL_BSP_*,
    OTEL_RESOURCE_ATTRIBUTES, OTEL_SERVICE_NAME, and OTEL_TRACES_SAMPLER where the settings leave that open.

    Raises StartError.
    """

    def __init__(self, settings: TracingSettings):
        check_variables(os.environ)
        about = {"service.version": __version__}
        if not os.environ.get("OTEL_SERVICE_NAME"):
            about["service.name"] = "takhin"
        sampler: Sampler | None = None
        if settings.samples_per_million >= 0:
            sampler = ParentBasedTraceIdRatio(settings.samples_per_million / MILLION)
        try:
            self.provider = TracerProvider(sampler=sampler, resource=Resource.create(about))
            exporter = OTLPSpanExporter(endpoint=settings.endpoint or None)
            self.provider.add_span_processor(BatchSpanProcessor(exporter))
        except Exception as problem:
            # Whatever a variable makes it raise: exceptions of its own, KeyError, RuntimeError.
            raise StartError(f"traces can't be exported: {' '.join(str(problem).split())}") from None

    async def stop(self) -> None:
        """Send what is left, for 5 s at most."""
        done = asyncio.Event()
        loop = asyncio.get_running_loop()

        def shut_down() -> None:
            self.provider.shutdown()
            loop.call_soon_threadsafe(done.set)

        # A daemon: the process does not wait for it.
        threading.Thread(target=shut_down, name="takhin-traces", daemon=True).start()
        try:
            await asyncio.wait_for(done.wait(), MAX_FLUSH_S)
        except TimeoutError:
            pass
