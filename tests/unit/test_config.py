"""Settings: where a value comes from, and what each mistake is answered with."""

import dataclasses
from pathlib import Path

import pytest

from takhin.config import (
    GrpcSettings,
    Limits,
    Option,
    Settings,
    TopicDefaults,
    has_authentication,
    is_loopback,
    load_settings,
    options,
    split_listen,
    unix_path,
)
from takhin.errors import ConfigError


def from_file(tmp_path: Path, text: str | bytes, **environ: str) -> Settings:
    path = tmp_path / "takhin.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_settings({}, environ, str(path))


def refusal(*args: object) -> str:
    """The message of the ConfigError that load_settings raises: always one line."""
    with pytest.raises(ConfigError) as refused:
        load_settings(*args)  # type: ignore[arg-type]
    message = str(refused.value)
    assert message.isprintable(), message
    return message


def file_refusal(tmp_path: Path, text: str | bytes) -> str:
    with pytest.raises(ConfigError) as refused:
        from_file(tmp_path, text)
    message = str(refused.value)
    assert message.startswith(f"{tmp_path / 'takhin.toml'}: ") and "\n" not in message, message
    return message.removeprefix(f"{tmp_path / 'takhin.toml'}: ")


# The fields.


def test_defaults_without_any_source() -> None:
    assert load_settings({}, {}, None) == Settings()


def test_defaults_are_the_documented_ones() -> None:
    settings = Settings()
    assert (settings.listen, settings.data_dir, settings.log_level) == ("127.0.0.1:9092", "./data", "info")
    assert dataclasses.astuple(settings.grpc) == (
        10 << 20, 16 << 10, 10_000, 1_000, 10_000, 900_000, 1_800_000, 300_000, 300_000, 60_000, 10_000, True, False,
        5_000, "none")
    assert dataclasses.astuple(settings.topics) == (
        1, 604_800_000, -1, 128 << 20, 604_800_000, 1 << 20, 1_000, 604_800_000, 300_000)
    assert dataclasses.astuple(settings.groups) == (10_000, 10_000, 1_000, 604_800_000, 600_000)
    assert dataclasses.astuple(settings.limits) == (
        10_000, 10_000, 100_000, 10_000, 100_000, 1_000, 10_000, 100_000, 1_000, 64 << 20, 64 << 20, 8 << 20, 64 << 20,
        10_000, 10_000, 256 << 20, 20_000, 10_000, 1_000, 10_000, 1_024, 16 << 20, 256 << 20, 10_000, 10_000, 4_096,
        64 << 20, 64 << 20)


def test_settings_are_frozen() -> None:
    for settings in Settings(), GrpcSettings(), TopicDefaults(), Limits():
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(settings, dataclasses.fields(settings)[0].name, 1)


@pytest.mark.parametrize("option", options(), ids=lambda option: option.key)
def test_every_field_tells_what_it_is(option: Option) -> None:
    metadata = option.metadata
    assert metadata["help"] and not metadata["help"].endswith(".")
    assert option.flag.startswith("--") and option.flag == option.flag.lower() and "_" not in option.flag
    assert option.variable == option.variable.upper()
    assert option.allowed()
    if option.type is int:
        # The unit stands in the name, and the other way round.
        assert metadata["unit"] == next((unit for unit in ("ms", "bytes") if unit in option.name.split("_")), "")
        assert metadata["minimum"] <= metadata["maximum"]
        assert metadata["minimum"] <= option.default or option.default == -1 and metadata["minus_one"]
        assert option.default <= metadata["maximum"]


def test_names_are_derived_from_the_fields() -> None:
    by_key = {option.key: option for option in options()}
    assert len(by_key) == len(options())
    assert (by_key["listen"].flag, by_key["listen"].variable) == ("--listen", "TAKHIN_LISTEN")
    nested = by_key["grpc.max_message_bytes"]
    assert (nested.flag, nested.variable) == ("--grpc-max-message-bytes", "TAKHIN_GRPC__MAX_MESSAGE_BYTES")
    assert nested.file_key == "[grpc] max_message_bytes"
    assert len({option.flag for option in options()}) == len({option.variable for option in options()})


def test_topic_overheads_fit_by_default() -> None:
    assert Settings().topics.max_record_bytes <= Settings().grpc.max_message_bytes - 65536


