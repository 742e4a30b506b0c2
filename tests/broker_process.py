"""takhin-server as its clients meet it: a process on a port of its own, and how a stock client speaks to it.

Requests and answers are those of the generated stubs, nothing of the broker is imported but its errors' names and the
codec's check of a batch: what a test sees is what any client would.
"""

import itertools
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import unknown_fields
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from takhin.codec.batch import BATCH_HEADER_SIZE, Batch, read_batch
from takhin.errors import DOMAIN, Reason
from takhin.v1 import takhin_pb2 as pb
from takhin.v1 import takhin_pb2_grpc
from tests import fronts
from tests.secured import Secured, secured_by_default

SERVER = (sys.executable, "-m", "takhin.cli.server")
SERVICE = "takhin.v1.TakhinService"
SERVING = re.compile(r"takhin: serving on (\S+)\n")
FAST_FRONT = re.compile(r"takhin: fast front on (\S+)\n")
METRICS = re.compile(r"takhin: metrics on (\S+:[0-9]+)\n")
# Far more than anything here takes: a test that waits so long has failed.
DEADLINE_S = 60
# What a broker never writes to its log unless it has a bug, or asyncio found one in it.
SIGNS_OF_A_BUG = ("Traceback", "internal error", "never retrieved", "never awaited", "Exception ignored")
# The first segment of a new broker's first topic, for strace -P.
FIRST_LOG = "{data}/topics/1/0/00000000000000000000.log"
EARLIEST, LATEST = -1, -2
MIB = 1 << 20


