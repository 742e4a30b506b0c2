"""python -m tests.conformance: every client against both fronts, and one table of it all.

    --front grpc|fast      one front alone                --client NAME     one client alone; may be given again
    --allow-missing        a client that can't be built here is no failure

The exit status is 0 when every case passed or was skipped with a reason, and no client was missing.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from . import broker_cases, cases, raw, stock
from .calls import CONNECTIONS
from .clients import BUILDS, Missing, Result, run
from .server import FRONTS, Addresses, running
from .tools import install, run_ghz, run_grpcurl, run_h2spec

assert broker_cases
Client = Callable[[Addresses], list[Result]]
CLIENTS = (*sorted(CONNECTIONS), "python-raw", *BUILDS, "grpcurl", "ghz", "h2spec")
_MARKS = {"PASS": "ok", "FAIL": "FAIL", "SKIP": "skip"}


def _python(kind: str, at: Addresses) -> list[Result]:
    found = []
    for name in cases.RAW if kind == "python-raw" else cases.STOCK:
        try:
            if kind == "python-raw":
                raw.CASES[name](at)
            else:
                asyncio.run(stock.CASES[name](stock.World(kind, at)))
            found.append(Result(name, "PASS"))
        except Exception as exc:
            found.append(Result(name, "FAIL", f"{type(exc).__name__}: {exc}"[:500].replace("\n", " ")))
    return found


def _client(name: str, scratch: Path) -> Client:
    """Built, and ready to run. Raises Missing."""
    if name.startswith("python-"):
        return partial(_python, name)
    scratch.mkdir()
    if name in BUILDS:
        return partial(run, BUILDS[name](scratch))
    program = install(name, scratch)
    if name == "h2spec":
        return lambda at: run_h2spec(program, at, scratch / "report.xml")
    return partial({"grpcurl": run_grpcurl, "ghz": run_ghz}[name], program)


def _table(found: dict[tuple[str, str], list[Result]]) -> str:
    """client x front across, cases down; h2spec's own cases as one line of numbers."""
    columns = list(found)
    width = max(map(len, cases.CASES))
    heads = [f"{client}/{front}" for client, front in columns]
    lines = ["  ".join(["case".ljust(width), *heads])]
    for name in cases.CASES:
        verdicts = [next((_MARKS[each.verdict] for each in found[key] if each.case == name), "-") for key in columns]
        cells = (mark.ljust(len(head)) for mark, head in zip(verdicts, heads, strict=True))
        lines.append("  ".join([name.ljust(width), *cells]))
    for (client, front), results in found.items():
        own = [each for each in results if each.case not in cases.CASES]
        if own:
            counts = {verdict: sum(each.verdict == verdict for each in own) for verdict in _MARKS}
            lines.append(f"{client}/{front}: its own cases: {counts}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--front", choices=FRONTS, action="append")
    parser.add_argument("--client", choices=CLIENTS, action="append")
    parser.add_argument("--allow-missing", action="store_true")
    given = parser.parse_args()
    found: dict[tuple[str, str], list[Result]] = {}
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="takhin-clients-") as directory:
        clients: dict[str, Client] = {}
        for name in given.client or CLIENTS:
            print(f"building {name}", flush=True)
            try:
                clients[name] = _client(name, Path(directory, name))
            except Missing as exc:
                missing[name] = str(exc)
        for name, client in clients.items():
            for front in given.front or FRONTS:
                # A server each: what one client does to it is no other's.
                with running(front) as at:
                    found[name, front] = client(at)
                print(f"{name}/{front}: {len(found[name, front])} cases", flush=True)
    print("\n" + _table(found))
    for (client_name, front), results in found.items():
        for each in results:
            if each.verdict != "PASS":
                print(f"{each.verdict} {client_name}/{front} {each.case}: {each.reason}")
    for name, why in missing.items():
        print(f"MISSING {name}: {why}")
    failed = sum(each.verdict == "FAIL" for results in found.values() for each in results)
    print(f"{failed} failed, {len(missing)} clients missing")
    return 1 if failed or not found or (missing and not given.allow_missing) else 0


if __name__ == "__main__":
    sys.exit(main())
