"""Which denials are told one by one, so that whoever is denied in a loop neither fills the disk nor hides the others.

A source is a principal or, where nobody proved who he is, an address. Each may have so many lines a second, all
together more; what is left out is counted, by source, and told once the second is over. Addresses and principals have
Denials of their own: strangers, who may have as many addresses as they like, do not use up what is for those known.
"""

import asyncio
import ipaddress
import time
from collections import Counter
from collections.abc import Callable

# A second, of one source; of all.
MAX_DENIALS_OF_SOURCE = 20
MAX_DENIALS = 500
# Of one second. Those beyond share what one has.
MAX_SOURCES = 1_000
OTHERS = "others"
# Sources that are named with what was left out of theirs; the rest is told in one sum.
MAX_NAMED = 20


def address_source(host: str) -> str:
    """What an address counts as: of IPv6 the first 64 bits, as whoever has one has all that begin so."""
    try:
        address = ipaddress.IPv6Address(host.strip("[]"))
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))


class Denials:
    """tell: is given a source and how many of its denials were left out: with an event loop once the second is over,
    without one at the next denial after it."""

    def __init__(self, tell: Callable[[str, int], None]):
        self._tell = tell
        self._second = 0
        self._counts: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()
        self._told = 0
        self._timer: asyncio.TimerHandle | None = None

    def is_told(self, source: str) -> bool:
        """Whether one more of this source's is told by itself; if not, it is counted."""
        second = int(time.monotonic())
        if second != self._second:
            self._turn()
            self._second = second
        if source not in self._counts and len(self._counts) >= MAX_SOURCES:
            source = OTHERS
        self._counts[source] += 1
        if self._counts[source] <= MAX_DENIALS_OF_SOURCE and self._told < MAX_DENIALS:
            self._told += 1
            return True
        self._left_out[source] += 1
        if self._timer is None:
            self._set_timer()
        return False

    def _set_timer(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        self._timer = loop.call_later(1.0, self._turn)

    def _turn(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        left_out, self._left_out = self._left_out, Counter()
        self._counts.clear()
        self._told = 0
        ordered = left_out.most_common()
        for source, count in ordered[:MAX_NAMED]:
            self._tell(source, count)
        if rest := sum(count for _, count in ordered[MAX_NAMED:]):
            self._tell(OTHERS, rest)
