"""The server's settings: what there is, its defaults and bounds, and where values come from.

A value comes from the first of these that gives one: flag, environment variable, TOML file, default. Every field
carries its help text, unit and bounds; flags, variables and keys of the file are all derived from the fields:

    field                   flag                      variable                        file
    listen                  --listen                  TAKHIN_LISTEN                   listen = "127.0.0.1:9092"
    grpc.max_message_bytes  --grpc-max-message-bytes  TAKHIN_GRPC__MAX_MESSAGE_BYTES  [grpc] max_message_bytes = 1048576
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from typing import Any

from takhin.config_sources import FILE_VARIABLE, VARIABLE_PREFIX, check, parse, read_file, refuse, unknown_variables
from takhin.errors import ConfigError
from takhin.listen_address import is_loopback as is_loopback
from takhin.listen_address import split_listen as split_listen
from takhin.listen_address import unix_path as unix_path

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40
# gRPC keeps durations and sizes in 32-bit integers; it takes the highest one as "never".
INT32_MAX = (1 << 31) - 1
# What JavaScript clients can hold in a number.
SAFE_INT_MAX = (1 << 53) - 1
# As many as may ever be allowed.
LARGEST_PARTITIONS_PER_TOPIC = 1_000_000
# A response needs room for more than the record in it: topic, watermarks, the batch's header.
RESPONSE_OVERHEAD_BYTES = 64 * KIB

LOG_LEVELS = ("debug", "info", "warning", "error")
COMPRESSIONS = ("none", "gzip", "deflate")
LOG_FORMATS = ("human", "json")

# The source of what nobody gave.
DEFAULT = "default"
# A setting, the one it must not exceed, and by how much it must stay below. In this order: a bound is settled before
# it bounds.
_BOUNDED_BY = (
    ("topics.max_record_bytes", "grpc.max_message_bytes", RESPONSE_OVERHEAD_BYTES),
    ("limits.partitions_per_topic", "limits.partitions", 0),
    ("topics.partitions", "limits.partitions_per_topic", 0),
    ("limits.ring_bytes_per_partition", "limits.ring_bytes", 0),
    ("limits.members_per_group", "limits.members", 0),
    ("limits.streams_per_client", "limits.streams", 0),
)
_DURATION = "ms"
_SIZE = "bytes"


# reloads, in each of these: whether a new value takes hold in a running broker, at SIGHUP. Only what reads the setting
# whenever it uses it, or is told of it by Broker.reload(), may say so.


def _number(
    default: int, help: str, unit: str, minimum: int, maximum: int, *, minus_one: str | None = None,
    reloads: bool = False,
) -> Any:
    """A whole number from minimum to maximum; `minus_one` is what -1 means, where -1 is allowed too."""
    return field(default=default, metadata={
        "help": help, "unit": unit, "minimum": minimum, "maximum": maximum, "minus_one": minus_one, "reloads": reloads,
    })


def _switch(default: bool, help: str, *, reloads: bool = False) -> Any:
    return field(default=default, metadata={"help": help, "reloads": reloads})


def _text(
    default: str, help: str, placeholder: str, choices: tuple[str, ...] = (), *, is_address: bool = False,
    is_url: bool = False, may_be_empty: bool = False, reloads: bool = False,
) -> Any:
    return field(default=default, metadata={
        "help": help, "placeholder": placeholder, "choices": choices, "is_address": is_address,
        "is_url": is_url, "may_be_empty": may_be_empty, "reloads": reloads,
    })


@dataclass(frozen=True, slots=True)
class GrpcSettings:
    """[grpc]: connections and messages."""

    max_message_bytes: int = _number(
        10 * MIB, "largest message, received or sent; clients' own limit is 4 MiB unless raised", _SIZE, 128 * KIB, GIB)
    max_metadata_bytes: int = _number(
        16 * KIB, "largest metadata of a call: its headers, each counted with 32 bytes more", _SIZE, 4 * KIB, MIB)
    max_connections: int = _number(10_000, "connections; more are closed as they come", "", 1, 1_000_000)
    max_streams_per_connection: int = _number(
        1_000, "calls open at once on one connection; clients hold back what is more", "", 1, 1_000_000)
    handshake_timeout_ms: int = _number(
        10_000, "close a connection that has not begun to speak TLS and HTTP/2 properly within this", _DURATION, 100,
        INT32_MAX)
    connection_idle_ms: int = _number(
        900_000, "close a connection that had no call for so long", _DURATION, 100, INT32_MAX)
    connection_age_ms: int = _number(
        1_800_000, "ask clients to reconnect after so long, give or take a tenth", _DURATION, 100, INT32_MAX)
    connection_age_grace_ms: int = _number(
        300_000, "after that, calls still open may go on for so long", _DURATION, 0, INT32_MAX)
    keepalive_time_ms: int = _number(
        300_000, "ping a connection that was silent for so long", _DURATION, 1_000, INT32_MAX)
    keepalive_timeout_ms: int = _number(
        60_000, "close a connection whose ping was not answered for so long", _DURATION, 100, INT32_MAX)
    min_ping_interval_ms: int = _number(
        10_000, "refuse clients that ping more often than this", _DURATION, 0, INT32_MAX)
    ping_without_calls: bool = _switch(True, "clients may ping on connections without an open call")
    cut_floods: bool = _switch(
        False, "cut off connections that keep the others from being served with frames that come to no call")
    shutdown_grace_ms: int = _number(
        5_000, "on shutdown, wait so long for open calls to end", _DURATION, 0, INT32_MAX, reloads=True)
    compression: str = _text(
        "none", "compress what is sent to clients that take it; if they don't take this one, the other", "HOW",
        COMPRESSIONS)


@dataclass(frozen=True, slots=True)
class TopicDefaults:
    """[topics]: what holds for topics whose own configs don't say otherwise. In parentheses: the config's name."""

    partitions: int = _number(1, "partitions of a topic created with num_partitions 0", "", 1, 1_000_000, reloads=True)
    retention_ms: int = _number(
        604_800_000, "remove segments whose records are all older (retention.ms)", _DURATION, 0, SAFE_INT_MAX,
        minus_one="keep for ever", reloads=True)
    retention_bytes: int = _number(
        -1, "remove the oldest segments of a partition larger than this (retention.bytes)", _SIZE, 0, SAFE_INT_MAX,
        minus_one="no bound", reloads=True)
    segment_bytes: int = _number(
        128 * MIB, "begin a new segment file at this size (segment.bytes)", _SIZE, KIB, INT32_MAX, reloads=True)
    segment_ms: int = _number(
        604_800_000, "begin a new segment file at this age (segment.ms)", _DURATION, 1, SAFE_INT_MAX, reloads=True)
    max_record_bytes: int = _number(
        MIB, "largest record, encoded (max.message.bytes); at most grpc.max_message_bytes less 64 KiB", _SIZE, 1, GIB,
        reloads=True)
    flush_ms: int = _number(
        1_000, "sync to disk what was written so long ago, asked for or not (flush.ms)", _DURATION, 1, SAFE_INT_MAX,
        minus_one="only when asked for", reloads=True)
    producer_expiration_ms: int = _number(
        604_800_000, "forget an idempotent producer that appended nothing for so long", _DURATION, 1, SAFE_INT_MAX,
        reloads=True)
    retention_check_ms: int = _number(
        300_000, "time between two looks for segments to remove", _DURATION, 10, INT32_MAX, reloads=True)


@dataclass(frozen=True, slots=True)
class GroupSettings:
    """[groups]: consumer groups."""

    grace_ms: int = _number(
        10_000, "keep a member's partitions for so long after its stream was cut", _DURATION, 0, INT32_MAX,
        reloads=True)
    revoke_timeout_ms: int = _number(
        10_000, "take partitions that are to move from a member that has not released them for so long", _DURATION, 1,
        INT32_MAX, reloads=True)
    auto_commit_ms: int = _number(
        1_000, "least time between two commits of a member with commit mode AUTO", _DURATION, 0, INT32_MAX,
        reloads=True)
    offsets_retention_ms: int = _number(
        604_800_000, "forget what a group has committed when it had no members and committed nothing for so long",
        _DURATION, 1, SAFE_INT_MAX, minus_one="never", reloads=True)
    offsets_check_ms: int = _number(
        600_000, "time between two looks for groups to forget", _DURATION, 10, INT32_MAX, reloads=True)


@dataclass(frozen=True, slots=True)
class Limits:
    """[limits]: what one broker takes on; beyond them requests are refused."""

    topics: int = _number(10_000, "topics", "", 1, 1_000_000, reloads=True)
    partitions_per_topic: int = _number(
        10_000, "partitions of one topic", "", 1, LARGEST_PARTITIONS_PER_TOPIC, reloads=True)
    partitions: int = _number(100_000, "partitions of all topics together", "", 1, 1_000_000, reloads=True)
    groups: int = _number(10_000, "consumer groups", "", 1, 1_000_000, reloads=True)
    producers: int = _number(
        100_000, "names of idempotent producers; and producers that partitions know, each once a partition", "", 1,
        10_000_000)
    members_per_group: int = _number(1_000, "members of one consumer group", "", 1, 100_000, reloads=True)
    members: int = _number(10_000, "members of all consumer groups together", "", 1, 1_000_000, reloads=True)
    records_per_request: int = _number(100_000, "records in one produce request", "", 1, 1_000_000)
    transaction_partitions: int = _number(
        1_000, "partitions that a transaction appends to, and, likewise, offsets that it commits", "", 1, 100_000,
        reloads=True)
    transaction_bytes_in_flight: int = _number(
        64 * MIB, "transactions that wait for their turn, each counted as 64 KiB at least", _SIZE, 64 * KIB, TIB,
        reloads=True)
    ring_bytes: int = _number(
        64 * MIB, "memory for the newest records of all partitions together", _SIZE, 64 * KIB, TIB)
    ring_bytes_per_partition: int = _number(8 * MIB, "the same for one partition", _SIZE, 4 * KIB, GIB)
    reader_bytes: int = _number(
        64 * MIB, "responses handed to gRPC but perhaps not yet taken by their readers, all streams together", _SIZE,
        64 * KIB, TIB, reloads=True)
    slow_reader_ms: int = _number(
        10_000, "cut off readers that took nothing for so long, when others wait for memory", _DURATION, 10,
        INT32_MAX, reloads=True)
    calls: int = _number(
        10_000, "unary calls under way; health checks, counted by themselves, as many", "", 1, 1_000_000)
    call_bytes: int = _number(
        256 * MIB, "requests of unary calls under way; one that is larger passes alone", _SIZE, 64 * KIB, TIB)
    streams: int = _number(20_000, "streams open: produce streams, readers, members", "", 1, 1_000_000)
    streams_per_client: int = _number(
        10_000, "the same of one client: a principal, or, without authentication, an address", "", 1, 1_000_000)
    watch_streams: int = _number(1_000, "streams of health watches and of server reflection", "", 1, 1_000_000)
    request_arrival_ms: int = _number(
        10_000, "refuse calls whose request has not come for so long, while a quarter of all calls or streams are open",
        _DURATION, 10, INT32_MAX)
    stream_requests_in_flight: int = _number(
        1_024, "requests of one produce stream that wait for their answers", "", 1, 1_000_000, reloads=True)
    stream_bytes_in_flight: int = _number(16 * MIB, "the same in bytes", _SIZE, KIB, TIB, reloads=True)
    all_streams_bytes_in_flight: int = _number(
        256 * MIB, "the same of all produce streams together; then each reads on once its own are answered", _SIZE, KIB,
        TIB)
    api_keys: int = _number(10_000, "API keys", "", 1, 1_000_000, reloads=True)
    acls: int = _number(10_000, "ACL entries", "", 1, 1_000_000, reloads=True)
    open_files: int = _number(4_096, "segment files held open", "", 16, 1_000_000)
    journal_bytes: int = _number(
        64 * MIB, "disk space for the journal, which makes durable acks over many partitions cheap; 0: none", _SIZE, 0,
        TIB)
    min_free_bytes: int = _number(
        64 * MIB, "refuse to append when less is free on the disk, so that metadata can still be written", _SIZE, 0,
        TIB)


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """[tls]: encryption, and certificates of clients. Files are PEM, and read again when they change."""

    cert: str = _text("", "the server's certificate, with those that lead to its root; gives TLS", "FILE")
    key: str = _text("", "its private key, without a password", "FILE")
    client_ca: str = _text(
        "", "every client must show a certificate that one of these has signed; turns authentication on", "FILE")
    check_ms: int = _number(5_000, "time between two looks whether the files have changed", _DURATION, 100, INT32_MAX,
        reloads=True)


@dataclass(frozen=True, slots=True)
class AuthSettings:
    """[auth]: who clients are. With one of keys, jwks, admin_key or tls.client_ca set, every call but health checks
    needs proof of it, and is allowed what ACLs allow."""

    keys: bool = _switch(False, "take API keys, which takhin key create makes")
    admin_key: str = _text(
        "", "file with one more API key, whose bearer may do everything; takhin key new makes it", "FILE")
    jwks: str = _text("", "take JSON Web Tokens signed with a key of this JWKS file", "FILE")
    jwt_issuer: str = _text("", "the issuer (iss) that tokens must name; needed with auth.jwks", "TEXT")
    jwt_audience: str = _text("", "the audience (aud) that tokens must name; needed with auth.jwks", "TEXT")
    jwt_leeway_ms: int = _number(
        0, "how far the token issuer's clock and ours may differ", _DURATION, 0, 300_000)
    certificate_name: str = _text(
        "uri", "what of a client's certificate names it: its only URI, its subject, or the common name in it", "WHAT",
        ("uri", "subject", "common-name"))
    admins: str = _text(
        "", "principals that may do everything, whatever ACLs say; several with blanks between", "PRINCIPALS")
    reflection: str = _text(
        "authenticated", "who may ask for the services' description (server reflection)", "WHO",
        ("authenticated", "open", "off"))


@dataclass(frozen=True, slots=True)
class TracingSettings:
    """[tracing]: spans of calls, with OpenTelemetry. What is not set here is as the standard variables OTEL_* say."""

    enabled: bool = _switch(False, "trace calls; needs the packages of takhin[tracing]")
    endpoint: str = _text(
        "", "the collector, over OTLP/gRPC: http://HOST:PORT, or https://; empty: as OTEL_EXPORTER_OTLP_ENDPOINT says, "
        "else http://localhost:4317", "URL", is_url=True, may_be_empty=True)
    samples_per_million: int = _number(
        -1, "of calls whose client traces nothing, trace so many in a million", "", 0, 1_000_000,
        minus_one="as OTEL_TRACES_SAMPLER says, else all")


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything takhin-server can be told. Made by load_settings(), or directly by tests and embedders.

    It and its sections are frozen, but for reload_settings(): that writes new values into those of a running broker.
    """

    listen: str = _text(
        "127.0.0.1:9092", "address to serve on; port 0 picks a free one; unix:PATH is a Unix socket", "HOST:PORT",
        is_address=True)
    fast_listen: str = _text(
        "127.0.0.1:9093", "address of the fast front, which serves the same beside the other, where it is built; port "
        "0 picks a free one; unix:PATH is a Unix socket; empty: none", "HOST:PORT", is_address=True, may_be_empty=True)
    insecure: bool = _switch(
        False, "serve where other machines reach it though TLS or authentication is missing")
    metrics_listen: str = _text(
        "", "address of http://HOST:PORT/metrics, for Prometheus; port 0 picks a free one; empty: none", "HOST:PORT",
        is_address=True, may_be_empty=True)
    metrics_insecure: bool = _switch(
        False, "serve metrics where other machines reach them, which is without TLS and authentication")
    data_dir: str = _text("./data", "directory of all data; made when it is missing", "DIR")
    log_level: str = _text("info", "least severe log lines to write", "LEVEL", LOG_LEVELS, reloads=True)
    log_format: str = _text("human", "log lines for people, or a JSON object each", "FORMAT", LOG_FORMATS)
    slow_request_ms: int = _number(
        1_000, "log calls with one answer that take longer", _DURATION, 1, INT32_MAX, minus_one="none",
        reloads=True)
    grpc: GrpcSettings = field(default_factory=GrpcSettings)
    topics: TopicDefaults = field(default_factory=TopicDefaults)
    groups: GroupSettings = field(default_factory=GroupSettings)
    limits: Limits = field(default_factory=Limits)
    tls: TlsSettings = field(default_factory=TlsSettings)
    auth: AuthSettings = field(default_factory=AuthSettings)
    tracing: TracingSettings = field(default_factory=TracingSettings)


