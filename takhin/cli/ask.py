"""Asking before something is done that can't be undone."""

import sys

from takhin.cli.command import EXIT_USAGE, CommandError


def confirm(question: str) -> None:
    """Ask on the terminal. Raises CommandError: there is none, or the answer is no."""
    if sys.stdin is None or not sys.stdin.isatty():  # None: it was closed
        raise CommandError(
            "nothing was changed: standard input is no terminal to ask on; add --yes to do it", EXIT_USAGE)
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CommandError("nothing was changed")
