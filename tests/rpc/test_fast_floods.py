"""Hostile clients of the fast front: what each costs is bounded, and who calls beside them goes on.

With -s the figures of each attack are printed: the broker's memory, and a neighbour's calls without and with it.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

pytest.importorskip("takhin.rpc.fast.connection", reason="the fast front is not built")

from takhin.v1 import takhin_pb2 as pb
from tests import fronts
from tests.broker_process import DEADLINE_S, MIB, BrokerProcess, Stub, create_topic, produce
from tests.hostile import ATTACKS, TOPIC, Attack, attacking
from tests.rpc.test_limits import in_the_clear

pytestmark = in_the_clear
# How long an attack lasts.
ATTACK_S = 1.5


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    started = BrokerProcess(tmp_path_factory.mktemp("broker"), "--grpc-handshake-timeout-ms", "1000", front=fronts.FAST)
    started.start()
    create_topic(started.stub(), TOPIC)
    for _ in range(8):
        produce(started.stub(), TOPIC, *[bytes(1000)] * 1000)
    neighbour(started, 0.5)
    yield started
    started.terminate()


@dataclass
class Neighbour:
    """How long its calls took, and the most anonymous memory the broker had meanwhile."""

    took_ms: list[float] = field(default_factory=list)
    most_bytes: int = 0

    def percentile(self, percent: float) -> float:
        return sorted(self.took_ms)[min(int(len(self.took_ms) * percent / 100), len(self.took_ms) - 1)]


def neighbour(broker: BrokerProcess, duration_s: float) -> Neighbour:
    """Produces record after record; every call has to succeed."""
    stub: Stub = broker.stub()
    request = pb.ProduceMessageRequest(topic=TOPIC, record=pb.Record(value=b"x" * 100), required_acks=1)
    seen, until_s = Neighbour(), time.monotonic() + duration_s
    while time.monotonic() < until_s or len(seen.took_ms) < 5:
        begun_s = time.perf_counter()
        assert stub.ProduceMessage(request, timeout=DEADLINE_S).error == ""
        seen.took_ms.append((time.perf_counter() - begun_s) * 1000)
        if len(seen.took_ms) % 10 == 1:
            seen.most_bytes = max(seen.most_bytes, broker.rss_anon_bytes())
    return seen


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_is_bounded_and_the_neighbour_goes_on(
    broker: BrokerProcess, attack: Attack, capsys: pytest.CaptureFixture[str]
) -> None:
    since, before = len(broker.stderr), broker.rss_anon_bytes()
    without = neighbour(broker, 0.3)
    with attacking(attack, broker.address) as counts:
        beside = neighbour(broker, ATTACK_S)
    after = neighbour(broker, 0.2)
    with capsys.disabled():
        print(
            f"\n{attack.name:38} p50/p99 {without.percentile(50):5.2f}/{without.percentile(99):6.2f} ms, beside "
            f"{beside.percentile(50):6.2f}/{beside.percentile(99):7.2f}, RssAnon {before / MIB:6.1f} MiB, most "
            f"{beside.most_bytes / MIB:6.1f}, after {broker.rss_anon_bytes() / MIB:6.1f}; {counts.opened:5} "
            f"connections, {counts.closed:5} closed, {counts.sent_bytes / MIB:7.1f} MiB", end="")
    assert max(beside.most_bytes, after.most_bytes) - before < attack.grows_mib * MIB
    broker.check(since)
