"""How the fast front serves the calls of a table by their handlers: a task for each."""

import asyncio

from takhin.rpc.fast.call cimport OK, FastCall
from takhin.rpc.fast.served cimport SERVER_STREAM, Served

from takhin.rpc.call import Kind, read_within
from takhin.rpc.fast.produce_stream import ProduceStream
from takhin.rpc.gates import too_many_calls


def served_methods(table):
    """The methods of a table by path, in bytes."""
    runs = {Kind.UNARY: _unary, Kind.SERVER_STREAM: _server_stream, Kind.BIDI: _bidi}
    return {
        path.encode(): Served(method, runs[method.kind], _busy, _full, ProduceStream) for path, method in table.items()}


async def _unary(FastCall call, bytes request):
    try:
        call.take(len(request))
        call.answer(await call.served.handler(request, call))
    except (Exception, asyncio.CancelledError) as failure:
        call.ended(failure)
    finally:
        call.leave()


async def _server_stream(FastCall call, bytes request):
    try:
        call.served.method.check_size(request)
        await call.served.handler(request, call)
        call.finish(OK, call.echo())
    except (Exception, asyncio.CancelledError) as failure:
        call.ended(failure)
    finally:
        call.leave()


async def _bidi(FastCall call):
    try:
        await call.served.handler(call)
        call.finish(OK, call.echo())
    except (Exception, asyncio.CancelledError) as failure:
        call.ended(failure)
    finally:
        call.leave()


async def _busy(FastCall call):
    """Who calls is asked first, and the message has to come in time."""
    try:
        method = call.served.method
        if method.enter is not None:
            method.enter(call)
        request = await read_within(call, call.link.hub.busy_timeout_s)
        if call.served.kind == SERVER_STREAM:
            method.check_size(request)
            await call.served.handler(request, call)
            call.finish(OK, call.echo())
        else:
            call.take(len(request))
            call.answer(await call.served.handler(request, call))
    except (Exception, asyncio.CancelledError) as failure:
        call.ended(failure)
    finally:
        call.leave()


async def _full(FastCall call):
    try:
        call.fail(too_many_calls(call.served.gate))
    finally:
        call.leave()
