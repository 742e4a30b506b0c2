"""The fast front's texts: grpc-message, grpc-timeout, values of keys that end in "-bin"."""

import pytest

grpc_text = pytest.importorskip("takhin.rpc.fast.grpc_text")


@pytest.mark.parametrize(
    ("message", "encoded"),
    [
        ("", b""),
        ("plain text, as it is", b"plain text, as it is"),
        ("100% ü", b"100%25 %C3%BC"),
        ("a\tb\nc\x7f", b"a%09b%0Ac%7F"),
        # Some readers of headers take spaces at the ends away, and some the whole header.
        (" both ends ", b"%20both ends%20"),
        (" ", b"%20"),
        ("  ", b"%20%20"),
    ],
)
def test_a_message_in_ascii(message: str, encoded: bytes) -> None:
    assert grpc_text.encode_message(message) == encoded


@pytest.mark.parametrize(
    ("text", "timeout_us"),
    [
        (b"1n", 1), (b"1500n", 2), (b"7u", 7), (b"7m", 7_000), (b"7S", 7_000_000), (b"2M", 120_000_000),
        (b"1H", 3_600_000_000), (b"99999999m", 99_999_999_000), (b"0m", 0),
        # More digits than the protocol allows, as gRPC's core takes them.
        (b"999999999m", 999_999_999_000), (b"999999999H", 999_999_999 * 3_600_000_000), (b"0000000007m", 7_000),
        (b"1000000000n", -1), (b"99999999999999999999999999999999H", -1),
        # What is none.
        (b"", -2), (b"m", -2), (b"7", -2), (b"7x", -2), (b"-7m", -2), (b"7.5m", -2), (b"10000000000x", -2),
        (b" 7m", -2),
    ],
)
def test_a_timeout(text: bytes, timeout_us: int) -> None:
    assert grpc_text.timeout_us(text) == timeout_us


@pytest.mark.parametrize("value", [b"", b"\0", b"ab", b"abc", b"abcd", bytes(range(256))])
def test_binary_values_go_both_ways(value: bytes) -> None:
    text = grpc_text.encode_binary(value)
    assert not text.endswith(b"=")
    assert grpc_text.decode_binary(text) == value
    assert grpc_text.decode_binary(text + b"=" * (-len(text) % 4)) == value
    assert grpc_text.decode_binary(b"AAAA," + text) == value


def test_what_is_no_base64() -> None:
    assert grpc_text.decode_binary(b"not base64!") is None
