"""The Python client without asyncio.

    python client_sync.py [ADDRESS]
"""

import sys

import takhin.sync

address = sys.argv[1] if len(sys.argv) > 1 else "localhost:9092"
with takhin.sync.connect(address) as tk:
    tk.create_topic("measurements")
    with tk.producer("measurements") as producer:
        for number in range(1000):
            producer.send_nowait(b"%d" % number)

    messages = list(tk.read("measurements", until_end=True))
    print(f"{len(messages)} messages, the last one is {messages[-1].value!r}")

    with tk.consumer("measurements", group="sums", auto_commit=True) as consumer:
        total = 0
        while (message := consumer.next(timeout_s=1)) is not None:
            total += int(message.value)
    print(f"the sum is {total}, and the group stands at {tk.group_offsets('sums')[0].committed}")
