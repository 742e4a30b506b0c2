"""How the fast front serves the calls of a table by their handlers: a task for each."""

import asyncio

from takhin.rpc.fast.call cimport OK, FastCall
from takhin.rpc.fast.served cimport BIDI, SERVER_STREAM, UNARY, Served

from takhin.rpc.call import read_within
from takhin.rpc.fast.produce_stream import ProduceStream
from takhin.rpc.gates import too_many_calls, too_much_held


def served_methods(table):
    """The methods of a table by path, in bytes."""
    return {path.encode(): Served(method, _run, _full, ProduceStream) for path, method in table.items()}


async def _run(FastCall call, bytes request=None):
    """request: None: the client sends many of them; or many calls are open: then who calls is asked first, and the
    message has to come in time."""
    cdef Served served = call.served
    try:
        if request is None and served.kind != BIDI:
            if served.method.enter is not None:
                served.method.enter(call)
            request = await read_within(call, call.link.hub.busy_timeout_s)
        if served.kind == UNARY:
            call.take(len(request))
            # Its answer may be large, and others' are not taken.
            if served.gate.limit_bytes and call.link.hub.held_bytes >= call.link.hub.max_held_bytes:
                raise too_much_held(call.link.hub.max_held_bytes)
            call.answer(await served.handler(request, call))
        elif served.kind == SERVER_STREAM:
            served.method.check_size(request)
            await served.handler(request, call)
            call.finish(OK, call.echo())
        else:
            await served.handler(call)
            call.finish(OK, call.echo())
    except (Exception, asyncio.CancelledError) as failure:
        call.ended(failure)
    finally:
        call.leave()


async def _full(FastCall call):
    try:
        call.fail(too_many_calls(call.served.gate))
    finally:
        call.leave()
