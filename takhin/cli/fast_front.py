"""The fast front of takhin-server: loaded where it is built, and what holds where nobody has asked for it."""

import importlib
import importlib.util
import logging
from typing import TYPE_CHECKING

from takhin.config import Settings
from takhin.errors import StartError

if TYPE_CHECKING:
    from takhin.rpc.call import MethodTable
    from takhin.rpc.fast.front import FastFront
    from takhin.rpc.security import Security

_log = logging.getLogger("takhin.server")


def is_built() -> bool:
    """Whether nghttp2 was there when the extensions were compiled."""
    return importlib.util.find_spec("takhin.rpc.fast.connection") is not None


def is_wanted(settings: Settings, *, is_asked: bool) -> bool:
    """Whether it is to serve. is_asked: fast_listen was set by somebody; its default is for where it is built."""
    return bool(settings.fast_listen) and (is_asked or is_built())


def load_fast_front() -> "type[FastFront]":
    """Raises StartError: it is not built, or what it is linked with is gone."""
    if not is_built():
        raise StartError(
            "fast_listen: the fast front is not built: install libnghttp2-dev and pkg-config, then build again "
            "(make build)")
    try:
        front: type[FastFront] = importlib.import_module("takhin.rpc.fast.front").FastFront
    except ImportError as problem:
        raise StartError(f"fast_listen: the fast front can't be loaded: {problem}") from None
    return front


async def start_fast_front(
    settings: Settings, *, is_asked: bool, table: "MethodTable", security: "Security"
) -> "tuple[FastFront, str] | None":
    """The front, and where it serves; None: it does not. Raises StartError, where it was asked for."""
    if not is_wanted(settings, is_asked=is_asked):
        return None
    try:
        front = load_fast_front()(table, settings.grpc, security.tls, settings.limits)
        return front, await front.start(settings.fast_listen)
    except StartError as problem:
        if is_asked:
            raise
        _log.warning(
            "no fast front: %s; nobody has set fast_listen: give it another address, or \"\" for none", problem)
        return None
