"""Topic configs under Kafka's names: what is known, what each may be, and what it means to this broker.

A config that would change nothing is refused rather than kept in silence, unless its value says what the broker does
anyway.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from takhin.config import RESPONSE_OVERHEAD_BYTES, SAFE_INT_MAX, TopicDefaults
from takhin.errors import Reason, TakhinError, error

# Small enough for tests to roll with a few records.
MIN_SEGMENT_BYTES = 1024
# A segment file stays below 2 GiB.
_SEGMENT_CEILING_BYTES = (1 << 31) - 1
# Kafka's longest time and largest size; it writes "never" so.
_LONG_MAX = (1 << 63) - 1
# One spelling for each number, and never more digits than int64 has.
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")
_SHOWN_CHARACTERS = 80


class TimestampType(StrEnum):
    """message.timestamp.type: whose clock a record's timestamp is from."""

    CREATE_TIME = "CreateTime"  # the producer's, where it gave one
    LOG_APPEND_TIME = "LogAppendTime"  # always the broker's


@dataclass(frozen=True, slots=True)
class TopicConfig:
    """What holds for one topic: its own configs over the broker's defaults. No number is above 2^53 - 1.

    retention_ms, retention_bytes (of one partition), flush_ms: -1 is no bound.
    max_record_bytes: of one record as encoded.
    """

    retention_ms: int
    retention_bytes: int
    segment_bytes: int
    segment_ms: int
    max_record_bytes: int
    flush_ms: int
    timestamp_type: TimestampType = TimestampType.CREATE_TIME

    @property
    def log_append_time(self) -> bool:
        """Whether the producer's timestamp is replaced by the broker's clock."""
        return self.timestamp_type is TimestampType.LOG_APPEND_TIME


@dataclass(frozen=True, slots=True)
class _Number:
    """A config with a whole number for TopicConfig's `field`. minus_one: what -1 means, where it is allowed."""

    field: str
    unit: str
    minimum: int
    maximum: Callable[[int], int]  # of max_record_ceiling_bytes
    minus_one: str = ""

    def read(self, name: str, value: str, ceiling: int, clamp: bool) -> dict[str, Any]:
        maximum = self.maximum(ceiling)
        number = int(value) if _INTEGER.fullmatch(value) else None
        if number is not None and clamp:
            number = min(number, maximum)
        if number is None or not (self.minimum <= number <= maximum or (number == -1 and self.minus_one)):
            or_minus_one = f", or -1: {self.minus_one}" if self.minus_one else ""
            raise _refusal(name, value, f"a decimal integer from {self.minimum} to {maximum} {self.unit}{or_minus_one}")
        # Kafka's "never" is so high that adding it to a clock's time would overflow. 2^53 - 1 ms are 285,000 years.
        return {self.field: min(number, SAFE_INT_MAX)}


@dataclass(frozen=True, slots=True)
class _Choice:
    """A config with a word for TopicConfig's `field`."""

    field: str
    choices: type[StrEnum]

    def read(self, name: str, value: str, ceiling: int, clamp: bool) -> dict[str, Any]:
        if value not in list(self.choices):
            raise _refusal(name, value, " or ".join(self.choices))
        return {self.field: self.choices(value)}


@dataclass(frozen=True, slots=True)
class _Fixed:
    """A config the broker has no use for. Accepted: the values that are true of it. why: the rest's refusal."""

    accepted: tuple[str, ...]
    why: str

    def read(self, name: str, value: str, ceiling: int, clamp: bool) -> dict[str, Any]:
        if value not in self.accepted:
            raise _refusal(name, value, " or ".join(self.accepted), self.why)
        return {}


def _long(ceiling: int) -> int:
    return _LONG_MAX


def _largest_segment(ceiling: int) -> int:
    # The batch that reaches the bound may be as large as a message, and still belongs to the segment.
    return _SEGMENT_CEILING_BYTES - ceiling - RESPONSE_OVERHEAD_BYTES


