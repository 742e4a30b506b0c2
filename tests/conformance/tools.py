"""The clients that are tools of other people: grpcurl, ghz and h2spec. What they say is turned into results.

`go install` brings them, in the versions below. Each runs those of the cases that it is for; h2spec has cases of its
own, of which those that a front is known to fail stand in KNOWN, with the reason.
"""

import json
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from .clients import RUN_TIMEOUT_S, Missing, Result, built, tools
from .server import Addresses
from .service import SERVICE

PROGRAMS = {
    "grpcurl": "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3",
    "ghz": "github.com/bojand/ghz/cmd/ghz@v0.120.0",
    "h2spec": "github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible",
}
_TAKHIN = "takhin.v1.TakhinService"
# What h2spec asks for is no call, so it is answered at once with 415, and the stream is over before the frames that are
# tested come, or not: which of these fail differs from run to run.
_ANSWERED = "what h2spec asks for is not gRPC and was answered by then"
_LENIENT = "nghttp2 ignores frames of a stream that it has forgotten: they may have crossed a reset"
KNOWN: dict[str, dict[tuple[str, str], str]] = {
    "fast": {
        ("generic/2", "Sends a WINDOW_UPDATE frame on half-closed (remote) stream"): "the answer has no DATA",
        ("generic/2", "Sends a PRIORITY frame on half-closed (remote) stream"): "the answer has no DATA",
        ("http2/3.5", "Sends invalid connection preface"): "HTTP/1 gets an answer in HTTP/1, then the end",
        ("http2/5.1", "closed: Sends a DATA frame after sending RST_STREAM frame"): _LENIENT,
        ("http2/5.1", "closed: Sends a HEADERS frame after sending RST_STREAM frame"): _LENIENT,
        ("http2/5.1", "closed: Sends a DATA frame"): _LENIENT,
        ("http2/5.1", "closed: Sends a HEADERS frame"): _LENIENT,
        ("http2/5.1.1", "Sends stream identifier that is numerically smaller than previous"): _LENIENT,
        ("http2/5.1.2", "Sends HEADERS frames that causes their advertised concurrent stream limit to be exceeded"):
            _ANSWERED,
        ("http2/5.1", "half closed (remote): Sends a DATA frame"): _ANSWERED,
        ("http2/6.9.1", "Sends multiple WINDOW_UPDATE frames increasing the flow control window to above 2^31-1 on a "
         "stream"): _ANSWERED,
        ("http2/6.9", "Sends a WINDOW_UPDATE frame with a flow control window increment of 0 on a stream"): _ANSWERED,
    },
}


def install(name: str, scratch: Path) -> str:
    """The program's path: the one that is installed, else what `go install` makes. Raises Missing."""
    try:
        return tools(name)[0]
    except Missing:
        tools("go")
        built("go", "install", PROGRAMS[name], where=scratch, GOBIN=str(scratch))
        return str(scratch / name)


