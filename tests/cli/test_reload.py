"""SIGHUP on a real server: what a running broker takes over, and what it leaves."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from takhin.config import Option, options
from takhin.errors import Reason
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import (
    DEADLINE_S,
    BrokerProcess,
    Stub,
    commit,
    new_topic,
    offsets,
    produce,
    refused,
    wait_until,
)
from tests.conftest import StartBroker
from tests.member import Member
from tests.rpc.test_tls import serial_number
from tests.secured import Authority, Secured, replace

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
INVALID = grpc.StatusCode.INVALID_ARGUMENT
LONG_MS = 3_600_000


class Configured:
    """A broker with a configuration file."""

    def __init__(self, start_broker: StartBroker, path: Path, **values: object):
        self.path = path
        self._write(values)
        self.broker: BrokerProcess = start_broker("--config", str(path))
        self.stub: Stub = self.broker.stub()

    def reload(self, told: str, **values: object) -> None:
        """Write the file anew, with topics__partitions for [topics] partitions; wait until the log tells what came."""
        self._write(values)
        self.hup(told)

    def hup(self, told: str) -> None:
        since = len(self.broker.stderr)
        self.broker.send(signal.SIGHUP)
        self.broker.wait_for_log(told, since)

    def reloaded(self, key: str, value: object) -> None:
        self.reload(f"reloaded: {key} is {value} now", **{key.replace(".", "__"): value})

    def _write(self, values: dict[str, object]) -> None:
        by_section: dict[str, list[str]] = {"": []}
        for name, value in values.items():
            section, _, key = name.rpartition("__")
            shown = f'"{value}"' if isinstance(value, str) else str(value).lower()
            by_section.setdefault(section, []).append(f"{key} = {shown}\n")
        replace(self.path, "".join(
            (f"[{section}]\n" if section else "") + "".join(lines) for section, lines in by_section.items()).encode())


@pytest.fixture
def configured(start_broker: StartBroker, tmp_path: Path) -> Iterator[Callable[..., Configured]]:
    yield lambda **values: Configured(start_broker, tmp_path / "takhin.toml", **values)


# All settings: which are told to be taken over, and which to wait.


def another(option: Option) -> str | int | bool:
    """A value that is allowed and not the default."""
    if option.type is bool:
        return not option.default
    if option.type is int:
        assert isinstance(option.default, int)
        return option.default + 1 if option.default < option.metadata["maximum"] else option.default - 1
    if option.metadata["choices"]:
        return next(each for each in option.metadata["choices"] if each != option.default)
    return "127.0.0.1:0" if option.key == "metrics_listen" else "elsewhere"


def test_each_setting_is_taken_over_or_needs_a_restart(configured: Callable[..., Configured]) -> None:
    # What names files, addresses and people does not stand by itself.
    changed = [option for option in options() if option.type is not str or option.metadata["choices"]]
    own = configured()
    # The last line of all.
    values = {each.key.replace(".", "__"): another(each) for each in changed}
    own.reload(f"needs a restart: {changed[-1].key}", **values)
    log = own.broker.stderr
    for option in changed:
        taken = f"reloaded: {option.key} is {another(option)} now" in log
        assert taken is option.reloads, option.key
        assert (f"needs a restart: {option.key}\n" in log) is not option.reloads, option.key
    since = len(log)
    own.reload("reloaded: tls.check_ms is 5000 now")
    assert "needs a restart" not in own.broker.stderr[since:]
    own.hup("reloaded: no setting has changed")
    assert produce(own.stub, new_topic(own.stub), b"value").offset == 0


def test_a_file_that_is_wrong_changes_nothing(configured: Callable[..., Configured]) -> None:
    own = configured(topics__partitions=2)
    own.reload(
        "ERROR .*not reloaded, all settings stay as they are: .*partitons", topics__partitions=3, topics__partitons=3)
    own.reload("ERROR .*not reloaded, .*: 0 is not allowed", topics__partitions=3, limits__topics=0)
    # Each is right by itself, and the first could be had only with the second, which waits for a restart.
    own.reload(
        "ERROR .*not reloaded, .*max_record_bytes: 20000000 is not allowed", topics__partitions=3,
        topics__max_record_bytes=20_000_000, grpc__max_message_bytes=40_000_000)
    assert "10420224, which is grpc.max_message_bytes (the running broker's, until a restart) less" in own.broker.stderr
    own.path.unlink()
    own.hup("ERROR .*not reloaded, .*cannot be read")
    assert partitions_of_a_new_topic(own.stub) == 2
    own.reloaded("topics.partitions", 3)
    assert partitions_of_a_new_topic(own.stub) == 3


def test_a_bound_that_waits_for_a_restart_lowers_nothing(configured: Callable[..., Configured]) -> None:
    own = configured()
    own.reload("needs a restart: grpc.max_message_bytes", grpc__max_message_bytes=131_072)
    own.reload("reloaded: topics.partitions is 2 now", grpc__max_message_bytes=131_072, topics__partitions=2)
    assert "topics.max_record_bytes" not in own.broker.stderr
    assert produce(own.stub, new_topic(own.stub), b"x" * 200_000).offset == 0


def test_flags_stay_what_they_were(start_broker: StartBroker, tmp_path: Path) -> None:
    path = tmp_path / "takhin.toml"
    path.write_text("[topics]\npartitions = 2\n")
    broker = start_broker("--config", str(path), "--topics-partitions", "4")
    path.write_text("[topics]\npartitions = 3\nretention_ms = 5\n")
    broker.send(signal.SIGHUP)
    broker.wait_for_log("reloaded: topics.retention_ms is 5 now")
    assert partitions_of_a_new_topic(broker.stub()) == 4


def test_certificates_and_keys_without_a_file(start_broker: StartBroker, tmp_path: Path) -> None:
    secured = Secured(tmp_path / "secured")
    secured.flags[secured.flags.index("--tls-check-ms") + 1] = str(LONG_MS)
    broker = start_broker(secured=secured)
    first = serial_number(broker.address)
    secured.write_server(Authority(1))
    broker.send(signal.SIGHUP)
    broker.wait_for_log("read again: .*server.pem")
    broker.wait_for_log("reloaded: no setting has changed")
    assert serial_number(broker.address) != first


def test_a_signal_during_the_start_waits_for_its_end(start_broker: StartBroker, tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path / "early")
    broker.launch()
    try:
        # From there on the handler is installed; before, the signal would end it.
        wait_until(lambda: caught(broker.pid) & 1 << signal.SIGHUP - 1)
        for _ in range(20):
            broker.send(signal.SIGHUP)
        broker.wait_for_log("reloaded: no setting has changed")
    finally:
        broker.terminate()


def caught(pid: int) -> int:
    """The mask of the signals that a process has handlers for."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return int(line.split()[1], 16)
    return 0


