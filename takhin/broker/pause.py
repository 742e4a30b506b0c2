"""The pause between two looks of a task that goes on for ever."""

import asyncio
from collections.abc import Callable

# A length that has changed meanwhile is noticed after so long.
_STEP_S = 1.0


async def pause(length_ms: Callable[[], int], is_over: Callable[[], bool] = lambda: False) -> None:
    """Return when length_ms() have passed, as it is by then, or is_over()."""
    waited_s = 0.0
    while (left_s := length_ms() / 1000 - waited_s) > 0:
        step_s = min(left_s, _STEP_S)
        await asyncio.sleep(step_s)
        if is_over():
            return
        waited_s += step_s
