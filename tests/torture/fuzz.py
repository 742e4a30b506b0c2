"""Malformed input of every kind, for a time: requests, batches, indexes, directories, connections of the fast front.

Inputs are valid ones, mutated. What breaks a promise, raises what it must not, or takes the process down is kept as a
file in tests/torture/corpus, which the suite tries again.
"""

import argparse
import hashlib
import logging
import mmap
import multiprocessing
import os
import random
import struct
import time
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from tests.torture.bed import scratch
from tests.torture.common import Run, run_from_arguments
from tests.torture.fuzz_targets import TARGETS, Target

CORPUS = Path(__file__).with_name("corpus")
_DEFAULT_SECONDS = 60.0
_UNBOUNDED = 1 << 62
_SHARED_BYTES = 1 << 20
# Of one target: more of them are mostly the same.
_FINDINGS_AT_MOST = 20
_LENGTH = struct.Struct("<I")


def try_inputs(name: str, target: Target, run: Run, shared: mmap.mmap | None = None) -> None:
    """Inputs for one target, until the run is over. shared: where the one under way is noted."""
    for _, chance in run:
        data = target.make(chance)
        if shared is not None:
            shared[: 4 + len(data)] = _LENGTH.pack(len(data)) + data
        try_input(name, target, data, run)
        if len(run.failures) >= _FINDINGS_AT_MOST:
            return


def try_input(name: str, target: Target, data: bytes, run: Run) -> None:
    """One input; what it breaks is told to the run, and kept."""
    try:
        target.check(data)
    except Exception as problem:  # whatever comes out is a finding
        run.fail(f"{keep(name, data)}: {type(problem).__name__}: {problem}")


def keep(name: str, data: bytes) -> str:
    """Write a finding to the corpus. Returns its name there."""
    file = f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
    CORPUS.mkdir(exist_ok=True)
    (CORPUS / file).write_bytes(data)
    return file


def _worker(
    name: str, seed: str, count: int, seconds: float, shared_path: str, directory: str, results: Connection
) -> None:
    logging.disable(logging.CRITICAL)
    with open(shared_path, "r+b") as file:
        shared = mmap.mmap(file.fileno(), _SHARED_BYTES)
    target = TARGETS[name](Path(directory))
    run = Run("fuzz", count, random.Random(seed).randrange(1 << 62), seconds)
    try_inputs(name, target, run, shared)
    results.send((run.done, run.failures))
    target.close()


def fuzz_all(run: Run, seconds: float, names: list[str]) -> None:
    """Each target has its share of the time, one process for each core; a process that dies is a finding."""
    context = multiprocessing.get_context("spawn")
    cores = os.cpu_count() or 1
    # Targets follow each other on a core.
    share_s = seconds * min(cores, len(names)) / len(names)
    deadline_s = time.monotonic() + seconds
    with scratch() as directory:
        running: dict[Connection, tuple[str, SpawnProcess, Path]] = {}
        while names or running:
            while names and len(running) < cores:
                name = names.pop(0)
                place = directory / name
                place.mkdir()
                shared = place / "input"
                shared.write_bytes(bytes(_SHARED_BYTES))
                receiver, sender = context.Pipe(duplex=False)
                how = (name, f"{run.seed}/{name}", run.count, share_s, str(shared), str(place / "data"), sender)
                process = context.Process(target=_worker, args=how)
                process.start()
                sender.close()
                running[receiver] = name, process, shared
            # With its results, or when it has died.
            for receiver in wait(list(running)):
                assert isinstance(receiver, Connection)
                name, process, shared = running.pop(receiver)
                _collect(run, name, process, receiver, shared)
    run.figures["seconds_over"] = max(0, int(time.monotonic() - deadline_s))


def _collect(run: Run, name: str, process: SpawnProcess, receiver: Connection, shared: Path) -> None:
    try:
        done, failures = receiver.recv()
        run.done += done
        run.failures += failures
        run.add(**{name: done})
    except EOFError:
        pass
    process.join()
    if process.exitcode != 0:
        raw = shared.read_bytes()
        (size,) = _LENGTH.unpack_from(raw)
        run.fail(f"{keep(name, raw[4 : 4 + size])}: the process ended with {process.exitcode}")


def main() -> int:
    """For a minute, unless told otherwise."""
    only = argparse.ArgumentParser(add_help=False)
    only.add_argument("--only", choices=sorted(TARGETS), action="append", help="this target, and no other")
    run = run_from_arguments("fuzz", __doc__ or "", _UNBOUNDED, only)
    seconds = run.seconds or (_DEFAULT_SECONDS if run.count == _UNBOUNDED else 1e9)
    fuzz_all(run, seconds, only.parse_known_args()[0].only or list(TARGETS))
    run.count = run.done
    return run.end()


if __name__ == "__main__":
    raise SystemExit(main())