# Each that is taken over, where it shows. A test is given a broker, and proves that a new value is used.


def partitions_of_a_new_topic(stub: Stub, partitions: int = 0) -> int:
    topic = new_topic(stub, partitions)
    (info,) = stub.DescribeTopics(pb.DescribeTopicsRequest(topics=[topic]), timeout=DEADLINE_S).topics
    return len(info.partitions)


def log_level(own: Configured) -> None:
    own.reloaded("log_level", "debug")
    own.reload("needs a restart: grpc.connection_idle_ms", log_level="warning", grpc__connection_idle_ms=5000)
    since = len(own.broker.stderr)
    own.hup("needs a restart: grpc.connection_idle_ms")
    assert "INFO" not in own.broker.stderr[since:]


def topics_partitions(own: Configured) -> None:
    own.reloaded("topics.partitions", 7)
    assert partitions_of_a_new_topic(own.stub) == 7


def retention(own: Configured) -> None:
    """By size and by time, in topics that are there; both looks come soon only with the new retention_check_ms."""
    by_size, by_time, itself = new_topic(own.stub), new_topic(own.stub), new_topic(own.stub, retention_ms=-1)
    own.reload("reloaded: topics.segment_bytes is 1024 now", topics__segment_bytes=1024)
    for topic in by_size, by_time, itself:
        for _ in range(3):
            produce(own.stub, topic, b"x" * 1200, acks=-1)
    assert len(own.broker.segments(topic_id=1)) >= 3
    own.reload("reloaded: topics.retention_check_ms", topics__retention_bytes=0, topics__retention_check_ms=10)
    for topic in by_size, itself:
        wait_until(lambda topic=topic: offsets(own.stub, topic).beginning_offset == 2)
    own.reload(
        "reloaded: topics.retention_ms", topics__retention_ms=1, topics__retention_check_ms=10, topics__segment_ms=1)
    wait_until(lambda: offsets(own.stub, by_time).beginning_offset == 3)
    # segment_ms: the active segment of the one that keeps its records for ever is sealed, too.
    produce(own.stub, itself, b"one", acks=-1)
    wait_until(lambda: own.broker.segments(topic_id=3)[-1].name == f"{4:020}.log")
    assert offsets(own.stub, itself).beginning_offset == 2


