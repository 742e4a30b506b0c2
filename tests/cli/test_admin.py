"""takhin topic, group and bench against a real broker."""

import json

from tests.broker_process import BrokerProcess, commit, committed, new_topic, offsets, produce
from tests.cli.run import takhin
from tests.member import Member


def test_topics(shared_broker: BrokerProcess) -> None:
    done = takhin(shared_broker, "topic", "create", "cli-a", "cli-b", "-p", "2", "-c", "retention.ms=5000")
    assert done.err.splitlines() == ["created topic cli-a with 2 partitions", "created topic cli-b with 2 partitions"]
    produce(shared_broker.stub(), "cli-a", b"x", b"y", partition=1, acks=-1)
    rows = {each["topic"]: each for each in takhin(shared_broker, "topic", "list").objects}
    assert (rows["cli-a"]["partitions"], rows["cli-a"]["records"], rows["cli-a"]["configs"]) == (
        2, 2, {"retention.ms": "5000"})
    (described,) = json.loads(takhin(shared_broker, "topic", "describe", "cli-a", "-O", "json").out)
    assert [(each["start_offset"], each["end_offset"], each["durable_offset"]) for each in described["partitions"]] == [
        (0, 0, 0), (0, 2, 2)]
    table = takhin(shared_broker, "topic", "describe", "cli-a", "cli-b", "-O", "table").out.decode().splitlines()
    assert table[0].split() == ["TOPIC", "PARTITION", "START", "END", "DURABLE", "BYTES"] and len(table) == 5
    takhin(shared_broker, "topic", "create", "cli-a", "--if-not-exists")
    updated = takhin(shared_broker, "topic", "update", "cli-a", "-p", "3", "-c", "flush.ms=10", "-r", "retention.ms")
    assert updated.err == "topic cli-a has 3 partitions, flush.ms=10\n"
    takhin(shared_broker, "topic", "delete", "cli-a", "cli-nope", "-y", status=3)
    # Nothing of it was done.
    deleted = takhin(shared_broker, "topic", "delete", "cli-a", "cli-b", "-y")
    assert deleted.err == "deleted topic cli-a\ndeleted topic cli-b\n"
    assert "cli-a" not in takhin(shared_broker, "topic", "list").out.decode()


def test_groups(shared_broker: BrokerProcess) -> None:
    stub = shared_broker.stub()
    topic = new_topic(stub, 2)
    group = f"group-of-{topic}"
    produce(stub, topic, *[b"x"] * 10, partition=1)
    commit(stub, group, (topic, 1, 4))
    assert group in [each["group"] for each in takhin(shared_broker, "group", "list").objects]
    (lag,) = takhin(shared_broker, "group", "lag", group).objects
    assert (lag["partition"], lag["committed"], lag["end_offset"], lag["lag"]) == (1, 4, 10, 6)
    both = takhin(shared_broker, "group", "lag", group, "-t", topic, "-O", "table")
    assert len(both.out.splitlines()) == 3 and both.err == "lag in all: 6\n"
    # A reset shows what it would do first.
    for arguments in (["--to", "earliest", "--dry-run"], ["--to", "earliest"]):
        asked = takhin(shared_broker, "group", "reset", group, *arguments, status=0 if "--dry-run" in arguments else 2)
        assert [(each["old_offset"], each["new_offset"], each["by"]) for each in asked.objects] == [(4, 0, -4)]
        assert committed(stub, group, topic, 1) == 4
    takhin(shared_broker, "group", "reset", group, "--shift", "3", "-y")
    assert committed(stub, group, topic, 1) == 7
    takhin(shared_broker, "group", "reset", group, "--to", "2", "-p", f"{topic}/1", "-y")
    takhin(shared_broker, "group", "reset", group, "--to", "@-1h", "-t", topic, "-y")
    assert [committed(stub, group, topic, partition) for partition in range(2)] == [0, 0]
    told = takhin(shared_broker, "group", "reset", group, "--to", "99", "-y", status=2).complaint
    assert "99" in told
    takhin(shared_broker, "group", "delete", group, "-y")
    takhin(shared_broker, "group", "describe", group, status=3)


def test_a_group_with_a_member(shared_broker: BrokerProcess) -> None:
    topic = new_topic(shared_broker.stub())
    group = f"group-of-{topic}"
    member = Member(shared_broker.stub(), group, topic, client_id="someone")
    member.wait(lambda: member.of("assigned"))
    described = takhin(shared_broker, "group", "describe", group).objects[0]
    assert described["state"] == "Stable"
    assert [(each["client"], each["topic"], each["partition"]) for each in described["assignments"]] == [
        ("someone", topic, 0)]
    told = takhin(shared_broker, "group", "reset", group, "--to", "latest", "-t", topic, "-y", status=1).complaint
    assert f"; takhin group describe {group} names them" in told
    member.leave()


def test_bench(shared_broker: BrokerProcess) -> None:
    before = takhin(shared_broker, "topic", "list").out
    for arguments, records in [
        (["produce", "-n", "5000", "--size", "100"], 5000), (["consume", "-n", "5000", "-p", "2"], 5000),
        (["e2e", "-d", "0.5", "-r", "100"], 50),
    ]:
        (told,) = takhin(shared_broker, "bench", *arguments).objects
        assert told["records"] == records and told["records_per_s"] > 0 and told["mb_per_s"] > 0
        assert 0 < told["p50_ms"] <= told["p99_ms"] <= told["max_ms"]
    assert [json.loads(line)["topic"] for line in takhin(shared_broker, "topic", "list").out.splitlines()] == [
        json.loads(line)["topic"] for line in before.splitlines()]
    topic = new_topic(shared_broker.stub())
    takhin(shared_broker, "bench", "produce", "-t", topic, "-n", "100")
    assert offsets(shared_broker.stub(), topic).end_offset == 100
