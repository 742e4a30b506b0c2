"""takhin-server: settings in, one broker served until a signal, an exit status out.

Exit status: 0 after SIGTERM or SIGINT, 1 when it cannot start or must give up, 2 for a usage or configuration error,
128 + the signal's number when a second signal cuts the shutdown short.

SIGHUP has settings, certificates and keys read again (reload.py); systemd is told how it goes (service_manager.py).

Standard output gets one line when it serves, one for the fast front, and one for metrics; everything else goes to
standard error. grpc, uvloop
and the broker are imported only once the settings are known: --help and a mistyped flag answer at once, and grpc reads
its environment when it is imported.
"""

import asyncio
import functools
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import TYPE_CHECKING

import click

from takhin import __version__
from takhin.cli.command import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from takhin.cli.config_check import load_trace_export
from takhin.cli.fast_front import is_wanted, load_fast_front, start_fast_front
from takhin.cli.log_lines import JSON, set_up_logging
from takhin.cli.malloc import tend_memory, tune_malloc
from takhin.cli.program import Command, usage_line
from takhin.cli.program import Option as Flag
from takhin.cli.reload import Reloading
from takhin.cli.service_manager import ServiceManager
from takhin.cli.terminal import complain, open_standard_streams, write
from takhin.config import (
    DEFAULT,
    Option,
    Settings,
    has_authentication,
    is_loopback,
    load_settings_with_sources,
    options,
)
from takhin.errors import ConfigError, StartError

if TYPE_CHECKING:
    from takhin.broker.broker import Broker
    from takhin.rpc.gates import Gates
    from takhin.rpc.observed import Observer
    from takhin.rpc.security import Security
    from takhin.rpc.trace_export import TraceExport

PROG = "takhin-server"

# What grpc reads from the environment when it is imported; the operator's own values stand.
GRPC_ENVIRONMENT = {
    # grpc's event engine beside uvloop cost 6 to 19% more CPU.
    "GRPC_EXPERIMENTS": "-event_engine_listener,-event_engine_client",
    # Nothing here forks; the support for it costs, and writes to standard error.
    "GRPC_ENABLE_FORK_SUPPORT": "0",
    # Its core writes lines of its own kind to standard error, also of what a stranger sends: no reader of the log would
    # understand them, and anybody could fill it.
    "GRPC_VERBOSITY": "NONE",
}
# A Python thread (SQLite's) that waits for the interpreter gets it after so long; Python's own default is 5 ms.
SWITCH_INTERVAL_S = 0.0005
# Beside segments and connections: the metadata store, the journal, what is being read in threads, metrics.
OTHER_OPEN_FILES = 128
# So many segment files or connections are plenty: that the machine has cut a default to them, nobody need read of.
PLENTY = 2_000
# Imported in this order before anything starts, so that a broken installation is told in one line.
MODULES = (
    "uvloop",
    "takhin.broker.broker",
    "takhin.rpc.service",
    "takhin.rpc.grpc_front",
    "takhin.rpc.health",
    "takhin.rpc.reflection",
    "takhin.rpc.served",
)

_log = logging.getLogger("takhin.server")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server; `argv` is sys.argv[1:] when not given. Gives the exit status."""
    open_standard_streams()
    try:
        values = _parse(argv)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.UsageError as problem:
        _complain(usage_line(problem, PROG))
        return EXIT_USAGE
    config_file = values.pop("config")

    def load() -> tuple[Settings, dict[str, str]]:
        return load_settings_with_sources(values, os.environ, config_file)

    try:
        loaded, sources = load()
    except ConfigError as exc:
        _complain(str(exc))
        return EXIT_USAGE
    signals = _Signals()
    signals.install()
    set_up_logging(loaded.log_level, loaded.log_format)
    is_fast_asked = sources["fast_listen"] != DEFAULT
    settings = _prepare_process(loaded, num_fronts=1 + is_wanted(loaded, is_asked=is_fast_asked))
    try:
        _load()
        if is_fast_asked and settings.fast_listen:
            load_fast_front()
        return _run(settings, is_fast_asked, signals, Reloading(load, loaded, settings, _set_log_level))
    except StartError as exc:
        _give_up(settings, str(exc))
        return EXIT_FAILED
    except Exception:
        _log.critical("cannot go on", exc_info=True)
        return EXIT_FAILED


def _show_version(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"{PROG} {__version__}")
        context.exit()


def _parse(argv: Sequence[str] | None) -> dict[str, str | None]:
    """The flags as typed, by Option.key, with "config". Raises UsageError, Exit (--help, --version)."""
    titles = {"": "Server", "grpc": "Connections and messages, [grpc]", "topics": "Defaults for topics, [topics]",
              "groups": "Consumer groups, [groups]", "limits": "Limits, [limits]", "tls": "Encryption, [tls]",
              "auth": "Authentication and access, [auth]", "tracing": "Traces, [tracing]"}
    known = options()
    flags = [
        # A switch alone is switched on.
        Flag([each.flag, _name(each)], metavar=_metavar(each), help=_help(each), section=titles[each.section],
             **{"is_flag": False, "flag_value": "true"} if each.type is bool else {})
        for each in known
    ]
    command = Command(
        PROG, params=[*flags, Flag(["--config"], metavar="FILE", help="TOML file with settings", section=titles[""]),
                      Flag(["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_show_version,
                           help="show it and exit", section=titles[""])],
        help=_ABOUT, epilog=_EPILOG, options_metavar="[--listen HOST:PORT] [--data-dir DIR] [--config FILE] "
        "[OPTION VALUE]...")
    context = command.make_context(PROG, list(sys.argv[1:] if argv is None else argv))
    return {each.key: context.params[_name(each)] for each in known} | {"config": context.params["config"]}


def _name(option: Option) -> str:
    """click takes names without a dot only."""
    return option.key.replace(".", "__")


_ABOUT = "Serves topics, partitions and consumer groups over gRPC, from a durable log in one directory."
# \\b keeps click from joining the lines that follow.
_EPILOG = """\
Each option can also be set by an environment variable or in the TOML file; an option beats the variable, the variable
beats the file:

\b
  --listen                  TAKHIN_LISTEN                   listen = "127.0.0.1:9092"
  --config                  TAKHIN_CONFIG
  --grpc-max-message-bytes  TAKHIN_GRPC__MAX_MESSAGE_BYTES  [grpc]
                                                            max_message_bytes = 10485760

Once it serves it writes to standard output: "takhin: serving on HOST:PORT", where the fast front is built "takhin: fast
front on HOST:PORT", and with metrics_listen "takhin: metrics on HOST:PORT", a line each. Logs go to standard error.
SIGTERM and SIGINT end it in order: streams are told to end, what is buffered is synced. A second one ends it at once.
SIGHUP has the settings that may change while it runs, certificates and keys read again.

Exit status: 0 after a signal, 1 when it cannot start or must give up, 2 for a mistake in the options, the environment
or the file, 128 + the signal's number after a second signal.
"""


def _metavar(option: Option) -> str:
    if option.type is bool:
        return "BOOL"
    if option.type is int:
        return (option.metadata["unit"] or "N").upper()
    return option.metadata["placeholder"]


def _help(option: Option) -> str:
    default = str(option.default).lower() if option.type is bool else option.default
    allowed = option.allowed()
    bounds = "" if allowed == _metavar(option) else f"; {allowed}"
    return f"{option.metadata['help']} (default {default}{bounds})"


class _Signals:
    """SIGTERM, SIGINT and SIGHUP, from before the event loop runs until the process ends.

    Plain signal handlers, not the loop's: they also run while the loop is not running yet or is busy.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._wake: Callable[[], object] | None = None
        self._is_to_reload = False
        self._wake_to_reload: Callable[[], object] | None = None
        self._has_terminal = False

    def install(self) -> None:
        self._has_terminal = os.isatty(2)
        signal.signal(signal.SIGHUP, self._handle_reload)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    async def wait(self) -> None:
        """Until the first signal has come, at once when it has."""
        event = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._wake = lambda: loop.call_soon_threadsafe(event.set)
        try:
            if self.received is None:
                await event.wait()
        finally:
            self._wake = None
        assert self.received is not None
        _log.info("%s: shutting down; a second signal ends it at once", self.received.name)

    async def wait_reload(self) -> None:
        """Until SIGHUP has come since the last time; at once when it has. Several at once are one."""
        event = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._wake_to_reload = lambda: loop.call_soon_threadsafe(event.set)
        try:
            if not self._is_to_reload:
                await event.wait()
        finally:
            self._wake_to_reload = None
        self._is_to_reload = False

    def _handle_reload(self, number: int, frame: FrameType | None) -> None:
        if self._has_terminal and not os.isatty(2) and self.received is None:
            # The terminal that it was started on is closed: nobody wants to have it reloaded.
            self._handle(number, frame)
            return
        self._is_to_reload = True
        if self._wake_to_reload is not None:
            self._wake_to_reload()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            # Neither logging nor sys.stderr: this may have interrupted them.
            write(2, f"{PROG}: {signal.Signals(number).name} again: ends at once\n")
            os._exit(128 + number)
        self.received = signal.Signals(number)
        if self._wake is not None:
            self._wake()


def _run(settings: Settings, is_fast_asked: bool, signals: _Signals, reloading: Reloading) -> int:
    import uvloop

    manager = ServiceManager(os.environ)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(settings, is_fast_asked, signals, reloading, manager))
    finally:
        manager.close()