class BrokerProcess:
    """A takhin-server on 127.0.0.1, its data in DIRECTORY/data and its log in DIRECTORY/stderr, for all its runs.

    flags: of takhin-server. prefix: what runs it, strace for example; "{data}" there is its data directory. program: in
    place of takhin-server. variables: of its environment. secured: with TLS and authentication; None: as the whole run
    is, see tests/secured.py. front: whose address is the broker's for its clients, "grpc" or "fast"; None: that of the
    test, see tests/fronts.py. listen: where that front is to serve. check() is for the end of a test.
    """

    def __init__(
        self, directory: Path, *flags: str, prefix: Sequence[str] = (), program: Sequence[str] = SERVER,
        variables: Mapping[str, str] | None = None, listen: str = "127.0.0.1:0", secured: Secured | None = None,
        front: str | None = None,
    ):
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.data_dir = directory / "data"
        self.stderr_path = directory / "stderr"
        self.flags = list(flags)
        self.prefix = list(prefix)
        self.program = list(program)
        self.variables = dict(variables or {})
        self.listen = listen
        # Whoever runs it under strace may look for the messages on the wire.
        self.secured = secured or secured_by_default(encrypted=not prefix)
        self.address = self.grpc_address = ""
        self.front = front or fronts.current
        # With --metrics-listen: where to scrape.
        self.metrics_address = ""
        self._popen: subprocess.Popen[bytes] | None = None
        self._channels: list[grpc.Channel] = []
        self._stub: takhin_pb2_grpc.TakhinServiceStub | None = None

    # The process

    def start(self, *more_flags: str) -> "BrokerProcess":
        """Start it and wait until it serves."""
        self.launch(*more_flags)
        match = SERVING.fullmatch(self._line())
        assert match, f"it does not serve; standard error:\n{self.stderr}"
        self.address = self._address(match[1])
        if "--metrics-listen" in self.flags:
            match = METRICS.fullmatch(self._line())
            assert match, "it does not say where its metrics are"
            self.metrics_address = match[1]
        return self

    def start_or_end(self, *more_flags: str) -> int | None:
        """Start it, and wait until it serves (None) or has ended (its exit status)."""
        self.launch(*more_flags)
        match = SERVING.fullmatch(self._line())
        if match is None:
            return self.wait()
        self.address = self._address(match[1])
        return None

    def _address(self, grpc_address: str) -> str:
        """Of the front that is tested."""
        self.grpc_address = grpc_address
        if self.front == fronts.GRPC:
            return grpc_address
        match = FAST_FRONT.fullmatch(self._line())
        assert match, f"it does not say where its fast front is; standard error:\n{self.stderr}"
        return match[1]

    def launch(self, *more_flags: str) -> None:
        """Start it, and wait for nothing."""
        assert self._popen is None
        prefix = [word.replace("{data}", str(self.data_dir)) for word in self.prefix]
        # The front that is not tested is not there, or on any port.
        where = (self.listen, "") if self.front == fronts.GRPC else ("127.0.0.1:0", self.listen)
        command = [
            *prefix, *self.program, "--listen", where[0], "--fast-listen", where[1], "--data-dir", str(self.data_dir)]
        if self.secured is not None:
            command += self.secured.flags
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("TAKHIN_", "GRPC_"))}
        with self.stderr_path.open("ab") as errors:
            self._popen = subprocess.Popen(
                [*command, *self.flags, *more_flags], env=environ | self.variables, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=errors, bufsize=0)

    def _line(self) -> str:
        assert self._popen is not None and self._popen.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._popen.stdout, selectors.EVENT_READ)
            assert selector.select(DEADLINE_S), f"nothing on standard output; standard error:\n{self.stderr}"
        return self._popen.stdout.readline().decode()

    @property
    def pid(self) -> int:
        assert self._popen is not None
        return self._popen.pid

    @property
    def running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def kill(self) -> None:
        """kill -9: nothing is written any more that the operating system does not have."""
        self._end(signal.SIGKILL)

    def terminate(self) -> None:
        """End it in order; it must say that all went well."""
        status = self._end(signal.SIGTERM)
        assert status == 0, f"exit status {status}; standard error:\n{self.stderr}"

    def send(self, number: signal.Signals) -> None:
        assert self._popen is not None
        self._popen.send_signal(number)

    def wait(self) -> int:
        """Wait for its end; gives the exit status."""
        assert self._popen is not None and self._popen.stdout is not None
        status = self._popen.wait(DEADLINE_S)
        self._popen.stdout.close()
        self._popen = None
        for channel in self._channels:
            channel.close()
        self._channels.clear()
        self._stub = None
        return status

    def _end(self, number: signal.Signals) -> int:
        self.send(number)
        return self.wait()

    def restart(self, *more_flags: str, kill: bool = False) -> None:
        """End it, in order or with kill -9, and start it again, on another port."""
        if kill:
            self.kill()
        else:
            self.terminate()
        self.start(*more_flags)

    def close(self) -> None:
        """Kill it if it still runs."""
        if self._popen is not None:
            self.kill()

    # What it tells

    @property
    def stderr(self) -> str:
        return self.stderr_path.read_text(errors="replace") if self.stderr_path.exists() else ""

    def check(self, since: int = 0) -> None:
        """Nothing in its log, from character `since` on, tells of a bug."""
        told = self.stderr[since:]
        assert not any(sign in told for sign in SIGNS_OF_A_BUG), told

    def wait_for_log(self, text: str, since: int = 0) -> str:
        """Wait until `text` (a regular expression) is in its log; gives the line."""
        deadline_s = time.monotonic() + DEADLINE_S
        while not (match := re.search(f".*{text}.*", self.stderr[since:])):
            assert time.monotonic() < deadline_s, f"no {text!r} in standard error:\n{self.stderr}"
            time.sleep(0.01)
        return match[0]

    def rss_anon_bytes(self) -> int:
        """Its anonymous resident memory: what it holds itself, without files."""
        return self._status("RssAnon")

    def _status(self, name: str) -> int:
        text = Path(f"/proc/{self.pid}/status").read_text()
        match = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
        assert match
        return int(match[1]) * 1024

    def segments(self, partition: int = 0, topic_id: int | None = None) -> list[Path]:
        """The segment files of a partition, in order; of the only topic, unless told which."""
        topics = [self.data_dir / "topics" / str(topic_id)] if topic_id else list((self.data_dir / "topics").iterdir())
        assert len(topics) == 1, topics
        return sorted((topics[0] / str(partition)).glob("*.log"))

    # Clients

    def channel(self, **options: int | str) -> grpc.Channel:
        """A new channel, with a connection of its own; `options` of grpc's core, "__" for ".". Closed with the run."""
        pairs = [(f"grpc.{name.replace('__', '.')}", value) for name, value in options.items()]
        together = [("grpc.use_local_subchannel_pool", 1), *pairs]
        if self.secured is None:
            channel = grpc.insecure_channel(self.address, options=together)
        else:
            channel = self.secured.channel(self.address, together)
        self._channels.append(channel)
        return channel

    def stub(self) -> takhin_pb2_grpc.TakhinServiceStub:
        """The stock client's stub, one for all of the run."""
        if self._stub is None:
            self._stub = takhin_pb2_grpc.TakhinServiceStub(self.channel())
        return self._stub