@dataclass(frozen=True, slots=True)
class Option:
    """One setting as the outside names it. `section` is "" for those at the top level."""

    section: str
    name: str
    type: type
    default: str | int | bool
    metadata: Mapping[str, Any]

    @property
    def key(self) -> str:
        """For messages and for load_settings' argv_values: grpc.max_message_bytes."""
        return f"{self.section}.{self.name}" if self.section else self.name

    @property
    def flag(self) -> str:
        return "--" + self.key.replace(".", "-").replace("_", "-")

    @property
    def variable(self) -> str:
        return VARIABLE_PREFIX + self.key.replace(".", "__").upper()

    @property
    def reloads(self) -> bool:
        """Whether SIGHUP makes a running broker take a new value."""
        return bool(self.metadata["reloads"])

    @property
    def file_key(self) -> str:
        """For messages: [grpc] max_message_bytes."""
        return f"[{self.section}] {self.name}" if self.section else self.name

    def allowed(self) -> str:
        """What the value may be, for messages and help."""
        metadata = self.metadata
        if self.type is bool:
            return "true or false"
        if self.type is str:
            return ", ".join(metadata["choices"]) or metadata["placeholder"]
        unit = f" {metadata['unit']}" if metadata["unit"] else ""
        text = f"{metadata['minimum']} to {metadata['maximum']}{unit}"
        return f"{text}, or -1: {metadata['minus_one']}" if metadata["minus_one"] else text