def max_record_bytes(own: Configured) -> None:
    topic = new_topic(own.stub)
    produce(own.stub, topic, b"x" * 2000)
    own.reloaded("topics.max_record_bytes", 1000)
    with refused(EXHAUSTED, Reason.RECORD_TOO_LARGE):
        produce(own.stub, topic, b"x" * 2000)


def flush_ms(own: Configured) -> None:
    topic = new_topic(own.stub)
    own.reloaded("topics.flush_ms", -1)
    produce(own.stub, topic, b"value")
    assert offsets(own.stub, topic).durable_offset == 0
    own.reloaded("topics.flush_ms", 1)
    wait_until(lambda: offsets(own.stub, topic).durable_offset == 1)


def producer_expiration_ms(own: Configured) -> None:
    topic = new_topic(own.stub)
    made = own.stub.InitProducer(pb.InitProducerRequest(), timeout=DEADLINE_S)
    state = pb.ProducerState(id=made.id, epoch=made.epoch, sequence=0)
    assert not produce(own.stub, topic, b"one", producer=state).duplicate
    assert produce(own.stub, topic, b"one", producer=state).duplicate
    own.reloaded("topics.producer_expiration_ms", 1)

    # Who is forgotten begins anew.
    wait_until(lambda: not produce(own.stub, topic, b"one", producer=state).duplicate)


def grace_ms(own: Configured) -> None:
    topic = new_topic(own.stub)
    own.reloaded("groups.grace_ms", LONG_MS)
    staying, leaving = Member(own.stub, "g", topic), Member(own.stub, "g", topic)
    staying.wait(lambda: staying.generation > 0)
    leaving.wait(lambda: bool(leaving.member_id))
    own.reloaded("groups.grace_ms", 1)
    leaving.cancel()

    def members() -> int:
        request = pb.DescribeConsumerGroupRequest(group_id="g")
        return len(own.stub.DescribeConsumerGroup(request, timeout=DEADLINE_S).members)

    wait_until(lambda: members() == 1)
    staying.leave()


def revoke_timeout_ms(own: Configured) -> None:
    topic = new_topic(own.stub, 2)
    own.reloaded("groups.revoke_timeout_ms", LONG_MS)
    slow = Member(own.stub, "g", topic, releases=False)
    slow.wait(lambda: len(slow.partitions) == 2)
    own.reloaded("groups.revoke_timeout_ms", 100)
    other = Member(own.stub, "g", topic)
    other.wait(lambda: len(other.partitions) == 1)
    other.leave()
    slow.cancel()


def auto_commit_ms(own: Configured) -> None:
    topic = new_topic(own.stub)
    own.reloaded("groups.auto_commit_ms", INT32)
    own.reloaded("groups.auto_commit_ms", 0)
    member = Member(own.stub, "g", topic, commit_mode=pb.COMMIT_MODE_AUTO, credit_bytes=1_000_000)
    member.wait(lambda: (topic, 0) in member.partitions)
    for number in 1, 2:
        # Two: the first commit never waits.
        produce(own.stub, topic, b"value")
        member.wait(lambda number=number: len(member.of("records")) == number)
        sizes = [each.credit_bytes for each in member.told if each.HasField("records")]
        member.send(credit=pb.Credit(bytes=sizes[-1]))
        member.wait(lambda number=number: len(member.of("committed")) == number)
    member.leave()


