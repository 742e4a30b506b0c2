"""How many connections a listening address has, from what the operating system tells: gRPC has nobody to ask."""

from takhin.config import unix_path

# As /proc/net/tcp has it: the local address, as hexadecimal IP:PORT; the state; the socket's inode.
_LOCAL, _STATE, _INODE = 1, 3, 9
# Those whose other end is or may be there: established, and closed by the other end alone.
_OPEN_STATES = ("01", "08")
# /proc/net/unix: the state; the inode; the path.
_UNIX_STATE, _UNIX_PATH = 5, 7
_UNIX_CONNECTED = "03"


def count_connections(bound: str) -> int:
    """Those accepted on `bound` ("HOST:PORT", "unix:PATH"). Takes as long as the machine has connections."""
    path = unix_path(bound)
    if path is not None:
        return sum(
            1 for fields in _table("unix")
            if len(fields) > _UNIX_PATH and fields[_UNIX_STATE] == _UNIX_CONNECTED and fields[_UNIX_PATH] == path)
    port = f":{int(bound.rpartition(':')[2]):04X}"
    return sum(
        1 for name in ("tcp", "tcp6") for fields in _table(name)
        # One that waits to be accepted has no inode yet.
        if fields[_LOCAL].endswith(port) and fields[_STATE] in _OPEN_STATES and fields[_INODE] != "0")


def _table(name: str) -> list[list[str]]:
    try:
        with open(f"/proc/self/net/{name}", encoding="ascii", errors="replace") as file:
            return [line.split() for line in file][1:]
    except OSError:
        return []  # without IPv6
