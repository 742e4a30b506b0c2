"""Where settings come from, read and checked: flags and variables as text, TOML files. What is wrong is told in lines.

Each of these functions tells all it finds, so that a mistake is not found only once the one before it is mended.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from takhin.errors import ConfigError
from takhin.listen_address import split_listen, unix_path

if TYPE_CHECKING:
    from takhin.config import Option

VARIABLE_PREFIX = "TAKHIN_"
# Addresses that may be Unix sockets.
_UNIX_TOO = ("listen", "fast_listen")
FILE_VARIABLE = "TAKHIN_CONFIG"
# What the options of takhin's commands begin with: TAKHIN_TOPIC_CREATE_PARTITIONS.
_COMMANDS = (
    "ACL_", "BACKUP_", "BENCH_", "CERT_", "COMPLETION_", "CONFIG_", "CONSUME_", "DEV_", "DOCTOR_", "GROUP_", "HEALTH_",
    "KEY_", "PRODUCE_", "SEGMENT_", "TAIL_", "TOPIC_", "VERSION_",
)
# Of the commands' own TLS, nearly ours by name.
_CONNECTION = {"TLS_CA", "TLS_CERT", "TLS_KEY"}


def parse(option: "Option", source: str, text: str) -> str | int | bool:
    """The value of a flag or variable. Raises ConfigError."""
    value: str | int | bool = text
    if option.type is int and len(text) < 40 and re.fullmatch(r"-?[0-9]+(_[0-9]+)*", text):
        value = int(text)
    elif option.type is bool:
        value = {"true": True, "false": False}.get(text, text)
    if type(value) is not option.type:
        refuse(source, text, option.allowed())
    return check(option, source, value)


def check(option: "Option", source: str, value: object) -> str | int | bool:
    """The value, of the right type and within bounds. Raises ConfigError."""
    # Not isinstance: a bool is an int to it.
    if type(value) is not option.type:
        wanted = {str: "a string", int: "a whole number", bool: "a boolean"}[option.type]
        refuse(source, value, f"{wanted}, {option.allowed()}")
    assert isinstance(value, str | int | bool)
    metadata = option.metadata
    if value == option.default:
        # Also where the default, "" for none, is nothing that could be given otherwise: a file may say it.
        return value
    if isinstance(value, str):
        if not value and metadata["may_be_empty"]:
            return value
        if not value or re.search(r"[\x00-\x1f\x7f]", value):
            refuse(source, value, f"{option.allowed()}, not empty and without control characters")
        if metadata["choices"] and value not in metadata["choices"]:
            refuse(source, value, option.allowed())
        if metadata["is_url"] and not re.match(r"https?://[^/]", value):
            refuse(source, value, "http://HOST:PORT, or https://, with TLS")
        if metadata["is_address"]:
            try:
                if option.key not in _UNIX_TOO or unix_path(value) is None:
                    split_listen(value)
            except ValueError:
                # Also a host that no resolver is asked for: with an empty label, or one of more than 63 characters.
                socket = "; or unix:PATH, of up to 107 letters, digits and /._+@,=~-" if option.key in _UNIX_TOO else ""
                refuse(source, value, f"HOST:PORT with a port of 0 to 65535, as 127.0.0.1:9092 or [::1]:9092{socket}")
    elif type(value) is int and not (metadata["minimum"] <= value <= metadata["maximum"]):
        if not (value == -1 and metadata["minus_one"]):
            refuse(source, value, option.allowed())
    return value


def refuse(source: str, value: object, allowed: str) -> NoReturn:
    """Raises the ConfigError that says so."""
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    raise ConfigError(f"{source}: {shown} is not allowed; allowed: {allowed}")


def read_file(path: str, known: Sequence["Option"], problems: list[str]) -> dict[str, object]:
    """The file's values by Option.key, unchecked; what is wrong with the file goes to `problems`, a line each:
    unreadable, not TOML, an unknown key."""
    import tomllib  # here, because most starts read no file

    tree: dict[str, object] = {}
    try:
        with open(path, "rb") as file:
            tree = tomllib.load(file)
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        problems.append(f"{path}: is not UTF-8, so not TOML")
    except (ValueError, RecursionError) as error:  # tomllib lets int's and the stack's limits through as they are
        problems.append(f"{path}: is not TOML: {error}")
    sections = {option.section for option in known} - {""}
    values: dict[str, object] = {}
    for name, value in tree.items():
        if name in sections and not isinstance(value, dict):
            try:
                refuse(f"{path}: {name}", value, f"a section, [{name}]")
            except ConfigError as problem:
                problems.append(str(problem))
            continue
        section, inner = (name, value) if name in sections and isinstance(value, dict) else ("", {name: value})
        for key, inner_value in inner.items():
            try:
                values[_known_key(path, section, key, known)] = inner_value
            except ConfigError as problem:
                problems.append(str(problem))
    return values


def _known_key(path: str, section: str, name: str, known: Sequence["Option"]) -> str:
    """The Option.key of a key in the file. Raises ConfigError that names the nearest one when there is none."""
    here = {option.name: option for option in known if option.section == section}
    if name in here:
        return here[name].key
    if section:
        elsewhere = {option.name: option.file_key for option in known if option.section != section}
        nearest = elsewhere.get(name) or f"[{section}] {_nearest(name, here)}"
    else:
        # At the top level, a key that was left out of its section and a misspelt section are as likely.
        candidates = {option.name: option.file_key for option in reversed(known)}
        candidates |= {option.section: f"[{option.section}]" for option in known if option.section}
        nearest = candidates[_nearest(name, candidates)]
    shown = f"[{section}] {name!r}" if section else repr(name)
    raise ConfigError(f"{path}: unknown key {shown}; the nearest known one is {nearest}")


def unknown_variables(environ: Mapping[str, str], known: Sequence["Option"]) -> Iterator[str]:
    """A line for each variable that can only be meant for a setting but names none.

    The prefix is shared: with the build's switches, with other tools, with what Kubernetes sets for a service called
    takhin (TAKHIN_PORT, TAKHIN_SERVICE_HOST), with the command line's options. So only what has a section's double
    underscore, or is nearly a known name, counts as a mistake.
    """
    variables = {option.variable for option in known} | {FILE_VARIABLE}
    for name in sorted(environ):
        if not name.startswith(VARIABLE_PREFIX) or name in variables:
            continue
        short = name.removeprefix(VARIABLE_PREFIX)
        if short in _CONNECTION or (short.startswith(_COMMANDS) and "__" not in short):
            continue
        names = [variable.removeprefix(VARIABLE_PREFIX) for variable in sorted(variables)]
        nearest = _nearest(short, names, 0.0 if "__" in short else 0.8)
        if nearest:
            yield f"unknown variable {name!r}; the nearest known one is {VARIABLE_PREFIX}{nearest}"


def _nearest(name: str, names: Iterable[str], least: float = 0.0) -> str:
    """The name most like `name`; "" when none reaches `least` (0: any, 1: equal)."""
    import difflib  # here, because it is needed only for mistakes

    found = difflib.get_close_matches(name, names, 1, least)
    return found[0] if found else ""
