"""Ending tasks."""

import asyncio
from typing import Any


async def end(task: "asyncio.Task[Any]") -> None:
    """Cancel a task, and return when it has ended, whatever it raised. Who is cancelled meanwhile learns it."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()