# Where values come from.


@pytest.mark.parametrize("option", options(), ids=lambda option: option.key)
def test_each_source_beats_the_next(tmp_path: Path, option: Option) -> None:
    if option.type is bool:
        in_file, in_environment, in_flag = False, True, False
    elif option.type is str and option.metadata["is_address"]:
        in_file, in_environment, in_flag = "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"
    elif option.type is str and option.metadata["is_url"]:
        in_file, in_environment, in_flag = "http://a:1", "https://b", "http://c"
    elif option.type is str:
        in_file, in_environment, in_flag = (option.metadata["choices"] * 2)[1:4] or ("a", "b", "c")
    else:
        assert isinstance(option.default, int)
        in_file, in_environment, in_flag = (max(option.default, option.metadata["minimum"]) - n for n in range(3))
        if option.metadata["minimum"] > in_flag:
            in_file, in_environment, in_flag = (option.metadata["minimum"] + n for n in range(3))

    def value(settings: Settings) -> object:
        return getattr(getattr(settings, option.section) if option.section else settings, option.name)

    def text(value: object) -> str:
        return str(value).lower() if isinstance(value, bool) else str(value)

    path = tmp_path / "takhin.toml"
    shown = f'"{in_file}"' if isinstance(in_file, str) else text(in_file)
    path.write_text((f"[{option.section}]\n" if option.section else "") + f"{option.name} = {shown}\n")
    environ = {option.variable: text(in_environment)}
    flags = {option.key: text(in_flag)}
    none = {each.key: NEEDED_BESIDE.get(option.key, {}).get(each.key) for each in options()}
    assert value(load_settings(none | flags, environ, str(path))) == in_flag
    assert value(load_settings(none, environ, str(path))) == in_environment
    assert value(load_settings(none, {}, str(path))) == in_file
    if option.key not in ("tls.cert", "tls.key"):  # one of a pair is a mistake
        assert value(load_settings(none, {}, None)) == option.default


# What a setting does not do without.
TLS_PAIR = {"tls.cert": "c", "tls.key": "k"}
JWT = {"auth.jwks": "j", "auth.jwt_issuer": "i", "auth.jwt_audience": "a"}
NEEDED_BESIDE = {
    "tls.cert": {"tls.key": "k"}, "tls.key": {"tls.cert": "c"}, "tls.client_ca": TLS_PAIR,
    "auth.jwks": {"auth.jwt_issuer": "i", "auth.jwt_audience": "a"}, "auth.admins": {"auth.keys": "true"},
}


def test_the_file_may_come_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('data_dir = "a"')
    (tmp_path / "b.toml").write_text('data_dir = "b"')
    environ = {"TAKHIN_CONFIG": str(tmp_path / "a.toml")}
    assert load_settings({}, environ, None).data_dir == "a"
    assert load_settings({}, environ, str(tmp_path / "b.toml")).data_dir == "b"


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert from_file(tmp_path, "") == Settings()
    assert from_file(tmp_path, "[grpc]\n[topics]\n") == Settings()


def test_minus_one_where_it_means_something() -> None:
    settings = load_settings({"topics.retention_ms": "-1", "topics.flush_ms": "-1"}, {}, None)
    assert (settings.topics.retention_ms, settings.topics.flush_ms) == (-1, -1)


def test_numbers_may_be_grouped(tmp_path: Path) -> None:
    assert load_settings({"topics.segment_bytes": "1_000_000"}, {}, None).topics.segment_bytes == 1_000_000
    assert from_file(tmp_path, "topics.segment_bytes = 1_000_000").topics.segment_bytes == 1_000_000


# Mistakes in values: the source, the value, what is allowed.


@pytest.mark.parametrize("text", [
    "", "ten", "1.5", "1e6", " 1048576", "0x100000", "1__0", "_1", "٣", "-", "9" * 5000, "9_" * 5000 + "9",
])
def test_what_is_no_whole_number(text: str) -> None:
    message = refusal({"grpc.max_message_bytes": text}, {}, None)
    assert message.startswith("--grpc-max-message-bytes: ")
    assert message.endswith("is not allowed; allowed: 131072 to 1073741824 bytes")
    assert len(message) < 200


