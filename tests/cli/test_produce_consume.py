"""Lines in, lines out: takhin produce, consume and tail against a real broker."""

import asyncio
import json
import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from takhin import client
from takhin.cli.command import CommandError
from takhin.cli.consume_group import consume_group
from takhin.cli.failure import command_error
from takhin.cli.json_records import JsonLines
from takhin.cli.record_text import Formatted
from takhin.cli.sending import Sending, shape_of
from takhin.cli.sink import Sink
from takhin.client.start import start_at
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import MIB, BrokerProcess, committed, new_topic, produce, read, values, wait_until
from tests.cli.run import TAKHIN, environment, peak_bytes_of, start, takhin


def records_of(broker: BrokerProcess, topic: str, partition: int = 0) -> list[pb.Record]:
    return read(broker.stub(), topic, partition=partition)


def some_lines(count: int, seed: int = 1) -> bytes:
    """As in a log, with what lines also may be: empty, of any bytes, with a carriage return."""
    chooser = random.Random(seed)
    lines = [b"2026-11-25T10:00:%02d host%d: %s" % (each % 60, each % 7, b"x" * chooser.randrange(200))
             for each in range(count)]
    lines[1::97] = [b""] * len(lines[1::97])
    lines[2::97] = [bytes(byte for byte in range(256) if byte != 10)] * len(lines[2::97])
    lines[3::97] = [b"with a carriage return\r"] * len(lines[3::97])
    return b"\n".join(lines) + b"\n"


# A file in, a file out


def test_a_file_comes_back_byte_for_byte(shared_broker: BrokerProcess, tmp_path: Path) -> None:
    topic = new_topic(shared_broker.stub())
    text = some_lines(20_000)
    (tmp_path / "in.log").write_bytes(text)
    done = takhin(shared_broker, "produce", topic, tmp_path / "in.log")
    assert done.out == b"" and done.err.startswith(f"20,000 records to {topic}: ")
    assert takhin(shared_broker, "consume", topic, "-e", "-f", r"%v\n").out == text
    # It is what is written without -f, too.
    assert takhin(shared_broker, "consume", topic, "-e").out == text
    assert values(records_of(shared_broker, topic)) == text[:-1].split(b"\n")


@pytest.mark.parametrize("text", [b"", b"\n", b"a", b"a\nb", b"a\n\n", b"\xff\x00\n\r\n\xfe"])
def test_whatever_its_end(shared_broker: BrokerProcess, text: bytes) -> None:
    plain, kept = new_topic(shared_broker.stub()), new_topic(shared_broker.stub())
    takhin(shared_broker, "produce", plain, stdin=text)
    ended = text if text.endswith(b"\n") or not text else text + b"\n"
    assert takhin(shared_broker, "consume", plain, "-e").out == ended
    takhin(shared_broker, "produce", kept, "--keep-ends", stdin=text)
    assert takhin(shared_broker, "consume", kept, "-e", "-f", "%v").out == text


def test_files_and_standard_input_one_after_the_other(shared_broker: BrokerProcess, tmp_path: Path) -> None:
    topic = new_topic(shared_broker.stub())
    (tmp_path / "a").write_bytes(b"a1\na2")
    (tmp_path / "b").write_bytes(b"b1\n")
    done = takhin(shared_broker, "produce", topic, tmp_path / "a", "-", tmp_path / "b", "-q", stdin=b"in1\nin2")
    assert done.err == ""
    assert values(records_of(shared_broker, topic)) == [b"a1", b"a2", b"in1", b"in2", b"b1"]


def test_much_data_takes_little_memory(shared_broker: BrokerProcess, tmp_path: Path) -> None:
    topic = new_topic(shared_broker.stub())
    block = some_lines(40_000)
    with (tmp_path / "in.log").open("wb") as file:
        while file.tell() < 150 * MIB:
            file.write(block)
    assert peak_bytes_of(shared_broker, "produce", topic, tmp_path / "in.log") < 100 * MIB
    with (tmp_path / "out.log").open("wb") as file:
        assert peak_bytes_of(shared_broker, "consume", topic, "-e", stdout=file) < 100 * MIB
    assert subprocess.run(["cmp", tmp_path / "in.log", tmp_path / "out.log"]).returncode == 0


