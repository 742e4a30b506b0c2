"""A client: one connection to a broker, and everything that can be done with it."""

from types import TracebackType

from takhin.client.access import Access
from takhin.client.admin import Admin
from takhin.client.consumer import Consumer
from takhin.client.grpc_transport import DEFAULT_TIMEOUT_S, TLS, GrpcTransport
from takhin.client.messages import encode_record
from takhin.client.producer import Acks, Producer
from takhin.client.reader import Reader
from takhin.client.start import Start
from takhin.client.transaction import Transaction, TransactionProducer
from takhin.client.transport import Transport
from takhin.client.types import Encode

DEFAULT_ADDRESS = "localhost:9092"
# For as long a reader or consumer tries to have its broker back.
DEFAULT_RETRY_S = 120.0


def connect(
    address: str = DEFAULT_ADDRESS, *, tls: TLS | bool | None = None, token: str | None = None,
    api_key: str | None = None, compression: str | None = None, timeout_s: float = DEFAULT_TIMEOUT_S,
    retry_s: float = DEFAULT_RETRY_S, tracing: bool = False
) -> "Client":
    """A client of the broker at HOST:PORT. It connects with the first call; `async with` closes it at its end.

    tls: True for the system's certificates, or a TLS. token: sent as `authorization: Bearer`; api_key: as `x-api-key`.
    compression: of messages on the connection, "gzip" or "deflate". timeout_s: for calls with one answer. retry_s: for
    so long readers and consumers that were cut off try to come back, before they raise Unavailable. tracing: calls and
    records carry the OpenTelemetry span that is current where they are made (traceparent), see takhin.tracing; raises
    ImportError without opentelemetry-api.
    """
    transport = GrpcTransport(
        address, tls=tls, token=token, api_key=api_key, compression=compression, timeout_s=timeout_s, tracing=tracing)
    return Client(transport, retry_s=retry_s, tracing=tracing)


class Client(Admin):
    """Made by connect(), or over any other Transport. One event loop uses it. access: API keys and ACLs."""

    def __init__(
        self, transport: Transport, *, retry_s: float = DEFAULT_RETRY_S, tracing: bool = False
    ) -> None:
        super().__init__(transport)
        self.access = Access(transport)
        self._retry_s = retry_s
        self._encode: Encode = encode_record
        if tracing:
            from takhin.client.trace_context import encode_traced

            self._encode = encode_traced
        self._transactions = TransactionProducer(transport)

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End all calls and the connection. Producers and consumers should be left before."""
        await self._transport.close()

    def producer(
        self, topic: str, *, linger_ms: float = 5, batch_bytes: int = 256 * 1024, acks: Acks = "written",
        idempotent: bool = True, max_in_flight: int = 5, buffer_bytes: int = 32 * 1024 * 1024,
        request_timeout_s: float = 30.0, delivery_timeout_s: float = 120.0, flush_timeout_s: float = 60.0
    ) -> Producer:
        """A producer for a topic, to be used with `async with`.

        linger_ms: how long to collect records while something is in flight already; a record that comes when nothing is
        goes out at once. batch_bytes: at most so much a batch. acks: "assigned" (an offset is), "written" (survives the
        broker's death), "durable" (survives the loss of power). idempotent: what has to be sent again is stored once,
        and in its order. max_in_flight: batches under way, for each partition; the order needs idempotent=True or
        max_in_flight=1. buffer_bytes: records not acknowledged yet, all told; each counts for 200 bytes
        beside its own, for the objects that it needs here.
        request_timeout_s: a broker that does not answer for so long is tried anew. delivery_timeout_s: from when a
        record was given to when it fails. flush_timeout_s: for flush() and the end of `async with`.
        """
        return Producer(
            self, self._transport, topic, linger_ms=linger_ms, batch_bytes=batch_bytes, acks=acks,
            idempotent=idempotent, max_in_flight=max_in_flight, buffer_bytes=buffer_bytes,
            request_timeout_s=request_timeout_s, delivery_timeout_s=delivery_timeout_s,
            flush_timeout_s=flush_timeout_s, encode=self._encode)

    def consumer(
        self, *topics: str, group: str, start: Start = "earliest", auto_commit: bool = False, instance_id: str = "",
        client_id: str = "", assignor: str = "", credit_bytes: int = 8 * 1024 * 1024, max_bytes: int = 0,
        session_timeout_s: float = 45.0, max_processing_s: float = 300.0, check: bool = True,
        commit_timeout_s: float = 30.0
    ) -> Consumer:
        """A member of a group that reads these topics, to be used with `async with`.

        start: where it begins in partitions for which the group has committed nothing; as in read(). auto_commit:
        commit what is processed by itself. instance_id: who comes with the same one is the same member (static
        membership). client_id: for people. assignor: "sticky" (also ""), "range" or "roundrobin". credit_bytes: what
        may be on its way here or wait here, all partitions together; max_bytes: of one response, 0: 1 MiB, but a
        quarter of that at most. session_timeout_s: a member that is silent for so long is out; max_processing_s: so is
        one that makes no progress. check: verify checksums. commit_timeout_s: how long a commit may take, a broker that
        restarts included.
        """
        return Consumer(
            self, self._transport, topics, group=group, start=start, auto_commit=auto_commit, instance_id=instance_id,
            client_id=client_id, assignor=assignor, credit_bytes=credit_bytes, max_bytes=max_bytes,
            session_timeout_s=session_timeout_s, max_processing_s=max_processing_s, check=check,
            commit_timeout_s=commit_timeout_s, retry_s=self._retry_s)

    def transaction(
        self, *, consumer: Consumer | None = None, group: str = "", timeout_s: float = 60.0
    ) -> Transaction:
        """Records for several partitions, stored together when `async with` is left, and with them the offsets of a
        consumer, or of a group without members. A client's transactions are stored one after the other.

        timeout_s: for as long it is sent again, a broker that restarts included.
        """
        return Transaction(
            self, self._transactions, consumer=consumer, group=group, timeout_s=timeout_s, encode=self._encode)

    def read(
        self, topic: str, *, partition: int | None = None, start: Start = "earliest", until_end: bool = False,
        max_records: int | None = None, visibility: str = "written", check: bool = True, max_bytes: int = 0
    ) -> Reader:
        """Messages of a topic, without a group: an asynchronous iterator; .batches() gives them by the hundred.

        partition None: all of them, each in its order. start: "earliest", "latest", an offset, -n from the end, a
        datetime, or a timedelta ago; for each partition. until_end: up to where the log ends now; otherwise it goes on
        for ever. visibility "durable": only what is on the broker's disk. check: verify checksums. max_bytes: of one
        response, 0: 1 MiB. Iterating raises TopicNotFound, PartitionNotFound, OffsetOutOfRange, CorruptBatch, and
        LogTruncated when a power cut took records away that were read.
        """
        return Reader(
            self, self._transport, topic, partition=partition, start=start, until_end=until_end,
            max_records=max_records, visibility=visibility, check=check, max_bytes=max_bytes, retry_s=self._retry_s)


