"""Everything that a broker serves, on whatever front."""

from takhin.broker.broker import Broker
from takhin.rpc.call import MethodTable, method_table, service_names
from takhin.rpc.health import Health
from takhin.rpc.reflection import SERVICES, reflection_methods
from takhin.rpc.service import takhin_methods


def served(broker: Broker) -> tuple[MethodTable, Health]:
    """The broker's own methods, health and reflection; and the Health, which says that nothing serves yet."""
    methods = takhin_methods(broker)
    health = Health([*service_names(methods), *SERVICES])
    methods += health.methods()
    return method_table(methods, reflection_methods(service_names(methods))), health
