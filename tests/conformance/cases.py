"""The named cases. Every client runs every one, or says why its library can't express it."""

CASES = {
    # Messages
    "unary-echo": "a call gives back its message, OK",
    "unary-empty": "a message of 0 bytes, both ways",
    "unary-4mib": "a message of 4 MiB, both ways",
    "unary-sizes": "messages of lengths around those of frames and windows",
    "stream-count": "a server stream of 1,000 messages, in order, then OK",
    "stream-empty": "a server stream without a message, OK",
    "stream-large": "a server stream of 32 messages of 1 MiB",
    "bidi-chat": "each message is answered before the next one is sent",
    "bidi-half-close": "the client ends its side, and all answers come after that",
    "bidi-collect": "a client stream of 2,000 messages, one answer",
    "interleaved-streams": "50 bidi streams take turns on one connection, none gets another's messages",
    "concurrent-1000": "1,000 calls at once on one connection, each with its own answer",
    # Status
    "error-unary": "a call that fails: code, message, no answer",
    "error-codes": "every code that an error of the table can have",
    "error-after-messages": "a stream that fails after messages: they come first",
    "error-while-sending": "a bidi call that fails while the client still sends: its status, not the write's",
    "message-percent": "grpc-message with unicode, control characters and percent signs",
    "status-details": "grpc-status-details-bin: google.rpc.Status with ErrorInfo",
    "unknown-method": "UNIMPLEMENTED",
    "unknown-service": "UNIMPLEMENTED",
    # Metadata
    "metadata-ascii": "text metadata reaches the handler, keys in lower case",
    "metadata-binary": "all bytes there are, and none, in -bin metadata",
    "metadata-too-large": "more than the server takes fails this call alone",
    "request-id": "x-request-id comes back, of a success and of an error",
    # Time and cancellation
    "deadline": "DEADLINE_EXCEEDED, and the handler is cancelled",
    "deadline-known": "the handler knows how long it has",
    "deadline-enforced": "the server ends a call by grpc-timeout without the client's help",
    "cancel-unary": "the client cancels, the handler is cancelled",
    "cancel-stream": "the same of a server stream under way",
    "cancel-bidi": "the same of a bidi stream under way",
    # Compression
    "gzip-request": "messages in gzip are taken, unary and bidi",
    "gzip-response": "a server set to gzip sends it to who takes it",
    "identity-default": "a server that is not set to compress does not",
    "unknown-encoding": "UNIMPLEMENTED, with grpc-accept-encoding",
    # Limits and flow control
    "limit-request": "RESOURCE_EXHAUSTED for a request too large; the connection lives on",
    "limit-response": "RESOURCE_EXHAUSTED for an answer too large; the connection lives on",
    "slow-reader": "a reader that takes nothing stops the writer; it goes on when it reads, and others are served",
    # The life of a connection
    "age-drain": "connections grow old under load: no call is lost, and there are new connections",
    "age-stream": "a stream that is older than its connection may get ends well",
    "graceful-stop": "calls under way end well when the server stops; it takes no new ones",
    "keepalive": "a silent stream outlives the server's pings, and the client's",
    "ping-policing": "who pings too often gets GOAWAY: ENHANCE_YOUR_CALM, too_many_pings",
    "tls": "TLS with ALPN h2",
    "tls-no-alpn": "a TLS client that does not ask for h2 is not served",
    "mtls": "the client's certificate reaches the handler",
    "mtls-missing": "no certificate, no call",
    # HTTP/2, seen by a client that is no gRPC library
    "trailers-only": "an error without messages is one HEADERS frame with END_STREAM",
    "slow-reader-window": "of a client that opens no window the server holds the window and little more",
    "content-type": "a request that is not gRPC gets 415 or a gRPC status, and the connection lives on",
    # The broker
    "health-check": "grpc.health.v1 Check: SERVING, NOT_FOUND",
    "health-watch": "grpc.health.v1 Watch: the status at once",
    "reflection": "grpc.reflection.v1: services, and the file of one",
    "broker-produce-consume": "100 records one by one, read back in order",
    "broker-produce-stream": "1,000 records on a stream, each acked in order, read back",
}

# Which need a client that writes frames itself.
RAW = (
    "deadline-enforced", "identity-default", "unknown-encoding", "ping-policing", "tls-no-alpn", "trailers-only",
    "content-type", "slow-reader-window",
)
STOCK = tuple(name for name in CASES if name not in RAW)
