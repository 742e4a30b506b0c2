"""takhin config check: everything that would keep takhin-server from starting with these settings, told at once."""

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

from takhin.cli.fast_front import load_fast_front
from takhin.config import DEFAULT, Settings, gather_settings, has_authentication
from takhin.errors import ConfigError, StartError
from takhin.listen_address import unix_path


def problems_of(environ: Mapping[str, str], config_file: str | None) -> tuple[list[str], int]:
    """What is wrong, a line each, and how many settings are given. Blocks for as long as reading the files takes."""
    settings, sources, problems = gather_settings({}, environ, config_file)
    if not problems:
        is_fast_asked = sources["fast_listen"] != DEFAULT
        problems = [*start_problems(settings, environ, is_fast_asked=is_fast_asked), *_places(settings)]
    return problems, sum(source != DEFAULT for source in sources.values())


def load_trace_export() -> ModuleType:
    """takhin.rpc.trace_export. Raises StartError where the packages that it needs are missing, or take offence at a
    variable when they are imported."""
    try:
        return importlib.import_module("takhin.rpc.trace_export")
    except (ImportError, ValueError) as problem:
        raise StartError(f"tracing.enabled: {problem}") from None


def start_problems(settings: Settings, environ: Mapping[str, str], *, is_fast_asked: bool) -> Iterator[str]:
    """What only looking can tell: certificates, keys, key sets, what traces need, and whether the fast front is built,
    where somebody has set fast_listen."""
    from takhin.clock import wall_clock_ms
    from takhin.rpc.authentication import Authentication
    from takhin.rpc.tls import tls_files

    yield from _refusal(lambda: tls_files(settings.tls))
    if has_authentication(settings):
        yield from _refusal(lambda: Authentication(settings, wall_clock_ms))
    if settings.tracing.enabled:
        yield from _refusal(lambda: load_trace_export().check_variables(environ))
    if is_fast_asked and settings.fast_listen:
        yield from _refusal(load_fast_front)


def _places(settings: Settings) -> Iterator[str]:
    """Where it listens, and where its data are."""
    for address in (settings.listen, settings.fast_listen):
        path = unix_path(address)
        if path is not None and not os.path.isdir(os.path.dirname(path) or "."):
            yield f"can't listen on {address}: there is no directory {os.path.dirname(path)}"
    yield from _directory(settings.data_dir)


def _directory(path: str) -> Iterator[str]:
    """The data directory, or the nearest above it that is there, which it would be made in."""
    while not os.path.lexists(path) and os.path.dirname(os.path.abspath(path)) != path:
        path = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(path):
        yield f"data_dir: {path} is not a directory"
    elif not os.access(path, os.W_OK | os.X_OK):
        yield f"data_dir: {path} can't be written to by this user"


def _refusal(step: Callable[[], Any]) -> Iterator[str]:
    try:
        step()
    except (StartError, ConfigError) as problem:
        yield str(problem)