def offsets_retention_ms(own: Configured) -> None:
    topic = new_topic(own.stub)
    commit(own.stub, "old", (topic, 0, 0))
    own.reload("reloaded: groups.offsets_check_ms", groups__offsets_retention_ms=1, groups__offsets_check_ms=10)
    own.broker.wait_for_log("group 'old' was not used for 1 ms")


def limits_topics(own: Configured) -> None:
    new_topic(own.stub)
    own.reloaded("limits.topics", 1)
    with refused(EXHAUSTED, Reason.TOPIC_LIMIT):
        new_topic(own.stub)


def limits_partitions(own: Configured) -> None:
    own.reload(
        "reloaded: limits.partitions is 12 now", limits__partitions=12, limits__partitions_per_topic=6)
    with refused(INVALID, Reason.INVALID_PARTITION_COUNT):
        new_topic(own.stub, 7)
    new_topic(own.stub, 6)
    new_topic(own.stub, 5)
    with refused(EXHAUSTED, Reason.PARTITION_LIMIT):
        new_topic(own.stub, 2)


def limits_groups(own: Configured) -> None:
    topic = new_topic(own.stub)
    commit(own.stub, "one", (topic, 0, 0))
    own.reloaded("limits.groups", 1)
    with refused(EXHAUSTED, Reason.GROUP_LIMIT):
        commit(own.stub, "two", (topic, 0, 0))


def limits_members(own: Configured) -> None:
    topic = new_topic(own.stub)
    first = Member(own.stub, "g", topic)
    first.wait(lambda: bool(first.member_id))
    for values in {"limits__members_per_group": 1}, {"limits__members_per_group": 1, "limits__members": 1}:
        key = list(values)[-1].replace("__", ".")
        own.reload(f"reloaded: {key} is 1 now", **values)
        more = Member(own.stub, "g" if len(values) == 1 else "h", topic)
        more.wait(lambda more=more: more.ended)
        assert more.failure is not None and key in (more.failure.details() or ""), more.failure
    first.leave()


def limits_transactions(own: Configured) -> None:
    topic = new_topic(own.stub, 2)
    own.reloaded("limits.transaction_partitions", 1)
    appends = [pb.ProduceMessageRequest(
        topic=topic, partition=number, required_acks=-1, record=pb.Record(value=b"v")) for number in range(2)]
    request = pb.ProduceTransactionRequest(appends=appends)
    with pytest.raises(grpc.RpcError, match="limits.transaction_partitions"):
        own.stub.ProduceTransaction(request, timeout=DEADLINE_S)


INT32 = (1 << 31) - 1
SHOWN: dict[tuple[str, ...], Callable[[Configured], None]] = {
    ("log_level",): log_level,
    ("topics.partitions",): topics_partitions,
    ("topics.retention_ms", "topics.retention_bytes", "topics.segment_bytes", "topics.segment_ms",
     "topics.retention_check_ms"): retention,
    ("topics.max_record_bytes",): max_record_bytes,
    ("topics.flush_ms",): flush_ms,
    ("topics.producer_expiration_ms",): producer_expiration_ms,
    ("groups.grace_ms",): grace_ms,
    ("groups.revoke_timeout_ms",): revoke_timeout_ms,
    ("groups.auto_commit_ms",): auto_commit_ms,
    ("groups.offsets_retention_ms", "groups.offsets_check_ms"): offsets_retention_ms,
    ("limits.topics",): limits_topics,
    ("limits.partitions_per_topic", "limits.partitions"): limits_partitions,
    ("limits.groups",): limits_groups,
    ("limits.members_per_group", "limits.members"): limits_members,
    ("limits.transaction_partitions",): limits_transactions,
}


@pytest.mark.parametrize("keys", SHOWN, ids=lambda keys: keys[0])
def test_a_new_value_is_used(configured: Callable[..., Configured], keys: tuple[str, ...]) -> None:
    SHOWN[keys](configured())


def test_from_when_on_a_request_is_slow(configured: Callable[..., Configured]) -> None:
    own = configured(slow_request_ms=-1)
    new_topic(own.stub, 1000)
    assert "takhin.slow" not in own.broker.stderr
    own.reload("reloaded: slow_request_ms is 1 now", slow_request_ms=1)
    new_topic(own.stub, 1000)
    own.broker.wait_for_log("takhin.slow: slow method=takhin.v1.TakhinService/CreateTopic")