@pytest.mark.parametrize("option", [option for option in options() if option.type is int], ids=lambda one: one.key)
def test_bounds(option: Option) -> None:
    for value in option.metadata["minimum"] - 1, option.metadata["maximum"] + 1, -2:
        if value == -1 and option.metadata["minus_one"]:
            continue
        message = refusal({}, {option.variable: str(value)}, None)
        assert message == f"{option.variable}: {value} is not allowed; allowed: {option.allowed()}"


@pytest.mark.parametrize("text", ["yes", "True", "1", ""])
def test_what_is_no_boolean(text: str) -> None:
    message = refusal({"grpc.ping_without_calls": text}, {}, None)
    assert message == f"--grpc-ping-without-calls: {text!r} is not allowed; allowed: true or false"


@pytest.mark.parametrize("level", ["loud", "INFO", ""])
def test_what_is_no_log_level(level: str) -> None:
    message = refusal({}, {"TAKHIN_LOG_LEVEL": level}, None)
    assert message.startswith(f"TAKHIN_LOG_LEVEL: {level!r} is not allowed; allowed: debug, info, warning, error")


@pytest.mark.parametrize("path", ["", "a\nb", "a\x00b"])
def test_what_is_no_directory(path: str) -> None:
    assert refusal({}, {"TAKHIN_DATA_DIR": path}, None).startswith(f"TAKHIN_DATA_DIR: {path!r} is not allowed")


@pytest.mark.parametrize(("listen", "parts"), [
    ("127.0.0.1:9092", ("127.0.0.1", 9092)),
    ("localhost:0", ("localhost", 0)),
    ("my-host.example:65535", ("my-host.example", 65535)),
    ("my-host.example.:65535", ("my-host.example.", 65535)),
    ("a" * 63 + ".b:1", ("a" * 63 + ".b", 1)),
    ("0.0.0.0:1", ("0.0.0.0", 1)),
    ("[::1]:9092", ("::1", 9092)),
    ("[::]:0", ("::", 0)),
    ("[fe80::1%eth0]:9092", ("fe80::1%eth0", 9092)),
])
def test_addresses(listen: str, parts: tuple[str, int]) -> None:
    assert split_listen(listen) == parts
    assert load_settings({"listen": listen, "insecure": "true"}, {}, None).listen == listen


def test_metrics_are_not_shown_to_others_by_mistake() -> None:
    reached = {"metrics_listen": "0.0.0.0:9464"}
    assert "; --metrics-insecure serves them there all the same" in refusal(reached, {}, None)
    for key in "metrics_insecure", "insecure":
        assert load_settings(reached | {key: "true"}, {}, None).metrics_listen == "0.0.0.0:9464"
    # It is for the metrics alone.
    for key in "listen", "fast_listen":
        told = refusal({"metrics_insecure": "true", key: "0.0.0.0:9"}, {}, None)
        assert "; --insecure serves there all the same" in told


def test_an_address_that_may_be_left_out() -> None:
    assert load_settings({"metrics_listen": ""}, {"TAKHIN_METRICS_LISTEN": "127.0.0.1:1"}, None).metrics_listen == ""
    assert refusal({"metrics_listen": "9090"}, {}, None).startswith("--metrics-listen: '9090' is not allowed")


@pytest.mark.parametrize("endpoint", ["localhost:4317", "127.0.0.1", "http://", "http:///x", "ftp://host", "HTTP"])
def test_what_is_no_endpoint(endpoint: str) -> None:
    message = refusal({}, {"TAKHIN_TRACING__ENDPOINT": endpoint}, None)
    assert message == (
        f"TAKHIN_TRACING__ENDPOINT: {endpoint!r} is not allowed; allowed: http://HOST:PORT, or https://, with TLS")


@pytest.mark.parametrize("listen", [
    "", "9092", ":9092", "localhost", "localhost:", "localhost:http", "localhost:65536", "localhost:-1", "::1:9092",
    "::1", "[::1]", "[::1]9092", "[localhost]:9092", "[1.2.3.4]:9092", "[::g]:9092", "http://localhost:9092",
    "local host:9092", "localhost:9092 ", "localhost:9092\n", "localhost:٩٠٩٢", "localhost:000001",
    "a..b:9092", ".:9092", "..:9092", ".a:9092", "a..:9092", "a" * 64 + ":9092", f"a.{'b' * 64}.c:9092",
])
def test_what_is_no_address(listen: str) -> None:
    with pytest.raises(ValueError):
        split_listen(listen)
    message = refusal({"listen": listen}, {}, None)
    assert message.startswith(f"--listen: {listen!r} is not allowed; allowed: HOST:PORT")


