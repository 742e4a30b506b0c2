"""What was broken, told so often that it can be seen, and no more often."""

from collections import Counter


class Breaches:
    """Adds to `told`, of each kind no more than `shown`; end() tells how many were left out."""

    def __init__(self, told: list[str], shown: int):
        self._told = told
        self._shown = shown
        self._kinds: Counter[str] = Counter()

    def add(self, kind: str, text: str) -> None:
        self._kinds[kind] += 1
        if self._kinds[kind] <= self._shown:
            self._told.append(text)

    def end(self) -> None:
        for kind, count in self._kinds.items():
            if count > self._shown:
                self._told.append(f"… and {count - self._shown} more like it ({kind})")