def options() -> list[Option]:
    """Every setting, top level first, then section by section."""
    top: list[Option] = []
    rest: list[Option] = []
    for each in fields(Settings):
        if is_dataclass(each.type):
            rest += [_option(each.name, inner) for inner in fields(each.type)]
        else:
            top.append(_option("", each))
    return top + rest


def _option(section: str, each: Field) -> Option:
    assert each.default is not MISSING and isinstance(each.type, type)
    return Option(section, each.name, each.type, each.default, each.metadata)


def load_settings(
    argv_values: Mapping[str, str | None], environ: Mapping[str, str], config_file: str | None
) -> Settings:
    """Settings from flags over environment over file over defaults.

    argv_values: the flags' values as typed, by Option.key; None or absent: not given.
    environ: variables that are none of ours are ignored, see _refuse_unknown_variables.
    config_file: --config; None: TAKHIN_CONFIG, and without that no file.
    Raises ConfigError: one line naming the source, the value and what is allowed.
    """
    return load_settings_with_sources(argv_values, environ, config_file)[0]


def load_settings_with_sources(
    argv_values: Mapping[str, str | None], environ: Mapping[str, str], config_file: str | None
) -> tuple[Settings, dict[str, str]]:
    """As load_settings; with the source of each value by Option.key: a flag, a variable, "FILE: KEY", or "default"."""
    settings, sources, problems = gather_settings(argv_values, environ, config_file)
    if problems:
        raise ConfigError(problems[0])
    return settings, sources