def test_a_line_goes_out_before_the_next_one_comes(shared_broker: BrokerProcess) -> None:
    topic = new_topic(shared_broker.stub())
    process = start(shared_broker, "produce", topic, stdin=subprocess.PIPE)
    assert process.stdin is not None
    for number in range(3):
        process.stdin.write(b"line %d\nhalf" % number)
        process.stdin.flush()
        wait_until(lambda number=number: len(records_of(shared_broker, topic)) == number + 1)
    process.stdin.close()
    assert process.wait(60) == 0
    assert [each.value for each in records_of(shared_broker, topic)] == [
        b"line 0", b"halfline 1", b"halfline 2", b"half"]


# Keys, headers, JSON


def test_keys_headers_and_tombstones(shared_broker: BrokerProcess) -> None:
    topic = new_topic(shared_broker.stub(), 4)
    lines = [b"key-%d::value::%d" % (each, each) for each in range(50)] + [b"no key", b"gone::"]
    takhin(shared_broker, "produce", topic, "-k", "::", "-H", "a=1", "-H", "b=", "-Z", stdin=b"\n".join(lines))
    found = {}
    for partition in range(4):
        for each in records_of(shared_broker, topic, partition):
            found[each.key if each.HasField("key") else None] = (partition, each)
            assert [(header.key, header.value) for header in each.headers] == [("a", b"1"), ("b", b"")]
    assert found[b"key-7"][1].value == b"value::7" and found[None][1].value == b"no key" and len(found) == 52
    assert not found[b"gone"][1].HasField("value")
    # The broker chooses the same partition for the same key.
    for key, (partition, _) in found.items():
        if key is not None:
            chosen = produce(shared_broker.stub(), topic, pb.Record(key=key, value=b""), partition=-1)
            assert chosen.partition == partition


def test_one_key_one_partition_one_delimiter(shared_broker: BrokerProcess) -> None:
    topic = new_topic(shared_broker.stub(), 4)
    takhin(shared_broker, "produce", topic, "--key", "k", "-p", "3", "-D", r"\0", stdin=b"a\nb\0c")
    assert [(each.key, each.value) for each in records_of(shared_broker, topic, 3)] == [(b"k", b"a\nb"), (b"k", b"c")]
    # Lines with and without a key keep their order there.
    takhin(shared_broker, "produce", topic, "-k", ":", "-p", "2", stdin=b"k:1\n2\nl:3\n4\n")
    assert values(records_of(shared_broker, topic, 2)) == [b"1", b"2", b"3", b"4"]
    done = takhin(shared_broker, "produce", topic, "-p", "4", status=2)
    assert "has no partition 4: it has 4, from 0 on" in done.complaint


def test_json_goes_in_and_comes_out(shared_broker: BrokerProcess) -> None:
    topic, copy = new_topic(shared_broker.stub()), new_topic(shared_broker.stub())
    lines = [
        {"key": "k", "value": "v\n", "headers": {"h": "x"}, "timestamp": 1_700_000_000_000},
        {"key": None, "value": None}, {"value": ""}, {"key_base64": "/w==", "value_base64": "AP8="},
        {"value": {"a": [1, "ä"]}}, {"value": 7, "headers": [["h", "1"], ["h", "2"], ["raw", {"base64": "/w=="}]]},
    ]
    text = "\n".join(json.dumps(each) for each in lines) + "\n\n"
    takhin(shared_broker, "produce", topic, "--json", stdin=text.encode())
    written = takhin(shared_broker, "consume", topic, "-e", "-O", "jsonl")
    assert [each.get("value") for each in written.objects] == ["v\n", None, "", None, '{"a":[1,"ä"]}', "7"]
    assert written.objects[0] == {
        "topic": topic, "partition": 0, "offset": 0, "timestamp": 1_700_000_000_000, "key": "k", "value": "v\n",
        "headers": {"h": "x"}}
    takhin(shared_broker, "produce", copy, "--json", stdin=written.out)
    assert records_of(shared_broker, copy) == records_of(shared_broker, topic)
    assert json.loads(takhin(shared_broker, "consume", copy, "-e", "-O", "json").out) == [
        each | {"topic": copy} for each in written.objects]
    assert takhin(shared_broker, "consume", new_topic(shared_broker.stub()), "-e", "-O", "json").out == b"[\n]\n"


