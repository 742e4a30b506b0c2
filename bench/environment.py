"""What both ends of the load bench agree on: gRPC's environment, its channel options, and the paths called."""

import os

from takhin.cli.server import GRPC_ENVIRONMENT

MESSAGE_LIMIT_BYTES = 10 * 1024 * 1024

# No proxy between two ends of one machine; messages as large as the broker takes them.
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
    ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
    ("grpc.enable_http_proxy", 0),
)

SERVICE = "/takhin.v1.TakhinService/"
PRODUCE = SERVICE + "ProduceMessage"
PRODUCE_STREAM = SERVICE + "ProduceMessageStream"
CONSUME = SERVICE + "ConsumeMessages"

# Only the bare server has these: each produced message pokes one constant message out of every open relay.
RELAY = "/bench.Bare/Relay"
RELAYED_PRODUCE = "/bench.Bare/Produce"
RELAYED_PRODUCE_STREAM = "/bench.Bare/ProduceStream"

CONSUME_RESPONSE_BYTES = 1024 * 1024
RELAY_VALUE_BYTES = 1024



def prepare() -> None:
    """Run with the switches that the broker sets for itself; what the caller of the bench has set stands.

    To be called before grpc is imported, which reads them once.
    """
    for name, value in GRPC_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