def test_loopback() -> None:
    for listen in "127.0.0.1:1", "127.8.9.10:1", "[::1]:1", "localhost:1":
        assert is_loopback(listen)
    for listen in "0.0.0.0:1", "[::]:1", "192.168.0.1:1", "example.org:1":
        assert not is_loopback(listen)


@pytest.mark.parametrize("path", ["/tmp/takhin.sock", "takhin.sock", "./a/b", "x" * 107])
def test_a_unix_socket(path: str) -> None:
    listen = f"unix:{path}"
    assert unix_path(listen) == path and is_loopback(listen)
    assert load_settings({"listen": listen}, {}, None).listen == listen


@pytest.mark.parametrize("path", ["", "//host/x", "a b", "a%20b", "a?b", "a#b", "ü", "x" * 108])
def test_what_is_no_unix_socket(path: str) -> None:
    with pytest.raises(ValueError):
        unix_path(f"unix:{path}")
    assert "unix:PATH" in refusal({"listen": f"unix:{path}"}, {}, None)


# TLS and authentication.


@pytest.mark.parametrize(("given", "missing"), [
    ({}, "TLS (--tls-cert, --tls-key) and authentication (--auth-keys, --auth-jwks, --tls-client-ca)"),
    (TLS_PAIR, "authentication (--auth-keys, --auth-jwks, --tls-client-ca)"),
    ({"auth.keys": "true"}, "TLS (--tls-cert, --tls-key)"),
    (JWT, "TLS (--tls-cert, --tls-key)"),
])
@pytest.mark.parametrize("listen", ["0.0.0.0:9092", "[::]:0", "broker.example:1"])
def test_what_others_can_reach_needs_both(listen: str, given: dict[str, str], missing: str) -> None:
    flags = given | {"listen": listen}
    assert refusal(flags, {}, None) == (
        f"--listen: {listen} can be reached from other machines, and {missing} is missing; --insecure serves there all "
        "the same")
    assert load_settings(flags | {"insecure": "true"}, {}, None).listen == listen
    assert load_settings(given | {"listen": "127.0.0.1:1"}, {}, None).listen == "127.0.0.1:1"


@pytest.mark.parametrize("auth", [
    {"auth.keys": "true"}, {"auth.admin_key": "f"}, JWT, {"tls.client_ca": "ca"},
])
def test_with_both_it_is_served(auth: dict[str, str]) -> None:
    settings = load_settings(TLS_PAIR | auth | {"listen": "0.0.0.0:1"}, {}, None)
    assert has_authentication(settings)
    assert not has_authentication(load_settings(TLS_PAIR, {}, None))


@pytest.mark.parametrize(("flags", "needed"), [
    ({"tls.cert": "c"}, "tls.cert needs tls.key"),
    ({"tls.key": "c"}, "tls.key needs tls.cert"),
    ({"tls.client_ca": "c"}, "tls.client_ca needs tls.cert"),
    ({"auth.jwks": "j", "auth.jwt_audience": "a"}, "auth.jwks needs auth.jwt_issuer"),
    ({"auth.jwks": "j", "auth.jwt_issuer": "a"}, "auth.jwks needs auth.jwt_audience"),
    ({"auth.admins": "key:ops"}, "without authentication there is no principal"),
])
def test_what_belongs_together(flags: dict[str, str], needed: str) -> None:
    assert needed in refusal(flags, {}, None)


# Mistakes in the environment.


@pytest.mark.parametrize(("name", "nearest"), [
    ("TAKHIN_LISTNE", "TAKHIN_LISTEN"),
    ("TAKHIN_DATADIR", "TAKHIN_DATA_DIR"),
    ("TAKHIN_CONFG", "TAKHIN_CONFIG"),
    ("TAKHIN_GRPC_MAX_MESSAGE_BYTES", "TAKHIN_GRPC__MAX_MESSAGE_BYTES"),
    ("TAKHIN_GRPC__MAX_MESAGE_BYTES", "TAKHIN_GRPC__MAX_MESSAGE_BYTES"),
    ("TAKHIN_LIMIT__RING_BYTES", "TAKHIN_LIMITS__RING_BYTES"),
])
def test_a_misspelt_variable(name: str, nearest: str) -> None:
    assert refusal({}, {name: "1"}, None) == f"unknown variable {name!r}; the nearest known one is {nearest}"