@pytest.mark.parametrize(("line", "told"), [
    (b"{", "line 2 is not JSON"), (b"[]", "line 2 is not an object"), (b'{"valeu": 1}', "'valeu' is not known"),
    (b'{"value_base64": "%"}', "value_base64 is not base64"), (b'{"partition": "x"}', "partition 'x' is not a number"),
    (b'{"headers": ["h"]}', "headers are"), (b'{"timestamp": "now"}', "timestamp 'now' is not a number"),
])
def test_what_is_no_record_is_named(shared_broker: BrokerProcess, line: bytes, told: str) -> None:
    topic = new_topic(shared_broker.stub())
    done = takhin(shared_broker, "produce", topic, "--json", stdin=b'{"value": "good"}\n' + line, status=1)
    assert "standard input: line 2" in done.complaint and told in done.complaint
    assert values(records_of(shared_broker, topic)) == [b"good"]


def test_lines_that_are_too_long_are_named(shared_broker: BrokerProcess, tmp_path: Path) -> None:
    topic = new_topic(shared_broker.stub(), max_message_bytes=1000)
    (tmp_path / "first").write_bytes(b"1\n2\n")
    (tmp_path / "long").write_bytes(b"3\n" + b"x" * 2000 + b"\n5\n")
    done = takhin(shared_broker, "produce", topic, tmp_path / "first", tmp_path / "long", status=1)
    assert f"{tmp_path / 'long'}: lines 1 to 3 were not stored: " in done.complaint
    assert f"takhin topic update {topic} -c max.message.bytes=BYTES" in done.complaint
    assert values(records_of(shared_broker, topic)) == [b"1", b"2"]
    (tmp_path / "endless").write_bytes(b"6\n" + b"x" * 11_000_000)
    done = takhin(shared_broker, "produce", topic, tmp_path / "first", tmp_path / "endless", status=1)
    assert f"{tmp_path / 'endless'}: line 2 is longer than 10000000 bytes" in done.complaint
    assert values(records_of(shared_broker, topic)) == [b"1", b"2", b"1", b"2", b"6"]


# Where consume begins and ends


def test_where_it_begins_and_ends(shared_broker: BrokerProcess) -> None:
    topic = new_topic(shared_broker.stub())
    now_ms = int(time.time() * 1000)
    made = [pb.Record(value=b"%d" % each, timestamp=now_ms - (20 - each) * 60_000) for each in range(20)]
    produce(shared_broker.stub(), topic, *made)
    for arguments, first, count in [
        ([], 0, 20), (["-o", "5"], 5, 15), (["-o", "-3"], 17, 3), (["-o", "+18"], 18, 2), (["-o", "latest"], 20, 0),
        (["-o", "-100"], 0, 20), (["-o", "+100"], 20, 0), (["-o", "@-5m30s"], None, 2), (["-n", "4"], 0, 4),
        (["-o", "@-330s"], 15, 5), (["-o", f"@{made[7].timestamp}"], 7, 13), (["-n", "0"], 0, 0),
        (["-o", "@2001-01-01"], 0, 20), (["-o", "@2001-01-01T00:00+02:00", "-p", "0"], 0, 20),
    ]:
        if first is None:
            takhin(shared_broker, "consume", topic, "-e", *arguments, status=2)
            continue
        out = takhin(shared_broker, "consume", topic, "-e", *arguments).out
        assert out == b"".join(b"%d\n" % each for each in range(first, first + count)), arguments
    # Without -e, as many as are asked for are there already.
    assert takhin(shared_broker, "consume", topic, "-n", "20").out.count(b"\n") == 20


def test_a_format_has_all_there_is(shared_broker: BrokerProcess) -> None:
    topic = new_topic(shared_broker.stub(), 2)
    full = pb.Record(key=b"k", value=b"v1", timestamp=5, headers=[
        pb.RecordHeader(key="a", value=b"1"), pb.RecordHeader(key="b")])
    produce(shared_broker.stub(), topic, full, pb.Record(timestamp=-6), partition=1)
    done = takhin(shared_broker, "consume", topic, "-e", "-f", r"%t|%p|%o|%k|%K|%v|%s|%V|%S|%T|%h|%%|\t\x41\\|%%v\n")
    assert done.out.decode() == (
        f"{topic}|1|0|k|1|v1|v1|2|2|5|a=1,b=|%|\tA\\|%v\n{topic}|1|1||-1|||-1|-1|-6||%|\tA\\|%v\n")


