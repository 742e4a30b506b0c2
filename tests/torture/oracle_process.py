"""The oracle as a process beside the one that breaks things: it outlives every broker, and its ledger every fault."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class OracleProcess:
    """`python -m tests.torture.oracle serve`, driven by its commands. Use as a context manager.

    begin_load() and end_load() stand around whatever happens to the broker; judge() is for a broker that is up again.
    """

    def __enter__(self) -> "OracleProcess":
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "tests.torture.oracle", "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._popen.stdin is not None and self._popen.stdout is not None
        self._popen.stdin.close()
        self._popen.wait(60)
        self._popen.stdout.close()

    def open(self, ledger: Path) -> None:
        """Go on with this ledger."""
        self._ask(do="open", ledger=str(ledger))

    def begin_load(self, address: str, **plan: Any) -> None:
        """Returns when all the load's workers run. plan: of oracle.load.Plan."""
        self._send(do="load", address=address, plan=plan)
        assert self._answer() == {"running": True}

    def stop_load(self) -> None:
        """Ask the load to end in order; end_load() still has to be called."""
        self._send(do="stop")

    def end_load(self) -> dict[str, Any]:
        """Returns when the load has ended: as figures()."""
        return self._answer()

    def figures(self) -> dict[str, Any]:
        """Of the load that runs: {figures, reasons (of refusals), promised (by topic/partition), surprises}."""
        return self._ask(do="figures")

    def delete_topic(self, address: str, topic: str) -> dict[str, Any]:
        """Without a load: {ok, reasons, …}."""
        return self._ask(do="delete", address=address, topic=topic)

    def fault(self, fault: str) -> None:
        """Note in the ledger what happened to the broker: kill, power, stop, stopping, full."""
        self._ask(do="fault", fault=fault)

    def judge(self, address: str, fault: str, members: Sequence[Path] = ()) -> dict[str, Any]:
        """{breaches, acked, records, commits}; with members' ledgers, after which nothing else may come, more."""
        return self._ask(do="judge", address=address, fault=fault, members=[str(path) for path in members])

    def _ask(self, **command: Any) -> dict[str, Any]:
        self._send(**command)
        return self._answer()

    def _send(self, **command: Any) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.write(json.dumps(command) + "\n")
        self._popen.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        assert line, "the oracle ended; standard error tells why"
        return json.loads(line)
