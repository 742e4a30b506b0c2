"""What the audit log tells of each call that is in it: the request, and of the response what the broker chose or found.

Each function is given both, the response None where the call failed. What it gives is a line each, none where there is
nothing to tell. Nothing that proves who somebody is, as a new key, is in them.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from takhin.rpc.access_service import MAX_ENTRIES
from takhin.v1 import access_pb2 as access

# Of partitions and configs in one line: so many are named, of others how many they are.
MAX_NAMED = 20


def topic_created(request: Any, response: Any) -> str:
    """What is not given is as the broker's defaults have it."""
    return _told(f"topic {request.name}", _partitions(request) + _configs(request))


def topic_changed(request: Any, response: Any) -> str:
    resets = _shown(request.reset_configs, lambda key: f"{key} reset")
    return _told(f"topic {request.name}", _configs(request) + resets + _partitions(request))


def topic_deleted(request: Any, response: Any) -> str:
    return f"topic {request.name}"


def partition_truncated(request: Any, response: Any) -> str:
    return f"topic {request.topic}/{request.partition} before {request.before_offset}"


def group_deleted(request: Any, response: Any) -> str:
    return f"group {request.group_id}"


def offsets_reset(request: Any, response: Any) -> str | list[str]:
    """From which offset to which; where it failed, what was named. Of a dry run nothing."""
    if request.dry_run:
        return []
    target = request.WhichOneof("to")
    how = {
        "earliest": " to earliest", "latest": " to latest", "offset": f" to offset {request.offset}",
        "time_ms": f" to time_ms {request.time_ms}", "shift_by": f" by {request.shift_by:+}",
    }.get(target, "")
    if response is not None:
        parts = _shown(response.offsets, lambda each: (
            f"{each.topic}/{each.partition} {each.old_offset if each.HasField('old_offset') else 'none'}->"
            f"{each.new_offset}"))
    else:
        parts = _shown(request.partitions, lambda each: f"{each.topic}/{each.partition}") + _shown(request.topics)
    return _told(f"group {request.group_id}{how}", parts)


def key_created(request: Any, response: Any) -> str:
    return f"API key of name {request.name}" if response is None else _key(response.info)


def key_revoked(request: Any, response: Any) -> str:
    return f"API key {request.id}" if response is None else _key(response.info)


def acls_changed(request: Any, response: Any) -> str | list[str]:
    """A line for each entry."""
    if len(request.acls) > MAX_ENTRIES:
        return f"{len(request.acls)} entries"  # refused
    return [
        f"{_word(access.AclEffect, each.effect)} {each.principal} {_word(access.AclOperation, each.operation)} "
        f"{_word(access.AclResource, each.resource)} {each.name}{'*' * (each.pattern == access.ACL_PATTERN_PREFIX)}"
        for each in request.acls
    ]


def producer_begun(request: Any, response: Any) -> str | list[str]:
    """With a name, whoever had it before is fenced; without one nobody is."""
    if not request.name:
        return []
    return _told(f"producer {request.name}", [] if response is None else [f"id {response.id}, epoch {response.epoch}"])


def _told(what: str, parts: list[str]) -> str:
    return f"{what}: {', '.join(parts)}" if parts else what


def _partitions(request: Any) -> list[str]:
    count = request.num_partitions
    return [f"{count} partition{'s' * (count != 1)}"] if count else []


def _configs(request: Any) -> list[str]:
    return _shown(sorted(request.configs.items()), lambda each: f"{each[0]}={each[1]}")


def _shown(items: Sequence[Any], show: Callable[[Any], str] = str) -> list[str]:
    shown = [show(each) for each in items[:MAX_NAMED]]
    return [*shown, f"{len(items) - MAX_NAMED} more"] if len(items) > MAX_NAMED else shown


def _key(info: Any) -> str:
    # Not datetime, whose years end sooner than expiries may.
    expiry = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(info.expires_ms // 1000)) if info.expires_ms else "never"
    return f"API key {info.id} of name {info.name}, expires {expiry}"


def _word(enum: Any, number: int) -> str:
    """The last word of a value's name; a number that is not known here as it is."""
    known: dict[int, str] = {value: name for name, value in enum.items()}
    return known[number].rpartition("_")[2].lower() if number in known else str(number)
