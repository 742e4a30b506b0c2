"""takhin backup: a copy of a data directory, also of a running broker's."""

import click

from takhin.cli.program import Command, Option

_EPILOG = """\
Exit status: 0 when the copy is whole; 1 when it could not be made: then nothing has the name DEST; 1 as well when
--verify finds it damaged, as DIR is: then DEST stays. It gets its name last: interrupted after that, or unable to sync
the directory it is in, the command fails too, and DEST stays, whole. To restore: copy DEST to where the data
directory is to be, start a broker on it.
"""


def _backup(directory: str, destination: str, verify: bool) -> int:
    """Copy DIR, the data directory of a broker that runs or does not, to DEST, which must not be there yet.

    The copy is what a power cut would have left of a running broker's directory: everything that was acknowledged as
    durable before the backup began is in it, without a gap, with topics, groups' offsets, producers, keys and ACLs; of
    what came later there may be a part, of a transaction all or nothing. What starts and repairs have set aside is left
    out. Run it as the broker's user, on its machine; the broker goes on meanwhile.
    """
    from takhin.cli.backup_copy import backup

    return backup(directory, destination, verify=verify)


COMMANDS = {
    "backup": Command(
        "backup", callback=_backup, help=_backup.__doc__, epilog=_EPILOG,
        params=[click.Argument(["directory"], metavar="DIR"), click.Argument(["destination"], metavar="DEST"),
                Option(["--verify"], is_flag=True, help="Audit the copy, as takhin segment verify does.")]),
}
