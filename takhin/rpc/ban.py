"""Addresses whose packets a listening socket does not see for a while: a filter in the kernel, as any program may
attach to a socket of its own. Connections that are open already are not touched."""

import ctypes
import ipaddress
import socket
import struct
from collections.abc import Iterable

# Of <linux/filter.h>: instructions of classic BPF, and where the network header is.
_LOAD_BYTE, _LOAD_WORD, _AND, _JUMP_IF_EQUAL, _RETURN = 0x30, 0x20, 0x54, 0x15, 0x06
_NETWORK_HEADER = 0xFFF00000
_SOURCE_V4, _SOURCE_V6 = 12, 8
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_DROP, _KEEP = 0, 0xFFFFFFFF
# A program may have 4,096 instructions.
MAX_BANNED = 256

_Instruction = tuple[int, int, int, int]


def ban(listener: socket.socket, hosts: Iterable[str]) -> None:
    """These addresses and no others: an empty one lets all in. Those that are no IP address are left out. Raises
    OSError."""
    addresses = [address for host in hosts if (address := _address(host)) is not None][:MAX_BANNED]
    if not addresses:
        try:
            listener.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
        except FileNotFoundError:
            pass  # none was there
        return
    program = b"".join(struct.pack("=HBBI", *each) for each in _program(addresses))
    code = ctypes.create_string_buffer(program, len(program))
    length = len(program) // 8
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", length, ctypes.addressof(code)))


def _program(addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> list[_Instruction]:
    """Drops what comes from them, and keeps the rest."""
    v4 = [_of_v4(address) for address in addresses if address.version == 4]
    v6 = [_of_v6(address) for address in addresses if address.version == 6]
    of_v4, of_v6 = sum(v4, []), sum(v6, [])
    keep = (_RETURN, 0, 0, _KEEP)
    # A jump skips at most 255 instructions: one over a jump without that bound.
    return [
        (_LOAD_BYTE, 0, 0, _NETWORK_HEADER), (_AND, 0, 0, 0xF0), (_JUMP_IF_EQUAL, 0, 1, 0x40),
        (0x05, 0, 0, len(of_v6) + 1), *of_v6, keep, *of_v4, keep]


def _of_v4(address: ipaddress.IPv4Address) -> list[_Instruction]:
    return [
        (_LOAD_WORD, 0, 0, _NETWORK_HEADER + _SOURCE_V4), (_JUMP_IF_EQUAL, 0, 1, int(address)), (_RETURN, 0, 0, _DROP)]


def _of_v6(address: ipaddress.IPv6Address) -> list[_Instruction]:
    words = struct.unpack(">4I", address.packed)
    found: list[_Instruction] = []
    for number, word in enumerate(words):
        # On to the next address where one of the four differs.
        found += [
            (_LOAD_WORD, 0, 0, _NETWORK_HEADER + _SOURCE_V6 + 4 * number),
            (_JUMP_IF_EQUAL, 0, 2 * (3 - number) + 1, word)]
    return [*found, (_RETURN, 0, 0, _DROP)]


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
