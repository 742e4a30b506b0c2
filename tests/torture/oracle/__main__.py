"""The oracle as a program.

    python -m tests.torture.oracle load --ledger FILE --address HOST:PORT [--seconds S] [--seed N]
    python -m tests.torture.oracle judge --ledger FILE --address HOST:PORT [--fault kill|power|stop|stopping|none]
    python -m tests.torture.oracle serve

`load` until the time is over or the broker is gone; `judge` prints every broken promise, and exits with 1 if there is
one.
`serve` takes commands as lines of JSON from standard input, and answers each so on standard output:

    {"do": "open", "ledger": FILE}                               {"done": "open"}
    {"do": "load", "address": A, "plan": {of load.Plan}}         {"running": true}, and when the load has ended
                                                                 {"done": "load", "figures": {}, "reasons": {},
                                                                  "promised": {}, "surprises": []}
    {"do": "stop"}                                               the load ends in order
    {"do": "figures"}                                            {"done": "figures", …} of the load that runs
    {"do": "delete", "address": A, "topic": NAME}                {"done": "delete", "ok": true, "reasons": {}}
    {"do": "fault", "fault": kill|power|stop|stopping|full}      {"done": "fault"}
    {"do": "judge", "address": A, "fault": kill …|none,          {"done": "judge", "breaches": [], "acked": n, …}
     "members": [FILE, …]}
"""

import argparse
import asyncio
import json
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.torture.oracle import Ledger, judge
from tests.torture.oracle.load import Load, Plan
from tests.torture.oracle.member_log import read_member_log


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture.oracle", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve")
    for name in ("load", "judge"):
        command = commands.add_parser(name)
        command.add_argument("--ledger", type=Path, required=True)
        command.add_argument("--address", required=True)
        if name == "load":
            command.add_argument("--seconds", type=float, default=10)
            command.add_argument("--seed", default="1")
        else:
            command.add_argument("--fault", default="kill", choices=("kill", "power", "stop", "stopping", "none"))
    arguments = parser.parse_args()
    if arguments.command == "serve":
        return asyncio.run(_serve())
    ledger = Ledger(arguments.ledger)
    if arguments.command == "load":
        return asyncio.run(_load(ledger, arguments.address, arguments.seed, arguments.seconds))
    found = judge(ledger, arguments.address, arguments.fault)
    for breach in found.breaches:
        print(f"BROKEN: {breach}")
    print(f"oracle: {found.records} records read, {found.acked} of them had to be there, {found.commits} commits, "
          f"{len(found.breaches)} broken promises")
    return 1 if found.breaches else 0


async def _load(ledger: Ledger, address: str, seed: str, seconds: float) -> int:
    load = Load(ledger, address, Plan(seed=seed))
    asyncio.get_running_loop().call_later(seconds, load.stop)
    await load.run()
    ledger.close()
    print(f"oracle: {load.figures}")
    for surprise in load.surprises:
        print(f"SURPRISE: {surprise}")
    return 1 if load.surprises else 0


async def _serve() -> int:
    """Until standard input ends: whoever started this is gone, or has enough."""
    commands: asyncio.Queue[str | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read_commands() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(commands.put_nowait, line)
        loop.call_soon_threadsafe(commands.put_nowait, None)

    threading.Thread(target=read_commands, daemon=True).start()
    ledger = Ledger()
    load: Load | None = None
    loading: asyncio.Task[None] | None = None
    while (line := await commands.get()) is not None:
        command = json.loads(line)
        match command["do"]:
            case "open":
                ledger.close()
                ledger = Ledger(Path(command["ledger"]))
                _say(done="open")
            case "load":
                load = Load(ledger, command["address"], Plan(**command["plan"]))
                loading = asyncio.ensure_future(_run(load))
            case "stop":
                assert load is not None
                load.stop()
            case "figures":
                assert load is not None
                _say(done="figures", **_figures(load))
            case "delete":
                deletion = Load(ledger, command["address"], Plan())
                ok = await deletion.delete_topic(command["topic"])
                _say(done="delete", ok=ok, **_figures(deletion))
            case "fault":
                assert loading is None or loading.done()
                ledger.fault(command["fault"])
                ledger.sync()
                _say(done="fault")
            case "judge":
                assert loading is None or loading.done()
                logs = [read_member_log(Path(name)) for name in command.get("members", ())]
                found = judge(ledger, command["address"], command["fault"], logs)
                _say(done="judge", **asdict(found))
    ledger.close()
    return 0


async def _run(load: Load) -> None:
    await load.run(lambda: _say(running=True))
    _say(done="load", **_figures(load))


def _figures(load: Load) -> dict[str, Any]:
    return {"figures": load.figures, "reasons": load.reasons, "promised": load.promised, "surprises": load.surprises}


def _say(**told: Any) -> None:
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    sys.exit(main())