def gather_settings(
    argv_values: Mapping[str, str | None], environ: Mapping[str, str], config_file: str | None
) -> tuple[Settings, dict[str, str], list[str]]:
    """As load_settings_with_sources; with all that is wrong, a line each. A value that can't be used counts as not
    given; what does not fit together is looked for only where each by itself does."""
    known = options()
    problems = list(unknown_variables(environ, known))
    path = config_file if config_file is not None else environ.get(FILE_VARIABLE)
    in_file: dict[str, object] = {}
    if path:
        in_file = read_file(path, known, problems)
    elif path is not None:
        problems += _told(
            refuse, "--config" if config_file is not None else FILE_VARIABLE, path, "the path of a TOML file")
    values: dict[str, Any] = {option.key: option.default for option in known}
    sources = dict.fromkeys(values, DEFAULT)
    for option in known:
        key = option.key
        text = argv_values.get(key)
        try:
            if text is not None:
                values[key], sources[key] = parse(option, option.flag, text), option.flag
            elif option.variable in environ:
                values[key] = parse(option, option.variable, environ[option.variable])
                sources[key] = option.variable
            elif key in in_file:
                source = f"{path}: {option.file_key}"
                values[key], sources[key] = check(option, source, in_file[key]), source
        except ConfigError as problem:
            problems.append(str(problem))
    if not problems:
        problems += _told(_fit_together, values, sources) + list(_access_problems(values, sources))
    return _assemble(values), sources, problems


