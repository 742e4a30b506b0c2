"""takhin: tools around a broker and its data directory, one module for each group of commands.

Exit status: 0 when all is well, 1 when what was looked for is not (each command says what that is), 2 for a usage error
or when it can't be done, 130 after Ctrl-C, 141 when nobody reads the output any more.

A group's module has add(), which says what its commands take; what they are made of it imports when one is run, so that
--help and a mistyped option answer at once.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from takhin import __version__
from takhin.cli.command import EXIT_INTERRUPTED, EXIT_PIPE_CLOSED, EXIT_USAGE, CommandError
from takhin.cli.terminal import complain, open_standard_streams
from takhin.errors import StartError

PROG = "takhin"
GROUPS = ("takhin.cli.segment",)


class Parser(argparse.ArgumentParser):
    """An error is one line that says where help is."""

    def error(self, message: str) -> NoReturn:
        complain(PROG, f"{message}; see {self.prog} --help")
        sys.exit(EXIT_USAGE)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; `argv` is sys.argv[1:] when not given. Gives the exit status; --help and --version exit."""
    open_standard_streams()
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except CommandError as problem:
        complain(PROG, str(problem))
    except StartError as problem:
        complain(PROG, str(problem))
    except BrokenPipeError:
        return EXIT_PIPE_CLOSED
    except OSError as problem:
        what = f"{problem.filename}: " if problem.filename else ""
        complain(PROG, f"{what}{problem.strerror or problem}")
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except ImportError as problem:
        hint = "; are the extensions built (make build)?" if (problem.name or "").startswith("takhin.") else ""
        complain(PROG, f"cannot load {problem.name}: {problem}{hint}")
    return EXIT_USAGE


def _parser() -> Parser:
    parser = Parser(
        prog=PROG,
        description="Tools around a Takhin broker and its data directory; takhin-server is the broker itself.",
        epilog="Exit status: 0 when all is well, 1 when it is not, 2 for a usage error or when it can't be done.",
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROG} {__version__}", help="show it and exit")
    parser.add_argument("--help", "-h", action="help", help="show this and exit")
    groups = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
    for name in GROUPS:
        importlib.import_module(name).add(groups)
    return parser


if __name__ == "__main__":
    sys.exit(main())
