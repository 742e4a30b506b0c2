"""A progress bar on standard error, when that is a terminal and it takes long."""

import os
import time
from types import TracebackType
from typing import Any

# What is done within this time shows no bar, and does not import rich.
_PATIENCE_S = 1.0
_REFRESH_S = 0.2


class Progress:
    """Used with `with`. about: what is being done. total_bytes: None where it is not known."""

    def __init__(self, about: str, total_bytes: int | None, *, is_wanted: bool = True):
        self._about = about
        self._total_bytes = total_bytes
        self._is_wanted = is_wanted and os.isatty(2)
        self._next_s = time.monotonic() + _PATIENCE_S
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done_bytes: int, records: int) -> None:
        """Called often; it draws now and then."""
        if not self._is_wanted or (now_s := time.monotonic()) < self._next_s:
            return
        self._next_s = now_s + _REFRESH_S
        if self._bar is None:
            self._start(done_bytes)
        self._bar.update(self._task, completed=done_bytes, records=f"{records:,} records")
        self._bar.refresh()

    def _start(self, done_bytes: int) -> None:
        from rich import progress
        from rich.console import Console

        columns: list[progress.ProgressColumn] = [progress.TextColumn("{task.description}")]
        if self._total_bytes is None:
            columns.append(progress.FileSizeColumn())
        else:
            # As wide as the terminal leaves room for.
            columns += [progress.BarColumn(bar_width=None), progress.TaskProgressColumn(), progress.DownloadColumn()]
        columns += [progress.TransferSpeedColumn(), progress.TextColumn("{task.fields[records]}")]
        if self._total_bytes is not None:
            columns.append(progress.TimeRemainingColumn(compact=True))
        self._bar = progress.Progress(
            *columns, console=Console(stderr=True), auto_refresh=False, transient=True,
            expand=self._total_bytes is not None)
        self._task = self._bar.add_task(self._about, total=self._total_bytes, completed=done_bytes, records="")
        self._bar.start()
