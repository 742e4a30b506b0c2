"""All settings as text: deploy/takhin.toml and docs/configuration.md, made of what config.py says of each.

python -m takhin.cli.config_text writes the page; takhin config example shows the file.
"""

import sys
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from itertools import groupby

from takhin.config import Option, Settings, options

_COLUMNS = 100

_FILE_HEAD = """\
# The settings of takhin-server, all of them, each at its default and commented out: what stands behind a # without a
# blank is the setting itself. takhin-server --config FILE reads the file; takhin config check FILE tells what is wrong
# with it. A flag (--grpc-max-message-bytes) beats a variable (TAKHIN_GRPC__MAX_MESSAGE_BYTES), a variable beats this.
#
# "SIGHUP" marks those that a running broker takes over when it gets that signal; all others wait for the next start.
# Written by takhin config example.
"""

_PAGE_HEAD = """\
# Configuration

Made from the settings themselves by `make docs`. Every setting has a flag of `takhin-server`, an environment variable
and a key in a TOML file; a flag beats the variable, the variable beats the file, the file beats the default. A key, a
flag or a `TAKHIN_SECTION__KEY` that is none is refused, with the nearest known one.

    takhin config example > takhin.toml     # a file with all of them, commented out: also deploy/takhin.toml
    takhin config check takhin.toml         # what is wrong with it, and with the files it names, a line each
    takhin config show --config takhin.toml # each value and where it comes from
    takhin-server --config takhin.toml
    kill -HUP PID                           # read file, certificates and keys again

**SIGHUP.** Settings marked "yes" take hold in the running broker, those of topics in the topics that are there, too, as
far as these have no configs of their own; limits hold for what comes from then on. A changed setting that is marked
"no" stays as it is; the log says `needs a restart: KEY`. When the file is wrong, or what is new in it does not fit what
stays, nothing changes, and the log says why in one line. Flags and variables are those of the start. Without
`--config`, too, certificates, keys and key sets are read again at once (otherwise within `tls.check_ms`).
"""


def example() -> str:
    """The TOML file."""
    parts = [_FILE_HEAD]
    for section, known in _sections():
        parts.append(f"\n{_comment(_sentence(_about(section)))}\n[{section}]\n" if section else "")
        for option in known:
            marked = " SIGHUP." if option.reloads else ""
            text = _sentence(f"{option.metadata['help']}. Allowed: {option.allowed()}.") + marked
            parts.append(f"\n{_comment(text)}\n#{option.name} = {_toml(option.default)}\n")
    return "".join(parts)


def reference() -> str:
    """The page."""
    parts = [_PAGE_HEAD]
    for section, known in _sections():
        title = f"[{section}]" if section else "At the top level"
        parts.append(f"\n## {title}\n\n{_sentence(_about(section))}\n" if section else f"\n## {title}\n")
        parts.append("\n| key | default | what | allowed | flag, variable | SIGHUP |\n|---|---|---|---|---|---|\n")
        for option in known:
            cells = (
                f"`{option.name}`", f"`{_toml(option.default)}`", _sentence(option.metadata["help"]), option.allowed(),
                f"`{option.flag}` `{option.variable}`", "yes" if option.reloads else "no")
            parts.append("| " + " | ".join(each.replace("|", "\\|") for each in cells) + " |\n")
    return "".join(parts)


def _sections() -> Iterator[tuple[str, Iterator[Option]]]:
    return groupby(options(), lambda option: option.section)


def _about(section: str) -> str:
    """What the section's class says of itself."""
    for each in fields(Settings):
        if each.name == section and is_dataclass(each.type):
            return " ".join((each.type.__doc__ or "").split()).partition(": ")[2]
    raise ValueError(f"{section!r} is no section")


def _comment(text: str) -> str:
    return textwrap.fill(text, _COLUMNS, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _toml(value: str | int | bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    # No default has anything that a basic string would need an escape for.
    return f'"{value}"' if isinstance(value, str) else str(value)


if __name__ == "__main__":
    sys.stdout.write(reference())
