"""Everything that a broker serves, on whatever front."""

from typing import NamedTuple

from takhin.broker.broker import Broker
from takhin.rpc.call import MethodTable, method_table, service_names
from takhin.rpc.health import Health
from takhin.rpc.reflection import SERVICES, reflection_methods
from takhin.rpc.service import takhin_methods


class Served(NamedTuple):
    """table: all methods. health: says that nothing serves yet. services: the broker's own."""

    table: MethodTable
    health: Health
    services: list[str]


def served(broker: Broker) -> Served:
    """The broker's own methods, health and reflection."""
    methods = takhin_methods(broker)
    services = service_names(methods)
    health = Health([*services, *SERVICES])
    methods += health.methods()
    return Served(method_table(methods, reflection_methods(service_names(methods))), health, services)