def test_all_partitions_each_in_its_order(shared_broker: BrokerProcess) -> None:
    topic = new_topic(shared_broker.stub(), 3)
    for partition in range(3):
        produce(shared_broker.stub(), topic, *[b"%d" % each for each in range(500)], partition=partition)
    lines = takhin(shared_broker, "consume", topic, "-e", "-f", r"%p %v\n").out.splitlines()
    for partition in range(3):
        mine = [int(line.split()[1]) for line in lines if line.startswith(b"%d " % partition)]
        assert mine == list(range(500))
    assert len(lines) == 1500


def test_what_comes_is_written_at_once_until_ctrl_c(shared_broker: BrokerProcess) -> None:
    topic = new_topic(shared_broker.stub())
    process = start(shared_broker, "consume", topic)
    assert process.stdout is not None and process.stderr is not None
    for number in range(3):
        produce(shared_broker.stub(), topic, b"%d" % number)
        assert process.stdout.readline() == b"%d\n" % number
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert process.stderr.read() == b""
    process.stdout.close()
    process.stderr.close()


@pytest.mark.parametrize("has_more", [True, False], ids=["more to write", "nothing to write"])
def test_a_closed_pipe_ends_it_quietly(shared_broker: BrokerProcess, has_more: bool) -> None:
    topic = new_topic(shared_broker.stub())
    produce(shared_broker.stub(), topic, b"first")
    process = start(shared_broker, "consume", topic)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == b"first\n"
    process.stdout.close()
    if has_more:
        produce(shared_broker.stub(), topic, b"second")
    assert process.wait(60) == 141
    assert process.stderr.read() == b""
    process.stderr.close()
    listing = start(shared_broker, "topic", "list", stdout=os.open("/dev/full", os.O_WRONLY))
    assert listing.stderr is not None
    assert listing.wait(60) == 1 and b"No space left on device" in listing.stderr.read()
    listing.stderr.close()


def test_tail_shows_the_last_and_what_comes(shared_broker: BrokerProcess) -> None:
    topic = new_topic(shared_broker.stub())
    made = [pb.Record(key=b"k", value=b"%d\x1b" % each, timestamp=1_700_000_000_000) for each in range(5)]
    produce(shared_broker.stub(), topic, *made)
    process = start(shared_broker, "tail", topic, "-n", "2", TZ="UTC")
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == b"2023-11-14 22:13:20.000  0:3  k  3\\x1b\n"
    assert process.stdout.readline() == b"2023-11-14 22:13:20.000  0:4  k  4\\x1b\n"
    produce(shared_broker.stub(), topic, pb.Record(timestamp=1_700_000_000_001))
    assert process.stdout.readline() == b"2023-11-14 22:13:20.001  0:5  (tombstone)\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    process.stdout.close()
    process.stderr.close()


# Groups


def test_a_group_gets_each_record_once(shared_broker: BrokerProcess) -> None:
    topic = new_topic(shared_broker.stub(), 2)
    group = f"group-of-{topic}"
    stub = shared_broker.stub()
    for partition in range(2):
        produce(stub, topic, *[b"%d-%d" % (partition, each) for each in range(10)], partition=partition)
    first = takhin(shared_broker, "consume", topic, "-g", group, "-n", "7").out.splitlines()
    rest = takhin(shared_broker, "consume", topic, "-g", group, "-e", "-f", r"%v\n").out.splitlines()
    assert len(first) == 7 and sorted(first + rest) == sorted(
        b"%d-%d" % (partition, each) for partition in range(2) for each in range(10))
    assert takhin(shared_broker, "consume", topic, "-g", group, "-e").out == b""
    assert [committed(stub, group, topic, partition) for partition in range(2)] == [10, 10]


def test_what_a_group_was_given_before_ctrl_c_is_committed(shared_broker: BrokerProcess) -> None:
    topic = new_topic(shared_broker.stub())
    group = f"group-of-{topic}"
    produce(shared_broker.stub(), topic, b"a", b"b")
    process = start(shared_broker, "consume", topic, "-g", group)
    assert process.stdout is not None and process.stderr is not None
    assert [process.stdout.readline() for _ in range(2)] == [b"a\n", b"b\n"]
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130 and process.stderr.read() == b""
    process.stdout.close()
    process.stderr.close()
    assert committed(shared_broker.stub(), group, topic) == 2


# What nobody expects


