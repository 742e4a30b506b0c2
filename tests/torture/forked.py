"""Work in a process of its own, forked from this one: it may be killed, or leave threads and files behind."""

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

# What takes longer hangs.
_RUN_S = 60


def forked(work: Callable[[], Any], leave: Callable[[int], Any] = os._exit) -> tuple[int, Any]:
    """The process's status, as os.waitpid has it, and what `work` gave, which has to go through JSON; None: nothing.

    leave(status): how the process ends itself.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(_RUN_S)
            os.close(reading)
            given = json.dumps(work()).encode()
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(given)
            status = 0
        except BaseException as problem:
            print(f"{type(problem).__name__}: {problem}", file=sys.stderr, flush=True)
        finally:
            leave(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    return os.waitpid(pid, 0)[1], json.loads(text) if text else None
