"""What both programs are made of: click's commands with sections of options, loaded when they are run, and one line for
each thing that goes wrong.

click's own main() is not used: it would show usage errors in two lines, and a line of its own after Ctrl-C.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import click

from takhin.cli.command import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_PIPE_CLOSED, EXIT_USAGE, CommandError
from takhin.cli.terminal import complain
from takhin.errors import ConfigError, StartError

# Wider lines are hard to read, however wide the terminal is.
HELP_COLUMNS = 100
CONTEXT = {"help_option_names": ["--help", "-h"], "max_content_width": HELP_COLUMNS}
ENVIRONMENT_PREFIX = "TAKHIN"


class Lazy(NamedTuple):
    """A command that is imported when it is run, or when help is asked of it. about: its short help, before that."""

    module: str
    about: str


class Option(click.Option):
    """section: the heading it stands below in --help; without one it is "Options"."""

    def __init__(self, *declarations: Any, section: str = "", **rest: Any):
        super().__init__(*declarations, **rest)
        self.section = section


class Command(click.Command):
    """A command whose help has its options in sections, each in the order in which they were declared."""

    def __init__(self, *positional: Any, **rest: Any):
        super().__init__(*positional, **{"context_settings": CONTEXT} | rest)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            # What an argument is, the text above the options says.
            if isinstance(parameter, click.Option) and (row := parameter.get_help_record(ctx)) is not None:
                sections.setdefault(getattr(parameter, "section", ""), []).append(row)
        for section, rows in sections.items():
            with formatter.section(section or "Options"):
                formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # Not indented, as click has it: it is often an example, whose lines are to be copied.
        if self.epilog:
            formatter.write_paragraph()
            formatter.write_text(self.epilog)


class Group(Command, click.Group):
    """A group of commands that are in one module, or each in a module of its own (lazy, by the command's name)."""

    command_class = Command

    def __init__(self, *positional: Any, lazy: Mapping[str, Lazy] | None = None, **rest: Any):
        super().__init__(*positional, **{"no_args_is_help": False, "subcommand_metavar": "COMMAND ..."} | rest)
        self.lazy = dict(lazy or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.lazy, *self.commands]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.lazy:
            return self.commands.get(name)
        loaded: click.Command = importlib.import_module(self.lazy[name].module).COMMANDS[name]
        return loaded

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            raise click.UsageError(f"COMMAND is missing: {', '.join(self.list_commands(ctx))}", ctx)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and name not in self.lazy and name not in self.commands:
            known = self.list_commands(ctx)
            near = difflib.get_close_matches(name, known, 1)
            hint = f"the nearest is {near[0]!r}" if near else f"there are {', '.join(known)}"
            raise click.UsageError(f"no command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, each.about) for name, each in self.lazy.items()]
        # As wide as needed: a short help that was cut is no help.
        rows += [(name, each.get_short_help_str(HELP_COLUMNS)) for name, each in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
        super().format_options(ctx, formatter)


def run(command: click.Command, prog: str, argv: Sequence[str] | None) -> int:
    """Run a command with these arguments (None: sys.argv[1:]); gives the exit status and raises nothing.

    What a command returns is its exit status, None: 0.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with command.make_context(prog, arguments, auto_envvar_prefix=ENVIRONMENT_PREFIX) as context:
            return command.invoke(context) or EXIT_OK
    except click.exceptions.Exit as ended:  # --help and --version
        return ended.exit_code
    except click.UsageError as problem:
        complain(prog, usage_line(problem, prog))
        return EXIT_USAGE
    except CommandError as problem:
        complain(prog, str(problem))
        return problem.status
    except ConfigError as problem:
        complain(prog, str(problem))
        return EXIT_USAGE
    except BrokenPipeError:
        _forget_output()
        return EXIT_PIPE_CLOSED
    except (StartError, OSError, ImportError) as problem:
        complain(prog, told(problem))
        return EXIT_FAILED
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED


def usage_line(problem: click.UsageError, prog: str) -> str:
    """A mistake in the arguments, in one line that says where help is."""
    path = problem.ctx.command_path if problem.ctx is not None else prog
    message = " ".join(problem.format_message().split()).replace(". Did you mean", "; did you mean").rstrip(".?")
    if message[1:2].islower():
        message = message[0].lower() + message[1:]
    return f"{message}; see {path} --help"


def told(problem: Exception) -> str:
    """What went wrong outside, in one line."""
    if isinstance(problem, ImportError):
        hint = "; are the extensions built (make build)?" if (problem.name or "").startswith("takhin.") else ""
        return f"cannot load {problem.name}: {problem}{hint}"
    if isinstance(problem, OSError):
        what = f"{problem.filename}: " if problem.filename else ""
        return f"{what}{problem.strerror or problem}"
    return str(problem)


def _forget_output() -> None:
    """What a closed pipe leaves in sys.stdout's buffer would turn the exit status into 120."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