@pytest.mark.parametrize(("line", "told"), [
    (b'{"value": 1e400}', "value has what JSON can't say"), (b'{"headers": {"h": [NaN]}}', "header 'h' has what JSON"),
    (b'{"timestamp": 99999999999999999999}', "timestamp 99999999999999999999 is not a number of milliseconds"),
    (b'{"partition": 99999999999}', "partition 99999999999 is not a number"), (b"[" * 200_000, "is not JSON"),
])
def test_json_beyond_what_there_is(line: bytes, told: str) -> None:
    with pytest.raises(CommandError, match="^line 1") as refused:
        JsonLines(None).read(line, "line 1")
    assert told in str(refused.value)


def test_numbers_that_are_very_large(shared_broker: BrokerProcess) -> None:
    topic = new_topic(shared_broker.stub())
    produce(shared_broker.stub(), topic, b"a", b"b")
    assert takhin(shared_broker, "consume", topic, "-e", "-n", "5000000000").out == b"a\nb\n"
    done = takhin(shared_broker, "group", "reset", "g", "-t", topic, "--to", "@-9999999999w", status=2)
    assert "--to '@-9999999999w' is not known" in done.complaint


def test_without_standard_input_nothing_is_deleted(shared_broker: BrokerProcess) -> None:
    topic = new_topic(shared_broker.stub())
    done = subprocess.run(
        ["/bin/sh", "-c", '"$@" <&-', "sh", *TAKHIN, "topic", "delete", topic], capture_output=True, timeout=60,
        env=environment(shared_broker))
    assert done.returncode == 2 and b"add --yes" in done.stderr and b"Traceback" not in done.stderr
    takhin(shared_broker, "topic", "describe", topic)


def test_an_output_that_does_not_wait(shared_broker: BrokerProcess) -> None:
    topic = new_topic(shared_broker.stub())
    text = b"x" * 99 + b"\n"
    takhin(shared_broker, "produce", topic, "-q", stdin=text * 5_000)
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    process = start(shared_broker, "consume", topic, "-e", stdout=theirs)
    os.close(theirs)
    time.sleep(0.5)  # it fills the pipe meanwhile
    with open(ours, "rb") as pipe:
        assert pipe.read() == text * 5_000
    assert process.wait(60) == 0
    assert process.stderr is not None
    process.stderr.close()


# A broker that dies meanwhile


def test_a_member_without_partitions_ends_with_the_broker(tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path).start()

    async def wait_for_partitions() -> None:
        async with client.connect(broker.address) as other, client.connect(broker.address, retry_s=0.2) as tk:
            await other.create_topic("t", partitions=1)
            async with other.producer("t") as producer:
                await producer.send(b"a")
            owner = other.consumer("t", group="g")
            await owner.start()
            await owner.next()

            async def copy() -> None:
                async with Sink() as sink:
                    await consume_group(
                        tk, "t", "g", start_at("earliest"), Formatted(b"%v"), sink, count=None, until_end=True)

            copying = asyncio.ensure_future(copy())
            while (await other.describe_group("g")).members[1:] == ():
                await asyncio.sleep(0.02)
            assert not (await asyncio.wait([copying], timeout=0.3))[0], "it waits for partitions"
            broker.kill()
            with pytest.raises(client.Unavailable):
                await asyncio.wait_for(copying, 20)
            with suppress(client.ClientError):
                await owner.aclose()

    try:
        asyncio.run(wait_for_partitions())
    finally:
        broker.close()


def test_what_was_not_acknowledged_is_waited_for_once(tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path).start()

    async def send() -> float:
        async with client.connect(broker.address) as tk:
            await tk.create_topic("t", partitions=1)
            (tmp_path / "lines").write_bytes(b"1\n2\n")
            shape = shape_of("", None, (), "\\n", False, False, None, 1000)
            began_s = 0.0
            with pytest.raises(client.NotDelivered) as late:
                async with tk.producer("t", flush_timeout_s=0.5) as producer:
                    broker.kill()
                    began_s = time.monotonic()
                    await Sending(producer, "t", None, shows=False).send(
                        [str(tmp_path / "lines")], shape, 1, as_json=False)
            told = command_error(late.value, broker.address)
            assert str(told).startswith("2 records for 't' (partitions 0) were not acknowledged within 0.5 s: ")
            assert "--timeout" not in str(told) and told.status == 6
            return time.monotonic() - began_s

    try:
        assert asyncio.run(send()) < 0.9
    finally:
        broker.close()