async def _serve(
    settings: Settings, is_fast_asked: bool, signals: _Signals, reloading: Reloading, manager: ServiceManager
) -> int:
    """The broker's life. Gives the exit status. Raises StartError."""
    from takhin.broker.broker import Broker
    from takhin.rpc.security import Security

    # First, so that a mistake there does not wait for the log's recovery to be told.
    security = Security(settings)
    traces = _trace_export(settings)
    stop = asyncio.create_task(signals.wait())
    manager.starting("recovering the log")
    beating = asyncio.create_task(manager.beat())
    # The first beat goes out before what blocks the loop.
    await asyncio.sleep(0)
    broker = Broker(settings)
    # A signal during the start waits for its end: recovery is not to be stopped half-way, though it may be killed.
    await broker.start()
    failure = None
    try:
        if signals.received is None:
            failure = await _serve_until_stopped(
                _Served(broker, settings, is_fast_asked, security, traces, signals, reloading, manager), stop)
    finally:
        manager.stopping()
        stop.cancel()
        try:
            await broker.stop()
        except Exception:
            if failure is None:
                raise
            _log.error("the broker did not stop in order", exc_info=True)
        finally:
            beating.cancel()
            if traces is not None:
                await traces.stop()
    if failure is not None:
        _give_up(settings, failure)
        return EXIT_FAILED
    _log.info("stopped")
    return EXIT_OK


def _trace_export(settings: Settings) -> "TraceExport | None":
    """None: nothing is traced, and nothing of OpenTelemetry imported. Raises StartError."""
    if not settings.tracing.enabled:
        return None
    export: TraceExport = load_trace_export().TraceExport(settings.tracing)
    return export


@dataclass(slots=True)
class _Served:
    """A broker that has started, and what goes with it. is_fast_asked: somebody has set fast_listen. status: what the
    service manager shows while it is ready."""

    broker: "Broker"
    settings: Settings
    is_fast_asked: bool
    security: "Security"
    traces: "TraceExport | None"
    signals: _Signals
    reloading: Reloading
    manager: ServiceManager
    status: str = ""
    observer: "Observer | None" = None


async def _reload_when_told(served: _Served) -> None:
    while True:
        await served.signals.wait_reload()
        served.manager.reloading()
        try:
            await served.reloading.reload(served.broker, served.security)
        except Exception:
            _log.exception("reloading failed")
        if served.observer is not None:
            served.observer.slow_request_ms = served.settings.slow_request_ms
        served.manager.ready(_status(served))


def _status(served: _Served) -> str:
    """What the service manager shows: where it serves or, as long as that is so, why not everything."""
    unfit = served.broker.unfit
    return f"not ready: {unfit}" if unfit else served.status


async def _serve_until_stopped(served_broker: _Served, stop: asyncio.Task[None]) -> str | None:
    """Serve until `stop` is done or the broker must give up: then gives the reason. Raises StartError."""
    from takhin.rpc.fronts import Fronts
    from takhin.rpc.grpc_front import GrpcFront
    from takhin.rpc.health import ServingStatus
    from takhin.rpc.observed import Observer
    from takhin.rpc.readiness import follow_readiness
    from takhin.rpc.served import served
    from takhin.rpc.watched_files import watch

    broker, settings, security = served_broker.broker, served_broker.settings, served_broker.security
    observer = served_broker.observer = Observer(settings.slow_request_ms)
    tracing = None
    if served_broker.traces is not None:
        from takhin.rpc.tracing import Tracing

        tracing = Tracing(served_broker.traces.provider)
    table, health, ready, _, gates = served(
        broker, security.authentication, settings.auth.reflection, observer, tracing)
    front = GrpcFront(table, settings.grpc, security.tls, settings.limits)
    fronts = Fronts([front])
    metrics = None
    metrics_bound = ""
    if settings.metrics_listen:
        # Here: what it needs takes time to import.
        from takhin.rpc.metrics import MetricsServer

        metrics = MetricsServer(
            table.values(), broker.statistics, asyncio.get_running_loop(), gates, fronts)
        metrics_bound = metrics.start(settings.metrics_listen)
    bound = await front.start(settings.listen)
    fast_bound = ""
    try:
        if fast := await start_fast_front(
            settings, is_asked=served_broker.is_fast_asked, table=table, security=security
        ):
            fronts.add(fast[0])
            fast_bound = fast[1]
    except StartError:
        await front.stop(0)
        raise
    failed = asyncio.create_task(broker.wait_failed())
    health.set_all(ServingStatus.SERVING)
    telling = asyncio.create_task(
        follow_readiness(broker, health, ready, functools.partial(_tell_readiness, served_broker)))
    watching = asyncio.create_task(watch(security.files, lambda: settings.tls.check_ms))
    served_broker.status = f"serving on {bound}" + (f", fast front on {fast_bound}" if fast_bound else "")
    served_broker.manager.ready(served_broker.status)
    reloading = asyncio.create_task(_reload_when_told(served_broker))
    tending = asyncio.create_task(tend_memory(lambda: gates.num_open))
    try:
        _announce(bound, fast_bound, metrics_bound, settings)
        await asyncio.wait({stop, failed}, return_when=asyncio.FIRST_COMPLETED)
        return failed.result() if failed.done() else None
    finally:
        served_broker.manager.stopping()
        reloading.cancel()
        failed.cancel()
        watching.cancel()
        tending.cancel()
        telling.cancel()
        health.drain()
        broker.begin_drain()
        await fronts.stop(settings.grpc.shutdown_grace_ms)
        if metrics is not None:
            # To the end: what happens while it drains is seen, too.
            await metrics.stop()


