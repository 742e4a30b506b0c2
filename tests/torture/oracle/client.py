"""What the oracle's parts have in common as clients: stubs, and what an error says."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import grpc

from takhin.v1 import takhin_pb2_grpc

DEADLINE_S = 60
OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A broker that is gone is gone: its successor has another address.
    ("grpc.use_local_subchannel_pool", 1),
]
EARLIEST, LATEST = -1, -2

Stub = takhin_pb2_grpc.TakhinServiceStub


@dataclass
class Refusal:
    """An error as the broker told it. reason: "" when it came from elsewhere, from a lost connection say."""

    code: str
    reason: str = ""
    message: str = ""
    metadata: dict[str, str] = field(default_factory=dict)

    def number(self, name: str) -> int:
        """A number of the metadata; -1 when it is not there."""
        return int(self.metadata.get(name, -1))

    def __str__(self) -> str:
        return f"{self.code} {self.reason}: {self.message}"


def refusal_of(problem: grpc.RpcError) -> Refusal:
    """Of a call that failed, sync or aio."""
    refusal = Refusal(problem.code().name, message=problem.details() or "")
    for key, value in problem.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            _take_details(refusal, value)
    return refusal


def _take_details(refusal: Refusal, status: bytes) -> None:
    # google.rpc.Status: details is field 3, each an Any with its type in field 1 and its bytes in 2; in
    # google.rpc.ErrorInfo: reason 1, metadata 3, whose entries have the key in 1 and the value in 2.
    for number, detail in _fields(status):
        if number == 3:
            named = dict(_fields(detail))
            if not named.get(1, b"").endswith(b"/google.rpc.ErrorInfo"):
                continue
            info = named.get(2, b"")
            for field_number, value in _fields(info):
                if field_number == 1:
                    refusal.reason = value.decode()
                elif field_number == 3:
                    entry = dict(_fields(value))
                    refusal.metadata[entry.get(1, b"").decode()] = entry.get(2, b"").decode()


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a message; of the others only varints may stand there."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        value, position = _varint(data, position)
        if tag & 7 == 2:
            yield tag >> 3, data[position : position + value]
            position += value


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