def test_a_section_s_variable_is_never_ignored() -> None:
    assert "TAKHIN_TOPICS__XYZ" in refusal({}, {"TAKHIN_TOPICS__XYZ": "1"}, None)


@pytest.mark.parametrize("name", [
    # The build's switches and other tools.
    "TAKHIN_DEBUG", "TAKHIN_ANNOTATE", "TAKHIN_BROKER", "TAKHIN_SEED", "TAKHIN_HOME", "TAKHIN_VERSION",
    # What Kubernetes sets in every container beside a service called takhin.
    "TAKHIN_SERVICE_HOST", "TAKHIN_SERVICE_PORT", "TAKHIN_PORT", "TAKHIN_PORT_9092_TCP", "TAKHIN_PORT_9092_TCP_ADDR",
    "TAKHIN_", "takhin_listen", "LISTEN", "XTAKHIN_LISTNE",
])
def test_variables_of_others_are_ignored(name: str) -> None:
    assert load_settings({}, {name: "whatever"}, None) == Settings()


# Mistakes in the file.


@pytest.mark.parametrize(("text", "told"), [
    ("lisen = 'x'", "unknown key 'lisen'; the nearest known one is listen"),
    ("data-dir = 'x'", "unknown key 'data-dir'; the nearest known one is data_dir"),
    ("max_message_bytes = 1", "unknown key 'max_message_bytes'; the nearest known one is [grpc] max_message_bytes"),
    ("[grcp]\nmax_message_bytes = 1", "unknown key 'grcp'; the nearest known one is [grpc]"),
    ("[grpc]\nmax_mesage_bytes = 1", "unknown key [grpc] 'max_mesage_bytes'; the nearest known one is [grpc] "
                                     "max_message_bytes"),
    ("[topics]\nring_bytes = 1", "unknown key [topics] 'ring_bytes'; the nearest known one is [limits] ring_bytes"),
    ("[grpc.more]\nx = 1", "unknown key [grpc] 'more'; the nearest known one is [grpc] "),
    ("config = 'x'", "unknown key 'config'; the nearest known one is "),
    ('"a\\nb" = 1', "unknown key 'a\\nb'; the nearest known one is "),
])
def test_an_unknown_key(tmp_path: Path, text: str, told: str) -> None:
    assert file_refusal(tmp_path, text).startswith(told)


@pytest.mark.parametrize(("text", "told"), [
    ("[grpc]\nmax_message_bytes = '1048576'", "[grpc] max_message_bytes: '1048576' is not allowed; allowed: "
                                              "a whole number, 131072 to 1073741824 bytes"),
    ("[grpc]\nmax_message_bytes = true", "[grpc] max_message_bytes: true is not allowed; allowed: a whole number"),
    ("[grpc]\nmax_message_bytes = 1048576.0", "[grpc] max_message_bytes: 1048576.0 is not allowed"),
    ("[grpc]\nmax_message_bytes = [1048576]", "[grpc] max_message_bytes: [1048576] is not allowed"),
    ("[grpc]\nmax_message_bytes = 5", "[grpc] max_message_bytes: 5 is not allowed; allowed: 131072 to"),
    (f"[grpc]\nmax_message_bytes = {'9' * 400}", "[grpc] max_message_bytes: 999"),
    ("[grpc]\nping_without_calls = 1", "[grpc] ping_without_calls: 1 is not allowed; allowed: a boolean"),
    ("[grpc]\nping_without_calls = 'true'", "[grpc] ping_without_calls: 'true' is not allowed; allowed: a boolean"),
    ("listen = 9092", "listen: 9092 is not allowed; allowed: a string, HOST:PORT"),
    ("log_level = false", "log_level: false is not allowed; allowed: a string, debug, info, warning, error"),
    ("data_dir = 2024-01-01", "data_dir: datetime.date(2024, 1, 1) is not allowed; allowed: a string, DIR"),
    ("grpc = 5", "grpc: 5 is not allowed; allowed: a section, [grpc]"),
    ("[[grpc]]\nmax_message_bytes = 1048576", "grpc: [{'max_message_bytes': 1048576}] is not allowed"),
    ("[listen]\nport = 1", "listen: {'port': 1} is not allowed; allowed: a string"),
])
def test_a_wrong_type_or_value(tmp_path: Path, text: str, told: str) -> None:
    assert file_refusal(tmp_path, text).startswith(told)


