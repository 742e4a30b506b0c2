"""Imports go one way: rpc -> broker -> log -> codec -> errors, and sync -> client -> codec beside it. cli sees
everything, nobody imports cli, and nobody a name that begins with an underscore."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from .source import PACKAGE, ROOT, is_generated, logical_lines, modules, name_of

LEAVES = {"clock", "config", "config_sources", "counters", "errors", "gate", "listen_address", "outcome"}

# A room is a package of takhin, or a module at its top. A room may always import itself and the leaves.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "config": set(),
    "config_sources": set(),
    "listen_address": set(),
    "counters": set(),
    "gate": set(),
    "outcome": set(),
    "clock": set(),
    "v1": set(),
    "codec": set(),
    "log": {"codec"},
    # broker parses what fronts hand it, and answers in bytes: so it knows the contract's generated classes, and codec.
    "broker": {"log", "codec", "v1"},
    # rpc does not look past the broker at the log.
    "rpc": {"broker", "codec", "v1"},
    # The client knows the contract and the wire, and nothing of a broker.
    "client": {"codec", "v1"},
    "sync": {"client"},
    "tracing": {"client"},
    # The broker in a program, and in tests: the client's way to it without a socket.
    "local_transport": {"client", "rpc"},
    "embedded": {"broker", "rpc", "client", "local_transport"},
    # Starts the server by its name, as anybody would.
    "server_process": set(),
    "testing": {"embedded", "local_transport", "client", "sync", "server_process"},
    "cli": {"rpc", "broker", "log", "codec", "v1", "client", "sync", "server_process", "embedded"},
}

# Who may import grpc: the front, and the client's transport.
KNOW_GRPC = {"rpc", "client"}

# No I/O and no event loop in the codec.
KEPT_OUT_OF_CODEC = {
    "asyncio", "concurrent", "io", "mmap", "multiprocessing", "os", "pathlib", "posix", "select", "selectors", "socket",
    "sqlite3", "ssl", "subprocess", "threading", "uvloop", "libc.stdio", "cpython.pythread",
}


def python_imports(text: str, package: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) for everything `text`, a module in `package`, imports; for `from a import b` it is a.b."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            source = absolute("." * node.level + (node.module or ""), package)
            for alias in node.names:
                yield node.lineno, f"{source}.{alias.name}"


def cython_imports(text: str, package: str) -> Iterator[tuple[int, str]]:
    """The same for Cython, cimport included."""
    for line in logical_lines(text):
        if match := re.fullmatch(r"from (\.*[\w.]*) c?import \(?(.+?)\)?", line.text):
            source = absolute(match[1], package)
            names = [f"{source}.{name}" for name in imported_names(match[2])]
        elif match := re.fullmatch(r"c?import (.+)", line.text):
            names = imported_names(match[1])
        else:
            continue
        for name in names:
            yield line.number, name


def imported_names(text: str) -> list[str]:
    """a.b and c of "a.b as x, c,"."""
    return [part.split()[0] for part in text.split(",") if part.strip()]


def absolute(name: str, package: str) -> str:
    """takhin.codec.wire for ".wire" in takhin.codec, and for "..codec.wire" in takhin.log."""
    relative = name.lstrip(".")
    level = len(name) - len(relative)
    if not level:
        return name
    parents = package.split(".")
    return ".".join(filter(None, [*parents[: len(parents) - level + 1], relative]))


def room_of(dotted: str) -> str | None:
    """The room that an import of takhin.… leads to; None for what is not ours, and for takhin itself."""
    match = re.match(r"takhin\.(\w+)", dotted)
    return match[1] if match and match[1] in MAY_IMPORT else None


def objections(room: str, imports: Iterator[tuple[int, str]]) -> list[str]:
    """What breaks the rules among the imports of a file in `room`."""
    if room not in MAY_IMPORT:
        return [f"a new room, {room}: say in MAY_IMPORT what it may see"]
    found = []
    for line, name in imports:
        target = room_of(name)
        if target is not None and target not in MAY_IMPORT[room] | LEAVES | {room}:
            found.append(f"line {line}: {room} may not import {name}")
        if re.match(r"grpc\w*(\.|$)|takhin\.v1\.takhin_pb2_grpc", name) and room not in KNOW_GRPC:
            found.append(f"line {line}: only rpc and client may import {name}")
        if room in ("codec", "log") and re.match(r"google(\.|$)", name):
            found.append(f"line {line}: {room} knows bytes, not the classes of {name}")
        if target is not None and re.search(r"\._[a-z]", name):
            found.append(f"line {line}: {name} is its module's own")
        if room == "codec" and any(f"{name}.".startswith(f"{kept_out}.") for kept_out in KEPT_OUT_OF_CODEC):
            found.append(f"line {line}: codec has no I/O and no event loop: {name}")
    return found


def check(path: Path) -> list[str]:
    relative = path.relative_to(ROOT).with_suffix("")
    room = relative.parts[1]
    if room == "__init__":
        # Of takhin: everyone runs it, so it may import nothing of ours. Its stub tells what it offers.
        room = "cli" if path.suffix == ".pyi" else "errors"
    package = ".".join(relative.parts[:-1])
    read = cython_imports if path.suffix in (".pyx", ".pxd") else python_imports
    return objections(room, read(path.read_text(), package))


@pytest.mark.parametrize("path", modules(".py", ".pyi", ".pyx", ".pxd"), ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    if is_generated(path) and path.name.endswith("_pb2_grpc.py"):
        return
    assert not check(path)


def test_the_client_knows_grpc_in_one_place() -> None:
    knowing = {
        path.name for path in (PACKAGE / "client").glob("*.py")
        for _, name in python_imports(path.read_text(), "takhin.client")
        if re.match(r"grpc\w*(\.|$)|takhin\.v1\.takhin_pb2_grpc", name)}
    assert knowing == {"grpc_transport.py"}


def test_there_is_something_to_check() -> None:
    rooms = {path.relative_to(PACKAGE).parts[0].partition(".")[0] for path in modules(".py", ".pyx")}
    assert rooms >= set(MAY_IMPORT)


@pytest.mark.parametrize(("room", "text", "told"), [
    ("codec", "from takhin.log.ring import Ring", "codec may not import takhin.log.ring.Ring"),
    ("codec", "from ..log import ring", "codec may not import takhin.log.ring"),
    ("codec", "import asyncio", "codec has no I/O and no event loop: asyncio"),
    ("codec", "from os import path", "codec has no I/O and no event loop: os.path"),
    ("log", "from takhin.broker import topics", "log may not import takhin.broker.topics"),
    ("log", "from takhin.v1 import takhin_pb2", "log may not import takhin.v1.takhin_pb2"),
    ("log", "from google.rpc import status_pb2", "log knows bytes, not the classes of google.rpc.status_pb2"),
    ("client", "from takhin.rpc.call import Kind", "client may not import takhin.rpc.call"),
    ("client", "from takhin.broker import broker", "client may not import takhin.broker.broker"),
    ("sync", "from takhin.codec import wire", "sync may not import takhin.codec.wire"),
    ("broker", "import takhin.rpc.call", "broker may not import takhin.rpc.call"),
    ("broker", "import grpc.aio", "only rpc and client may import grpc.aio"),
    ("broker", "from takhin.v1 import takhin_pb2_grpc", "only rpc and client may import takhin.v1.takhin_pb2_grpc"),
    ("cli", "def main():\n    from grpc import aio", "only rpc and client may import grpc.aio"),
    ("rpc", "from takhin import log", "rpc may not import takhin.log"),
    ("rpc", "from takhin.cli.server import main", "rpc may not import takhin.cli.server.main"),
    ("errors", "from takhin.codec import wire", "errors may not import takhin.codec.wire"),
    ("config", "from takhin.log import ring", "config may not import takhin.log.ring"),
    ("cli", "from takhin.log.recovery import Place, _set_aside", "takhin.log.recovery._set_aside is its module's own"),
    ("newroom", "", "a new room, newroom"),
])
def test_a_wrong_import_is_found(room: str, text: str, told: str) -> None:
    (objection,) = objections(room, python_imports(text, f"takhin.{room}"))
    assert told in objection


@pytest.mark.parametrize(("room", "text", "told"), [
    ("codec", "from takhin.log.ring cimport Ring", "codec may not import takhin.log.ring.Ring"),
    ("codec", "x = 1\ncimport takhin.log.ring as ring", "line 2: codec may not import takhin.log.ring"),
    ("codec", "from ..log.ring cimport (\n    Ring,  # the tail\n    Chunk as C,\n)", "takhin.log.ring.Ring"),
    ("codec", "def f():\n    import asyncio", "line 2: codec has no I/O and no event loop: asyncio"),
    ("codec", "from libc.stdio cimport printf", "codec has no I/O and no event loop: libc.stdio.printf"),
    ("codec", "from posix.unistd cimport write", "codec has no I/O and no event loop: posix.unistd.write"),
    ("log", "import os, takhin.broker.topics", "log may not import takhin.broker.topics"),
])
def test_a_wrong_cython_import_is_found(room: str, text: str, told: str) -> None:
    found = objections(room, cython_imports(text, f"takhin.{room}"))
    assert found and told in found[0]


@pytest.mark.parametrize("text", [
    "from takhin.codec.wire cimport check_record", "from takhin.errors import error", "from .ring cimport Ring",
    '"""\nfrom takhin.broker import topics\n"""', "# from takhin.broker import topics", "import os",
    "from takhin import __version__", "cdef int x = 1",
])
def test_a_right_import_is_let_through(text: str) -> None:
    assert objections("log", cython_imports(text, "takhin.log")) == []