# Requests

Stub = takhin_pb2_grpc.TakhinServiceStub
_numbers = itertools.count(1)


def new_topic(stub: Stub, partitions: int = 1, **configs: object) -> str:
    """A new topic with a name of its own; configs by Kafka's names, with "_" for "."."""
    name = f"topic-{next(_numbers)}"
    create_topic(stub, name, partitions, **configs)
    return name


def create_topic(stub: Stub, name: str, partitions: int = 1, **configs: object) -> None:
    own = {key.replace("_", "."): str(value) for key, value in configs.items()}
    request = pb.CreateTopicRequest(name=name, num_partitions=partitions, configs=own)
    assert stub.CreateTopic(request, timeout=DEADLINE_S).success


def produce(
    stub: Stub, topic: str, *records: pb.Record | bytes, partition: int = 0, acks: int = 1, **fields: Any
) -> pb.ProduceMessageResponse:
    """One record in field 3, several (or none) in field 6. Plain bytes stand for a record with that value."""
    made = [each if isinstance(each, pb.Record) else pb.Record(value=each) for each in records]
    request = pb.ProduceMessageRequest(topic=topic, partition=partition, required_acks=acks, **fields)
    if len(made) == 1:
        request.record.CopyFrom(made[0])
    else:
        request.records.extend(made)
    return stub.ProduceMessage(request, timeout=DEADLINE_S)


def consume(stub: Stub, topic: str, *, partition: int = 0, offset: int = EARLIEST, **fields: Any) -> grpc.Call:
    """The call of a ConsumeMessages, to be iterated. until_end is false unless given."""
    request = pb.ConsumeMessagesRequest(topic=topic, partition=partition, offset=offset, **fields)
    return stub.ConsumeMessages(request, timeout=DEADLINE_S)


def read(stub: Stub, topic: str, *, partition: int = 0, offset: int = EARLIEST, **fields: Any) -> list[pb.Record]:
    """All records from offset to the log's end."""
    call = consume(stub, topic, partition=partition, offset=offset, until_end=True, **fields)
    return [record for response in call for record in response.records]


def values(records: Sequence[pb.Record]) -> list[bytes]:
    return [record.value for record in records]


def offsets(stub: Stub, topic: str, partition: int = 0) -> pb.GetPartitionOffsetsResponse:
    return stub.GetPartitionOffsets(
        pb.GetPartitionOffsetsRequest(topic=topic, partition=partition), timeout=DEADLINE_S)


def commit(stub: Stub, group: str, *entries: tuple[str, int, int]) -> pb.CommitOffsetResponse:
    """Commit (topic, partition, offset)."""
    made = [pb.TopicPartitionOffset(topic=topic, partition=number, offset=offset) for topic, number, offset in entries]
    return stub.CommitOffset(pb.CommitOffsetRequest(group_id=group, offsets=made), timeout=DEADLINE_S)


def fetch_offsets(stub: Stub, group: str, *partitions: tuple[str, int]) -> list[pb.GroupOffset]:
    """Where a group stands in the (topic, partition)s given, or in all it has."""
    made = [pb.TopicPartition(topic=topic, partition=number) for topic, number in partitions]
    response = stub.FetchOffsets(pb.FetchOffsetsRequest(group_id=group, partitions=made), timeout=DEADLINE_S)
    assert response.error == "" and unknown_numbers(response) == []
    return list(response.offsets)


def committed(stub: Stub, group: str, topic: str, partition: int = 0) -> int | None:
    """The offset a group has committed; None: none."""
    (found,) = fetch_offsets(stub, group, (topic, partition))
    return found.committed_offset if found.HasField("committed_offset") else None


def raw_unary(channel: grpc.Channel, name: str, request: bytes) -> bytes:
    """A unary call without generated classes: bytes as they are."""
    return channel.unary_unary(f"/{SERVICE}/{name}")(request, timeout=DEADLINE_S)


