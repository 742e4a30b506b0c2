"""The way of a produce request: from its bytes into the log.

The answer's bytes are there at once; when they are right is another question, which depends on what was asked for
(required_acks), and on how whoever asks wants to wait: for a future of his own, or for an outcome that he shares.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t

from takhin.codec.messages cimport ProduceRequest
from takhin.outcome cimport Outcome
from takhin.log.partition cimport Partition

from takhin.broker.topics import partition_of
from takhin.codec.messages import encode_produce_failure
from takhin.errors import Reason, error

# Of what was just appended.
cdef enum:
    JUST_APPENDED = -1


@cython.final
cdef class Appending:
    """Appends one request after the other. topics: Topics. limits: of records_per_request, and of what is in flight on
    streams. clock_ms: milliseconds since the epoch."""

    def __init__(self, topics, producers, limits, clock_ms):
        self._topics = topics
        self._by_name = topics.by_encoded_name
        self._producers = producers
        self._clock_ms = clock_ms
        self._request = ProduceRequest(limits.records_per_request)
        self.max_stream_requests = limits.stream_requests_in_flight
        self.max_stream_bytes = limits.stream_bytes_in_flight
        self.max_streams_bytes = limits.all_streams_bytes_in_flight
        # With drain(), which is called when the broker begins to.
        self.streams = set()

    def begin_drain(self):
        """Append nothing from now on."""
        self.is_draining = True
        for stream in list(self.streams):
            stream.drain()

    def append(self, bytes request not None, topics=None):
        """Append the records of a ProduceMessageRequest; gives the encoded answer, which is right when wait() says so.

        topics: a TopicSource; None: all there are. Raises DRAINING, what ProduceRequest.read() raises, INVALID_ACKS,
        INVALID_LIMIT, TOPIC_NOT_FOUND, PARTITION_NOT_FOUND, INVALID_PARTITION, RECORD_TOO_LARGE, and what
        Partition.check() and append() raise.
        """
        return self.take(<const uint8_t*>PyBytes_AS_STRING(request), PyBytes_GET_SIZE(request), topics)

    def wait(self):
        """Of the last request: a future of why its answer is wrong (None: it is right); None: it is right already."""
        return self._wait(False)

    cdef bytes take(self, const uint8_t* request, size_t size, object topics):
        """As append(), of a request that has to stay where it is until this returns."""
        cdef ProduceRequest scan = self._request
        cdef Partition partition
        cdef int durability
        if self.is_draining:
            raise draining_error()
        scan.read_at(request, size)
        topic = self._by_name.get(scan.topic) if topics is None else topics.get_encoded(scan.topic)
        if topic is None:
            topic = self._topics.get_encoded(scan.topic)
        self.acks = scan.required_acks
        if self.acks == ACKS_WRITTEN:
            durability = 2
        elif self.acks == ACKS_DURABLE:
            durability = 3
        elif self.acks == ACKS_NONE:
            durability = 1
        else:
            raise error(
                Reason.INVALID_ACKS, f"required_acks {self.acks} is not known: 0 (none), 1 (written) or -1 (durable)")
        if scan.timeout_ms < 0:
            raise error(Reason.INVALID_LIMIT, f"timeout_ms {scan.timeout_ms} is negative; 0 waits without a limit")
        check_record_sizes(topic, scan)
        # How long the disk may take; a write does not wait for it.
        self.timeout_ms = scan.timeout_ms if self.acks == ACKS_DURABLE else 0
        self._end_offset = JUST_APPENDED
        if scan.is_conditional:
            self.partition = partition = named_partition(topic, scan)
            if scan.has_producer:
                self._producers.check(scan.producer_id, scan.producer_epoch)
            known = partition.check(scan, durability)
            if known is not None:
                response, self._end_offset = known
                return response
        if scan.partition == -1:
            partition = choose_partition(topic, scan)
        else:
            partition = _partition_of(topic, scan.partition)
        self.partition = partition
        return partition.append(scan, self._clock_ms(), durability)

    cdef Outcome outcome(self):
        """As wait(), shared."""
        if self._end_offset == JUST_APPENDED:
            if self.acks == ACKS_WRITTEN:
                return self.partition.written_outcome()
            if self.acks == ACKS_DURABLE:
                return self.partition.durable_outcome()
            return None
        return self._wait(True)

    cdef object _wait(self, bint shared):
        if self.acks == ACKS_NONE:
            return None
        if self._end_offset == JUST_APPENDED:
            return self.partition.written(shared) if self.acks == ACKS_WRITTEN else self.partition.durable(shared)
        # A duplicate, whose records lie below: when its own required_acks is reached.
        if self.acks == ACKS_WRITTEN:
            return self.partition.written_to(self._end_offset, shared)
        return self.partition.durable_to(self._end_offset, shared)


cdef Partition _partition_of(object topic, int64_t number):
    cdef list partitions = topic.partitions
    return partitions[number] if 0 <= number < len(partitions) else partition_of(topic, number)


cpdef int check_record_sizes(object topic, ProduceRequest scan) except -1:
    """Raises RECORD_TOO_LARGE."""
    if scan.largest_record_bytes > topic.config.max_record_bytes:
        raise error(
            Reason.RECORD_TOO_LARGE,
            f"a record of {scan.largest_record_bytes} bytes is larger than max.message.bytes of {topic.name!r}, "
            f"{topic.config.max_record_bytes}",
            topic=topic.name, max_record_bytes=topic.config.max_record_bytes,
        )
    return 0


cpdef Partition named_partition(object topic, ProduceRequest scan):
    """Of a request that is conditional. Raises INVALID_PARTITION, PARTITION_NOT_FOUND."""
    if scan.partition == -1:
        raise error(
            Reason.INVALID_PARTITION,
            "a request with producer or expected_offset names its partition: what they say is said of one",
            topic=topic.name, partition=-1,
        )
    return _partition_of(topic, scan.partition)


cpdef Partition choose_partition(object topic, ProduceRequest scan):
    """By the records' key; without one, the same partition for all of a batch, then the next."""
    cdef list partitions = topic.partitions
    cdef int64_t number = scan.key_partition(<uint32_t>len(partitions))
    if number < 0:
        number = topic.sticky
        if scan.is_batch or not (<Partition>partitions[number]).unwritten:
            number = topic.sticky = (number + 1) % len(partitions)
    return partitions[number]


def ack_timeout(Partition partition not None, timeout_ms):
    """What is told to who did not want to wait longer."""
    return error(
        Reason.ACK_TIMEOUT,
        f"no acknowledgement within timeout_ms ({timeout_ms}): the records are appended, whether they are on the disk "
        "is unknown",
        topic=partition.topic, partition=partition.partition,
    )


def append_error(Partition partition not None, tuple why not None):
    """What is told to who waited for an append that failed. why: (reason, message)."""
    return error(*why, topic=partition.topic, partition=partition.partition)


def failure_answer(refusal):
    """A ProduceMessageResponse that tells of an error, on a stream, which goes on."""
    return encode_produce_failure(
        refusal.metadata.get("topic", "").encode(), int(refusal.metadata.get("partition", 0)), refusal.message,
        refusal.code, refusal.reason.value)


def draining_error():
    """What is told to who comes while the broker shuts down."""
    return error(Reason.DRAINING, "the broker is shutting down; try again")
