"""takhin segment: look into a data directory's files, audit them, and bring a damaged one back into use."""

import argparse
from typing import Any

_DIRECTORY = "a broker's data directory (--data-dir)"


def add(groups: Any) -> None:
    """Add this group's commands to the program's."""
    about = "look into a data directory's files, audit and repair them, without a broker"
    group = groups.add_parser("segment", help=about, description=f"{about.capitalize()}.", allow_abbrev=False)
    commands = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_dump(commands)
    _add_verify(commands)
    _add_repair(commands)


def _add_dump(commands: Any) -> None:
    command = _command(
        commands, "dump", "show what segment, index, journal and snapshot files hold", _dump,
        description="Shows what is in a segment (.log), index, journal or producers' snapshot file, or in each of "
        "those in a directory: headers, batches, with --records the records. Damage is shown where it is, and what "
        "can be read behind it too. Of a running broker's files it shows what is there at the moment.",
        epilog="Exit status: 0 when all was whole, 1 when there is damage or an end that is cut short, 2 when nothing "
        "could be shown.",
    )
    command.add_argument("path", metavar="FILE|DIR")
    command.add_argument("--records", action="store_true", help="show the records of each batch")
    command.add_argument("--json", action="store_true", help="one JSON object a line; keys and values in base64")
    command.add_argument("--from", dest="from_offset", type=_number, metavar="OFFSET", default=0,
                         help="leave out what lies before this offset (default 0)")
    command.add_argument("--count", type=_number, metavar="N",
                         help="end after so many batches, with --records after so many records")


def _add_verify(commands: Any) -> None:
    command = _command(
        commands, "verify", "audit a data directory", _verify,
        description="Audits all of a data directory that no broker uses: every checksum, the order and the place of "
        "all segments, indexes, the journal, the metadata. It changes nothing, and tells what the next start will "
        "do: cut a torn tail, or serve a damaged partition only up to the damage.",
        epilog="Exit status: 0 when it is sound, 1 when it is damaged, 2 when it can't be examined. A torn tail is "
        "what a crash leaves of records that were never acknowledged as durable; the next start cuts it, and it is no "
        "damage.",
    )
    command.add_argument("directory", metavar="DIR", help=_DIRECTORY)
    command.add_argument("--json", action="store_true", help="one JSON object a line")


def _add_repair(commands: Any) -> None:
    command = _command(
        commands, "repair", "make damaged partitions take appends again", _repair,
        description="Each damaged partition keeps its longest whole beginning; all that follows is put into "
        "DIR/set-aside/NUMBER, byte for byte. Nothing is ever destroyed. Tells first what it will do, and what is "
        "lost, and asks.",
        epilog="Exit status: 0 when the directory is sound, 1 when it is not or the answer was no, 2 when it can't be "
        "done.",
    )
    command.add_argument("directory", metavar="DIR", help=_DIRECTORY)
    command.add_argument("--dry-run", action="store_true", help="only tell what it would do")
    command.add_argument("--yes", action="store_true", help="do not ask")
    command.add_argument("--json", action="store_true", help="one JSON object a line; takes --yes or --dry-run")


def _command(commands: Any, name: str, about: str, run: Any, **texts: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=about, allow_abbrev=False, **texts)
    command.set_defaults(run=run)
    return command


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return int(text)


def _dump(arguments: argparse.Namespace) -> int:
    from takhin.cli.dump import dump

    return dump(
        arguments.path, records=arguments.records, as_json=arguments.json, from_offset=arguments.from_offset,
        count=arguments.count,
    )


def _verify(arguments: argparse.Namespace) -> int:
    from takhin.cli.verify import verify

    return verify(arguments.directory, as_json=arguments.json)


def _repair(arguments: argparse.Namespace) -> int:
    from takhin.cli.repair import repair

    return repair(arguments.directory, dry_run=arguments.dry_run, yes=arguments.yes, as_json=arguments.json)