@pytest.mark.parametrize("text", [
    b"listen = \n", b"listen", b"[grpc", b"\xff\xfe", b"listen = 'a'\nlisten = 'b'", b"x = " + b"9" * 10_000,
    b"x = " + b"[" * 100_000, b"\x00",
])
def test_what_is_no_toml(tmp_path: Path, text: bytes) -> None:
    message = file_refusal(tmp_path, text)
    assert "not" in message and "TOML" in message


def test_a_syntax_error_names_its_line(tmp_path: Path) -> None:
    assert "line 2" in file_refusal(tmp_path, "listen = 'localhost:1'\ndata_dir = \n")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.toml")
    assert refusal({}, {}, missing) == f"{missing}: cannot be read: No such file or directory"
    assert refusal({}, {"TAKHIN_CONFIG": missing}, None) == f"{missing}: cannot be read: No such file or directory"
    assert refusal({}, {}, str(tmp_path)) == f"{tmp_path}: cannot be read: Is a directory"
    assert refusal({}, {}, "").startswith("--config: '' is not allowed")
    assert refusal({}, {"TAKHIN_CONFIG": ""}, None).startswith("TAKHIN_CONFIG: '' is not allowed")


def test_a_value_that_another_source_overrides_may_be_wrong(tmp_path: Path) -> None:
    """The flag is the way out of a broken file; unknown keys are refused all the same."""
    path = tmp_path / "takhin.toml"
    path.write_text("[grpc]\nmax_message_bytes = 'ten'\n")
    settings = load_settings({"grpc.max_message_bytes": "2097152"}, {}, str(path))
    assert settings.grpc.max_message_bytes == 2 << 20


# Settings that bound each other.


@pytest.mark.parametrize(("flags", "told"), [
    ({"topics.max_record_bytes": "10420225"},
     "--topics-max-record-bytes: 10420225 is not allowed; allowed: at most 10420224, which is grpc.max_message_bytes "
     "(default) less 65536"),
    ({"topics.partitions": "10001"},
     "--topics-partitions: 10001 is not allowed; allowed: at most 10000, which is limits.partitions_per_topic "
     "(default)"),
    ({"topics.partitions": "501", "limits.partitions": "500"}, "--topics-partitions: 501 is not allowed; allowed: at "
     "most 500, which is limits.partitions_per_topic (default)"),
    ({"limits.partitions_per_topic": "5", "limits.partitions": "4"}, "--limits-partitions-per-topic: 5 is not allowed; "
     "allowed: at most 4, which is limits.partitions (--limits-partitions)"),
    ({"limits.ring_bytes_per_partition": "1000000", "limits.ring_bytes": "999999"},
     "--limits-ring-bytes-per-partition: 1000000 is not allowed; allowed: at most 999999, which is limits.ring_bytes "
     "(--limits-ring-bytes)"),
])
def test_contradictions(flags: dict[str, str], told: str) -> None:
    assert refusal(flags, {}, None) == told


def test_what_just_fits() -> None:
    flags = {"topics.max_record_bytes": "10420224", "topics.partitions": "10000",
             "limits.ring_bytes_per_partition": "67108864"}
    assert load_settings(flags, {}, None).topics.max_record_bytes == 10420224


def test_a_default_gives_way_to_what_was_set() -> None:
    flags = {"grpc.max_message_bytes": "1048576", "limits.ring_bytes": "65536", "limits.partitions": "7"}
    settings = load_settings(flags, {}, None)
    assert settings.topics.max_record_bytes == 1048576 - 65536
    assert settings.limits.ring_bytes_per_partition == 65536
    assert (settings.limits.partitions_per_topic, settings.topics.partitions) == (7, 1)