_CONFIGS: dict[str, _Number | _Choice | _Fixed] = {
    "cleanup.policy": _Fixed(("delete",), "compaction is not supported yet"),
    "compression.type": _Fixed(
        ("producer", "uncompressed"), "the broker stores records as producers sent them and compresses nothing"
    ),
    "delete.retention.ms": _Fixed(
        (str(_LONG_MAX),), "compaction is not supported yet, so tombstones stay as long as other records"
    ),
    "flush.messages": _Fixed(
        (str(_LONG_MAX),),
        "the broker does not sync by count: use flush.ms, or required_acks -1 for records that must be durable",
    ),
    "flush.ms": _Number("flush_ms", "milliseconds", 1, _long, "only when a producer asks for it"),
    "max.message.bytes": _Number("max_record_bytes", "bytes", 1, lambda ceiling: ceiling),
    "message.timestamp.type": _Choice("timestamp_type", TimestampType),
    "min.compaction.lag.ms": _Fixed(("0", str(_LONG_MAX)), "compaction is not supported yet"),
    "retention.bytes": _Number("retention_bytes", "bytes", 0, _long, "no bound"),
    "retention.ms": _Number("retention_ms", "milliseconds", 0, _long, "keep for ever"),
    "segment.bytes": _Number("segment_bytes", "bytes", MIN_SEGMENT_BYTES, _largest_segment),
    "segment.ms": _Number("segment_ms", "milliseconds", 1, _long),
}


def parse_topic_config(
    configs: Mapping[str, str], defaults: TopicDefaults, max_record_ceiling_bytes: int
) -> TopicConfig:
    """What `configs` and `defaults` together mean.

    max_record_ceiling_bytes: the message limit less a response's overhead.
    Raises INVALID_CONFIG naming the config, its value and what is allowed.
    """
    return _parse(configs, defaults, max_record_ceiling_bytes, clamp=False)


def parse_stored_config(
    topic: str, configs: Mapping[str, str], defaults: TopicDefaults, max_record_ceiling_bytes: int
) -> TopicConfig:
    """What configs that `topic` was given earlier mean now: a number above its bound counts as the bound, so that a
    lowered message limit does not keep the broker from starting. Raises INVALID_CONFIG, of what no broker has stored.
    """
    try:
        return _parse(configs, defaults, max_record_ceiling_bytes, clamp=True)
    except TakhinError as refusal:
        raise error(refusal.reason, f"topic {topic!r}: {refusal.message}", topic=topic) from None


def _parse(
    configs: Mapping[str, str], defaults: TopicDefaults, max_record_ceiling_bytes: int, clamp: bool
) -> TopicConfig:
    config = TopicConfig(
        retention_ms=defaults.retention_ms,
        retention_bytes=defaults.retention_bytes,
        segment_bytes=min(defaults.segment_bytes, _largest_segment(max_record_ceiling_bytes)),
        segment_ms=defaults.segment_ms,
        max_record_bytes=min(defaults.max_record_bytes, max_record_ceiling_bytes),
        flush_ms=defaults.flush_ms,
    )
    own: dict[str, Any] = {}
    for name, value in configs.items():
        known = _CONFIGS.get(name)
        if known is None:
            raise _unknown(name)
        own |= known.read(name, value, max_record_ceiling_bytes, clamp)
    return replace(config, **own)


def check_config_name(name: str) -> None:
    """Raises INVALID_CONFIG when there is no such topic config."""
    if name not in _CONFIGS:
        raise _unknown(name)


def _refusal(name: str, value: str, allowed: str, why: str = "") -> TakhinError:
    reason = f" ({why})" if why else ""
    return error(
        Reason.INVALID_CONFIG, f"{name} = {_shown(value)} is not allowed{reason}; allowed: {allowed}", config=name
    )


def _unknown(name: str) -> TakhinError:
    # Any name has a nearest one; the cut keeps the search from reading a megabyte.
    nearest = difflib.get_close_matches(name[:_SHOWN_CHARACTERS], _CONFIGS, 1, 0.0)[0]
    return error(
        Reason.INVALID_CONFIG,
        f"unknown topic config {_shown(name)}; the nearest known one is {nearest}; known are: {', '.join(_CONFIGS)}",
        config=name[:_SHOWN_CHARACTERS],
    )


def _shown(text: str) -> str:
    """Quoted, with control characters escaped, and not too long for a message."""
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "...")
