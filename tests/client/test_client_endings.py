"""What ends connections in an orderly way, the connection's age and a broker that is restarted, goes unnoticed."""

import asyncio

import takhin
from tests.broker_process import new_topic
from tests.client.proxy import background, proxy_to
from tests.conftest import StartBroker


def test_connection_age_and_restarts_go_unnoticed(start_broker: StartBroker) -> None:
    broker = start_broker("--grpc-connection-age-ms", "300", "--grpc-connection-age-grace-ms", "200")
    topic = new_topic(broker.stub(), 2)
    count = 2_000

    async def main() -> None:
        async with (
            proxy_to(broker.address) as proxy, takhin.connect(proxy.address) as tk,
            tk.producer(topic, batch_bytes=1_000) as producer, tk.consumer(topic, group="g") as consumer,
        ):
            async def produce_all() -> list[takhin.RecordMetadata]:
                futures = []
                for number in range(count):
                    futures.append(producer.send_nowait(b"%06d" % number, partition=number % 2))
                    if number % 20 == 0:
                        await asyncio.sleep(0.015)
                    if number == 1_000:
                        # In order, with its drain: nobody is told but by UNAVAILABLE.
                        await asyncio.to_thread(broker.restart)
                        proxy.target = broker.address
                return await asyncio.gather(*futures)

            async def read_all() -> list[takhin.Message]:
                return [message async for message in tk.read(topic, max_records=count)]

            reading = asyncio.ensure_future(read_all())
            async with background(produce_all()), asyncio.timeout(60):
                consumed = []
                async for message in consumer:
                    consumed.append(message)
                    if len(consumed) % 500 == 0:
                        await consumer.commit()
                    if len(consumed) == count:
                        break
                read = await reading
            for found in consumed, read:
                for partition in 0, 1:
                    own = [each for each in found if each.partition == partition]
                    assert [each.offset for each in own] == list(range(count // 2))
                    assert [each.value for each in own] == [b"%06d" % number for number in range(partition, count, 2)]

    asyncio.run(main())
