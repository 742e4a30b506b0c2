"""The clients that are programs of their own: how each is built, and how its cases are run.

Each is a small program in a directory beside this file. It takes Addresses as name=value arguments, and prints one line
a case: PASS NAME, FAIL NAME REASON, or SKIP NAME REASON for what its library can't express.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .cases import CASES, STOCK
from .server import Addresses

HERE = Path(__file__).parent
PROTO = HERE.parents[1] / "proto"
# Of all the cases of a client; of a build, which may download what it needs.
RUN_TIMEOUT_S, BUILD_TIMEOUT_S = 300, 1200


class Missing(Exception):
    """What is needed to build or run a client is not on this machine; the text says what."""


@dataclass(frozen=True)
class Result:
    """Of one case. verdict: PASS, FAIL or SKIP."""

    case: str
    verdict: str
    reason: str = ""


def tools(*names: str) -> list[str]:
    """Their paths. Raises Missing."""
    found = {name: shutil.which(name) for name in names}
    if absent := [name for name, path in found.items() if path is None]:
        raise Missing(f"not installed: {', '.join(absent)}")
    return [path for path in found.values() if path is not None]


def built(*command: str, where: Path, **variables: str) -> str:
    """What it printed. Raises Missing when it fails: a program of ours that does not compile is told the same way, with
    what the compiler said."""
    try:
        done = subprocess.run(
            command, cwd=where, env=os.environ | variables, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise Missing(f"{command[0]} took more than {BUILD_TIMEOUT_S} s") from None
    if done.returncode:
        raise Missing(f"{' '.join(command)[:120]}: {(done.stderr + done.stdout)[-3000:]}")
    return done.stdout


def build_cpp(scratch: Path) -> list[str]:
    """Debian: g++ pkg-config libgrpc++-dev libprotobuf-dev protobuf-compiler protobuf-compiler-grpc."""
    _, protoc, _, plugin = tools("g++", "protoc", "pkg-config", "grpc_cpp_plugin")
    try:
        flags = built("pkg-config", "--cflags", "--libs", "grpc++", "protobuf", where=scratch).split()
    except Missing:
        raise Missing("not installed: libgrpc++-dev") from None
    built(
        protoc, f"-I{PROTO}", "--cpp_out=.", "--grpc_out=.", f"--plugin=protoc-gen-grpc={plugin}",
        "takhin/v1/takhin.proto", where=scratch)
    source = str(HERE / "cpp/client.cc")
    # Nothing here is slow but the compiler.
    built("g++", "-std=c++17", "-O0", "-I.", source, "-o", "client", *flags, "-lpthread", where=scratch)
    return [str(scratch / "client")]


def build_go(scratch: Path) -> list[str]:
    """Go 1.25 or newer; go.sum pins what it needs."""
    tools("go")
    built("go", "build", "-o", str(scratch / "client"), ".", where=HERE / "go")
    return [str(scratch / "client")]


def build_node(scratch: Path) -> list[str]:
    """Node 20 or newer; package-lock.json pins what it needs."""
    node, npm = tools("node", "npm")
    for name in ("package.json", "package-lock.json", "client.mjs"):
        shutil.copy(HERE / "node" / name, scratch)
    built(npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", where=scratch)
    return [node, str(scratch / "client.mjs"), f"proto={PROTO}"]


def build_java(scratch: Path) -> list[str]:
    """JDK 17 or newer and Maven; pom.xml pins what it needs."""
    java, maven = tools("java", "mvn")
    shutil.copytree(HERE / "java", scratch, dirs_exist_ok=True)
    built(maven, "-q", "-B", "package", "dependency:copy-dependencies", "-DoutputDirectory=target/lib", where=scratch)
    return [java, "-cp", f"{scratch}/target/classes:{scratch}/target/lib/*", "Client"]


BUILDS: dict[str, Callable[[Path], list[str]]] = {
    "cpp": build_cpp, "go": build_go, "node": build_node, "java": build_java}


def results(output: str, status: int, errors: str, names: Sequence[str] = STOCK) -> list[Result]:
    """One of each case in `names`: one that a client says nothing of has failed."""
    found = {}
    for line in output.splitlines():
        verdict, _, rest = line.partition(" ")
        name, _, reason = rest.partition(" ")
        if verdict in ("PASS", "FAIL", "SKIP") and name:
            found[name] = Result(name, verdict, reason)
    silent = f"the client said nothing of it; exit status {status}; {errors[-500:]}"
    wanted = [found.pop(name, Result(name, "FAIL", silent)) for name in names]
    return wanted + [
        each if each.case in CASES else Result(each.case, "FAIL", "there is no such case") for each in found.values()]


def run(command: Sequence[str], addresses: Addresses) -> list[Result]:
    """All cases of a client that was built."""
    try:
        done = subprocess.run(
            [*command, *addresses.arguments()], capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
    except subprocess.TimeoutExpired as exc:
        output = exc.stdout or b""
        return results(output.decode() if isinstance(output, bytes) else output, -1, f"not done in {RUN_TIMEOUT_S} s")
    return results(done.stdout, done.returncode, done.stderr)