def _run(command: list[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return -1, f"not done in {RUN_TIMEOUT_S} s"
    return done.returncode, done.stdout + done.stderr


def _judged(checks: dict[str, Callable[[], str]]) -> list[Result]:
    """Each check gives what is wrong, "" for nothing."""
    found = []
    for name, check in checks.items():
        try:
            why = check()
        except Exception as exc:
            why = f"{type(exc).__name__}: {exc}"
        found.append(Result(name, "FAIL" if why else "PASS", " ".join(why.split())[:500]))
    return found


def run_grpcurl(program: str, at: Addresses) -> list[Result]:
    base = [program, "-plaintext"]

    def call(*flags: str, method: str, data: str = "{}") -> tuple[int, str]:
        return _run([*base, *flags, "-d", data, at.broker, method])

    def wants(result: tuple[int, str], *parts: str, status: int = 0) -> str:
        lacking = [part for part in parts if part not in result[1]]
        return f"exit status {result[0]}, without {lacking}: {result[1]}" if lacking or result[0] != status else ""

    def produced() -> str:
        topic = uuid.uuid4().hex
        wrong = wants(call(
            method=f"{_TAKHIN}/CreateTopic", data=json.dumps({"name": topic, "num_partitions": 1})), "true")
        for value in ("MQ==", "Mg=="):
            request = {"topic": topic, "record": {"value": value}, "required_acks": 1}
            wrong = wrong or wants(call(method=f"{_TAKHIN}/ProduceMessage", data=json.dumps(request)), topic)
        request = {"topic": topic, "offset": -1, "until_end": True}
        return wrong or wants(call(method=f"{_TAKHIN}/ConsumeMessages", data=json.dumps(request)), "MQ==", "Mg==")

    def failed() -> str:
        # grpcurl's exit status is 64 and the code.
        return wants(call(method=f"{_TAKHIN}/GetTopic", data='{"name": "none"}'), "NotFound", status=64 + 5)

    return _judged({
        "reflection": lambda: wants(_run([*base, at.broker, "list"]), _TAKHIN, "grpc.health.v1.Health")
        or wants(_run([*base, at.broker, "describe", _TAKHIN]), "rpc ProduceMessage "),
        "health-check": lambda: wants(call(method="grpc.health.v1.Health/Check"), "SERVING"),
        "error-unary": failed,
        "status-details": lambda: wants(
            call(method=f"{_TAKHIN}/GetTopic", data='{"name": "none"}'), "google.rpc.ErrorInfo", "TOPIC_NOT_FOUND",
            status=64 + 5),
        "request-id": lambda: wants(call(
            "-v", "-H", "x-request-id: mine-1", method="grpc.health.v1.Health/Check"), "x-request-id: mine-1"),
        "broker-produce-consume": produced,
    })


def run_ghz(program: str, at: Addresses) -> list[Result]:
    def calls(method: str, data: dict[str, object], *flags: str) -> tuple[dict[str, int], str]:
        status, told = _run([
            program, "--insecure", "--call", method, "-d", json.dumps(data), "-O", "json", "-t", "60s", *flags,
            at.broker])
        if status:
            return {}, told
        return json.loads(told)["statusCodeDistribution"], told

    def concurrent() -> str:
        # Core refuses some with UNAVAILABLE when a client keeps as many open as it may, which is 1,000 on the broker's
        # connections: docs/decisions/floods.md tells why.
        connections = "1" if at.front == "fast" else "2"
        codes, told = calls(
            "grpc.health.v1.Health/Check", {}, "-n", "5000", "-c", "1000", "--connections", connections)
        return "" if codes == {"OK": 5000} else f"{codes}: {told}"

    def produced() -> str:
        topic = uuid.uuid4().hex
        codes, told = calls(f"{_TAKHIN}/CreateTopic", {"name": topic, "num_partitions": 1}, "-n", "1", "-c", "1")
        if codes != {"OK": 1}:
            return told
        request = {"topic": topic, "record": {"value": "MQ=="}, "required_acks": 1}
        codes, told = calls(f"{_TAKHIN}/ProduceMessage", request, "-n", "2000", "-c", "50", "--connections", "4")
        return "" if codes == {"OK": 2000} else f"{codes}: {told}"

    return _judged({"concurrent-1000": concurrent, "broker-produce-consume": produced})


def run_h2spec(program: str, at: Addresses, report: Path) -> list[Result]:
    """One result a case of h2spec's: SKIP for those that fail and are known to."""
    if at.front != "fast":
        return [Result("h2spec", "SKIP", "core's HTTP/2 is not ours, and h2spec does not come to its end in minutes")]
    host, _, port = at.plain.rpartition(":")
    report.unlink(missing_ok=True)
    _, told = _run([program, "-h", host, "-p", port, "-P", f"/{SERVICE}/Echo", "--timeout", "2", "-j", str(report)])
    if not report.exists():
        return [Result("h2spec", "FAIL", f"it wrote no report: {told[-300:]}")]
    known, found = KNOWN.get(at.front, {}), []
    for each in ElementTree.parse(report).iter("testcase"):
        key = each.get("package", ""), each.get("classname", "")
        failure = next((part for part in each if part.tag in ("failure", "error")), None)
        name = f"{key[0]}: {key[1]}"
        if each.find("skipped") is not None:
            found.append(Result(name, "SKIP", "h2spec skips it"))
        elif failure is None:
            found.append(Result(name, "PASS"))
        elif key in known:
            found.append(Result(name, "SKIP", f"known: {known[key]}"))
        else:
            found.append(Result(name, "FAIL", " ".join((failure.text or "").split())[:300]))
    return found
