"""python -m tests.conformance.server --front grpc|fast: what the clients of the suite call, until it is ended.

One front for each setting that a case needs, all of the chosen kind, and a broker of its own beside them. Once all
serve, one line of JSON tells their addresses: see Addresses.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import uvloop

from takhin.cli.dev_certificates import Authority
from takhin.config import GrpcSettings
from takhin.config import TlsSettings
from takhin.rpc.call import MethodTable
from takhin.rpc.tls import tls_files

from .service import Journal, methods

FRONTS = ("grpc", "fast")
MIB = 1 << 20
LIMIT_BYTES = 5 * MIB
CLIENT_URI = "spiffe://example/conformance"
GRACE_MS = 20_000


@dataclass(frozen=True)
class Addresses:
    """plain: messages up to LIMIT_BYTES. gzip: compresses. age: connections get old at once, calls may go on. tls,
    mtls: the latter asks for a certificate. pings: the server pings each 300 ms, clients may each 100 ms. strict: as
    the defaults have it, clients may ping each 10 s. directory: ca.pem, client.pem, client.key. broker: takhin.v1."""

    front: str
    plain: str
    gzip: str
    age: str
    tls: str
    mtls: str
    pings: str
    strict: str
    directory: str
    broker: str

    def arguments(self) -> list[str]:
        """For the command line of a client: name=value each."""
        return [f"{name}={value}" for name, value in asdict(self).items()]


class _Fronts:
    """Those of one process."""

    def __init__(self, kind: str, directory: Path):
        self._kind = kind
        self._directory = directory
        self._started: list[Any] = []
        self._stopping: set[asyncio.Task[None]] = set()
        self._journal = Journal()

    async def _start(self, table: MethodTable, tls: Any = None, **settings: Any) -> tuple[Any, str]:
        if self._kind == "fast":
            from takhin.rpc.fast.front import FastFront as Front
        else:
            from takhin.rpc.grpc_front import GrpcFront as Front
        made = GrpcSettings(**({"max_message_bytes": LIMIT_BYTES, "max_streams_per_connection": 1200} | settings))
        front: Any = Front(table, made, tls)
        return front, await front.start("127.0.0.1:0")

    async def start(self, *, client_ca: bool = False, is_encrypted: bool = False, **settings: Any) -> str:
        tls = self._tls(client_ca) if is_encrypted else None
        front, address = await self._start(methods(self._journal, self._fresh), tls, **settings)
        self._started.append(front)
        return address

    def _tls(self, client_ca: bool) -> Any:
        path = self._directory
        return tls_files(TlsSettings(
            cert=str(path / "server.pem"), key=str(path / "server.key"), client_ca=str(path / "ca.pem") * client_ca))

    async def _fresh(self) -> str:
        front: Any = None

        def stop() -> None:
            self._started.remove(front)
            stopping = asyncio.create_task(front.stop(GRACE_MS))
            self._stopping.add(stopping)
            stopping.add_done_callback(self._stopping.discard)

        front, address = await self._start(methods(self._journal, stop=stop))
        self._started.append(front)
        return address

    async def stop(self) -> None:
        await asyncio.gather(*self._stopping, *(front.stop(100) for front in self._started))


def _write_certificates(directory: Path) -> None:
    authority = Authority(1)
    (directory / "ca.pem").write_bytes(authority.pem)
    pairs = {"server": authority.server(["localhost", "127.0.0.1"]), "client": authority.client([CLIENT_URI], "client")}
    for name, (certificate, key) in pairs.items():
        (directory / f"{name}.pem").write_bytes(certificate)
        (directory / f"{name}.key").write_bytes(key)


async def _serve(kind: str, directory: Path, broker: str) -> None:
    fronts = _Fronts(kind, directory)
    addresses = Addresses(
        front=kind, directory=str(directory), broker=broker,
        plain=await fronts.start(),
        gzip=await fronts.start(compression="gzip"),
        age=await fronts.start(connection_age_ms=300, connection_age_grace_ms=60_000),
        tls=await fronts.start(is_encrypted=True),
        mtls=await fronts.start(is_encrypted=True, client_ca=True),
        pings=await fronts.start(keepalive_time_ms=300, keepalive_timeout_ms=10_000, min_ping_interval_ms=100),
        strict=await fronts.start())
    print(json.dumps(asdict(addresses)), flush=True)
    # Whoever started it closes its standard input.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await fronts.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--front", choices=FRONTS, default="grpc")
    kind = parser.parse_args().front
    # Read when the broker's module is imported.
    os.environ["TAKHIN_TEST_FRONT"] = kind
    from tests.broker_process import BrokerProcess

    with tempfile.TemporaryDirectory(prefix="takhin-conformance-") as name:
        directory = Path(name)
        _write_certificates(directory)
        broker = BrokerProcess(directory / "broker").start()
        try:
            with suppress(KeyboardInterrupt):
                uvloop.run(_serve(kind, directory, broker.address))
            broker.terminate()
            broker.check()
        finally:
            broker.close()


@contextmanager
def running(front: str) -> Iterator[Addresses]:
    """The program above. Raises AssertionError when it, or its broker, found a bug in itself."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.conformance.server", "--front", front], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=errors, text=True, cwd=Path(__file__).parents[2])
        assert process.stdin is not None and process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                errors.seek(0)
                raise AssertionError(f"the server did not start:\n{errors.read()}")
            yield Addresses(**json.loads(line))
            process.stdin.close()
            status = process.wait(60)
            errors.seek(0)
            told = errors.read()
            assert status == 0 and "Traceback" not in told, f"exit status {status}:\n{told}"
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


if __name__ == "__main__":
    main()