def raw_consume(channel: grpc.Channel, topic: str, *, offset: int = EARLIEST, **fields: Any) -> grpc.Call:
    """A ConsumeMessages whose responses are bytes."""
    request = pb.ConsumeMessagesRequest(topic=topic, offset=offset, **fields)
    return channel.unary_stream(f"/{SERVICE}/ConsumeMessages")(request.SerializeToString(), timeout=DEADLINE_S)


def raw_read(channel: grpc.Channel, topic: str, *, offset: int = EARLIEST, **fields: Any) -> list["Slice"]:
    """The responses from offset to the log's end, each of them verified."""
    return [take_apart(raw) for raw in raw_consume(channel, topic, offset=offset, until_end=True, **fields)]


# Protobuf by hand, for requests that no generated class would make


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def scalar(number: int, value: int) -> bytes:
    """A varint field."""
    return varint(number << 3) + varint(value)


def chunk(number: int, data: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def unknown_numbers(message: Any) -> list[int]:
    """The numbers of the fields that the generated class does not know."""
    return [each.field_number for each in unknown_fields.UnknownFieldSet(message)]


# Responses, as bytes


@dataclass
class Slice:
    """A ConsumeMessagesResponse taken apart. batches: headers whose checksums and records were verified."""

    message: pb.ConsumeMessagesResponse
    batches: list[Batch] = field(default_factory=list)
    # Records that came without their batch's header.
    loose: list[pb.Record] = field(default_factory=list)


def take_apart(raw: bytes) -> Slice:
    """Verify a response: every batch's CRC over the very bytes that came, and that records lie where headers say."""
    taken = Slice(pb.ConsumeMessagesResponse.FromString(raw))
    records = iter(taken.message.records)
    position = 0
    while position < len(raw):
        tag, after = _varint_at(raw, position)
        if tag >> 3 == 6:
            batch = read_batch(raw, position)
            taken.batches.append(batch)
            inside = [next(records) for _ in range(batch.record_count)]
            assert [each.offset for each in inside] == list(range(batch.base_offset, batch.next_offset))
            assert batch.max_timestamp_ms == max(each.timestamp for each in inside)
            position += BATCH_HEADER_SIZE + batch.payload_bytes
        elif tag & 7 == 2:
            length, after = _varint_at(raw, after)
            if tag >> 3 == 4:
                assert not taken.batches, "a part of a batch may only come first"
                taken.loose.append(next(records))
            position = after + length
        else:
            assert tag & 7 == 0, f"wire type {tag & 7} at {position}"
            _, position = _varint_at(raw, after)
    assert next(records, None) is None
    return taken


def _varint_at(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


# Errors


@dataclass
class Refusal:
    """How a call failed, known once the `with` block is left."""

    message: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def refused(code: grpc.StatusCode, reason: Reason) -> Iterator[Refusal]:
    """The call inside fails with that status and that reason; the Refusal tells the rest."""
    refusal = Refusal()
    try:
        yield refusal
    except grpc.RpcError as exc:
        info = error_info(exc)
        assert (exc.code(), info.reason) == (code, reason), exc.details()
        refusal.message = exc.details()
        refusal.metadata = dict(info.metadata)
    else:
        raise AssertionError(f"the call did not fail; {code.name} {reason} was to come")


def error_info(exc: grpc.RpcError) -> error_details_pb2.ErrorInfo:
    """Of an error, whose other detail is its request id; from_call also checks that code and message are the same there
    as in the status."""
    status = rpc_status.from_call(exc)
    assert status is not None and len(status.details) == 2, f"no details: {exc.code()} {exc.details()}"
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.RequestInfo()
    assert status.details[0].Unpack(info) and status.details[1].Unpack(request)
    assert request.request_id and dict(exc.trailing_metadata())["x-request-id"] == request.request_id
    assert info.domain == DOMAIN
    return info


def wait_until(condition: Callable[[], Any], timeout_s: float = DEADLINE_S, what: str = "the condition") -> Any:
    """Poll until `condition()` is true; gives what it gave."""
    deadline_s = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < deadline_s, f"{what} did not come true in {timeout_s} s"
        time.sleep(0.01)
    return result
