"""Members come, leave, are cut and die while the broker is killed: all that was acknowledged reaches every group."""

import random
import threading
import time

import grpc

from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import DEADLINE_S, BrokerProcess, new_topic
from tests.conftest import StartBroker
from tests.member import Member, own_stub, places

PARTITIONS = 4
GROUPS = ("one", "two")
MEMBERS = 3
SECONDS = 12
KILLS = 2


class Committing(Member):
    """Commits what it has read, now and then, and before it releases."""

    def __init__(self, *how, **fields):
        self.positions: dict[tuple[str, int], int] = {}
        # What did not come in order, from where it was told.
        self.wrong: list[str] = []
        super().__init__(*how, **fields)

    def _note(self, response: pb.SubscribeResponse) -> None:
        kind = response.WhichOneof("response")
        if kind == "assigned":
            for each in response.assigned.added:
                self.positions[each.topic, each.partition] = each.offset
        elif kind == "records":
            place = (response.records.topic, response.records.partition)
            for record in response.records.records:
                if record.offset != self.positions.get(place):
                    self.wrong.append(f"{place}: {record.offset} came, not {self.positions.get(place)}")
                self.positions[place] = record.offset + 1
            if len(self.told) % 3 == 0:
                self.commit_all()
        elif kind == "revoking":
            self.commit_all()
            for each in response.revoking.partitions:
                self.positions.pop((each.topic, each.partition), None)
        elif kind == "lost":
            for each in response.lost.partitions:
                self.positions.pop((each.topic, each.partition), None)
        super()._note(response)

    def commit_all(self) -> None:
        if self.positions:
            self.send(commit=pb.CommitOffsets(
                offsets=places(*[(*place, offset) for place, offset in self.positions.items()])))


class Producing(threading.Thread):
    """Acks -1, again and again until it is answered; several copies of a record are fine, none is not."""

    def __init__(self, broker: BrokerProcess, topic: str):
        super().__init__(daemon=True)
        self.broker, self.topic = broker, topic
        self.acked: set[tuple[int, int]] = set()
        self.may_run = True

    def run(self) -> None:
        number = 0
        while self.may_run:
            try:
                answer = self.broker.stub().ProduceMessage(
                    pb.ProduceMessageRequest(
                        topic=self.topic, partition=number % PARTITIONS, required_acks=-1,
                        record=pb.Record(value=b"%d" % number)), timeout=DEADLINE_S)
            except (grpc.RpcError, ValueError):  # ValueError: the channel was closed with the broker
                time.sleep(0.05)
                continue
            self.acked.add((answer.partition, answer.offset))
            number += 1
            time.sleep(0.002)


def test_members_and_the_broker_keep_dying(start_broker: StartBroker) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    broker = start_broker("--groups-grace-ms", "1000", "--groups-revoke-timeout-ms", "1000")
    topic = new_topic(broker.stub(), PARTITIONS)
    producing = Producing(broker, topic)
    producing.start()
    members: dict[str, list[Committing]] = {
        group: [Committing(own_stub(broker), group, topic) for _ in range(MEMBERS)] for group in GROUPS}
    everybody = [(group, member) for group in GROUPS for member in members[group]]
    begun_s = time.monotonic()
    kills = 0
    while time.monotonic() - begun_s < SECONDS:
        time.sleep(0.15)
        if kills < KILLS and time.monotonic() - begun_s > SECONDS * (kills + 1) / (KILLS + 1):
            kills += 1
            broker.restart(kill=True)
        group = chance.choice(GROUPS)
        number = chance.randrange(MEMBERS)
        member = members[group][number]
        what = chance.choice(["nothing", "leave", "half-close", "cancel", "come back"])
        if not member.ended:
            if what == "leave":
                member.commit_all()
                member.send(leave=pb.Leave())
            elif what == "half-close":
                member.half_close()
            elif what in ("cancel", "come back"):
                member.cancel()
        if member.ended or what in ("leave", "half-close"):
            member_id = member.member_id if what == "come back" or chance.random() < 0.5 else ""
            member = Committing(own_stub(broker), group, topic, member_id=member_id)
            members[group][number] = member
            everybody.append((group, member))
    producing.may_run = False
    producing.join()
    # Who is left does its part; who has ended comes back once more.
    for group in GROUPS:
        for number, member in enumerate(members[group]):
            if member.ended:
                members[group][number] = Committing(own_stub(broker), group, topic)
                everybody.append((group, members[group][number]))

    def seen(group: str) -> set[tuple[int, int]]:
        return {
            (record.partition, record.offset) for whose, member in everybody if whose == group
            for record in member.all_records}

    assert len(producing.acked) > 100
    deadline_s = time.monotonic() + DEADLINE_S
    for group in GROUPS:
        while missing := producing.acked - seen(group):
            assert time.monotonic() < deadline_s, f"seed {seed}: {group} misses {sorted(missing)[:10]}"
            time.sleep(0.2)
    for _, member in everybody:
        assert not member.wrong, f"seed {seed}: {member.wrong}"
        if member.failure is not None:
            assert member.failure.code() in (
                grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.ABORTED), member.failure
        for answer in member.of("committed"):
            assert answer.code in (0, 10) or answer.reason == "OFFSET_BEHIND_COMMITTED", answer
