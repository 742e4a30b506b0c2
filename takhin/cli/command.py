"""How takhin's commands end."""

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_ACCESS = 4
EXIT_UNREACHABLE = 5
EXIT_TIMEOUT = 6
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141


class CommandError(Exception):
    """A command can't do what it was asked to. One line for its user, which also says what to do next.

    Attributes: status (the exit status).
    """

    def __init__(self, message: str, status: int = EXIT_FAILED):
        super().__init__(message)
        self.status = status
