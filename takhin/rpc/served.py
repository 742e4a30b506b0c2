"""Everything that a broker serves, on whatever front."""

from typing import TYPE_CHECKING, NamedTuple

from takhin.broker.broker import Broker
from takhin.rpc.access import Guard
from takhin.rpc.access_service import access_methods
from takhin.rpc.authentication import Authentication
from takhin.rpc.call import MethodTable, method_table, service_names
from takhin.rpc.gates import Gates
from takhin.rpc.health import Health
from takhin.rpc.observed import Observer
from takhin.rpc.reflection import SERVICES, reflection_methods
from takhin.rpc.service import takhin_methods

if TYPE_CHECKING:
    from takhin.rpc.tracing import Tracing


class Served(NamedTuple):
    """table: all methods, guarded as the settings have it. health: says that nothing serves yet. services: the broker's
    own. local: the table for the process that the broker is in, where nobody has to say who he is, and which the gates
    are not for.
    """

    table: MethodTable
    health: Health
    services: list[str]
    local: MethodTable
    gates: Gates


def served(
    broker: Broker, authentication: Authentication | None = None, reflection: str = "authenticated",
    observer: Observer | None = None, tracing: "Tracing | None" = None
) -> Served:
    """The broker's own methods, health and reflection. reflection: who may ask for it, as in auth.reflection. observer:
    None: nobody is told what is slow. tracing: None: there are no spans."""
    observer = observer or Observer()

    def seen(guard: Guard) -> MethodTable:
        guarded = guard.guarded(methods)
        return method_table(observer.observed(guarded if tracing is None else tracing.traced(guarded)))

    methods = takhin_methods(broker) + access_methods(broker.access)
    services = service_names(methods)
    is_reflected = reflection != "off"
    health = Health([*services, *(SERVICES if is_reflected else ())])
    methods += health.methods()
    if is_reflected:
        methods += reflection_methods(service_names(methods))
    gates = Gates(broker.settings.limits)
    methods = gates.gated(methods)
    local = seen(Guard(broker, None))
    guard = Guard(broker, authentication, gates.clients, open_reflection=reflection == "open")
    return Served(seen(guard), health, services, local, gates)
