"""A partition's hot tail in memory: whole batches, as they go to the file and out to readers.

A ring is a chain of chunks. A batch lies in one chunk, so every batch is one run of bytes and so are neighbours in a
chunk. Chunks are taken at the newer end, each twice as large as the one before it up to a limit, and given back at
the older end. Nothing that is not yet in the file is ever given back. All rings share one budget: the ring that wants
more first gives up its own oldest chunks, then the rings that were longest without an append give up theirs.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

cimport cython

from takhin.log.files cimport Files, iovec

# Writes that are larger let other threads have the interpreter meanwhile; for smaller ones that costs more than it
# gives.
cdef int64_t RELEASE_ABOVE_BYTES = 64 * 1024

cdef enum:
    WRITE_PARTS = 64

cdef size_t SMALLEST_CHUNK_BYTES = 4096
cdef size_t LARGEST_CHUNK_BYTES = 256 * 1024


@cython.final
cdef class RingBudget:
    """What all rings together may hold, in bytes, and what one may."""

    def __init__(self, int64_t limit_bytes, int64_t limit_per_ring_bytes):
        self.limit_bytes = limit_bytes
        self.limit_per_ring_bytes = limit_per_ring_bytes
        # Rings that hold chunks, the one longest without a new chunk first (a dict keeps its order).
        self._rings = {}

    cdef int make_room(self, Ring asking, int64_t wanted_bytes) except -1:
        """Take chunks back from others until wanted_bytes fit, as far as that is possible.

        What a tick appends has to be held until it is written: then the limit is passed by that much.
        """
        cdef Ring ring
        self._rings.pop(asking, None)
        if self.used_bytes + wanted_bytes > self.limit_bytes:
            for ring in list(self._rings):
                if self.used_bytes + wanted_bytes <= self.limit_bytes:
                    break
                while self.used_bytes + wanted_bytes > self.limit_bytes and ring._drop_oldest():
                    pass
                if ring.oldest == NULL:
                    del self._rings[ring]
        self._rings[asking] = None
        return 0

    def release_idle(self, int64_t before_ms):
        """Give back the rings without an append since before_ms. Returns how many bytes."""
        cdef Ring ring
        cdef int64_t held = self.used_bytes
        for ring in list(self._rings):
            if ring.last_append_ms < before_ms:
                ring.trim(0)
            if ring.oldest == NULL:
                del self._rings[ring]
        return held - self.used_bytes


# With its cycles (the budget holds the rings) cleared first, __dealloc__ would find no budget.
@cython.no_gc_clear
@cython.final
cdef class Ring:
    """The newest batches of one partition."""

    def __cinit__(self, RingBudget budget not None):
        self.budget = budget
        self.mask = 0
        self.batches = <RingBatch*>malloc(sizeof(RingBatch))
        if self.batches == NULL:
            raise MemoryError()

    def close(self):
        """Give everything back; what is not written is lost."""
        self.unwritten = self.next
        self.trim(0)
        self.budget._rings.pop(self, None)

    def __dealloc__(self):
        cdef Chunk* chunk = self.oldest
        while chunk != NULL:
            self.oldest = chunk.next
            self._free_chunk(chunk)
            chunk = self.oldest
        self._count(-<int64_t>self.mask * <int64_t>sizeof(RingBatch))
        free(self.batches)

    cdef size_t room(self) noexcept nogil:
        """Bytes that can be appended without a new chunk."""
        return self.newest.capacity_bytes - self.newest.used_bytes if self.newest != NULL else 0

    cdef uint8_t* reserve(self, size_t size) except NULL:
        """Room for size bytes in one piece at the newer end; take() makes it used. Raises MemoryError."""
        cdef Chunk* chunk
        cdef size_t capacity
        if self.newest == NULL or self.newest.capacity_bytes - self.newest.used_bytes < size:
            capacity = SMALLEST_CHUNK_BYTES
            if self.newest != NULL:
                capacity = min(max(self.newest.capacity_bytes * 2, SMALLEST_CHUNK_BYTES), LARGEST_CHUNK_BYTES)
            capacity = max(capacity, size)
            self.trim(max(self.budget.limit_per_ring_bytes - <int64_t>capacity, 0))
            self.budget.make_room(self, <int64_t>capacity)
            chunk = <Chunk*>malloc(sizeof(Chunk) + capacity)
            if chunk == NULL:
                raise MemoryError()
            chunk.next = NULL
            chunk.capacity_bytes = capacity
            chunk.used_bytes = 0
            chunk.first_batch = self.next
            if self.newest == NULL:
                self.oldest = chunk
            else:
                self.newest.next = chunk
            self.newest = chunk
            self._count(<int64_t>capacity)
        return <uint8_t*>self.newest + sizeof(Chunk) + self.newest.used_bytes

    cdef void take(self, size_t size) noexcept nogil:
        """The next size bytes of what was reserved are used."""
        self.newest.used_bytes += size
        self.appended_bytes += size

    cdef RingBatch* add(self) except NULL:
        """A new batch, which begins at the newer end. The caller fills it in. Raises MemoryError."""
        cdef uint64_t count = self.next - self.first
        cdef uint64_t number
        cdef RingBatch* grown
        cdef uint64_t grown_mask
        cdef RingBatch* batch
        if count > self.mask:
            grown_mask = (self.mask + 1) * 2 - 1
            grown = <RingBatch*>malloc((grown_mask + 1) * sizeof(RingBatch))
            if grown == NULL:
                raise MemoryError()
            for number in range(self.first, self.next):
                grown[number & grown_mask] = self.batches[number & self.mask]
            free(self.batches)
            self.batches = grown
            self._count((<int64_t>grown_mask - <int64_t>self.mask) * <int64_t>sizeof(RingBatch))
            self.mask = grown_mask
        batch = self.batch(self.next)
        batch.chunk = self.newest
        batch.data = <uint8_t*>self.newest + sizeof(Chunk) + self.newest.used_bytes
        batch.position = self.appended_bytes
        batch.size = 0
        self.next += 1
        return batch

    cdef bint holds(self, int64_t offset) noexcept nogil:
        return self.first < self.next and self.batch(self.first).base_offset <= offset

    cdef uint64_t find(self, int64_t offset) noexcept nogil:
        """The number of the batch in which offset lies; the ring holds() it and it lies before the end."""
        cdef uint64_t low = self.first
        cdef uint64_t high = self.next - 1
        cdef uint64_t middle
        while low < high:
            middle = low + (high - low + 1) // 2
            if self.batch(middle).base_offset <= offset:
                low = middle
            else:
                high = middle - 1
        return low

    cdef void drop_unwritten(self) noexcept:
        """Forget the batches that are not in the file: they will never be."""
        cdef Chunk* chunk
        cdef Chunk* following
        cdef RingBatch* batch
        if self.unwritten == self.next:
            return
        batch = self.batch(self.unwritten)
        chunk = batch.chunk
        chunk.used_bytes = <size_t>(batch.data - (<uint8_t*>chunk + sizeof(Chunk)))
        self.appended_bytes = batch.position
        self.next = self.unwritten
        following = chunk.next
        chunk.next = NULL
        self.newest = chunk
        while following != NULL:
            chunk = following
            following = chunk.next
            self._free_chunk(chunk)

    cdef void trim(self, int64_t limit_bytes) noexcept:
        """Give back the oldest chunks until at most limit_bytes are held, or what is left is not yet written."""
        while self.size_bytes > limit_bytes and self._drop_oldest():
            pass

    cdef bint _drop_oldest(self) noexcept:
        cdef Chunk* chunk = self.oldest
        cdef uint64_t end
        if chunk == NULL:
            return False
        end = chunk.next.first_batch if chunk.next != NULL else self.next
        if end > self.unwritten:
            return False
        self.first = end
        self.oldest = chunk.next
        if self.oldest == NULL:
            self.newest = NULL
            self._shrink_batches()
        self._free_chunk(chunk)
        return True

    cdef void _shrink_batches(self) noexcept:
        """The ring is empty: its array need not be larger than at first."""
        cdef RingBatch* shrunk
        if self.mask:
            shrunk = <RingBatch*>malloc(sizeof(RingBatch))
            if shrunk != NULL:
                free(self.batches)
                self.batches = shrunk
                self._count(-<int64_t>self.mask * <int64_t>sizeof(RingBatch))
                self.mask = 0

    cdef void _free_chunk(self, Chunk* chunk) noexcept:
        self._count(-<int64_t>chunk.capacity_bytes)
        free(chunk)

    cdef void _count(self, int64_t more_bytes) noexcept:
        self.size_bytes += more_bytes
        self.budget.used_bytes += more_bytes


cdef int write_batches(Ring ring, uint64_t end, Files files, int fd, int64_t position) noexcept:
    """Write the unwritten batches before that number to the file, from position on. 0, or a negative errno."""
    cdef iovec parts[WRITE_PARTS]
    cdef int count = 0
    cdef int result = 0
    cdef uint64_t number
    cdef RingBatch* batch
    cdef uint8_t* run_end = NULL
    cdef int64_t size = 0
    for number in range(ring.unwritten, end):
        batch = ring.batch(number)
        if count and run_end == batch.data:
            parts[count - 1].iov_len += batch.size
        else:
            if count == WRITE_PARTS:
                result = files.write_all(fd, parts, count, position)
                if result < 0:
                    return result
                position += size
                size = 0
                count = 0
            parts[count].iov_base = batch.data
            parts[count].iov_len = batch.size
            count += 1
        size += batch.size
        run_end = batch.data + batch.size
    if size > RELEASE_ABOVE_BYTES:
        with nogil:
            result = files.write_all(fd, parts, count, position)
    else:
        result = files.write_all(fd, parts, count, position)
    return result