def _told(step: Callable[..., Any], *arguments: Any) -> list[str]:
    """The line of the ConfigError that it raises, if it does."""
    try:
        step(*arguments)
    except ConfigError as problem:
        return [str(problem)]
    return []


def value_of(settings: Settings, option: Option) -> Any:
    """What the settings have for an option."""
    return getattr(getattr(settings, option.section) if option.section else settings, option.name)


def reload_settings(running: Settings, loaded: Settings, new: Settings, sources: dict[str, str]) -> "Reloaded":
    """Have a broker's settings take over from `new`, which has these sources, what may change while it runs.

    running: what the broker was given, changed in place: its parts read them whenever they use them. loaded: what the
    sources said then, changed likewise; the start may have made less of it (open_files). Raises ConfigError, and
    changes nothing, when the new values do not fit those that stay.
    """
    known = options()
    values: dict[str, Any] = {}
    places = dict(sources)
    for option in known:
        key = option.key
        if not option.reloads:
            values[key] = value_of(loaded, option)
            if values[key] != value_of(new, option):
                places[key] = "the running broker's, until a restart"
        else:
            # A default gave way to bounds that are perhaps not in force.
            values[key] = option.default if sources[key] == DEFAULT else value_of(new, option)
    _fit_together(values, places)
    done = Reloaded([], [])
    for option in known:
        old, key = value_of(loaded, option), option.key
        if not option.reloads:
            if value_of(new, option) != old:
                done.need_restart.append(key)
        elif values[key] != old:
            done.changed.append(key)
            for settings in (running, loaded):
                # Past the freeze, which is there to keep everybody else from it.
                holder = getattr(settings, option.section) if option.section else settings
                object.__setattr__(holder, option.name, values[key])
    return done


