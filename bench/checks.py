"""What was answered and what is in the log must agree: nothing is reported that was not appended."""

from collections.abc import Iterable

from bench import environment
from bench.client import LoadFailed, Target
from takhin.v1 import takhin_pb2 as pb

LEAST_DURABILITY = {0: pb.DURABILITY_ACCEPTED, 1: pb.DURABILITY_WRITTEN, -1: pb.DURABILITY_DURABLE}


def check_answers(answers: Iterable[bytes], batch: int, required_acks: int) -> int:
    """The number of records the answers vouch for.

    Raises LoadFailed unless every answer is a success for `batch` records, vouches for what was asked, and their
    offsets together are 0, 1, 2 ... without a gap or an overlap.
    """
    offsets = []
    for answer in answers:
        response = pb.ProduceMessageResponse.FromString(answer)
        if response.code or response.error:
            raise LoadFailed(f"refused: {response.reason} {response.error}")
        if response.record_count != batch:
            raise LoadFailed(f"answer for {response.record_count} records to a request of {batch}")
        if response.durability < LEAST_DURABILITY[required_acks]:
            raise LoadFailed(f"acks={required_acks} was answered with durability {response.durability}")
        offsets.append(response.offset)
    for expected, offset in enumerate(sorted(offsets)):
        if offset != expected * batch:
            raise LoadFailed(f"answered offsets are not contiguous: {offset} where {expected * batch} was due")
    return len(offsets) * batch


class LogCheck:
    """Takes the log's responses one by one: records of partition 0 with offsets 0, 1, 2 ... and one value."""

    def __init__(self, value: bytes) -> None:
        self._value = value
        self.records = 0
        self.response_bytes = 0

    def take(self, response_bytes: bytes) -> None:
        """Raises LoadFailed at the first record that is not the one that was due."""
        self.response_bytes += len(response_bytes)
        due, value = self.records, self._value
        for record in pb.ConsumeMessagesResponse.FromString(response_bytes).records:
            if record.offset != due:
                raise LoadFailed(f"offset {record.offset} in the log where {due} was due")
            if record.value != value or record.partition:
                raise LoadFailed(f"the record at offset {due} is not what was produced")
            due += 1
        self.records = due


async def check_log(target: Target, topic: str, value: bytes, produced: int) -> LogCheck:
    """Read the topic's one partition from start to end through ConsumeMessages.

    Raises LoadFailed unless it holds exactly `produced` records, each with `value`, at offsets 0 to `produced` - 1.
    """
    request = pb.ConsumeMessagesRequest(
        topic=topic, offset=0, max_bytes=environment.CONSUME_RESPONSE_BYTES, until_end=True
    )
    check = LogCheck(value)
    async for response in target.channel.unary_stream(environment.CONSUME)(request.SerializeToString()):
        check.take(response)
    if check.records != produced:
        raise LoadFailed(f"{produced} records were acknowledged, the log holds {check.records}")
    return check
