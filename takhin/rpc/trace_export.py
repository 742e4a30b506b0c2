"""Where the server's spans go: to a collector, over OTLP. Imported only where tracing is on."""

import asyncio
import os
import threading

try:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio, Sampler
except ImportError as problem:
    raise ImportError(f"OpenTelemetry is needed: pip install 'takhin[tracing]' ({problem})") from None

from takhin import __version__
from takhin.config import TracingSettings
from takhin.errors import StartError

MILLION = 1_000_000
# At the end: what a collector that does not answer may hold the server up.
MAX_FLUSH_S = 5.0


class TraceExport:
    """The server's own tracer provider. The SDK reads the standard variables: OTEL_EXPORTER_OTLP_*, OTEL_BSP_*,
    OTEL_RESOURCE_ATTRIBUTES, OTEL_SERVICE_NAME, and OTEL_TRACES_SAMPLER where the settings leave that open.

    Raises StartError.
    """

    def __init__(self, settings: TracingSettings):
        endpoint = settings.endpoint or None
        if endpoint is not None and not endpoint.startswith(("http://", "https://")):
            raise StartError(f"tracing.endpoint is {endpoint!r}: it begins with http:// (or https://, with TLS)")
        about = {"service.version": __version__}
        if not os.environ.get("OTEL_SERVICE_NAME"):
            about["service.name"] = "takhin"
        sampler: Sampler | None = None
        if settings.samples_per_million >= 0:
            sampler = ParentBasedTraceIdRatio(settings.samples_per_million / MILLION)
        try:
            self.provider = TracerProvider(sampler=sampler, resource=Resource.create(about))
            self.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        except (ValueError, OSError) as problem:
            raise StartError(f"traces can't be exported: {problem}") from None

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
