"""takhin doctor: is this machine fit for a broker, and is the data directory?"""

import os

import click

from takhin.cli.command import EXIT_FAILED, EXIT_OK
from takhin.cli.output import Column, show
from takhin.cli.program import Command, Option

_COLUMNS = (
    Column("", "status", is_whole=True), Column("CHECK", "check", is_whole=True), Column("FOUND", "found"),
    Column("WHAT TO DO", "advice"))


def _doctor(data_dir: str | None, config_file: str | None, output: str | None) -> int:
    """Look at this machine and at the data directory as a broker would use them, and say what to change: settings, open
    files, memory, filesystem, space, permissions, ports, clock, versions, and how long the disk takes for a sync. It
    writes a file of 4 KiB in the data directory (or, as long as that is not there, above it) and removes it.
    """
    from takhin.cli.doctor_checks import BAD, examine

    findings = examine(os.environ, config_file, data_dir)
    show([each._asdict() for each in findings], _COLUMNS, output)
    return EXIT_FAILED if any(each.status == BAD for each in findings) else EXIT_OK


COMMANDS = {
    "doctor": Command(
        "doctor", callback=_doctor, help=_doctor.__doc__,
        epilog="Exit status: 0 when nothing is bad, 1 otherwise. What is marked warn works, but not well, or not for "
        "long.",
        params=[
            Option(["--data-dir"], metavar="DIR", help="The data directory, in place of the one in the settings."),
            Option(["--config", "config_file"], metavar="FILE", envvar="TAKHIN_CONFIG",
                   help="takhin-server's TOML file."),
            Option(["-O", "--output"], type=click.Choice(["table", "json", "jsonl"]), envvar="TAKHIN_OUTPUT",
                   help="How to show it (TAKHIN_OUTPUT).  [default: table on a terminal, else jsonl]"),
        ]),
}
