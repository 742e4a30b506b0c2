"""Pauses between attempts: longer each time, and no two clients in step."""

import random

FIRST_S = 0.05
LONGEST_S = 2.0


def pause_s(attempt: int) -> float:
    """Before the next attempt, when `attempt` (1, 2, ...) of them have failed."""
    # Of its length, half is left to chance: clients that lost the same broker don't come back together.
    longest_s = min(FIRST_S * 2.0 ** min(attempt - 1, 16), LONGEST_S)
    return longest_s * random.uniform(0.5, 1.0)