@dataclass(frozen=True, slots=True)
class Reloaded:
    """Keys of settings: those that changed, and those whose new value waits for the next start."""

    changed: list[str]
    need_restart: list[str]


def has_authentication(settings: Settings) -> bool:
    """Whether clients have to prove who they are."""
    auth = settings.auth
    return auth.keys or bool(auth.admin_key or auth.jwks or settings.tls.client_ca)


def _assemble(values: Mapping[str, Any]) -> Settings:
    settings = Settings()
    for each in fields(Settings):
        if is_dataclass(each.type):
            section = getattr(settings, each.name)
            inner = {one.name: values[f"{each.name}.{one.name}"] for one in fields(each.type)}
            settings = replace(settings, **{each.name: replace(section, **inner)})
        else:
            settings = replace(settings, **{each.name: values[each.name]})
    return settings


def _fit_together(values: dict[str, Any], sources: Mapping[str, str]) -> None:
    """What one setting alone can't tell: some must not exceed others. A default gives way, whatever else is refused.

    Raises ConfigError naming both settings and where each was set.
    """
    for key, bound_key, less in _BOUNDED_BY:
        bound = values[bound_key] - less
        if values[key] <= bound:
            continue
        if sources[key] != DEFAULT:
            raise ConfigError(
                f"{sources[key]}: {values[key]} is not allowed; allowed: at most {bound}, which is {bound_key} "
                f"({sources[bound_key]})" + (f" less {less}" if less else "")
            )
        values[key] = bound


def _port(address: str) -> int | None:
    """None: of a Unix socket."""
    return None if unix_path(address) is not None else split_listen(address)[1]


def _access_problems(values: Mapping[str, Any], sources: Mapping[str, str]) -> Iterator[str]:
    """TLS and authentication: that what belongs together is there, and that nothing is open to others by mistake."""
    for key, needed in (
        ("tls.cert", "tls.key"), ("tls.key", "tls.cert"), ("tls.client_ca", "tls.cert"),
        ("auth.jwks", "auth.jwt_issuer"), ("auth.jwks", "auth.jwt_audience"),
    ):
        if values[key] and not values[needed]:
            yield f"{sources[key]}: {key} needs {needed} too, which is not set"
    has_auth = values["auth.keys"] or values["auth.admin_key"] or values["auth.jwks"] or values["tls.client_ca"]
    if values["auth.admins"] and not has_auth:
        yield (
            f"{sources['auth.admins']}: without authentication there is no principal; set auth.keys, auth.admin_key, "
            "auth.jwks or tls.client_ca")
    if values["listen"] == values["fast_listen"] and sources["fast_listen"] != DEFAULT and (
        _port(values["listen"]) != 0
    ):
        yield f"{sources['fast_listen']}: {values['fast_listen']} is listen's already; the fast front needs its own"
    may_show_metrics = values["insecure"] or values["metrics_insecure"]
    if values["metrics_listen"] and not may_show_metrics and not is_loopback(values["metrics_listen"]):
        yield (
            f"{sources['metrics_listen']}: {values['metrics_listen']} can be reached from other machines, and metrics, "
            "which name topics and groups, are served without TLS and authentication; --metrics-insecure serves them "
            "there all the same")
    if values["insecure"] or (values["tls.cert"] and has_auth):
        return
    missing = " and ".join(
        what for what, there in [("TLS (--tls-cert, --tls-key)", values["tls.cert"]), (
            "authentication (--auth-keys, --auth-jwks, --tls-client-ca)", has_auth)] if not there)
    for key in ("listen", "fast_listen"):
        if values[key] and not is_loopback(values[key]):
            yield (
                f"{sources[key]}: {values[key]} can be reached from other machines, and {missing} is missing; "
                "--insecure serves there all the same")
