"""takhin completion: what a shell needs to complete commands, options, topics and groups."""

import click
from click.shell_completion import get_completion_class

from takhin.cli.output import write_text
from takhin.cli.program import Command

_SHELLS = ("bash", "zsh", "fish")

_EPILOG = """\
\b
  bash:  echo 'eval "$(takhin completion bash)"' >> ~/.bashrc
  zsh:   echo 'eval "$(takhin completion zsh)"' >> ~/.zshrc
  fish:  takhin completion fish > ~/.config/fish/completions/takhin.fish
"""


def _completion(shell: str) -> None:
    """Write the script that makes a shell complete takhin's commands, options, topics and groups. The latter two are
    asked of the broker that TAKHIN_BROKER names.
    """
    from takhin.cli.main import PROG, VARIABLE, program

    kind = get_completion_class(shell)
    assert kind is not None
    made = kind(program, {}, PROG, VARIABLE)
    # Not made.source(): for bash it would run bash, to look how old that is.
    write_text(made.source_template % made.source_vars() + "\n")


COMMANDS = {
    "completion": Command("completion", callback=_completion, help=_completion.__doc__, epilog=_EPILOG, params=[
        click.Argument(["shell"], type=click.Choice(_SHELLS), metavar="|".join(_SHELLS))]),
}
