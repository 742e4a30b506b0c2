"""Topic configs: every name, its bounds on both sides, and what is refused with which words."""

from dataclasses import replace

import pytest

from takhin.broker.topic_config import TimestampType, TopicConfig, parse_stored_config, parse_topic_config
from takhin.config import SAFE_INT_MAX, Settings, TopicDefaults
from takhin.errors import Code, Reason, TakhinError

CEILING = Settings().grpc.max_message_bytes - 65536
LARGEST_SEGMENT = (1 << 31) - 1 - Settings().grpc.max_message_bytes
LONG_MAX = 9223372036854775807
DEFAULTS = TopicDefaults()


def parse(**configs: str) -> TopicConfig:
    """Names with an underscore for each dot."""
    return parse_topic_config({name.replace("_", "."): value for name, value in configs.items()}, DEFAULTS, CEILING)


def refusal(configs: dict[str, str]) -> TakhinError:
    with pytest.raises(TakhinError) as caught:
        parse_topic_config(configs, DEFAULTS, CEILING)
    assert caught.value.reason is Reason.INVALID_CONFIG
    assert caught.value.code is Code.INVALID_ARGUMENT
    return caught.value


def test_without_configs_the_brokers_defaults_hold() -> None:
    defaults = TopicDefaults(
        retention_ms=1, retention_bytes=2, segment_bytes=3000, segment_ms=4, max_record_bytes=5, flush_ms=6
    )
    assert parse_topic_config({}, defaults, CEILING) == TopicConfig(
        1, 2, 3000, 4, 5, 6, timestamp_type=TimestampType.CREATE_TIME
    )


def test_defaults_are_kept_within_what_configs_may_be() -> None:
    defaults = TopicDefaults(segment_bytes=(1 << 31) - 1, max_record_bytes=CEILING + 1)
    config = parse_topic_config({}, defaults, CEILING)
    assert (config.segment_bytes, config.max_record_bytes) == (LARGEST_SEGMENT, CEILING)


def test_all_names_together() -> None:
    config = parse(
        retention_ms="1000", retention_bytes="2000", segment_bytes="3000", segment_ms="4000", max_message_bytes="5000",
        flush_ms="6000", message_timestamp_type="LogAppendTime", cleanup_policy="delete", compression_type="producer",
    )
    assert config == TopicConfig(1000, 2000, 3000, 4000, 5000, 6000, TimestampType.LOG_APPEND_TIME)


BOUNDS = [
    ("retention.ms", "retention_ms", 0, LONG_MAX, True),
    ("retention.bytes", "retention_bytes", 0, LONG_MAX, True),
    ("segment.bytes", "segment_bytes", 1024, LARGEST_SEGMENT, False),
    ("segment.ms", "segment_ms", 1, LONG_MAX, False),
    ("max.message.bytes", "max_record_bytes", 1, CEILING, False),
    ("flush.ms", "flush_ms", 1, LONG_MAX, True),
]


@pytest.mark.parametrize(("name", "field", "minimum", "maximum", "has_minus_one"), BOUNDS)
def test_bounds(name: str, field: str, minimum: int, maximum: int, has_minus_one: bool) -> None:
    def parsed(value: int) -> int:
        return getattr(parse_topic_config({name: str(value)}, DEFAULTS, CEILING), field)

    assert parsed(minimum) == minimum
    assert parsed(minimum + 1) == minimum + 1
    assert parsed(maximum) == min(maximum, SAFE_INT_MAX)
    wrong = [minimum - 1 if minimum else -2, maximum + 1, -2]
    if has_minus_one:
        assert parsed(-1) == -1
    else:
        wrong.append(-1)
    for value in wrong:
        caught = refusal({name: str(value)})
        assert caught.metadata == {"config": name}
        for word in (f"{name} = '{value}'", str(minimum), str(maximum)):
            assert word in caught.message
        assert ("-1" in caught.message.split("allowed:")[1]) is has_minus_one


@pytest.mark.parametrize(
    "value",
    [
        "", " ", "1 ", " 1", "+1", "1.0", "1e3", "0x10", "1_000", "007", "-0", "--1", "one", "1\n", "\x00",
        "\u0661\u0662", "\uff11\uff12",  # digits, but not ASCII's
        "9" * 20, "9" * 10_000, "-9223372036854775809",
    ],
)
def test_what_is_no_integer(value: str) -> None:
    caught = refusal({"segment.ms": value})
    assert "a decimal integer from 1 to" in caught.message
    assert len(caught.message) < 300
    assert caught.message.isprintable()


@pytest.mark.parametrize(
    ("name", "accepted", "wrong", "why"),
    [
        ("cleanup.policy", ["delete"], ["compact", "compact,delete", "", "Delete"], "compaction is not supported yet"),
        ("compression.type", ["producer", "uncompressed"], ["gzip", "zstd", "none"], "compresses nothing"),
        ("delete.retention.ms", [str(LONG_MAX)], ["86400000", "0", "-1"], "compaction is not supported yet"),
        ("min.compaction.lag.ms", ["0", str(LONG_MAX)], ["1", "-1"], "compaction is not supported yet"),
        ("flush.messages", [str(LONG_MAX)], ["1", "0", "-1"], "flush.ms"),
        ("message.timestamp.type", ["CreateTime", "LogAppendTime"], ["createtime", "", "LOG_APPEND_TIME"], ""),
    ],
)
def test_words(name: str, accepted: list[str], wrong: list[str], why: str) -> None:
    for value in accepted:
        config = parse_topic_config({name: value}, DEFAULTS, CEILING)
        if name != "message.timestamp.type":
            assert config == parse()
    for value in wrong:
        caught = refusal({name: value})
        assert caught.metadata == {"config": name}
        assert f"{name} = {value!r}" in caught.message
        assert why in caught.message
        assert caught.message.endswith("allowed: " + " or ".join(accepted))


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("retention.mss", "retention.ms"),
        ("retention_ms", "retention.ms"),
        ("Segment.Bytes", "segment.bytes"),
        ("cleanup", "cleanup.policy"),
        ("max.message.byte", "max.message.bytes"),
    ],
)
def test_an_unknown_name_is_told_the_nearest_and_all(name: str, nearest: str) -> None:
    caught = refusal({"flush.ms": "5", name: "1"})
    assert caught.metadata == {"config": name}
    assert f"unknown topic config '{name}'; the nearest known one is {nearest};" in caught.message
    for known, *_ in BOUNDS:
        assert known in caught.message


@pytest.mark.parametrize("name", ["", "x" * 1_000_000, "\x1b[31m\n", "\U0001f600"])
def test_absurd_names(name: str) -> None:
    caught = refusal({name: "1"})
    assert len(caught.message) < 600
    assert len(caught.metadata["config"]) <= 80
    assert caught.message.isprintable()


def test_stored_configs_beyond_a_bound_that_was_lowered_since() -> None:
    stored = {"max.message.bytes": str(CEILING), "segment.bytes": str(LARGEST_SEGMENT), "retention.ms": "5"}
    lower = replace(DEFAULTS, max_record_bytes=1000)
    with pytest.raises(TakhinError):
        parse_topic_config(stored, lower, 1000)
    config = parse_stored_config("t", stored, lower, 1000)
    assert (config.max_record_bytes, config.segment_bytes, config.retention_ms) == (1000, LARGEST_SEGMENT, 5)
    with pytest.raises(TakhinError, match="topic 't': max.message.bytes = '0' is not allowed"):
        parse_stored_config("t", {"max.message.bytes": "0"}, lower, 1000)
