"""Readiness: our own services are ready as long as appends are taken; the server as a whole, "", is alive meanwhile."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

from takhin.rpc.health import Health, ServingStatus

# How often it is asked whether the broker takes appends.
CHECK_S = 0.25


class _Broker(Protocol):
    @property
    def unfit(self) -> str: ...


async def follow_readiness(
    broker: _Broker, health: Health, services: Iterable[str], tell: Callable[[str], None]
) -> None:
    """Set the services' statuses as the broker becomes unfit, and fit again. tell: is given each change after that: why
    it is unfit, or "". Until it is cancelled."""
    services = list(services)
    told = ""
    while True:
        unfit = broker.unfit
        if unfit != told:
            for service in services:
                health.set(service, ServingStatus.NOT_SERVING if unfit else ServingStatus.SERVING)
            told = unfit
            tell(unfit)
        await asyncio.sleep(CHECK_S)
