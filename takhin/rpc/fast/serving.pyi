from takhin.rpc.call import MethodTable
from takhin.rpc.fast.served import Served

def served_methods(table: MethodTable) -> dict[bytes, Served]: ...
