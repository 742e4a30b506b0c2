"""The examples run as they stand, and the README shows them as they are."""

import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import BrokerProcess, create_topic, produce, wait_until

TOP = Path(__file__).parents[2]
EXAMPLES = sorted((TOP / "examples" / "python").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs(example: Path, broker: BrokerProcess) -> None:
    done = subprocess.run([sys.executable, example, broker.address], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    if example.name == "first_conversation.py":
        assert done.stdout == "stored in partition 1 at offset 0\n0: world hello\n"
    if example.name == "group_member.py":
        assert done.stdout.splitlines() == [
            "0/0: job 0", "0/1: job 2", "1/0: job 1", "1/1: job 3", "committed: 0/2", "committed: 1/2"]
    if example.name == "client_tour.py":
        partition = done.stdout.split("partition ")[1][0]
        assert done.stdout.splitlines() == [
            f"stored in partition {partition} at offset 0", "3: b'ada' b'2 pears'", "4: b'ada' b'3 pears'",
            "billed: b'3 apples'", *[f"billed: b'{number} pears'" for number in range(4)],
            f"billing stands at 5 of partition {partition}, 0 behind",
            "TOPIC_EXISTS: topic 'orders' exists already"]
    if example.name == "client_sync.py":
        assert done.stdout.splitlines() == [
            "1000 messages, the last one is b'999'", "the sum is 499500, and the group stands at 1000"]


def test_the_first_conversation_can_be_had_again(broker: BrokerProcess) -> None:
    command = [sys.executable, TOP / "examples" / "python" / "first_conversation.py", broker.address]
    first, again = (subprocess.run(command, capture_output=True, text=True, timeout=60) for _ in range(2))
    assert (first.stderr, again.stderr) == ("", "")
    assert again.stdout == "stored in partition 1 at offset 1\n0: world hello\n1: world hello\n"


def test_members_of_the_example_share_a_topic(broker: BrokerProcess) -> None:
    """Two of them, until Ctrl-C."""
    stub = broker.stub()
    create_topic(stub, "shared", 2)
    command = [sys.executable, "-u", TOP / "examples" / "python" / "group_member.py", broker.address, "g", "shared"]
    members = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    request = pb.DescribeConsumerGroupRequest(group_id="g")

    def shares() -> list[int]:
        try:
            return [len(each.assignments) for each in stub.DescribeConsumerGroup(request).members]
        except grpc.RpcError:
            return []  # no group yet

    wait_until(lambda: shares() == [1, 1])
    for number in range(10):
        produce(stub, "shared", b"%d" % number, partition=number % 2)
    wait_until(lambda: sum(each.committed_offset for each in stub.FetchOffsets(
        pb.FetchOffsetsRequest(group_id="g")).offsets) == 10)
    told = []
    for member in members:
        member.send_signal(signal.SIGINT)
        out, errors = member.communicate(timeout=60)
        assert errors == ""
        told.append(out.splitlines())
    assert sorted(map(len, told)) == [5, 5]
    assert {line.partition(": ")[2] for lines in told for line in lines} == {f"b'{number}'" for number in range(10)}


def test_the_readme_shows_the_first_conversation() -> None:
    example = (TOP / "examples" / "python" / "first_conversation.py").read_text()
    shown = (TOP / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert shown == example[example.index("import sys") :]


def test_the_files_that_the_readme_names_are_there() -> None:
    readme = (TOP / "README.md").read_text()
    links = [part.split(")")[0].partition("#")[0] for part in readme.split("](")[1:]]
    assert len(links) > 4
    missing = [link for link in links if "://" not in link and not (TOP / link).exists()]
    assert not missing
