"""The Python client: a topic, a producer, messages read by place and by a group.

    python client_tour.py [ADDRESS]
"""

import asyncio
import sys

import takhin


async def main(address: str) -> None:
    async with takhin.connect(address) as tk:
        await tk.create_topic("orders", partitions=3)

        # Leaving the producer waits until all is stored, or raises with what is not.
        async with tk.producer("orders", acks="durable") as producer:
            stored = await producer.send(b"3 apples", key=b"ada", headers={"source": b"tour"})
            print(f"stored in partition {stored.partition} at offset {stored.offset}")
            for number in range(4):
                producer.send_nowait(b"%d pears" % number, key=b"ada")

        async for message in tk.read("orders", partition=stored.partition, start=-2, until_end=True):
            print(f"{message.offset}: {message.key!r} {message.value!r}")

        # Members of one group share the partitions. What is committed is not delivered to the group again.
        async with tk.consumer("orders", group="billing") as consumer:
            async for message in consumer:
                print(f"billed: {message.value!r}")
                await consumer.commit(message)
                if message.value == b"3 pears":
                    break
        for place in await tk.group_offsets("billing"):
            print(f"billing stands at {place.committed} of partition {place.partition}, {place.lag} behind")

        try:
            await tk.create_topic("orders")
        except takhin.TopicExists as exists:
            print(f"{exists.reason}: {exists}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "localhost:9092"))
