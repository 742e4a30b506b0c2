"""How takhin's commands end."""

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141


class CommandError(Exception):
    """A command can't do what it was asked to. One line for the operator; the exit status is EXIT_USAGE."""