def _tell_readiness(served_broker: _Served, unfit: str) -> None:
    if unfit:
        _log.warning("not ready: %s", unfit)
    else:
        _log.info("ready again")
    served_broker.manager.status(_status(served_broker))


def _announce(bound: str, fast_bound: str, metrics_bound: str, settings: Settings) -> None:
    if metrics_bound and not is_loopback(metrics_bound):
        _log.warning("metrics on %s can be read from other machines, without authentication", metrics_bound)
    missing = [what for what, there in [
        ("encryption", settings.tls.cert), ("authentication", has_authentication(settings))] if not there]
    for address in (bound, fast_bound):
        if missing and address and not is_loopback(address):
            _log.warning(
                "%s can be reached from other machines, without %s (--insecure)", address, " and ".join(missing))
    _log.info(
        "version %s serves on %s, data in %s", __version__, " and ".join(filter(None, (bound, fast_bound))),
        os.path.abspath(settings.data_dir))
    # Not sys.stdout: what a closed pipe leaves in its buffer would turn the exit status into 120.
    lines = f"takhin: serving on {bound}\n" + "".join(
        f"takhin: {what} on {address}\n" for what, address in (
            ("fast front", fast_bound), ("metrics", metrics_bound)) if address)
    if not write(1, lines):
        _log.warning("standard output is closed: could not announce there that it serves")


def _load() -> None:
    """Import what the server is made of. Raises StartError when the installation does not fit together."""
    for name in MODULES:
        try:
            importlib.import_module(name)
        except Exception as exc:
            # Generated code raises RuntimeError (grpc) or VersionError (protobuf) beside a library older than itself.
            if not isinstance(exc, ImportError | RuntimeError) and type(exc).__name__ != "VersionError":
                raise
            built = isinstance(exc, ImportError) and (exc.name or "").startswith("takhin.")
            hint = "; are the extensions built (make build)?" if built else ""
            raise StartError(f"cannot load {name}: {exc}{hint}") from exc


def _prepare_process(settings: Settings, *, num_fronts: int) -> Settings:
    """Process-wide switches. Gives the settings, with fewer open files and connections where the operating system
    allows fewer."""
    for name, value in GRPC_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    tune_malloc(os.environ)
    return _raise_open_files(settings, num_fronts)


def _raise_open_files(settings: Settings, num_fronts: int) -> Settings:
    """Raise the soft limit of open files to the hard one: the usual 1024 is for programs that use select."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    except (ValueError, OSError) as exc:
        _log.warning("cannot raise the limit of open files from %s to %s: %s", soft, hard, exc)
    if soft == resource.RLIM_INFINITY:
        return settings
    # Half of them for segment files; the rest is for connections, but for what the process needs besides.
    files = min(settings.limits.open_files, max(16, soft // 2))
    connections = min(settings.grpc.max_connections, max(16, (soft - files - OTHER_OPEN_FILES) // num_fronts))
    defaults = Settings()
    for key, wanted, most, default in (
        ("limits.open_files", settings.limits.open_files, files, defaults.limits.open_files),
        ("grpc.max_connections", settings.grpc.max_connections, connections, defaults.grpc.max_connections),
    ):
        if most < wanted:
            # A default that nobody has asked for, and still plenty: nothing that a newcomer should read about.
            level = logging.DEBUG if wanted == default and most >= PLENTY else logging.WARNING
            _log.log(level, "%s is %d instead of %d: the operating system allows %d open files (ulimit -n)", key, most,
                     wanted, soft)
    return replace(
        settings, limits=replace(settings.limits, open_files=files),
        grpc=replace(settings.grpc, max_connections=connections))


def _give_up(settings: Settings, message: str) -> None:
    """One line to standard error, in the format of those before it."""
    if settings.log_format == JSON:
        _log.critical("%s", message)
    else:
        _complain(message)


def _set_log_level(level: str) -> None:
    logging.getLogger().setLevel(level.upper())


def _complain(message: str) -> None:
    complain(PROG, message)


if __name__ == "__main__":
    sys.exit(main())
